"""The rows of other libraries' optimizers, held against the numeric probe of the real classes.

`python -m tests.probed_rows LIBRARY` probes every class of ROWS[LIBRARY] and prints one JSON document: for each, the lines
in which description and measurement differ, or why it could not be probed. In a process of its own, because some of
these libraries change what others do.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = tuple[str, dict[str, Any]]

ROWS: dict[str, list[Row]] = {
    "bitsandbytes": [
        ("optim.adamw.AdamW", {}),
        ("optim.adamw.AdamW8bit", {}),
        ("optim.adam.Adam8bit", {}),
        ("optim.adam.PagedAdam32bit", {}),
        ("optim.lamb.LAMB", {}),
        ("optim.ademamix.AdEMAMix", {}),
        ("optim.lion.Lion", {}),
        ("optim.sgd.SGD", {"lr": 0.1, "momentum": 0.9}),
        ("optim.lars.LARS", {"lr": 0.1, "momentum": 0.9}),
        ("optim.rmsprop.RMSprop", {}),
        ("optim.adagrad.Adagrad", {}),
    ],
    "torchao": [
        *((f"optim.adam.{name}{bits}", {}) for name in ("Adam", "AdamW") for bits in ("8bit", "4bit", "Fp8")),
        ("optim.adam.AdamW8bit", {"amsgrad": True}),
    ],
    "schedulefree": [
        ("adamw_schedulefree.AdamWScheduleFree", {}),
        ("radam_schedulefree.RAdamScheduleFree", {}),
        ("sgd_schedulefree.SGDScheduleFree", {}),
        ("adamw_schedulefree_reference.AdamWScheduleFreeReference", {}),
    ],
    "transformers": [
        ("optimization.Adafactor", {}),
        ("optimization.Adafactor", {"lr": 0.1, "beta1": 0.9, "relative_step": False, "scale_parameter": False}),
    ],
    "lion_pytorch": [("lion_pytorch.Lion", {})],
    "adan_pytorch": [("adan.Adan", {})],
    "came_pytorch": [("CAME.CAME", {"lr": 0.1})],
    "prodigyopt": [("prodigy.Prodigy", {})],
    "dadaptation": [
        (f"dadapt_{name}.{kind}", {})
        for name, kind in (
            ("adam", "DAdaptAdam"),
            ("sgd", "DAdaptSGD"),
            ("lion", "DAdaptLion"),
            ("adagrad", "DAdaptAdaGrad"),
            ("adan", "DAdaptAdan"),
        )
    ],
    "timm": [
        ("optim.adabelief.AdaBelief", {}),
        ("optim.adafactor.Adafactor", {"lr": 0.1}),
        ("optim.adafactor_bv.AdafactorBigVision", {"lr": 0.1, "min_dim_size_to_factor": 2}),
        ("optim.adamp.AdamP", {}),
        ("optim.adamw.AdamWLegacy", {"amsgrad": True}),
        ("optim.adan.Adan", {}),
        ("optim.adopt.Adopt", {}),
        ("optim.kron.Kron", {}),
        ("optim.lamb.Lamb", {"max_grad_norm": None}),
        ("optim.laprop.LaProp", {}),
        ("optim.lars.Lars", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("optim.lion.Lion", {}),
        ("optim.madgrad.MADGRAD", {}),
        ("optim.mars.Mars", {}),
        ("optim.muon.Muon", {}),
        ("optim.nadam.NAdamLegacy", {}),
        ("optim.nadamw.NAdamW", {}),
        ("optim.nvnovograd.NvNovoGrad", {"amsgrad": True}),
        ("optim.radam.RAdamLegacy", {}),
        ("optim.rmsprop_tf.RMSpropTF", {"lr": 0.1, "momentum": 0.8, "alpha": 0.9, "centered": True}),
        ("optim.sgdp.SGDP", {"lr": 0.1, "momentum": 0.9}),
        ("optim.sgdw.SGDW", {"lr": 0.1, "momentum": 0.9}),
    ],
    "pytorch_optimizer": [
        (f"optimizer.{place}", options)
        for place, options in (
            ("adabelief.AdaBelief", {"ams_bound": True}),
            ("adabound.AdaBound", {}),
            ("adafactor.AdaFactor", {}),
            ("adamp.AdamP", {}),
            ("adan.Adan", {}),
            ("adapnm.AdaPNM", {}),
            ("ademamix.AdEMAMix", {}),
            ("adopt.ADOPT", {}),
            ("came.CAME", {}),
            ("dadapt.DAdaptAdam", {}),
            ("dadapt.DAdaptLion", {}),
            ("dadapt.DAdaptSGD", {}),
            ("diffgrad.DiffGrad", {}),
            ("lamb.Lamb", {}),
            ("laprop.LaProp", {}),
            ("lion.Lion", {}),
            ("madgrad.MADGRAD", {}),
            ("prodigy.Prodigy", {}),
            ("radam.RAdam", {}),
            ("qhm.QHM", {"momentum": 0.9}),
            ("schedulefree.ScheduleFreeAdamW", {}),
            ("schedulefree.ScheduleFreeSGD", {}),
            ("schedulefree.ScheduleFreeRAdam", {}),
            ("sgd.SGDSaI", {}),
            ("sgd.SignSGD", {}),
            ("tiger.Tiger", {}),
        )
    ],
}

KNOWN_BETTER: dict[str, list[str]] = {
    "LBFGS": ["t: dtype described as python, measured gradient"],  # what a line search found
    "AdEMAMix": ["state1: role described as momentum, measured other"],  # two averages in one tensor
    "Lars": ["momentum_buffer: gradient_degree described as None, measured 0"],  # 1 without weight decay
    "Mars": [  # clipped, so that they are no power of the gradient
        "exp_avg: role described as momentum, measured other",
        "exp_avg_sq: role described as second_moment, measured other",
    ],
    # Bounds on its steps hide that the mean is debiased.
    "AdaBound": ["exp_avg: convention described as ema_debiased of gradient, but the update does not debias it"],
    # A running maximum in float32 is not seen to be bounded.
    "AdamW8bit": ["max_exp_avg_sq: role described as max_second_moment, measured second_moment"],
    "AdaBelief": ["max_exp_avg_var: role described as max_second_moment, measured second_moment"],
    # A sum from which the step size is estimated looks like a momentum.
    **{
        name: ["s: role described as other, measured momentum"]
        for name in ("DAdaptAdam", "DAdaptSGD", "DAdaptLion", "DAdaptAdan", "Prodigy")
    },
    "DAdaptAdaGrad": ["sk: role described as other, measured momentum"],
}
"""What a description knows and a probe cannot see, by class."""


def _reachable(library: str) -> None:
    """Make the modules of timm importable without timm itself, which wants torchvision."""
    if library == "timm":
        for package in ("timm", "timm.optim"):
            spec = find_spec("timm") if package == "timm" else None
            module = types.ModuleType(package)
            home = Path(next(iter(spec.submodule_search_locations or ()))) if spec else None
            module.__path__ = [str(home)] if home else [str(Path(sys.modules["timm"].__path__[0]) / "optim")]
            sys.modules[package] = module


def differences(library: str, place: str, options: dict[str, Any]) -> list[str]:
    """Where the row of a class and the class itself disagree, and whether a file of it is recognised as its own."""
    import torch

    import optstate
    from optstate.optimizers.registry import by_class, by_contents

    module, _, name = f"{library}.{place}".rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    spec = by_class(cls)
    if spec is None:
        return ["no row"]
    report = optstate.probe(cls, **options)
    optimizer = cls([torch.nn.Parameter(torch.ones(4, 3))], **options)
    # What is so small that a class does not quantise it is told as if it were.
    dtypes = {f"{spec.stored_as} blocks"} if spec.stored_as else set()
    fitting = by_contents(optimizer.param_groups[0], set(report.slots), dtypes)
    recognised = [] if spec in fitting else [f"taken for {[each.name for each in fitting]}"]
    return [*report.differences(spec), *recognised]


def main(library: str) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.compiler.set_stance("force_eager")
    _reachable(library)
    found = {}
    for place, options in ROWS[library]:
        try:
            found[f"{place} {options}"] = differences(library, place, options)
        except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer
            found[f"{place} {options}"] = [f"{type(error).__name__}: {error}"]
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

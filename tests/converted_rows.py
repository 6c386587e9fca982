"""Conversions between torch's Adam and the optimizers of other libraries, on the real classes.

`python -m tests.converted_rows LIBRARY` converts to and from every class of ROWS[LIBRARY], for states of several ages, and
prints one JSON document of faults: none for a class whose conversions hold. In a process of its own, as `probed_rows`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from typing import Any

from tests.probed_rows import _reachable

_MOMENTUM = {"lr": 0.1, "momentum": 0.9}
_OWN_RATE = {"lr": 1e-3, "beta1": 0.9, "relative_step": False, "scale_parameter": False}

ROWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "timm": [
        ("adabelief.AdaBelief", {}),
        ("adabelief.AdaBelief", {"rectify": False, "amsgrad": True}),
        ("adamp.AdamP", {}),
        ("adamw.AdamWLegacy", {}),
        ("adan.Adan", {}),
        ("lamb.Lamb", {"max_grad_norm": None}),
        ("lamb.Lamb", {}),
        ("lion.Lion", {}),
        ("nadam.NAdamLegacy", {}),
        ("nadamw.NAdamW", {}),
        ("radam.RAdamLegacy", {}),
        ("rmsprop_tf.RMSpropTF", {"momentum": 0.9}),
        ("rmsprop_tf.RMSpropTF", {"momentum": 0.9, "lr_in_momentum": False, "centered": True}),
        ("sgdp.SGDP", _MOMENTUM),
        ("sgdw.SGDW", _MOMENTUM),
    ],
    "torchao": [("AdamW8bit", {}), ("Adam4bit", {})],
    "bitsandbytes": [
        ("adamw.AdamW", {}),
        ("lamb.LAMB", {}),
        ("lion.Lion", {}),
        ("sgd.SGD", _MOMENTUM),
        ("rmsprop.RMSprop", {}),
        ("adagrad.Adagrad", {}),
    ],
    "schedulefree": [
        ("adamw_schedulefree.AdamWScheduleFree", {}),
        ("radam_schedulefree.RAdamScheduleFree", {}),
        ("adamw_schedulefree_reference.AdamWScheduleFreeReference", {}),
    ],
    "transformers": [("optimization.Adafactor", _OWN_RATE), ("optimization.Adafactor", {"beta1": 0.9})],
    "prodigyopt": [("prodigy.Prodigy", {}), ("prodigy.Prodigy", {"use_bias_correction": True, "slice_p": 7})],
    "dadaptation": [("dadapt_adam.DAdaptAdam", {}), ("dadapt_adam.DAdaptAdam", {"use_bias_correction": True})],
    "lion_pytorch": [("lion_pytorch.Lion", {})],
    "adan_pytorch": [("adan.Adan", {})],
    "came_pytorch": [("CAME.CAME", {"lr": 1e-3})],
    "pytorch_optimizer": [
        ("adabelief.AdaBelief", {}),
        ("adabound.AdaBound", {}),
        ("adamp.AdamP", {}),
        ("adan.Adan", {}),
        ("ademamix.AdEMAMix", {}),
        ("came.CAME", {}),
        ("dadapt.DAdaptAdam", {}),
        ("lamb.Lamb", {"max_grad_norm": 0.0}),
        ("lion.Lion", {}),
        ("prodigy.Prodigy", {}),
        ("prodigy.Prodigy", {"bias_correction": True}),
        ("qhm.QHM", {"lr": 0.1, "momentum": 0.9}),
        ("radam.RAdam", {}),
        ("schedulefree.ScheduleFreeAdamW", {}),
        ("schedulefree.ScheduleFreeRAdam", {}),
        ("sgd.SignSGD", {}),
        ("tiger.Tiger", {}),
    ],
}
PLACES = {
    "timm": "timm.optim.",
    "torchao": "torchao.optim.adam.",
    "bitsandbytes": "bitsandbytes.optim.",
    "pytorch_optimizer": "pytorch_optimizer.optimizer.",
}
AGES = (1, 2, 7, 400)
UNBOUNDED = ("Lamb", "LAMB", "AdaBound")
"""Their updates are as long as the weights, or approach SGD's with the count: what they do alone is no measure."""


def faults(cls: Any, options: dict[str, Any]) -> list[str]:
    """What does not hold of conversions between Adam and a class, one line each."""
    import torch

    def own(weights: torch.Tensor) -> Any:
        optimizer = cls([torch.nn.Parameter(weights.clone())], **{"weight_decay": 0.0, **options})
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    def adam(weights: torch.Tensor) -> Any:
        return torch.optim.Adam([torch.nn.Parameter(weights.clone())])

    found = []
    for shape in ((6, 5), (7,)):
        for age in AGES:
            found += [f"to, {shape}, t={age}: {fault}" for fault in _faults(adam, own, shape, age)]
            found += [f"from, {shape}, t={age}: {fault}" for fault in _faults(own, adam, shape, age)]
    return found


def _faults(before: Any, after: Any, shape: tuple[int, ...], age: int) -> list[str]:
    import torch

    from optstate.optimizers.conversion import route
    from optstate.optimizers.registry import by_class
    from tests.conversions import convert, parameter_of, put, slots_of, step

    generator = torch.Generator().manual_seed(age)
    weights, gradients = torch.randn(shape, generator=generator), torch.randn((age + 50, *shape), generator=generator)
    former, other = before(weights), after(weights)
    for gradient in gradients[:age]:
        step(former, gradient)
        step(other, gradient)
    target, fresh = after(parameter_of(former).detach()), after(parameter_of(former).detach())
    found = route(by_class(type(former)), by_class(type(target)), former.param_groups[0], target.param_groups[0])
    if isinstance(found, str):
        return [found]
    put(target, convert(former, target))
    wrong = []
    if found.exact:
        wrong = [
            f"{key} is not what the class would have kept"
            for key, value in slots_of(target).items()
            if key != "unorm_vec"
            and not torch.allclose(_plain(value), _plain(slots_of(other)[key]), rtol=1e-4, atol=1e-6)
        ]
    largest = [0.0] * 4
    for gradient in gradients[age:]:
        moved = [step(each, gradient).abs().max().item() for each in (target, former, fresh, other)]
        largest = [max(pair) for pair in zip(largest, moved, strict=True)]
    kept = [{key: _plain(value).shape for key, value in slots_of(each).items()} for each in (target, fresh)]
    if kept[0] != kept[1]:
        wrong.append(f"slots {kept[0]}, not {kept[1]}")
    comparable = not found.exact and type(target).__name__ not in UNBOUNDED
    if not largest[0] < float("inf") or (comparable and largest[0] > found.bound * max(largest[1:])):
        wrong.append(
            f"updates up to {largest[0]:.3g}, former {largest[1]:.3g}, fresh {largest[2]:.3g}, its own {largest[3]:.3g}"
        )
    return wrong


def _plain(value: Any) -> Any:
    import torch

    value = value.dequantize() if hasattr(value, "dequantize") and type(value) is not torch.Tensor else value
    return torch.as_tensor(value, dtype=torch.float64)


def main(library: str) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.compiler.set_stance("force_eager")
    if library not in ("torchao", "bitsandbytes"):
        torch.set_default_dtype(torch.float64)
    _reachable(library)
    found = {}
    for place, options in ROWS[library]:
        module, _, name = f"{PLACES.get(library, library + '.')}{place}".rpartition(".")
        found[f"{place} {options}"] = faults(getattr(importlib.import_module(module), name), options)
    sys.stdout.write("\n" + json.dumps({**found, **{key: [value] for key, value in facts(library).items() if value}}))


def facts(library: str) -> dict[str, str]:
    """Figures of single conversions, each as a fault where it is another than it must be; steps are in units of Adam's lr."""
    import torch

    from tests.conversions import built, continued, slots_of, step

    def steps(cls: Any, count: int, key: str | None = None, **options: Any) -> list[float]:
        former = built(torch.optim.Adam, torch.tensor([5.0]), lr=1e-3, eps=1e-30)
        for _ in range(400):
            step(former, torch.tensor([3.0]))
        target = continued(former, cls, **options)
        if hasattr(target, "train"):
            target.train()
        rate, moved = float(target.param_groups[0]["lr"]), []
        for _ in range(count):
            before = slots_of(target)[key].clone() if key else 0.0
            whole = step(target, torch.tensor([3.0])) * rate
            moved.append(((slots_of(target)[key] - before) if key else whole).item() / -1e-3)
        return moved

    found: dict[str, list[float]] = {}
    if library == "prodigyopt":
        cls = importlib.import_module("prodigyopt").Prodigy
        for corrected in (False, True):
            found[f"Prodigy, corrected {corrected}"] = steps(cls, 3, use_bias_correction=corrected, eps=1e-30)
    if library == "dadaptation":
        cls = importlib.import_module("dadaptation").DAdaptAdam
        for corrected in (False, True):
            found[f"DAdaptAdam, corrected {corrected}"] = steps(cls, 1, use_bias_correction=corrected, eps=1e-30)
    if library == "schedulefree":
        cls = importlib.import_module("schedulefree").AdamWScheduleFree
        found["AdamWScheduleFree"] = steps(cls, 3, key="z", lr=1e-3, eps=1e-30)
    return {name: f"{moved}" for name, moved in found.items() if any(abs(each - 1.0) > 2e-3 for each in moved)}


if __name__ == "__main__":
    main(sys.argv[1])

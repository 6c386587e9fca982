"""The rules of other libraries' optimizers, held against a step of the real classes.

`python -m tests.stepped_rows LIBRARY` predicts updates of every class of ROWS[LIBRARY], takes them, and prints one JSON
document: for each, the largest difference relative to the update. In a process of its own, as `probed_rows`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from typing import Any

from tests.probed_rows import _reachable

_UNCLIPPED = {"max_grad_norm": None}
ROWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "timm": [
        *(("adabelief.AdaBelief", each) for each in ({}, {"rectify": False}, {"rectify": False, "amsgrad": True})),
        *(("adamw.AdamWLegacy", {"amsgrad": amsgrad}) for amsgrad in (False, True)),
        ("adan.Adan", {}),
        *(
            ("lamb.Lamb", {**_UNCLIPPED, **each})
            for each in (
                {},
                {"weight_decay": 0.01, "trust_clip": True},
                {"always_adapt": True, "grad_averaging": False},
                {"bias_correction": False},
            )
        ),
        *(
            ("lars.Lars", {"lr": 0.1, "momentum": 0.9, **each})
            for each in ({}, {"weight_decay": 0.1, "nesterov": True}, {"always_adapt": True, "trust_clip": True})
        ),
        ("lion.Lion", {}),
        ("nadamw.NAdamW", {}),
        ("rmsprop_tf.RMSpropTF", {"momentum": 0.9}),
        ("rmsprop_tf.RMSpropTF", {"momentum": 0.9, "centered": True, "lr_in_momentum": False}),
        ("sgdw.SGDW", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ],
    "torchao": [("AdamW8bit", {}), ("AdamW8bit", {"amsgrad": True})],
    "lion_pytorch": [("lion_pytorch.Lion", {})],
    "prodigyopt": [("prodigy.Prodigy", {}), ("prodigy.Prodigy", {"use_bias_correction": True})],
    "pytorch_optimizer": [
        ("adan.Adan", {"max_grad_norm": 0.0}),
        ("ademamix.AdEMAMix", {}),
        ("lion.Lion", {}),
        ("prodigy.Prodigy", {}),
    ],
    "bitsandbytes": [
        ("adamw.AdamW", {}),
        ("lion.Lion", {}),
        ("sgd.SGD", {"lr": 0.1, "momentum": 0.9}),
        ("rmsprop.RMSprop", {}),
        ("adagrad.Adagrad", {}),
    ],
}
PLACES = {"timm": "timm.optim.", "torchao": "torchao.optim.adam.", "pytorch_optimizer": "pytorch_optimizer.optimizer."}
PLACES |= {"bitsandbytes": "bitsandbytes.optim."}
TOLERANCE = {"torchao": 1e-4, "bitsandbytes": 1e-6, "prodigyopt": 1e-5}
"""Larger than 1e-11 where scalars are float32, and where Prodigy corrects its eps too."""


def worst(library: str, place: str, options: dict[str, Any]) -> float:
    """The largest difference between predicted and real updates, relative to the largest update."""
    import torch

    from optstate.optimizers.registry import by_class
    from optstate.optimizers.updates import next_update

    module, _, name = f"{PLACES.get(library, library + '.')}{place}".rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    spec = by_class(cls)
    assert spec is not None
    generator = torch.Generator().manual_seed(0)
    found = 0.0
    for shape in ((4, 3), (5,)):
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = cls([parameter], **{"weight_decay": 0.0, **options})
        for step in range(1, 31):
            gradient = torch.randn(shape, generator=generator)
            slots = {
                key: value.clone() if isinstance(value, torch.Tensor) else value
                for key, value in optimizer.state.get(parameter, {}).items()
            }
            if parameter.dtype == torch.float32:
                parameter.data.zero_()  # small updates of large weights would be rounded
            before, parameter.grad = parameter.detach().clone(), gradient.clone()
            predicted = next_update(spec, slots, optimizer.param_groups[0], gradient, before)
            assert predicted is not None
            optimizer.step()
            moved = parameter.detach() - before
            if step in (1, 2, 7, 10, 30):
                found = max(found, ((predicted - moved).abs().max() / moved.abs().max().clamp(min=1e-30)).item())
    return found


def main(library: str) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.compiler.set_stance("force_eager")
    if library not in ("torchao", "bitsandbytes"):
        torch.set_default_dtype(torch.float64)
    _reachable(library)
    found = {f"{place} {options}": worst(library, place, options) for place, options in ROWS[library]}
    if library == "timm":
        found |= facts()
    sys.stdout.write("\n" + json.dumps(found))


def facts() -> dict[str, float]:
    """Two changes of hyperparameters that only timm's classes can show, as distances from what they must give."""
    from timm.optim.lamb import Lamb
    from timm.optim.rmsprop_tf import RMSpropTF

    from tests.test_coupling import TINY, built, change, entry, update, updates

    left, corrected = (built(RMSpropTF, lr=1.0, momentum=0.9, alpha=0.9, eps=TINY) for _ in range(2))
    for optimizer in (left, corrected):
        update(optimizer)
        entry(optimizer)["square_avg"].fill_(1.0)
        entry(optimizer)["momentum_buffer"].fill_(10.0)
    change(left, {"lr": 0.1})
    change(corrected, {"lr": 0.1}, "steady")
    lamb = built(Lamb, lr=1.0, eps=TINY, grad_averaging=False, max_grad_norm=None, weight_decay=0.0)
    updates(lamb, 2000)
    change(lamb, {"betas": (0.95, 0.99)}, "equivalent")
    moved = [each * lamb.param_groups[0]["lr"] for each in updates(lamb, 30)]
    kept = zip(updates(left, 3), (91.0, 82.9, 75.61), strict=True)
    return {
        "lr in the buffer, left alone": max(abs(each - told) for each, told in kept),
        "lr in the buffer, corrected": max(abs(each - 10.0) for each in updates(corrected, 3)),
        "a debiased sum": max(abs(each - 10.0) for each in moved),
    }


if __name__ == "__main__":
    main(sys.argv[1])

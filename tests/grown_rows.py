"""Growth of the state of other libraries' optimizers, held against fresh starts of the real classes.

`python -m tests.grown_rows LIBRARY` pads the state of every class that `probed_rows` has, steps it 200 times, and prints
one JSON document: for each the largest update of a new element relative to those of a fresh start and of the old
elements, or why its state cannot be padded. In a process of its own, as `probed_rows`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from typing import Any

import torch

from optstate.optimizers.growth import resizable
from tests.probed_rows import ROWS, _reachable
from tests.test_growth import Run, corner, start_of, trained

SHAPES = (((6,), (9,)), ((5, 4), (8, 4)), ((20, 18), (24, 19)))


def worst(cls: Any, options: dict[str, Any]) -> list[float | str]:
    """The ratio, or the reason, for each of the shapes, ages and kinds of gradients; each once."""
    found: set[float | str] = set()
    for small, large in SHAPES:
        for age, kind in ((1, "constant"), (400, "constant"), (400, "random")):
            old, stream = trained(cls, options, small, large, age, kind)
            why = resizable(old.spec, tuple(old.entry), small, large, "pad")
            found.add(why if why is not None else ratio(cls, options, old, small, large, stream))
    return sorted(found, key=str)


def ratio(cls: Any, options: dict[str, Any], old: Run, small: Any, large: Any, stream: Any) -> float:
    """The largest update of a new element over the largest of a fresh start's and of the old elements."""
    grown, fresh = (Run(cls, options, start_of(large)) for _ in range(2))
    grown.group.update({key: value for key, value in old.group.items() if key != "params"})
    grown.take(old, "pad")
    new = torch.ones(large, dtype=torch.bool)
    new[corner(small)] = False
    ours, usual = [], []
    for _ in range(200):
        gradient = next(stream)
        ours.append(grown.update(gradient)[new].abs().max().item())
        usual.append(fresh.update(gradient)[new].abs().max().item())
        usual.append(old.update(gradient[corner(small)].contiguous()).abs().max().item())
    return max(ours) / max(usual)


def main(library: str) -> None:
    warnings.simplefilter("ignore")
    torch.compiler.set_stance("force_eager")
    _reachable(library)
    found = {}
    for place, options in ROWS[library]:
        module, _, name = f"{library}.{place}".rpartition(".")
        found[f"{place} {options}"] = worst(getattr(importlib.import_module(module), name), options)
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

"""Surgery on rows of other libraries' optimizers, held against fresh starts of the real classes.

`python -m tests.cut_rows LIBRARY` keeps some rows of a parameter and adds others under every class that `probed_rows` has,
steps 200 times, and prints one JSON document: for each the largest update of a new row relative to those of a fresh start and
of the old rows, or why its rows cannot be told apart. In a process of its own, as `probed_rows`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from typing import Any

import torch
from torch import nn

import optstate
from optstate.errors import EditError
from tests.probed_rows import ROWS, _reachable
from tests.test_growth import gradients, start_of

OLD, ALL, COLUMNS, AGE = 20, 24, 18, 100


class Patient(nn.Module):
    """A parameter that does not move, so that each step shows its update."""

    def __init__(self, cls: Any, options: dict[str, Any], start: torch.Tensor) -> None:
        super().__init__()
        self.xyz = nn.Parameter(start.clone())
        self.optimizer = cls([self.xyz], **options)
        getattr(self.optimizer, "train", lambda: None)()  # schedule-free ones start in neither of their two modes

    def update(self, gradient: torch.Tensor) -> torch.Tensor:
        """The change that one step with this gradient makes."""
        before = self.xyz.detach().clone()
        self.xyz.grad = gradient.clone()
        self.optimizer.step()
        moved = self.xyz.detach() - before
        with torch.no_grad():
            self.xyz.copy_(before)
        return moved


def found(cls: Any, options: dict[str, Any], fill: Any) -> float | str:
    """The ratio, or the reason why surgery is refused."""
    stream = gradients("constant", (OLD, COLUMNS), (ALL, COLUMNS), seed=AGE)
    start = start_of((ALL, COLUMNS)).to(torch.get_default_dtype())
    patient, usual, fresh = (Patient(cls, options, each) for each in (start[:OLD], start[:OLD], start))
    for _ in range(AGE):
        gradient = next(stream)[:OLD].to(start.dtype)
        patient.update(gradient)
        usual.update(gradient)
    order = torch.arange(OLD).flip(0)
    try:
        with optstate.attach(patient.optimizer, patient).surgery() as cut:
            cut.keep_rows("xyz", order)
            cut.grow("xyz", rows=start[OLD:], fill=fill, like=range(ALL - OLD))
    except EditError as error:
        return error.what
    ours, theirs = [], []
    for _ in range(200):
        gradient = next(stream).to(start.dtype)
        mine = torch.cat([gradient[:OLD][order], gradient[OLD:]])
        ours.append(patient.update(mine)[OLD:].abs().max().item())
        theirs.append(fresh.update(gradient)[OLD:].abs().max().item())
        theirs.append(usual.update(gradient[:OLD]).abs().max().item())
    return max(ours) / max(theirs)


def main(library: str) -> None:
    warnings.simplefilter("ignore")
    torch.compiler.set_stance("force_eager")
    _reachable(library)
    rows = {}
    for place, options in ROWS[library]:
        module, _, name = f"{library}.{place}".rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        rows[f"{place} {options}"] = [found(cls, options, fill) for fill in ("zero", "mean", "copy")]
    sys.stdout.write("\n" + json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])

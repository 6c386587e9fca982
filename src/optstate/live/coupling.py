"""Slots that follow a change of hyperparameters: all is worked out first, then done at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeAlias

import torch

from optstate.errors import EditError
from optstate.live.batch import stored
from optstate.live.fence import cross
from optstate.optimizers.conventions import primary
from optstate.optimizers.coupling import Carry
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.text import safe_text

Ask: TypeAlias = Callable[[float | None, Sequence[str]], Carry]
"""What a change asks of parameters that have taken so many steps and have these slots."""


@dataclass(slots=True)
class Work:
    """What a change asks for: slots to scale, slots to remove, further hyperparameters to write."""

    tensors: list[torch.Tensor] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    numbers: list[tuple[dict[str, Any], str, float]] = field(default_factory=list)
    removals: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    hyperparameters: dict[str, float] = field(default_factory=dict)
    parameters: int = 0

    def __bool__(self) -> bool:
        """Whether any slot changes."""
        return bool(self.slots)

    @property
    def slots(self) -> int:
        """How many slots change."""
        return len(self.tensors) + len(self.numbers) + len(self.removals)

    def do(self) -> None:
        """Change the slots. All factors are checked by now, and all tensors are scaled by one call."""
        if self.tensors:
            cross()
            with torch.no_grad():
                torch._foreach_mul_(self.tensors, self.factors)  # no public name either; torch's optimizers do so
        for entry, key, factor in self.numbers:
            entry[key] *= factor
        for entry, key in self.removals:
            del entry[key]


def work_for(spec: OptimizerSpec, group: Mapping[str, Any], entries: Sequence[dict[str, Any]], ask: Ask) -> Work:
    """What the entries of some parameters of a group are asked for, each with its own number of steps; nothing is changed.

    Raises `CoefficientError` for a value out of range, `EditError` for a slot that cannot be scaled.
    """
    work = Work()
    for (step, present), alike in _alike(spec, group, entries).items():
        asked = ask(step, present)
        work.hyperparameters = dict(asked.hyperparameters)
        work.parameters += len(alike) if asked.factors or asked.remove else 0
        for key, factor in asked.factors.items():
            scale(work, key, alike, factor)
        work.removals += [(entry, key) for entry in alike for key in asked.remove]
    return work


def scale(work: Work, key: str, entries: Iterable[dict[str, Any]], factor: float) -> None:
    """Have a slot of these entries scaled, in whatever form it is kept: of one kept as codes, their scales.

    Raises `EditError` where the form is not known, or the factor is no finite number.
    """
    for entry in entries:
        form, values = stored(entry, key, entry[key])
        if form == "foreign" or not isfinite(factor):
            raise EditError(
                f"slot {safe_text(key)!r} cannot be scaled",
                expected="a tensor or a number, and a finite factor",
                found=f"a {type(entry[key]).__name__} and the factor {factor:g}",
            )
        if form == "number":
            work.numbers.append((entry, key, factor))
        else:
            work.tensors += values
            work.factors += [factor] * len(values)


def _alike(
    spec: OptimizerSpec, group: Mapping[str, Any], entries: Sequence[dict[str, Any]]
) -> dict[tuple[float | None, tuple[str, ...]], list[dict[str, Any]]]:
    """The entries by their number of steps and the slots that they have; one kind without any where there are none."""
    found: dict[tuple[float | None, tuple[str, ...]], list[dict[str, Any]]] = {}
    for entry, step in zip(entries, _steps(spec, group, entries), strict=True):
        found.setdefault((step, tuple(entry)), []).append(entry)
    return found or {(None, ()): []}


def _steps(spec: OptimizerSpec, group: Mapping[str, Any], entries: Sequence[dict[str, Any]]) -> list[float | None]:
    """The number of steps of each entry. Those on one device are fetched together: one wait, not one for each."""
    if spec.group_step is not None:
        return [number(group.get(spec.group_step))] * len(entries)
    key = primary(spec, "step")
    counts = [None if key is None else entry.get(key) for entry in entries]
    tensors = [count for count in counts if isinstance(count, torch.Tensor)]
    fetched = {
        device: iter(torch.stack([each.reshape(()) for each in tensors if each.device == device]).tolist())
        for device in {tensor.device for tensor in tensors}
    }
    return [
        float(next(fetched[count.device])) if isinstance(count, torch.Tensor) else number(count) for count in counts
    ]


def plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters as they are now, tensors as the numbers that they hold: the group goes on changing."""
    return {
        key: type(value)(map(_plain, value)) if isinstance(value, (tuple, list)) else _plain(value)
        for key, value in group.items()
        if key not in ("params", "param_names")
    }


def _plain(value: Any) -> Any:
    return number(value) if isinstance(value, torch.Tensor) else value

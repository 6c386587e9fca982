"""Coupling: what happens to the slots of a group, and to its other hyperparameters, when some of them move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch

from optstate.errors import CoefficientError, ScheduleError
from optstate.live.batch import stored
from optstate.optimizers.change import OnChange
from optstate.optimizers.conventions import primary
from optstate.optimizers.coupling import Carry, carry
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.text import safe_text

Hyperparameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Coupling:
    """How buffers follow coefficients, see `Scheduler`; `spec` describes the optimizer, None for one nobody described."""

    spec: OptimizerSpec | None
    on_change: OnChange = "keep"
    lr_coupling: bool = False

    def asks(
        self, before: Hyperparameters, after: Hyperparameters, step: float | None, present: Iterable[str]
    ) -> Carry:
        """What this change asks of parameters that have taken so many steps and have these slots."""
        return carry(
            self.spec, before, after, step, self.on_change, lr_coupling=self.lr_coupling, slots_present=tuple(present)
        )

    def may_ask(self, variants: Iterable[tuple[Hyperparameters, Hyperparameters]]) -> list[Carry]:
        """What changes such as these may ask of parameters that have every slot; what is refused may ask for anything."""
        found = []
        for before, after in variants:
            try:
                found.append(self.asks(before, after, 10.0, self.spec.slots if self.spec is not None else ()))
            except CoefficientError:
                found.append(Carry(factors={"": 0.0}))
        return found

    def settled(
        self, start: Hyperparameters, before: Hyperparameters, after: Hyperparameters, driven: Iterable[str]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """What becomes of hyperparameters that a curve drives and `equivalent` moves: their values, and what to ask for.

        A curve means its values for the hyperparameters at its start, so they are divided by all that changed since then;
        `asks` divides by what changed since `before`, so it has to be asked for that much more.
        """
        if self.on_change != "equivalent" or self.spec is None:
            return {}, dict(after)
        since_start = self.asks(start, after, None, ()).hyperparameters
        since_before = self.asks(before, after, None, ()).hyperparameters
        values = {key: since_start.get(key, after[key]) for key in driven if after[key]}
        return values, {
            **after,
            **{key: value * after[key] / since_before.get(key, after[key]) for key, value in values.items()},
        }


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
            with torch.no_grad():
                torch._foreach_mul_(self.tensors, self.factors)  # no public name either; torch's optimizers do so
        for entry, key, factor in self.numbers:
            entry[key] *= factor
        for entry, key in self.removals:
            del entry[key]


def work_for(
    coupling: Coupling,
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    before: Hyperparameters,
    after: Hyperparameters,
) -> Work:
    """What the parameters of a group are asked for, each with its own number of steps; nothing is changed yet.

    Raises `CoefficientError` for a value out of range, `ScheduleError` for a slot that cannot be scaled.
    """
    work = Work()
    if coupling.spec is None:
        return work
    entries = [entry for parameter in group["params"] if (entry := optimizer.state.get(parameter))]
    for (step, present), alike in _alike(coupling.spec, group, entries).items():
        asked = coupling.asks(before, after, step, present)
        work.hyperparameters = dict(asked.hyperparameters)
        work.parameters += len(alike) if asked.factors or asked.remove else 0
        for key, factor in asked.factors.items():
            scale(work, key, alike, factor)
        work.removals += [(entry, key) for entry in alike for key in asked.remove]
    return work


def scale(work: Work, key: str, entries: Iterable[dict[str, Any]], factor: float) -> None:
    """Have a slot of these entries scaled, in whatever form it is kept: of one kept as codes, their scales.

    Raises `ScheduleError` where the form is not known, or the factor is no finite number.
    """
    for entry in entries:
        form, values = stored(entry, key, entry[key])
        if form == "foreign" or not isfinite(factor):
            raise ScheduleError(
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
    spec: OptimizerSpec, group: Mapping[str, Any], entries: list[dict[str, Any]]
) -> dict[tuple[float | None, tuple[str, ...]], list[dict[str, Any]]]:
    """The entries by their number of steps and the slots that they have; one kind without any where there are none."""
    found: dict[tuple[float | None, tuple[str, ...]], list[dict[str, Any]]] = {}
    for entry, step in zip(entries, _steps(spec, group, entries), strict=True):
        found.setdefault((step, tuple(entry)), []).append(entry)
    return found or {(None, ()): []}


def _steps(spec: OptimizerSpec, group: Mapping[str, Any], entries: list[dict[str, Any]]) -> list[float | None]:
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


def coupling_of(optimizer: torch.optim.Optimizer, on_change: OnChange, *, lr_coupling: bool) -> Coupling:
    """The coupling of an optimizer. Raises `ScheduleError` where more is asked than is known of it."""
    spec = by_class(type(optimizer))
    if spec is None and (on_change != "keep" or lr_coupling):
        raise ScheduleError(
            f"{safe_text(type(optimizer).__name__)} is not in the registry, so its buffers cannot follow",
            found=f"on_change={on_change!r}, lr_coupling={lr_coupling}",
            todo='describe it with optstate.register(...), or leave on_change="keep"',
        )
    return Coupling(spec, on_change, lr_coupling)

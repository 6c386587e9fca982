"""Coupling: what happens to the slots of a group, and to its other hyperparameters, when some of them move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from optstate.errors import CoefficientError, ScheduleError
from optstate.live.coupling import Work, work_for
from optstate.optimizers.change import OnChange
from optstate.optimizers.coupling import Carry, carry
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec
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


def work_of(
    coupling: Coupling,
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    before: Hyperparameters,
    after: Hyperparameters,
) -> Work:
    """What a change asks of the parameters of a group; nothing is changed. Raises as `work_for`."""
    if coupling.spec is None:
        return Work()
    entries = [entry for parameter in group["params"] if (entry := optimizer.state.get(parameter))]
    return work_for(coupling.spec, group, entries, partial(coupling.asks, before, after))


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

"""Averages that an optimizer corrects by 1-β^t follow a β that is another one than when they were saved, so no update jumps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from optstate.optimizers.change import differing
from optstate.optimizers.conventions import primary
from optstate.optimizers.coupling import carry
from optstate.optimizers.spec import OptimizerSpec, coefficient_value, number
from optstate.resume.decisions import Entry, Fate
from optstate.resume.reshaping import times
from optstate.state.table import format_value

_YOUNG = 10.0
"""A number of steps after which every correction still shows."""


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """The transform: each slot times what its own number of steps asks for."""

    spec: OptimizerSpec
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def __call__(self, entry: Entry) -> Entry:
        counter = self.spec.group_step or primary(self.spec, "step") or ""
        step = number((self.before if self.spec.group_step else entry).get(counter))
        factors = carry(self.spec, self.before, self.after, step, "keep", slots_present=tuple(entry)).factors
        return {key: times(value, factors[key]) if key in factors else value for key, value in entry.items()}


def carried(
    spec: OptimizerSpec, before: Mapping[str, Any], after: Mapping[str, Any], keys: Collection[str]
) -> Mapping[str, Fate]:
    """The slots that other hyperparameters ask something of, and why; nothing where they ask nothing.

    Raises `CoefficientError` for a hyperparameter out of its range, and for one that asks for a slot that is not there.
    """
    moved = differing(before, after)
    if not moved:
        return {}
    factors = carry(spec, before, after, _YOUNG, "keep", slots_present=keys).factors
    return {key: Fate("scaled", _why(spec.slots[key].coefficient, moved, before, after)) for key in factors}


def _why(coefficient: str | None, moved: Collection[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    key = coefficient if coefficient is not None and coefficient in moved else next(iter(moved))
    old, new = (format_value(number(coefficient_value(key, group))) for group in (before, after))
    return f"{key} {old} → {new}, and what it is corrected by with it"

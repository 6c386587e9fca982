"""What a name in a schedule means: `lr`, `betas[0]`, or `momentum` for whatever drives the momentum here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch

from optstate.errors import ScheduleError
from optstate.optimizers.conventions import primary
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import number
from optstate.state.absence import Absence
from optstate.text import listing, safe_text

ALIASES = ("momentum", "second_moment")
"""Roles that stand for the hyperparameter that drives their slot."""

_NO_HYPERPARAMETERS = ("params", "param_names")


def resolve(asked: str, optimizer: torch.optim.Optimizer) -> tuple[str, int | None]:
    """The group key, and which item of it, that a name means.

    Raises `ScheduleError` for what the optimizer does not have, or what is no number.
    """
    key, bracket, index = _coefficient(asked, optimizer).partition("[")
    place = int(index[:-1]) if index.endswith("]") and index[:-1].isdecimal() else None
    for group in optimizer.param_groups:
        items: Any = group.get(key)
        if key not in group or key in _NO_HYPERPARAMETERS:
            raise _no_such(asked, optimizer, group)
        if bracket and (place is None or not isinstance(items, (tuple, list)) or place >= len(items)):
            raise _no_such(asked, optimizer, group)
        if not _is_number(items if place is None else items[place]):
            raise ScheduleError(
                f"{safe_text(asked)} of {_name(optimizer)} is no number that a curve could drive",
                found=safe_text(items, 60),
                todo=f"drive an item of it, such as {key}[0]" if isinstance(items, (tuple, list)) else None,
            )
    return key, place


def _is_number(value: Any) -> bool:
    return not isinstance(value, (bool, str)) and number(value) is not None


def _coefficient(asked: str, optimizer: torch.optim.Optimizer) -> str:
    """What a role's name stands for; any other name stands for itself."""
    if asked not in ALIASES:
        return asked
    spec = by_class(type(optimizer))
    if spec is None and all(asked in group for group in optimizer.param_groups):
        return asked
    slot = spec.slots.get(primary(spec, asked) or "") if spec is not None else None  # type: ignore[arg-type]  # each is a role
    if slot is not None and slot.coefficient is not None:
        return slot.coefficient
    reason = Absence.UNKNOWN_OPTIMIZER if spec is None else Absence.NOT_KEPT
    raise ScheduleError(
        f"{_name(optimizer)} has nothing that drives its {asked.replace('_', ' ')}: {reason.sentence}",
        found=f"hyperparameters: {listing(_names(optimizer.param_groups[0]), 20)}",
        todo=reason.todo,
    )


def _no_such(asked: str, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> ScheduleError:
    names = [*_names(group), *ALIASES]
    near = get_close_matches(asked, names, n=1)
    return ScheduleError(
        f"{_name(optimizer)} has no hyperparameter {safe_text(asked)!r}",
        expected=f"one of {listing(names, 20)}",
        todo=f"did you mean {near[0]!r}?" if near else None,
    )


def _names(group: Mapping[str, Any]) -> Sequence[str]:
    plain = {key: value for key, value in group.items() if key not in _NO_HYPERPARAMETERS}
    items = [
        f"{key}[{place}]"
        for key, value in plain.items()
        if isinstance(value, (tuple, list))
        for place, item in enumerate(value)
        if _is_number(item)
    ]
    return [*(key for key, value in plain.items() if _is_number(value)), *items]


def _name(optimizer: torch.optim.Optimizer) -> str:
    return safe_text(qualified_name(type(optimizer)))

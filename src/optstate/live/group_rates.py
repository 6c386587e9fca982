"""What learning rate schedulers of torch keep for each param group, moved along when groups split and merge."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optstate.errors import BindError
from optstate.live.examine_schedulers import each_scheduler
from optstate.live.unwrap import unwrap_optimizer
from optstate.optimizers.registry import qualified_name
from optstate.optimizers.spec import number
from optstate.state.table import format_value
from optstate.text import count, listing, safe_text

RATES = ("initial_lr", "max_lr", "min_lr")
"""Group keys of schedulers that say a rate: they follow the learning rate when that is changed by hand."""

_SCALED = ("base_lrs", "max_lrs", "_last_lr")
GROUP_LISTS = (*_SCALED, "lr_lambdas", "min_lrs", "base_momentums", "max_momentums")
"""Attributes with one item for each group, over all schedulers of `torch.optim.lr_scheduler`."""


def schedulers_of(optimizers: Iterable[torch.optim.Optimizer], given: Any) -> list[Any]:
    """The given schedulers, one or several, and those inside chains; for None, all that are alive.

    Raises `BindError` for what is no scheduler, and for one of another optimizer.
    """
    steered = {id(optimizer) for optimizer in optimizers}
    if given is None:
        return [each for each in _alive() if id(each.optimizer) in steered]
    found = {id(each): each for top in each_scheduler(given) for each in _nested(top)}
    for each in found.values():
        if id(unwrap_optimizer(each.optimizer)) not in steered:
            raise BindError(
                f"this {safe_text(qualified_name(type(each)))} drives another optimizer",
                expected="schedulers of the optimizers that are attached",
                todo="build the scheduler with this optimizer, or leave it out",
            )
    return list(found.values())


def _alive() -> list[LRScheduler]:
    """Every scheduler of the process: an optimizer does not know its own, and one that is missed goes wrong silently."""
    return [each for each in gc.get_objects() if issubclass(type(each), LRScheduler) and hasattr(each, "optimizer")]


def _nested(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for child in getattr(scheduler, "_schedulers", ()):
        yield from _nested(child)


def cycles(scheduler: Any) -> str | None:
    """The hyperparameter besides the learning rate that a scheduler writes at each of its steps."""
    if not getattr(scheduler, "cycle_momentum", False):
        return None
    return "betas" if getattr(scheduler, "use_beta1", False) else "momentum"


def rows(scheduler: Any, groups: int) -> dict[str, list[Any]]:
    """Its lists with one item for each group.

    Raises `BindError` where one has another number of items, and for a list that a class of which torch knows nothing
    may keep for the groups.
    """
    held = {key: value for key, value in vars(scheduler).items() if isinstance(value, (list, tuple))}
    name = safe_text(qualified_name(type(scheduler)))
    short = [key for key in GROUP_LISTS if len(held.get(key, range(groups))) != groups]
    if short:
        raise BindError(
            f"{name} was built before the last group was added",
            expected=f"{short[0]} of {count(groups, 'group')}",
            found=f"of {count(len(held[short[0]]), 'group')}",
            todo="build the scheduler anew, then regroup",
        )
    strange = [
        key for key, value in held.items() if key not in GROUP_LISTS and len(value) == groups and _are_rates(value)
    ]
    if strange and not type(scheduler).__module__.startswith("torch.optim."):
        raise BindError(
            f"{name} may keep something for each group that cannot be moved along",
            found=f"a list as long as there are groups: {listing(strange)}",
            todo="regroup first, then build the scheduler",
        )
    return {key: list(value) for key, value in held.items() if key in GROUP_LISTS}


def _are_rates(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, (float, torch.Tensor)) or callable(value) for value in values)


def following(group: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The changed hyperparameters of a group with those that follow them, and by what the rates are multiplied.

    A scheduler goes on from what the group and its own lists say a rate was at the start. When the learning rate is
    changed, all of these change by the same factor; so they do by that of `initial_lr`, where that is given.
    Raises `BindError` where the factor would be that of a rate of 0.
    """
    key = "initial_lr" if "initial_lr" in values else "lr"
    if key not in values or "initial_lr" not in group:
        return dict(values), 1.0
    old, new = number(group[key]), number(values[key])
    if old is None or new is None or old == new:
        return dict(values), 1.0
    if old == 0:
        raise BindError(
            f"{key} is 0 now, and a scheduler drives it",
            expected="what the rate was at the start to be given, for the scheduler goes on from that",
            todo=f"give initial_lr: the others follow it (now {format_value(group['initial_lr'])})",
        )
    factor = new / old
    scaled = {rate: group[rate] * factor for rate in ("lr", *RATES) if rate in group and rate not in values}
    return {**scaled, **values}, factor


def row_of(
    lists: Mapping[str, list[Any]], index: int, group: Mapping[str, Any], values: Mapping[str, Any], factor: float
) -> dict[str, Any]:
    """One group's items of a scheduler's lists, once it has these hyperparameters and its rates are multiplied."""
    row = {key: items[index] for key, items in lists.items()}
    now = "lr" in values and "_last_lr" in row and bool(row["_last_lr"] == group["lr"])
    row |= {key: row[key] * factor for key in _SCALED if key in row and factor != 1}
    if now:
        row["_last_lr"] = values["lr"]
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in row.items()}

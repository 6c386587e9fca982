"""Who drives which hyperparameter of an optimizer: two owners of one would undo each other's work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch.optim.lr_scheduler import LRScheduler

from optstate.errors import ScheduleError
from optstate.live.group_rates import cycles
from optstate.optimizers.registry import qualified_name
from optstate.text import safe_text


class Owner(Protocol):
    """Something that drives hyperparameters of one optimizer."""

    @property
    def owns(self) -> set[tuple[int, str]]:
        """What it drives now: the `id` of a group, and a hyperparameter such as `betas[0]`."""


_CYCLED = {"momentum": "momentum", "betas": "betas[0]"}
"""What a scheduler of torch writes besides the learning rate, by the group key of it."""

_OWNERS: WeakKeyDictionary[torch.optim.Optimizer, list[ReferenceType[Owner]]] = WeakKeyDictionary()


def claim(optimizer: torch.optim.Optimizer, owner: Owner) -> None:
    """Make `owner` one of the optimizer's, for as long as it lives.

    Raises `ScheduleError`, which names both, where another schedule or a scheduler of torch drives the same.
    """
    others = [each for each in (found() for found in _OWNERS.get(optimizer, ())) if each is not None]
    for other in others:
        shared = sorted(path for group, path in owner.owns & other.owns if other is not owner)
        if shared:
            raise _two_owners(shared[0], owner, other)
    refuse_torch_schedulers(optimizer, owner)
    _OWNERS[optimizer] = [ref(each) for each in (*others, owner)]


def release(optimizer: torch.optim.Optimizer, owner: Owner) -> None:
    """Take the owner away from the optimizer's."""
    _OWNERS[optimizer] = [each for each in _OWNERS.get(optimizer, ()) if each() not in (None, owner)]


def refuse_torch_schedulers(optimizer: torch.optim.Optimizer, owner: Owner) -> None:
    """Raise `ScheduleError` where a scheduler of torch that is alive writes what `owner` drives."""
    driven = {path for _, path in owner.owns} & {"lr", *_CYCLED.values()}
    for scheduler in torch_schedulers(optimizer) if driven else ():
        cycled = _CYCLED.get(cycles(scheduler) or "")
        shared = sorted(driven & {"lr", cycled})
        if shared:
            raise _two_owners(shared[0], owner, scheduler)


def torch_schedulers(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """The schedulers of torch that hold this optimizer. They leave no way to them on it, so memory is searched."""
    for holder in gc.get_referrers(optimizer):
        if issubclass(type(holder), LRScheduler):
            yield holder
        elif type(holder) is dict and holder.get("optimizer") is optimizer:  # the attributes of an object
            yield from (each for each in gc.get_referrers(holder) if issubclass(type(each), LRScheduler))


def _two_owners(path: str, ours: Any, other: Any) -> ScheduleError:
    theirs = qualified_name(type(other)) if isinstance(other, LRScheduler) else repr(other)
    return ScheduleError(
        f"two schedules would drive {safe_text(path)}",
        found=f"{safe_text(repr(ours))} and {safe_text(theirs)}",
        todo="leave it to one of them; an older schedule of ours that is still there gives way by its release()",
    )

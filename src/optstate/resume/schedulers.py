"""Schedulers: which are restored and what they drive; their lists for each group, where groups or base rates are others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optstate.errors import OptstateError
from optstate.live.group_rates import RATES, cycles, schedulers_of
from optstate.live.source import LiveSource
from optstate.live.unwrap import unwrap_optimizer
from optstate.resume.decided import Decided
from optstate.resume.materialise import materialise
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.schedule.scheduler import Scheduler
from optstate.schedule.track import Track
from optstate.state.selection import matcher
from optstate.state.table import format_value
from optstate.text import safe_text

CYCLING = ("base_momentum", "max_momentum")
"""Group keys between which a scheduler moves momentum."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A scheduler that will be restored, and one of the live optimizers that it drives.

    `name` is the object's, `item` the scheduler beneath wrappers, `state` what was saved of it. `optimizer` is the name of
    `target` among those that are restored, None where it is none of them.
    """

    name: str
    item: Any
    target: torch.optim.Optimizer
    optimizer: str | None
    state: Mapping[str, Any]

    @property
    def of_torch(self) -> bool:
        """Whether it is one of torch's, or of a class derived from them."""
        return isinstance(self.item, LRScheduler)

    def drives(self, key: str) -> bool:
        """Whether it accounts for what a group key is; what a class of which nothing is known writes may be anything."""
        track = self.track
        if track is not None:
            return any(path.partition("[")[0] == key for _, path in track.owns)
        return not self.of_torch or key in ("lr", *RATES) or key in self.momentum_keys()

    @property
    def track(self) -> Track | None:
        """What one of our schedules drives of the optimizer; None for any other scheduler."""
        if not isinstance(self.item, Scheduler):
            return None
        return next(track for track in self.item.tracks.values() if track.optimizer is self.target)

    def momentum_keys(self) -> tuple[str, ...]:
        """The group keys that a scheduler of torch needs to move momentum, that one first."""
        key = next((key for each in parts(self.item) if (key := cycles(each))), None)
        return () if key is None else (key, *CYCLING)


def restored(policy: Policy, name: str) -> bool:
    """Whether a policy has an object restored: what the last pattern that means its name says."""
    words = [word for pattern, word in policy.objects.items() if matcher(pattern)(name)]
    return not words or words[-1] == "restore"


def find_drivers(
    found: Decided, saved: Saved, objects: Mapping[str, Any], live: LiveSource | None, policy: Policy
) -> list[Driver]:
    """The schedulers among the objects that will be restored."""
    optimizers = {} if live is None else live.live_optimizers
    drivers = []
    for name, given in objects.items():
        item = beneath(given)
        targets = list(_targets(item))
        if not targets or name not in saved.objects or not restored(policy, name):
            continue
        try:
            state = materialise(saved.objects[name])
        except OptstateError as error:
            found.faults.append(f"{safe_text(name)}: {error.what}")
            continue
        if _misshapen(item, state):
            found.faults.append(
                f"{safe_text(name)}: its saved state is not that of a {type(item).__name__} such as the live one"
            )
            continue
        for target in targets:
            names = [key for key, each in optimizers.items() if each is target]
            drivers.append(Driver(name, item, target, names[0] if names else None, state))
    return drivers


def _misshapen(item: Any, state: Any) -> bool:
    """Whether a state has not one for each scheduler inside."""
    children = list(getattr(item, "_schedulers", ()))
    below = state.get("_schedulers", ()) if isinstance(state, Mapping) else None
    if not isinstance(below, (list, tuple)) or len(below) != len(children):
        return True
    return any(map(_misshapen, children, below))


def alive(optimizer: torch.optim.Optimizer, name: str) -> list[Driver]:
    """The schedulers of torch that drive an optimizer now, without those inside others, in their present state."""
    every = schedulers_of([optimizer], None)
    inside = {id(child) for each in every for child in list(parts(each))[1:]}
    outer = [each for each in every if id(each) not in inside]
    return [Driver(type(each).__name__, each, optimizer, name, each.state_dict()) for each in outer]


def beneath(item: Any) -> Any:
    """The scheduler that a wrapper such as Accelerate's keeps; anything else as it is."""
    while not isinstance(item, (LRScheduler, Scheduler)) and isinstance(getattr(item, "scheduler", None), LRScheduler):
        item = item.scheduler
    return item


def is_scheduler(item: Any) -> bool:
    """Whether an object is a scheduler of torch or one of ours, also within a wrapper."""
    return isinstance(beneath(item), (LRScheduler, Scheduler))


def _targets(item: Any) -> Iterator[torch.optim.Optimizer]:
    if isinstance(item, Scheduler):
        yield from (track.optimizer for track in item.tracks.values())
        return
    try:
        yield unwrap_optimizer(getattr(item, "optimizer", None))
    except OptstateError:
        return  # it drives none


def parts(item: Any) -> Iterator[Any]:
    """A scheduler and all those inside it."""
    yield item
    for child in getattr(item, "_schedulers", ()):
        yield from parts(child)


def with_states(item: Any, state: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """A scheduler and all those inside it, each with its saved state."""
    yield item, state
    for child, below in zip(getattr(item, "_schedulers", ()), state.get("_schedulers", ()), strict=False):
        yield from with_states(child, below)


def other_settings(driver: Driver) -> list[str]:
    """What the program built a scheduler of torch with and the checkpoint overrules, in words."""
    if not type(driver.item).__module__.startswith("torch.optim."):
        return []
    return [
        f"{key} is {format_value(below[key])} in the checkpoint and {format_value(value)} live"
        for item, below in with_states(driver.item, driver.state)
        for key, value in vars(item).items()
        if key in below and _is_setting(key, value) and not same(below[key], value)
    ]


_PROGRESS = frozenset({"last_epoch", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"})


def _is_setting(key: str, value: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str, Mapping)) or key == "_milestones"
    return plain and key not in _PROGRESS and (not key.startswith("_") or key == "_milestones")

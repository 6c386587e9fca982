"""Drives: a curve, the hyperparameter that it is for, and the groups in which it drives it now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan, nextafter
from sys import float_info
from typing import Any

import torch

from optstate.errors import CoefficientError, ScheduleError
from optstate.optimizers.ranges import Range
from optstate.schedule.curve import Curve
from optstate.text import safe_text

_NO_HYPERPARAMETERS = ("params", "param_names")


@dataclass(slots=True, eq=False)
class Target:
    """A group in which a hyperparameter is driven, and what was last written there.

    `held` is the very object that the group then held and `version`, of a tensor, how often it had been written to: by
    these it can be told, without waiting for a device, whether anybody else has written since.
    """

    group: dict[str, Any]
    value: float = nan
    held: Any = None
    version: int | None = None

    def write(self, key: str, index: int | None, value: float) -> None:
        """Set the hyperparameter in the group."""
        if self.version is not None and not self.is_touched(key, index):
            self.held.detach().fill_(value)
        else:
            write(self.group, key, index, value)
            self.held = read(self.group, key, index)
        self.value, self.version = value, version(self.held)

    def is_touched(self, key: str, index: int | None) -> bool:
        """Whether the group holds another value than what was written last."""
        held = read(self.group, key, index)
        if self.version is None:
            return isinstance(held, torch.Tensor) or held != self.value
        return held is not self.held or version(held) != self.version


@dataclass(slots=True, eq=False)
class Drive:
    """A curve and where it goes.

    `label` is how the user named it; `key`, and `index` where the hyperparameter is an item of a tuple, is what it
    drives, within `allowed`. `only` gives the `id`s of the parameters that it is for, None where it is for all. Where
    two drives are for one group, that of the higher `rank` has it. `targets` are its groups, once it is matched with them.
    """

    label: str
    curve: Curve
    key: str
    index: int | None
    allowed: Range
    only: Callable[[], set[int]] | None = None
    rank: int = 0
    targets: list[Target] = field(default_factory=list)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        low, high = max(self.allowed.low, -float_info.max), min(self.allowed.high, float_info.max)
        self.low = nextafter(low, inf) if self.allowed.open else low
        self.high = high if self.allowed.closed or self.allowed.high == inf else nextafter(high, -inf)

    @property
    def path(self) -> str:
        """The hyperparameter: `lr`, `betas[0]`."""
        return self.key if self.index is None else f"{self.key}[{self.index}]"

    def value(self, t: int) -> float:
        """The value after t steps. Raises `CoefficientError` for one that is not finite or out of range."""
        value = self.curve.at(t)
        if not self.low <= value <= self.high:  # what `value in allowed` says, in a tenth of the time
            raise CoefficientError(
                f"the schedule of {safe_text(self.label)} leaves the range of {self.path}",
                where=f"step {t:,} of {safe_text(self.curve)}",
                expected=str(self.allowed),
                found=f"{value:.17g}",
                todo="preview() shows the values of a schedule",
            )
        return value

    def replaced(self, hyperparameters: Mapping[str, Any], value: float) -> dict[str, Any]:
        """Other hyperparameters, with this value for the driven one."""
        held = hyperparameters[self.key]
        item = value if self.index is None else type(held)(_with(held, self.index, value))
        return {**hyperparameters, self.key: item}


def match(drives: Sequence[Drive], groups: Sequence[dict[str, Any]]) -> set[tuple[int, str]]:
    """Give each drive the groups that are its own; returns all that they drive, as `id` of a group and path.

    Raises `ScheduleError` where two drives of one rank are for the same hyperparameter of a group, and where a group
    holds parameters that a drive is for, and others.
    """
    best: dict[tuple[int, str], Drive] = {}
    for drive in drives:
        mine = None if drive.only is None else drive.only()
        for group in groups:
            place = (id(group), drive.path)
            other = best.get(place)
            if not _covers(drive, mine, group) or (other is not None and other.rank > drive.rank):
                continue
            if other is not None and other.rank == drive.rank:
                raise _two_curves(other, drive)
            best[place] = drive
    for drive in drives:
        drive.targets = [Target(group) for group in groups if best.get((id(group), drive.path)) is drive]
    return set(best)


def _covers(drive: Drive, mine: set[int] | None, group: Mapping[str, Any]) -> bool:
    if mine is None:
        return True
    inside = [id(parameter) in mine for parameter in group["params"]]
    if any(inside) and not all(inside):
        raise ScheduleError(
            f"a group holds parameters of the schedule of {safe_text(drive.label)}, and others",
            found=f"{sum(inside)} of {len(inside)} parameters",
            todo="keep them in groups of their own, and build the schedule anew",
        )
    return any(inside)


def _two_curves(one: Drive, other: Drive) -> ScheduleError:
    return ScheduleError(
        f"two curves would drive {one.path} of one group",
        found=" and ".join(f"{safe_text(each.label)}: {safe_text(each.curve)}" for each in (one, other)),
        todo="leave it to one of them",
    )


def read(hyperparameters: Mapping[str, Any], key: str, index: int | None) -> Any:
    """A hyperparameter, or one item of it."""
    return hyperparameters[key] if index is None else hyperparameters[key][index]


def write(hyperparameters: dict[str, Any], key: str, index: int | None, value: float) -> None:
    """Set a hyperparameter, or one item of it; a tensor in place, for compiled steps hold on to it."""
    held = hyperparameters[key]
    item = held if index is None else held[index]
    if isinstance(item, torch.Tensor):
        item.detach().fill_(value)
    elif index is None:
        hyperparameters[key] = value
    else:
        hyperparameters[key] = type(held)(_with(held, index, value))


def version(held: Any) -> int | None:
    """How often a tensor was written to; None for what is none."""
    return held._version if isinstance(held, torch.Tensor) else None  # noqa: SLF001  # torch has no public name for it


def _with(items: Sequence[Any], index: int, value: float) -> Sequence[Any]:
    return (*items[:index], value, *items[index + 1 :])

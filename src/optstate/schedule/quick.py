"""The quick way to take a step that only writes numbers over those of the step before, as most steps do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nextafter
from operator import itemgetter
from typing import Any, Protocol

import torch

from optstate.schedule.drive import Drive, Target

_LEAST = nextafter(0.0, 1.0)
"""Less than that is for the long way: where a coefficient comes to 0 or from there, buffers go."""


class Followed(Protocol):
    """An optimizer, and how many of its steps have been followed."""

    optimizer: torch.optim.Optimizer
    steps: int


class Quick:
    """Takes steps hardly slower than their curves. It is made for groups and drives as they are after a step.

    Groups to which every drive goes, with plain numbers, are looked at and written to as a whole, other places one by one.
    New values are made right where they go, in the first of those groups; where there is none, on a board of their own.
    `still` says whether the groups are the same; None, where their number is enough to tell.
    """

    def __init__(
        self, drives: Sequence[Drive], groups: Sequence[dict[str, Any]], still: Callable[[], bool] | None
    ) -> None:
        self._drives, self._number, self._still = drives, len(groups), still
        whole: list[int] = []
        self._places: list[tuple[int, Drive, Target]] = []
        for place, group in enumerate(groups):
            own = [
                (number, drive, to) for number, drive in enumerate(drives) for to in drive.targets if to.group is group
            ]
            if len(own) == len(drives) and all(drive.index is None and to.version is None for _, drive, to in own):
                whole.append(place)
            else:
                self._places += own
        self._others = whole[1:]
        self._keys: list[Any] = [drive.key for drive in drives] if whole else list(range(len(drives)))
        self._curves = [
            (key, drive.curve.at, drive.low or _LEAST, drive.high)
            for key, drive in zip(self._keys, drives, strict=True)
        ]
        self._get = itemgetter(*self._keys)
        self._board: dict[Any, Any] | None = None if whole else dict.fromkeys(self._keys)
        self._place = whole[0] if whole else 0
        self._last = self._get(groups[self._place] if self._board is None else self._board)

    def step(self, followed: Followed) -> bool:
        """Write the values after one more step; nothing, where one is 0 or out of range, or somebody else wrote here."""
        groups = followed.optimizer.param_groups
        if len(groups) != self._number or (self._still is not None and not self._still()):
            return False
        values = groups[self._place] if self._board is None else self._board
        if self._get(values) != self._last:
            return False
        for place in self._others:
            if self._get(groups[place]) != self._last:
                return False
        for _, drive, target in self._places:
            if target.is_touched(drive.key, drive.index):
                return False
        t = followed.steps + 1
        try:
            for key, at, low, high in self._curves:
                values[key] = value = at(t)
                if not low <= value <= high:
                    return self._put_back(values)
        except BaseException:
            self._put_back(values)
            raise
        if self._others or self._places:
            self._pass_on(values, groups)
        self._last = self._get(values)
        followed.steps = t
        return True

    def _pass_on(self, values: dict[Any, Any], groups: Sequence[dict[str, Any]]) -> None:
        for place in self._others:
            group = groups[place]
            for key in self._keys:
                group[key] = values[key]
        for number, drive, target in self._places:
            target.write(drive.key, drive.index, values[self._keys[number]])

    def _put_back(self, values: dict[Any, Any]) -> bool:
        values.update(zip(self._keys, self._written(), strict=True))
        return False

    def _written(self) -> tuple[Any, ...]:
        """What was written last for each drive; None before the first step."""
        return self._last if len(self._keys) > 1 else (self._last,)

    def tell(self) -> None:
        """Let the targets know what was written to them."""
        for drive, value in zip(self._drives, self._written(), strict=True):
            for target in drive.targets:
                if target.version is None and value is not None:
                    target.value = target.held = value

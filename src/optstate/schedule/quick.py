"""The quick way to take a step that only writes numbers over those of the step before, as most steps do."""

from __future__ import annotations

from collections.abc import Sequence
from math import nextafter
from operator import itemgetter
from typing import Any

from optstate.schedule.drive import Drive, Target

_LEAST = nextafter(0.0, 1.0)
"""Less than that is for the long way: where a coefficient comes to 0 or from there, buffers go."""


class Quick:
    """Takes steps hardly slower than their curves. It is made for groups and drives as they are after a step.

    Groups to which every drive goes, with plain numbers, are looked at and written to as a whole, other places one by one.
    Nothing is done, and that is said, where there may be more to do or to say than to write numbers.
    """

    def __init__(self, drives: Sequence[Drive], groups: Sequence[dict[str, Any]]) -> None:
        self._drives = drives
        self._curves = [(drive.curve.at, drive.low or _LEAST, drive.high) for drive in drives]
        self._keys = list(enumerate(drive.key for drive in drives))
        self._get = itemgetter(*(drive.key for drive in drives))
        self._last: Any = None
        self._values: Sequence[float] = ()
        self._whole: list[int] = []
        self._places: list[tuple[int, Drive, Target]] = []
        for place, group in enumerate(groups):
            own = [
                (number, drive, to) for number, drive in enumerate(drives) for to in drive.targets if to.group is group
            ]
            if len(own) == len(drives) and all(drive.index is None and to.version is None for _, drive, to in own):
                self._whole.append(place)
                self._last = self._get(group)
            else:
                self._places += own

    def step(self, t: int, groups: Sequence[dict[str, Any]]) -> bool:
        """Write the values after t steps; nothing, where one is 0 or out of range, or somebody else wrote here meanwhile."""
        values = []
        for at, low, high in self._curves:
            value = at(t)
            if not low <= value <= high:
                return False
            values.append(value)
        for place in self._whole:
            if self._get(groups[place]) != self._last:
                return False
        for _, drive, target in self._places:
            if target.is_touched(drive.key, drive.index):
                return False
        for place in self._whole:
            group = groups[place]
            for number, key in self._keys:
                group[key] = values[number]
        for number, drive, target in self._places:
            target.write(drive.key, drive.index, values[number])
        self._values = values
        self._last = tuple(values) if len(values) > 1 else values[0]  # as `_get` gives them
        return True

    def tell(self) -> None:
        """Let the targets know what was written to them."""
        for drive, value in zip(self._drives, self._values, strict=False):
            for target in drive.targets:
                if target.version is None:
                    target.value = target.held = value

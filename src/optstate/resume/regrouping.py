"""Regrouping: what a scheduler has saved for each group, for the live groups and their base rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from optstate.live.group_rates import GROUP_LISTS
from optstate.resume.courses import Course, course_in
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver, with_states
from optstate.schedule.scheduler import Scheduler
from optstate.text import safe_text


@dataclass(frozen=True, slots=True)
class Row:
    """Where the items of one live group come from.

    `homes` are the saved groups that its parameters come from, empty for a group that is new. `ratio` is that of its
    base rate to the saved one, `rate` the learning rate that it will have; `moved` says whether the ratio is the policy's.
    """

    homes: tuple[int, ...] = ()
    ratio: float = 1.0
    rate: float | None = None
    moved: bool = False


def reshape(driver: Driver, groups: int, rows: Sequence[Row]) -> Callable[[Any], Any] | str | None:
    """What makes of the saved state of a driver the one for these live groups; None: nothing. Or why there is none."""
    in_place = [row.homes == (place,) for place, row in enumerate(rows)]
    if len(rows) == groups and all(in_place) and not any(row.moved for row in rows):
        return None
    if isinstance(driver.item, Scheduler):
        name = next(name for name, track in driver.item.tracks.items() if track is driver.track)
        return _unlike(driver.state, rows, name) or partial(_ours, rows=rows, name=name)
    if not driver.of_torch:
        return "it keeps one value per group by position, and the groups come in another order or number than in the checkpoint"
    fault = next((why for each in with_states(driver.item, driver.state) if (why := _unfit(*each, groups, rows))), None)
    return fault or partial(_reshaped, item=driver.item, rows=rows)


def _unfit(item: Any, state: Mapping[str, Any], groups: int, rows: Sequence[Row]) -> str | None:
    lists = {key: value for key, value in state.items() if isinstance(value, (list, tuple))}
    short = next((key for key in GROUP_LISTS if key in lists and len(lists[key]) != groups), None)
    if short is not None:
        return f"its {short} has {len(lists[short])} items in the checkpoint, for {groups} groups there"
    if not type(item).__module__.startswith("torch.optim."):
        strange = [key for key, value in lists.items() if key not in GROUP_LISTS and len(value) == groups]
        if strange and not all(row.homes == (place,) for place, row in enumerate(rows)):
            return f"it may keep something for each group in {safe_text(strange[0])}, and the groups come in another order or number"
    for place, row in enumerate(rows):
        for key in GROUP_LISTS:
            values = [lists[key][home] for home in row.homes] if key in lists else []
            if not (row.moved and key in _SCALED) and not all(same(value, values[0]) for value in values):
                return f"its {key} has other values for the saved groups that are one live (group {place})"
    return None


_SCALED = ("base_lrs", "max_lrs", "_last_lr")


def _reshaped(state: Mapping[str, Any], item: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """The saved state of a scheduler of torch with its lists for these groups."""
    course, new = course_in(item, state), dict(state)
    for key in GROUP_LISTS:
        if key in state:
            new[key] = [_item(state, item, key, place, row, course) for place, row in enumerate(rows)]
    if "_schedulers" in state:
        children = zip(state["_schedulers"], item._schedulers, strict=True)  # noqa: SLF001  # as its state has them
        new["_schedulers"] = [_reshaped(below, child, rows) for below, child in children]
    return new


def _item(state: Mapping[str, Any], item: Any, key: str, place: int, row: Row, course: Course | str) -> Any:
    if not row.homes:
        if key == "lr_lambdas":
            return None  # the live one stays
        held = vars(item)[key][place]
        return held if key != "_last_lr" or row.rate is None else _like(held, row.rate)
    value = state[key][row.homes[0]]
    if isinstance(value, torch.Tensor):
        value = value.clone()  # of a group that splits, each has its own
    if not row.moved or key not in _SCALED or isinstance(course, str):
        return value
    if key != "_last_lr":
        return value * row.ratio
    return _like(value, row.rate or 0.0) if "min_lrs" in state else course.moved(value, row.homes[0], row.ratio)


def _like(held: Any, rate: float) -> Any:
    return torch.full_like(held, rate) if isinstance(held, torch.Tensor) else rate


_OF_GROUPS = ("follows", "opening")
"""What the state of one of our schedules has for each group."""


def _unlike(state: Mapping[str, Any], rows: Sequence[Row], name: str) -> str | None:
    track = state.get("optimizers", {}).get(name, {})
    for key in _OF_GROUPS:
        items = track.get(key) or ()
        for place, row in enumerate(rows) if items else ():
            if not all(same(items[home], items[row.homes[0]]) for home in row.homes):
                return f"it was otherwise in the saved groups that are one live (group {place})"
    return None


def _ours(state: Mapping[str, Any], rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The state of one of our schedules; a group that is new has nothing that follows or waits."""
    track = dict(state["optimizers"][name])
    for key in _OF_GROUPS:
        if track.get(key):
            track[key] = [track[key][row.homes[0]] if row.homes else {} for row in rows]
    return {**state, "optimizers": {**state["optimizers"], name: track}}

"""Rates: what the learning rate of a live group becomes, and the group keys from which its schedulers go on.

A learning rate that a policy keeps live or gives is a base rate: what the rate is at the start of a schedule. Where a
scheduler is restored, the rate of now is what that schedule gives, this far along, from the new base rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optstate.live.group_rates import RATES
from optstate.optimizers.spec import number
from optstate.resume.courses import Course
from optstate.resume.decisions import missing
from optstate.resume.policy import Policy
from optstate.resume.regrouping import Row
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver
from optstate.resume.values import Value, Winner, chosen, word_for
from optstate.state.groups import Group

KEYS = ("lr", *RATES)


@dataclass(slots=True)
class Held:
    """The rates of one group: `values` by key, the `row` that tells its schedulers, why, or what stands against it."""

    values: dict[str, Value] = field(default_factory=dict)
    row: Row = field(default_factory=Row)
    reason: str = ""
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """What a policy says of the rates: `live`, `saved` or a value. `start` is for the base rate, `named` has those by name."""

    lr: Any
    start: Any
    named: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy) -> Words:
        """Those of a policy: the base rate goes the way of `lr` unless it is named itself."""
        lr = word_for(policy, "lr")
        named = {key: word for key, word in policy.hyperparameters.items() if key in RATES}
        return cls(lr, named.get("initial_lr", lr), named)

    def literal(self, key: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Value:
        """What a rate is where nothing has to hold through a scheduler: those that are not named go the way of `lr`."""
        others = self.lr if self.lr in ("live", "saved") else "live"
        word = self.lr if key == "lr" else self.named.get(key, others)
        return chosen(word, mine.get(key, missing), theirs.get(key, missing))


def rates_of(
    mine: Mapping[str, Any], homes: Sequence[Group], words: Words, drivers: Sequence[Driver], course: Course | str
) -> Held:
    """The rates of a group that comes from these saved groups; `drivers` are those of torch's that drive it."""
    home = next((group for group in homes if number(_base(group.hyperparameters)) != 0), homes[0])
    theirs = home.hyperparameters
    held = Held({key: words.literal(key, mine, theirs) for key in KEYS if key in mine or key in theirs})
    held.row = Row(tuple(group.index for group in homes))
    if drivers and words.start != "saved":
        _hold(held, mine, home, words.start, drivers, course)
        held.values |= {key: words.literal(key, mine, theirs) for key in words.named if key in held.values}
    return held


def _base(group: Mapping[str, Any]) -> Any:
    """The base rate of a group, where a scheduler has noted one."""
    return group.get("initial_lr")


def _hold(
    held: Held, mine: Mapping[str, Any], home: Group, start: Any, drivers: Sequence[Driver], course: Course | str
) -> None:
    """Have a new base rate hold: from now on the rates are those that the schedule gives with it."""
    theirs = home.hyperparameters
    old, new = number(_base(theirs)), number(mine.get("initial_lr", mine.get("lr")) if start == "live" else start)
    winner: Winner = "live" if start == "live" else "given"
    if new is None or number(theirs.get("lr")) is None:
        return
    if old is None:  # the rate of now is all that its schedulers know
        held.row = Row(held.row.homes, _ratio(new, number(theirs["lr"])), new, moved=True)
        held.values["lr"] = Value(winner, new)
        held.reason = "its schedulers keep no base rate, and go on from this one"
    elif old == new:
        held.values |= {key: chosen("saved", mine.get(key, missing), theirs[key]) for key in KEYS if key in theirs}
    elif isinstance(course, str):
        held.fault = f"a new base rate cannot hold: {course}"
    elif old == 0 or course.stands(home.index):
        held.fault = f"a new base rate cannot hold: the saved one is {'0' if old == 0 else 'eta_min itself'}, which no factor leads away from"
    else:
        _follow(held, theirs, home.index, new, drivers, course, winner)


def _follow(
    held: Held,
    theirs: Mapping[str, Any],
    index: int,
    new: float,
    drivers: Sequence[Driver],
    course: Course,
    winner: Winner,
) -> None:
    old = number(_base(theirs)) or 0.0
    ratio = new / old
    rate = _above_floors(course.moved(number(theirs["lr"]), index, ratio), number(theirs["lr"]), index, drivers)
    held.row = Row(held.row.homes, ratio, rate, moved=True)
    held.reason = f"base rate {new:g} instead of {old:g}, as far along the schedule"
    scaled = {key: (number(theirs[key]) or 0.0) * ratio for key in RATES if key in theirs}
    held.values |= {key: Value(winner, value) for key, value in {**scaled, "initial_lr": new, "lr": rate}.items()}


def _above_floors(rate: float, saved: float | None, index: int, drivers: Sequence[Driver]) -> float:
    """A rate that ReduceLROnPlateau has brought down to its least one is there with any base rate."""
    floors = [each.state["min_lrs"] for each in drivers if len(each.state.get("min_lrs", ())) > index]
    least = max((float(each[index]) for each in floors), default=0.0)
    return least if saved is not None and saved <= least else max(rate, least)


def _ratio(new: float, old: float | None) -> float:
    return new / old if old else 1.0


def rate_of_new(
    mine: Mapping[str, Any], groups: Sequence[Group], drivers: Sequence[Driver], course: Course | str
) -> float | None:
    """The rate of a group that is new, as far along the schedule as the saved ones; None where there is nothing to follow.

    A recursive schedule goes on from the rate that a group has: one that starts in the middle with its first rate, that
    of a warm-up for instance, would keep it.
    """
    base = number(mine.get("initial_lr"))
    home = next((group for group in groups if number(_base(group.hyperparameters))), None)
    if not drivers or base is None or home is None or isinstance(course, str) or course.stands(home.index):
        return None
    old, rate = number(_base(home.hyperparameters)), number(home.hyperparameters.get("lr"))
    return None if not old or rate is None else float(course.moved(rate, home.index, base / old))


def agree(homes: Sequence[Group], key: str) -> bool:
    """Whether saved groups that become one have the same value."""
    values = [group.hyperparameters.get(key, missing) for group in homes]
    return all(same(value, values[0]) for value in values[1:])

"""Winners: whose value a hyperparameter gets where saved values collide, flags differ, or a scheduler writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optstate.optimizers.spec import ADDED_KEYS, ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS
from optstate.resume.courses import Course
from optstate.resume.decided import Decided
from optstate.resume.decisions import HyperparameterDecision, missing
from optstate.resume.policy import Policy
from optstate.resume.rates import KEYS, Held, Words, agree, rates_of
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver
from optstate.resume.values import Value, chosen, named, with_items, word_for
from optstate.schedule.scheduler import Scheduler
from optstate.state.groups import Group
from optstate.state.table import format_value
from optstate.text import count, listing, safe_text


@dataclass(frozen=True, slots=True)
class Side:
    """One live optimizer, and what its groups are decided with.

    `drivers` are the schedulers that are restored, `standing` those that are not but have to follow a given rate, `course`
    how rates hang on base rates. `other_class` says that its state is that of another class, `overridden` for each of its
    parameters what the policy's overrides give.
    """

    name: str
    optimizer: torch.optim.Optimizer
    policy: Policy
    drivers: Sequence[Driver]
    standing: Sequence[Driver]
    course: Course | str
    saved_groups: Sequence[Group]
    other_class: bool
    overridden: Mapping[str, set[str]]

    @property
    def of_torch(self) -> list[Driver]:
        return [each for each in self.drivers if each.of_torch]

    def words(self) -> Words:
        return Words.of(self.policy)


@dataclass(frozen=True, slots=True)
class Case:
    """One live group: what it has, and the saved groups of its parameters with their live names."""

    side: Side
    index: int
    mine: Mapping[str, Any]
    homes: Sequence[tuple[Group, list[str]]]

    @property
    def label(self) -> str:
        return f"group {safe_text(self.side.name)}:{self.index}" if self.side.name else f"group {self.index}"

    def sources(self, key: str) -> list[tuple[Group, list[str]]]:
        """The saved groups of those parameters that no override gives the key; where there are none, of some."""
        if not self.side.overridden:
            return list(self.homes)
        left = [
            (group, kept)
            for group, names in self.homes
            if (kept := [name for name in names if key not in self.side.overridden.get(name, ())])
        ]
        return left or list(self.homes[:1])

    def decided(self, key: str, value: Value, theirs: Any, reason: str = "") -> HyperparameterDecision:
        mine = self.mine.get(key, missing)
        return HyperparameterDecision(
            self.side.name,
            self.index,
            key,
            mine,
            theirs,
            value.value,
            value.winner,
            same=same(mine, theirs),
            reason=reason,
        )


def decided_value(found: Decided, case: Case, key: str) -> Iterator[HyperparameterDecision]:
    """What a hyperparameter that is no rate will be; nothing where the checkpoint's has no place here."""
    policy, side = case.side.policy, case.side
    sources = case.sources(key)
    mine, theirs = case.mine.get(key, missing), sources[0][0].hyperparameters.get(key, missing)
    if key in IMPLEMENTATION_FLAGS:
        if not same(mine, theirs):
            yield case.decided(key, Value("live", mine), theirs)
        return
    if mine is missing and side.other_class and key not in ADDED_KEYS and not named(policy, key):
        return
    word = _word(case, key)
    if key in ALGORITHM_FLAGS and not named(policy, key) and _is_fault(found, case, key, mine, theirs):
        return
    value = with_items(policy, key, chosen(word, mine, theirs), mine, theirs)
    value = _driven(found, case, key, value, theirs)
    if not agree([group for group, _ in sources], key) and not _settled(found, case, key, sources, value):
        return
    yield case.decided(key, value, theirs)


def _word(case: Case, key: str) -> Any:
    """Whose value a hyperparameter gets. Flags of an algorithm that may change are the program's, unless they are named."""
    policy = case.side.policy
    if key in ALGORITHM_FLAGS and policy.optimizer_change != "error":
        return word_for(policy, key, "live")
    return word_for(policy, key)


def _is_fault(found: Decided, case: Case, key: str, mine: Any, theirs: Any) -> bool:
    if missing in (mine, theirs) or same(mine, theirs) or case.side.policy.optimizer_change != "error":
        return False
    found.faults.append(
        f"{case.label}: {key} is {format_value(theirs)} in the checkpoint and {format_value(mine)} live, which changes "
        f'what the slots mean; hyperparameters={{"{key}": "live"}}, or "saved", says whose counts'
    )
    return True


def _driven(found: Decided, case: Case, key: str, value: Value, theirs: Any) -> Value:
    """What a restored scheduler writes at each of its steps is its own, and what it needs for that comes with it."""
    for driver in case.side.drivers:
        ours = isinstance(driver.item, Scheduler)
        if value.winner == "saved" or theirs is missing or not (ours or driver.of_torch) or not driver.drives(key):
            continue
        written = ours or key == driver.momentum_keys()[0]
        if written and named(case.side.policy, key):
            found.faults.append(_written(case, driver, key))
        elif not named(case.side.policy, key):
            return _cycled(value, theirs) if written and not ours else Value("saved", theirs)
    return value


def _cycled(value: Value, theirs: Any) -> Value:
    """Of betas only the first is moved, by all schedulers of torch."""
    if not isinstance(theirs, (tuple, list)) or not isinstance(value.value, (tuple, list)):
        return Value("saved", theirs)
    return Value(value.winner, type(value.value)((theirs[0], *value.value[1:])))


def _settled(found: Decided, case: Case, key: str, sources: Sequence[tuple[Group, list[str]]], value: Value) -> bool:
    """Whether the policy says what a group will have for which several values were saved; else that is a fault."""
    shown = "; ".join(
        f"{format_value(group.hyperparameters.get(key, missing))} of {listing(names, 3)}" for group, names in sources
    )
    differ = f"{count(len(sources), 'saved group')} that differ in {safe_text(key)} ({shown})"
    if value.winner == "saved":
        found.faults.append(
            f"{case.label}: its parameters come from {differ}; say what it will be: "
            f'hyperparameters={{"{safe_text(key)}": "live"}} or a value, or overrides={{pattern: {{"{safe_text(key)}": a value}}}}'
        )
        return False
    found.notes.append(
        f"{case.label}: {safe_text(key)} is {format_value(value.value)} ({value.winner}) for parameters from {differ}"
    )
    return True


def decided_rates(found: Decided, case: Case) -> Held:
    """What the rates will be; what stands against that is said once, of the first key that it concerns."""
    side, sources = case.side, case.sources("lr")
    homes = [group for group, _ in sources]
    if side.standing and "initial_lr" in case.mine:
        held = standing_rates(case)
    else:
        held = rates_of(case.mine, homes, _words(found, case), side.of_torch, side.course)
    if held.fault is not None:
        found.faults.append(f'{case.label}: {held.fault}; hyperparameters={{"lr": "saved"}} goes on from the saved one')
    differing = next((key for key in KEYS if key in held.values and not agree(homes, key)), None)
    if differing is not None and not held.row.moved:
        _settled(found, case, differing, sources, held.values[differing])
    return held


def standing_rates(case: Case) -> Held:
    """What the rates will be where a given one has to hold through schedulers that go on as they are."""
    now = Group(case.side.name, case.index, case.mine, ())
    return rates_of(case.mine, [now], case.side.words(), case.side.standing, case.side.course)


def _words(found: Decided, case: Case) -> Words:
    """What the policy says of the rates; a schedule of ours that drives them knows no base rate, and sets what its curve says."""
    words = case.side.words()
    for driver in case.side.drivers:
        if isinstance(driver.item, Scheduler) and driver.drives("lr") and words.start != "saved":
            if named(case.side.policy, "lr"):
                found.faults.append(_written(case, driver, "lr"))
            return Words("saved", "saved")
    return words


def _written(case: Case, driver: Driver, key: str) -> str:
    name = safe_text(driver.name)
    return (
        f"{case.label}: {name} writes {safe_text(key)} at each of its steps, so that no other value of it can stay: do not name "
        f'it, or have the object stay as it is, objects={{"{name}": "live"}}'
    )

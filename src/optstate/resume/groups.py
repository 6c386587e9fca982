"""Groups: the hyperparameters that each live group will have, by where its parameters were when they were saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optstate.live.source import LiveSource, hyperparameters
from optstate.live.transaction import Transaction
from optstate.optimizers.registry import by_class, qualified_name
from optstate.resume.courses import course_of
from optstate.resume.decided import Decided
from optstate.resume.decisions import HyperparameterDecision, missing
from optstate.resume.policy import Policy
from optstate.resume.rates import KEYS, Held, Words, rate_of_new
from optstate.resume.regrouping import Row, reshape
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver, alive
from optstate.resume.source import Saved
from optstate.resume.values import Value, check_given, check_names, chosen, with_items, word_for
from optstate.resume.winners import Case, Side, decided_rates, decided_value, standing_rates
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.selection import matcher
from optstate.text import safe_text

Place = tuple[str, int]
"""A live group: the name of its optimizer and its number."""


@dataclass(slots=True)
class Grouping:
    """Where the live groups come from, and what they will have.

    `homes` is live group → numbers of the saved groups that its parameters come from, in order; `after` its
    hyperparameters once all is done but the policy's overrides; `rows` what its schedulers need to know. `saved` has how
    many groups there are in the checkpoint for each live optimizer.
    """

    homes: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    after: dict[Place, dict[str, Any]] = field(default_factory=dict)
    rows: dict[Place, Row] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)


def decide_groups(
    found: Decided,
    saved: Saved,
    live: LiveSource,
    optimizers: Mapping[str, str],
    pairs: Mapping[str, str],
    drivers: Sequence[Driver],
    policy: Policy,
) -> Grouping:
    """Decide every hyperparameter. `optimizers` and `pairs` are live name → saved name, of optimizers and parameters.

    Raises `PolicyError` for a hyperparameter that no group has, and for a value that one cannot have.
    """
    home = {name: group for group in saved.state.groups for name in group.parameters}
    infos, grouping = live.optimizers(), Grouping()
    every = [group.hyperparameters for info in infos.values() for group in (*info.groups, *saved.state.groups)]
    check_names(policy, every)
    overridden = _overridden(live, policy)
    for name, saved_name in optimizers.items():
        grouping.saved[name] = len(saved.state.optimizers[saved_name].groups)
        side = _side(live, name, saved.state.optimizers[saved_name], policy, drivers, overridden)
        for index, group in enumerate(side.optimizer.param_groups):
            members: dict[int, tuple[Group, list[str]]] = {}
            for parameter in infos[name].groups[index].parameters:
                if parameter in pairs and (source := home.get(pairs[parameter])) is not None:
                    members.setdefault(id(source), (source, []))[1].append(parameter)
            _decide_group(found, grouping, Case(side, index, hyperparameters(group), list(members.values())))
        _keep_moving(found, grouping, side)
        _mention_strangers(found, grouping, side)
        _mention_rates_in_slots(found, side)
    return grouping


def _side(
    live: LiveSource,
    name: str,
    saved: OptimizerInfo,
    policy: Policy,
    drivers: Sequence[Driver],
    overridden: Mapping[str, set[str]],
) -> Side:
    optimizer = live.live_optimizers[name]
    own = [each for each in drivers if each.optimizer == name]
    words = Words.of(policy)
    standing = [] if any(each.of_torch for each in own) or words.start in ("live", "saved") else alive(optimizer, name)
    course = course_of(standing or [each for each in own if each.of_torch])
    mine = qualified_name(type(optimizer))
    other = saved.class_name != mine and not (saved.inferred and mine in saved.alternatives)
    return Side(name, optimizer, policy, own, standing, course, saved.groups, other, overridden)


def _overridden(live: LiveSource, policy: Policy) -> dict[str, set[str]]:
    if not policy.overrides:
        return {}
    patterns = [(matcher(pattern), set(values)) for pattern, values in policy.overrides.items()]
    return {name: set().union(*(keys for matches, keys in patterns if matches(name))) for name in live.names()}


def _decide_group(found: Decided, grouping: Grouping, case: Case) -> None:
    place = case.side.name, case.index
    grouping.homes[place] = tuple(group.index for group, _ in case.homes)
    decisions, row = _of_saved(found, case) if case.homes else _of_new(found, case)
    given = {item.key: item for item in decisions if item.winner == "given"}
    after = {**case.mine, **{item.key: item.value for item in decisions if item.value is not missing}}
    if given:
        before = {key: item.saved if item.live is missing else item.live for key, item in given.items()}
        values = {key: item.value for key, item in given.items()}
        check_given(case.side.optimizer, {**after, **before}, values, case.label)
    found.hyperparameters.extend(decisions)
    grouping.after[place] = after
    grouping.rows[place] = row


def _of_saved(found: Decided, case: Case) -> tuple[list[HyperparameterDecision], Row]:
    """The decisions for a group with parameters of the checkpoint."""
    held = decided_rates(found, case)
    home = case.sources("lr")[0][0].hyperparameters
    decisions = [case.decided(key, value, home.get(key, missing), held.reason) for key, value in held.values.items()]
    for key in dict.fromkeys((*case.mine, *(key for group, _ in case.homes for key in group.hyperparameters))):
        if key not in KEYS:
            decisions.extend(decided_value(found, case, key))
    return decisions, held.row


def _of_new(found: Decided, case: Case) -> tuple[list[HyperparameterDecision], Row]:
    """Those for a group that the checkpoint knows nothing of: it keeps what it has, but for what the policy gives."""
    found.notes.append(f"{case.label} has no parameter of the checkpoint, and keeps its own hyperparameters")
    rates = _rates_of_new(case)
    values = {key: value for key, value in rates.values.items() if value.winner == "given" or rates.reason}
    for key, value in case.mine.items():
        whole = chosen(word_for(case.side.policy, key, "live"), value, missing)
        whole = with_items(case.side.policy, key, whole, value, missing)
        if whole.winner == "given":
            values.setdefault(key, whole)
    reasons = dict.fromkeys(rates.values, rates.reason)
    return [case.decided(key, value, missing, reasons.get(key, "")) for key, value in values.items()], rates.row


def _rates_of_new(case: Case) -> Held:
    """It follows its schedulers: as far along as the others where they are restored, from where they are where they stay."""
    side, words = case.side, case.side.words()
    if side.standing and "initial_lr" in case.mine:
        return standing_rates(case)
    given = words.start not in ("live", "saved")
    mine = {**case.mine, "initial_lr": words.start} if given else case.mine
    rate = rate_of_new(mine, side.saved_groups, side.of_torch, side.course)
    if rate is None:
        return Held()
    base = {"initial_lr": Value("given", words.start)} if given else {}
    values = {"lr": Value("given" if given else "live", rate), **base}
    return Held(values, Row((), rate=rate), "as far along the schedule as the others")


def _keep_moving(found: Decided, grouping: Grouping, side: Side) -> None:
    """Have the schedulers that go on as they are follow a given rate, when all else is done."""
    rows = [grouping.rows[side.name, index] for index in range(len(side.optimizer.param_groups))]
    for driver in side.standing:
        made = reshape(driver, len(rows), [row if row.moved else Row((index,)) for index, row in enumerate(rows)])
        if isinstance(made, str):
            found.faults.append(f"a {safe_text(qualified_name(type(driver.item)))} drives lr and cannot follow: {made}")
        elif made is not None:
            found.last.append(partial(_reload, driver.item, made))


def _reload(item: Any, change: Callable[[Any], Any], transaction: Transaction) -> None:
    before = copy.deepcopy(item.state_dict())
    transaction.on_rollback(lambda: item.load_state_dict(before))
    item.load_state_dict(change(item.state_dict()))


def _mention_strangers(found: Decided, grouping: Grouping, side: Side) -> None:
    moved = any(row.moved for (name, _), row in grouping.rows.items() if name == side.name)
    for driver in (*side.drivers, *side.standing) if moved else ():
        if not type(driver.item).__module__.startswith("torch.optim."):
            found.warnings.append(
                f"{safe_text(driver.name)}: of {safe_text(qualified_name(type(driver.item)))} nothing is known; the new base "
                "rate holds if its rates are proportional to their base rates"
            )


def _mention_rates_in_slots(found: Decided, side: Side) -> None:
    """Some optimizers step by a slot in which they keep the rate, so that a new one comes late (M418)."""
    spec = by_class(type(side.optimizer))
    keys = [key for key, slot in spec.slots.items() if slot.reset == "lr"] if spec is not None else []
    late = [
        item
        for item in found.hyperparameters
        if (item.optimizer, item.key) == (side.name, "lr")
        and item.winner != "saved"
        and not same(item.value, item.saved)
    ]
    if keys and late and spec is not None:
        found.warnings.append(
            f"M418 {spec.name.rpartition('.')[2]} steps by its slot {keys[0]}, which holds the saved rate: the next update is not "
            "yet one with the new lr"
        )

"""Rehearsal: schedulers and overrides tried on copies while a plan is made, for faults to come early and rates to be seen."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optstate.errors import BindError, OptstateError
from optstate.live.group_values import NAMES, refuse_missing_slots
from optstate.live.source import LiveSource
from optstate.live.tensors import held
from optstate.live.transaction import Transaction
from optstate.optimizers.spec import number
from optstate.resume.decided import Decided
from optstate.resume.groups import Grouping
from optstate.resume.materialise import materialise
from optstate.resume.overriding import override
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver, alive
from optstate.resume.values import policy_error
from optstate.schedule.scheduler import Scheduler
from optstate.state.table import format_value
from optstate.text import count, listing, safe_text

NEXT = 3
"""How many rates are shown besides that of now."""


def rehearse(
    found: Decided, live: LiveSource | None, grouping: Grouping, drivers: Sequence[Driver], policy: Policy
) -> None:
    """Do on copies what will be done to groups and schedulers, and note the rates of the next steps.

    Nothing live is changed: each optimizer has a stand-in with copies of its groups and no memory of its own.
    Raises `PolicyError` for overrides that mean nothing.
    """
    drivers = [each for each in drivers if each.optimizer is not None and (each.of_torch or each.track is not None)]
    if live is None or not grouping.after or not (drivers or policy.overrides):
        return
    try:
        stage = _Stage(live, grouping)
    except OptstateError as error:
        found.faults.append(error.what)
        return
    copies = [(each, stage.copied(found, each)) for each in drivers]
    loaded = [_loads(found, each, item) for each, item in copies]
    if not all(loaded):
        return
    if policy.overrides:
        _override(found, live, stage, {id(each.item): item for each, item in copies}, policy)
    found.notes += stage.rates(found, copies)


class _Stage:
    """Stand-ins for the live optimizers: of the same classes and parameters, with groups of their own that hold what is planned."""

    def __init__(self, live: LiveSource, grouping: Grouping) -> None:
        self.real = live.live_optimizers
        self.source = LiveSource(
            {name: _stand_in(each, name, grouping) for name, each in self.real.items()}, live.model
        )

    def group_of(self) -> dict[int, dict[str, Any]]:
        """For each parameter, by its `id`, what the group has that it is in now."""
        groups = [dict(group) for stand in self.source.live_optimizers.values() for group in stand.param_groups]
        return {id(each): group for group in groups for each in group["params"]}

    def copied(self, found: Decided, driver: Driver) -> Any:
        """A copy of a scheduler that drives the stand-in; one of ours as it is, for it can be asked; None where there is none."""
        if isinstance(driver.item, Scheduler) or driver.optimizer is None:
            return driver.item
        stand, real = self.source.live_optimizers[driver.optimizer], self.real[driver.optimizer]
        memo = {id(self.source.model): self.source.model, id(real): stand, id(driver.item.optimizer): stand}
        try:
            return copy.deepcopy(driver.item, memo)
        except Exception as error:  # noqa: BLE001  # whatever a foreign object raises
            found.warnings.append(f"{safe_text(driver.name)} cannot be tried before: {_said(error)}")
            return None

    def rates(self, found: Decided, copies: Sequence[tuple[Driver, Any]]) -> list[str]:
        """What the learning rate of each driven group will be in the next steps, in words."""
        lines: list[str] = []
        for name, stand in self.source.live_optimizers.items():
            own = [(driver, item) for driver, item in copies if driver.optimizer == name and item is not None]
            if not any(driver.drives("lr") for driver, _ in own):
                continue
            waits = all(isinstance(item, ReduceLROnPlateau) for _, item in own)
            steps = [_now(stand, own)]
            for ahead in range(1, 1 if waits else NEXT + 1):
                if not _stepped(found, own):
                    break
                steps.append(_now(stand, own, ahead))
            lines += _described(name, list(zip(*steps, strict=True)), waits=waits)
        return lines


def _stand_in(optimizer: torch.optim.Optimizer, name: str, grouping: Grouping) -> torch.optim.Optimizer:
    stand: torch.optim.Optimizer = object.__new__(type(optimizer))
    vars(stand).update(vars(optimizer))
    stand.state = defaultdict(dict)
    stand.param_groups = [
        _planned(group, grouping.after.get((name, index), group)) for index, group in enumerate(optimizer.param_groups)
    ]
    return stand


def _planned(group: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    planned: dict[str, Any] = {key: list(value) for key, value in group.items() if key in ("params", "param_names")}
    for key, value in after.items():
        if key in planned:
            continue
        made, old = materialise(value), group.get(key)
        in_place = isinstance(old, torch.Tensor) and isinstance(made, (int, float))
        planned[key] = torch.full_like(old, made) if in_place else made  # type: ignore[arg-type]
    return planned


# --- schedulers ---------------------------------------------------------------------------------------------


def _loads(found: Decided, driver: Driver, item: Any) -> bool:
    """Load the planned state into a copy; whether that worked. One that could not be copied is not tried."""
    if item is None:
        return True
    decision = next(each for each in found.objects if each.name == driver.name)
    try:
        state = materialise(decision.saved)
        state = state if decision.transform is None else decision.transform(state)
        if isinstance(item, Scheduler):
            item.check_state(state)
        else:
            item.load_state_dict(state)
    except Exception as error:  # noqa: BLE001  # whatever a foreign object raises
        found.faults.append(f"{safe_text(driver.name)} does not load: {_said(error)}")
        return False
    return True


def _stepped(found: Decided, own: Sequence[tuple[Driver, Any]]) -> bool:
    """Take a step of each copy; whether all could."""
    for driver, item in own:
        if isinstance(item, (Scheduler, ReduceLROnPlateau)) or not driver.of_torch:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's advice on the order of steps, of which none is taken here
                item.step()
        except Exception as error:  # noqa: BLE001  # whatever a foreign object raises
            found.warnings.append(f"{safe_text(driver.name)} cannot take its next step: {_said(error)}")
            return False
    return True


def _now(stand: torch.optim.Optimizer, own: Sequence[tuple[Driver, Any]], ahead: int = 0) -> list[float]:
    rates = [number(group.get("lr")) or 0.0 for group in stand.param_groups]
    for driver, item in own:
        for name, track in item.tracks.items() if isinstance(item, Scheduler) else ():
            if track is driver.track:
                values = track.values(int(driver.state["optimizers"][name]["steps"]) + ahead)
                rates = [each.get("lr", rate) for each, rate in zip(values, rates, strict=False)]
    return rates


def _described(optimizer: str, groups: Sequence[Sequence[float]], *, waits: bool) -> Iterator[str]:
    """One line for all groups that have the same rates."""
    same: dict[tuple[float, ...], list[str]] = {}
    for index, rates in enumerate(groups):
        same.setdefault(tuple(rates), []).append(f"{safe_text(optimizer)}:{index}" if optimizer else str(index))
    for rates, labels in same.items():
        now, *then = map(format_value, rates)
        later = ", until the metric stops improving" if waits else f", then {', '.join(then)}, …" if then else ""
        yield f"lr of group{'s' if len(labels) > 1 else ''} {listing(labels)}: {now} now{later}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {safe_text(error)}" if not isinstance(error, OptstateError) else error.what


# --- overrides ----------------------------------------------------------------------------------------------


def _override(found: Decided, live: LiveSource, stage: _Stage, restored: Mapping[int, Any], policy: Policy) -> None:
    """Regroup the stand-ins; what will be is noted, and done when all else is. `restored` has the copies by original."""
    standing = [each for name, optimizer in stage.real.items() for each in alive(optimizer, name)]
    before = stage.group_of()
    copies = [restored[id(each.item)] if id(each.item) in restored else stage.copied(found, each) for each in standing]
    try:
        override(Transaction(), stage.source, [each for each in copies if each is not None], policy.overrides)
    except BindError as error:
        found.faults.append(f"overrides: {error.what}")
        return
    except OptstateError as error:
        raise policy_error(error, "overrides") from error
    try:
        _refuse_lacking(found, live, stage, before)
    except OptstateError as error:
        raise policy_error(error, error.where or "overrides") from error
    found.last.append(partial(_override_live, live, policy))
    for name, stand in stage.source.live_optimizers.items():
        sizes = listing((f"{len(group['params']):,}" for group in stand.param_groups), 20)
        label = f" of {safe_text(name)}" if name else ""
        found.notes.append(f"overrides{label}: {count(len(stand.param_groups), 'group')} then, of {sizes} parameters")


def _refuse_lacking(found: Decided, live: LiveSource, stage: _Stage, before: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise `CoefficientError` where an override asks for a slot that is not among those that are planned."""
    after = stage.group_of()
    changes: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in found.entries:
        bound = live.bound(entry.parameter)
        old, new = before[id(bound.tensor)], after[id(bound.tensor)]
        key = id(old), id(new)
        if key not in changes:
            changes[key] = {
                key: new[key] for key in new if key not in NAMES and not same(held(old.get(key)), held(new[key]))
            }
        if changes[key] and entry.fates:
            stand = stage.source.live_optimizers[bound.optimizer]
            stand.state[bound.tensor] = dict.fromkeys(entry.fates)
            refuse_missing_slots(stand, old, changes[key], [(bound.name, bound.tensor)])


def _override_live(live: LiveSource, policy: Policy, transaction: Transaction) -> None:
    schedulers = [each.item for name, optimizer in live.live_optimizers.items() for each in alive(optimizer, name)]
    override(transaction, live, schedulers, policy.overrides)

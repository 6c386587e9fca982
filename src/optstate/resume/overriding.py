"""Overrides: hyperparameters for some parameters by name, when all else is restored. Groups split, schedulers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optstate.errors import BindError
from optstate.live.regroup import Changes, regroup
from optstate.live.source import LiveSource
from optstate.live.transaction import Transaction
from optstate.optimizers.spec import number
from optstate.resume.courses import Course, course_of
from optstate.resume.schedulers import Driver, parts


def override(transaction: Transaction, source: LiveSource, schedulers: Sequence[Any], changes: Changes) -> None:
    """Regroup, with these schedulers of torch. Where they have noted base rates, a learning rate means one.

    Raises what `regroup` does, before anything is changed.
    """
    every = [group for optimizer in source.live_optimizers.values() for group in optimizer.param_groups]
    if schedulers and all("initial_lr" in group for group in every):
        changes = {pattern: _of_bases(values) for pattern, values in changes.items()}
    before = {id(each): (group.get("lr"), group.get("initial_lr")) for group in every for each in group["params"]}
    floors = {name: _floor(each, schedulers, changes) for name, each in source.live_optimizers.items()}
    regroup(transaction, source, changes, scheduler=list(schedulers))
    for name, optimizer in source.live_optimizers.items():
        if floors[name]:
            own = [each for each in schedulers if each.optimizer is optimizer]
            _measure(transaction, optimizer, own, floors[name], before)


def _floor(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any], changes: Changes) -> float:
    """From where the rates of an optimizer are measured. Raises `BindError` where new base rates could not hold."""
    own = [Driver("", each, optimizer, None, each.state_dict()) for each in schedulers if each.optimizer is optimizer]
    course = course_of(own)
    if isinstance(course, Course):
        return course.floor
    if any("initial_lr" in values for values in changes.values()):
        raise BindError(f"a new base rate cannot hold: {course}", todo="leave lr out of overrides")
    return 0.0


def _of_bases(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"initial_lr" if key == "lr" else key: value for key, value in values.items()}


def _measure(
    transaction: Transaction,
    optimizer: torch.optim.Optimizer,
    schedulers: Sequence[Any],
    floor: float,
    before: Mapping[int, tuple[Any, Any]],
) -> None:
    """Rates that are measured from a floor have been multiplied like all others: put each where its schedule has it."""
    for index, group in enumerate(optimizer.param_groups):
        rate, base = map(number, before[id(group["params"][0])] if group["params"] else (None, None))
        new = number(group.get("initial_lr"))
        if rate is None or base is None or new is None or base in (new, floor):
            continue
        rate = floor + (rate - floor) * ((new - floor) / (base - floor))
        transaction.hyperparameter(group, "lr", rate)
        for each in (inner for top in schedulers for inner in parts(top) if "_last_lr" in vars(inner)):
            _set_last(transaction, each, index, rate)


def _set_last(transaction: Transaction, scheduler: Any, index: int, rate: float) -> None:
    held = list(vars(scheduler)["_last_lr"])
    before = list(held)
    transaction.on_rollback(lambda: vars(scheduler).update(_last_lr=before))
    held[index] = torch.full_like(held[index], rate) if isinstance(held[index], torch.Tensor) else rate
    vars(scheduler)["_last_lr"] = held

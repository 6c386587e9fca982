"""What a user asks of a schedule, read into drives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from optstate.errors import ScheduleError
from optstate.live.members import Members
from optstate.live.source import LiveSource
from optstate.optimizers.ranges import range_of
from optstate.optimizers.registry import by_class
from optstate.schedule.combine import as_curve
from optstate.schedule.curve import Curve
from optstate.schedule.drive import Drive
from optstate.schedule.names import resolve
from optstate.state.optimizer_state import OptimizerState
from optstate.state.selection import matcher
from optstate.text import count, safe_text

OF_ALL, OF_GROUP, OF_NAME = range(3)
"""The ranks of drives: what is said of parameters by name goes before what is said of a group, and of all."""


class Ask(NamedTuple):
    """One curve, and whom it is asked for: one optimizer or all, parameters by name, a group by number, or everything."""

    name: str
    curve: Curve
    optimizer: str | None = None
    pattern: str | None = None
    group: int | None = None

    @property
    def label(self) -> str:
        """How it is called in messages, previews and checkpoints."""
        where = (
            f" of {self.pattern}"
            if self.pattern is not None
            else f" of group {self.group}"
            if self.group is not None
            else ""
        )
        return self.name + where


def read_asks(curves: Any, optimizers: Iterable[str], optimizer: str | None = None) -> Iterator[Ask]:
    """The curves that a mapping asks for. Raises `ScheduleError` for what is none."""
    if not isinstance(curves, Mapping) or not curves:
        raise ScheduleError(
            "a schedule is a mapping of hyperparameters to curves",
            expected='such as {"momentum": linear(0.85, 0.95, 300)}',
            found=safe_text(curves, 80),
        )
    for name, value in curves.items():
        if not isinstance(name, str):
            raise ScheduleError("a hyperparameter is named by a string", found=safe_text(name))
        if isinstance(value, (list, tuple)):
            yield from (Ask(name, as_curve(each), optimizer, group=number) for number, each in enumerate(value))
        elif not isinstance(value, Mapping):
            yield Ask(name, as_curve(value), optimizer)
        elif value and all(isinstance(key, int) for key in value):
            yield from (Ask(name, as_curve(each), optimizer, group=number) for number, each in value.items())
        elif optimizer is None and name and name in optimizers:
            yield from read_asks(value, (), name)
        else:
            yield from (ask._replace(pattern=name) for ask in read_asks(value, (), optimizer))


def drives_of(
    asks: Iterable[Ask], optimizers: Mapping[str, torch.optim.Optimizer], source: LiveSource | None
) -> dict[str, list[Drive]]:
    """The drives of each optimizer. What is asked of all goes to those that have such a hyperparameter.

    Raises `ScheduleError` where none has it, and for a group that is not there.
    """
    drives: dict[str, list[Drive]] = {name: [] for name in optimizers}
    for ask in asks:
        refused: list[ScheduleError] = []
        meant = _meant(ask, optimizers, source) if ask.optimizer is None else [ask.optimizer]
        for name in meant:
            try:
                drives[name].append(_drive(ask, optimizers[name], source))
            except ScheduleError as error:
                refused.append(error)
        if len(refused) == len(meant):
            raise refused[0]
    return drives


def _meant(ask: Ask, optimizers: Mapping[str, torch.optim.Optimizer], source: LiveSource | None) -> list[str]:
    """The optimizers that the parameters of a pattern are in; all where there is none."""
    if ask.pattern is None:
        return list(optimizers)
    if source is None:
        raise ScheduleError(
            f"{safe_text(ask.pattern)!r} means parameters by name, and names come from a model",
            todo="pass model=, or name an optimizer" if len(optimizers) > 1 else "pass model=",
        )
    found = {parameter.facts.optimizer for parameter in OptimizerState(source).select(ask.pattern)}
    return [name for name in optimizers if name in found]


def _drive(ask: Ask, optimizer: torch.optim.Optimizer, source: LiveSource | None) -> Drive:
    key, index = resolve(ask.name, optimizer)
    path = key if index is None else f"{key}[{index}]"
    rank, only = OF_ALL, None
    if ask.pattern is not None and source is not None:
        rank, only = OF_NAME, _by_name(ask.pattern, source)
    elif ask.group is not None:
        rank, only = OF_GROUP, _by_group(ask, optimizer)
    return Drive(ask.label, ask.curve, key, index, range_of(by_class(type(optimizer)), path), only, rank)


def _by_name(pattern: str, source: LiveSource) -> Callable[[], set[int]]:
    """The parameters that have such a name, whenever it is asked, or had it at first and are in their optimizer still."""
    matches = matcher(pattern)
    members = Members(source.bound(name).tensor for name in source.names() if matches(name))
    return lambda: members.ids() | {id(source.bound(name).tensor) for name in source.names() if matches(name)}


def _by_group(ask: Ask, optimizer: torch.optim.Optimizer) -> Callable[[], set[int]]:
    """The parameters that are in the group now, wherever they will be: numbers of groups change when they split."""
    groups = optimizer.param_groups
    if ask.group is None or not 0 <= ask.group < len(groups):
        raise ScheduleError(
            f"there is no group {ask.group} for {safe_text(ask.name)}",
            found=count(len(groups), "group"),
            todo="give one curve for each group, or {group: curve}",
        )
    return Members(groups[ask.group]["params"]).ids

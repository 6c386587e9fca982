"""Regroup: other hyperparameters for some parameters, by name. Groups split and merge; averages keep their meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import torch

from optstate.errors import BindError, SelectionError
from optstate.live.coupling import Work, plain, work_for
from optstate.live.group_parts import Part, install, merged, parts_of, same
from optstate.live.group_rates import cycles, schedulers_of
from optstate.live.group_values import new_values, refuse_missing_slots
from optstate.live.source import LiveSource
from optstate.live.tensors import held
from optstate.live.transaction import Transaction
from optstate.optimizers.coupling import Carry, carry
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import number
from optstate.state.journal import JournalEntry
from optstate.state.optimizer_state import OptimizerState
from optstate.state.table import format_value
from optstate.text import safe_text

Changes: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Pattern → hyperparameter → value."""


def regroup(
    transaction: Transaction, source: LiveSource, changes: Changes, *, scheduler: Any = None, merge: bool = True
) -> JournalEntry:
    """Regroup within a transaction; returns what the journal has to say of it. See `LiveState.regroup`.

    All is checked before anything is touched. `scheduler` is one of torch's, or several; for None, all that live.
    `merge=False` keeps groups apart that are equal in everything, also where a pattern asks for nothing: for who will
    make them differ later.
    """
    asked = _asked(source, _checked(changes, merge=merge))
    _refuse_clashes(asked, changes)
    patterns = {id(source.bound(name).tensor): each for name, each in asked.items()}
    names = {id(source.bound(name).tensor): name for name in source.names()}
    schedulers = schedulers_of(source.live_optimizers.values(), scheduler)
    plans, works = [], []
    for optimizer in source.live_optimizers.values():
        own = [each for each in schedulers if each.optimizer is optimizer]
        parts = parts_of(optimizer, patterns, _values_of(optimizer, changes), own)
        for part in parts:
            _refuse(optimizer, part, own, names)
            works.append(_following(transaction, optimizer, part))
        plans.append((optimizer, merged(optimizer, parts) if merge else parts, own))
    for plan in plans:
        install(transaction, *plan)
    for work in works:
        transaction.before_write(work.tensors)
        work.do()
    return JournalEntry(
        verb="regroup",
        arguments={
            pattern: {str(key): _plain(value) for key, value in each.items()} for pattern, each in changes.items()
        },
        selection=", ".join(map(safe_text, changes)),
        parameters=len(asked),
        slots=sum(work.slots for work in works),
    )


def _checked(changes: Any, *, merge: bool) -> Changes:
    fits = isinstance(changes, Mapping) and all(isinstance(values, Mapping) for values in changes.values())
    if not fits or not changes or (merge and not all(changes.values())):
        raise SelectionError(
            "regroup takes patterns, and for each of them hyperparameters",
            expected='such as {"*.bias": {"weight_decay": 0.0}}',
            found=safe_text(changes, 80),
        )
    return changes  # type: ignore[no-any-return]


def _asked(source: LiveSource, changes: Changes) -> dict[str, tuple[str, ...]]:
    """For each parameter that is meant, the patterns that mean it, in their order."""
    state = OptimizerState(source)
    asked: dict[str, tuple[str, ...]] = {}
    for pattern in changes:
        for name in state.select(pattern).names:
            asked[name] = (*asked.get(name, ()), pattern)
    return asked


def _refuse_clashes(asked: Mapping[str, tuple[str, ...]], changes: Changes) -> None:
    for patterns, name in {patterns: name for name, patterns in asked.items()}.items():
        for one, other in combinations(patterns, 2):
            differing = [
                key
                for key, value in changes[one].items()
                if key in changes[other] and not same(value, changes[other][key])
            ]
            if differing:
                raise SelectionError(
                    f"two patterns ask for another {safe_text(differing[0])} of {safe_text(name)}",
                    found=", ".join(
                        f"{safe_text(pattern)!r}: {format_value(held(changes[pattern][differing[0]]))}"
                        for pattern in (one, other)
                    ),
                    todo="make one of them match less",
                )


def _values_of(
    optimizer: torch.optim.Optimizer, changes: Changes
) -> Callable[[Mapping[str, Any], tuple[str, ...]], Mapping[str, Any]]:
    """What some patterns make of a group."""

    def values_of(group: Mapping[str, Any], patterns: tuple[str, ...]) -> Mapping[str, Any]:
        given = {key: value for pattern in patterns for key, value in changes[pattern].items()}
        return new_values(optimizer, group, given) if given else {}

    return values_of


def _refuse(optimizer: torch.optim.Optimizer, part: Part, schedulers: Sequence[Any], names: Mapping[int, str]) -> None:
    """Raise an error where the optimizer or a scheduler could not go on with this part as a group."""
    spec = by_class(type(optimizer))
    if part.is_new and spec is not None and spec.order_matters:
        raise BindError(
            f"the state of {safe_text(qualified_name(type(optimizer)))} is laid out over all parameters: its group cannot split",
            todo='change the hyperparameters of all of them: {"*": {...}}',
        )
    for each in schedulers:
        if cycles(each) in part.changed:
            raise BindError(
                f"{safe_text(qualified_name(type(each)))} writes {cycles(each)} at each of its steps",
                todo="build it with cycle_momentum=False, or leave that to it",
            )
    group = optimizer.param_groups[part.group]
    parameters = [group["params"][position] for _, position in part.places]
    values = {key: part.hyperparameters[key] for key in part.changed}
    refuse_missing_slots(optimizer, group, values, [(names[id(each)], each) for each in parameters])


def _following(transaction: Transaction, optimizer: torch.optim.Optimizer, part: Part) -> Work:
    """What the slots of a part are asked for: averages that are divided by 1-β^t follow β, so that no update jumps."""
    spec, group = by_class(type(optimizer)), optimizer.param_groups[part.group]
    if spec is None or not part.changed:
        return Work()
    before, after = plain(group), plain(part.hyperparameters)
    parameters = [group["params"][position] for _, position in part.places]
    stepped = [parameter for parameter in parameters if optimizer.state.get(parameter)]

    def ask(step: float | None, present: Sequence[str]) -> Carry:
        return carry(spec, before, after, step, "keep", slots_present=present)

    work = work_for(spec, group, [optimizer.state[parameter] for parameter in stepped], ask)
    for parameter in stepped if work.numbers or work.removals else ():
        transaction.before_entry(optimizer, parameter)
    return work


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON has it."""
    if isinstance(value, torch.Tensor):
        return number(held(value))
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else safe_text(value)

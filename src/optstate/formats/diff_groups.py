"""What is different between the param groups of two states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from optstate.formats.collecting import Found
from optstate.formats.difference import Difference
from optstate.state.groups import Group
from optstate.state.optimizer_state import OptimizerState
from optstate.text import count, safe_text

_Home: TypeAlias = "tuple[str, int]"
"""A group: its optimizer, "" for one that is alone, and its number."""


def compare_groups(found: Found, a: OptimizerState, b: OptimizerState, pairs: Mapping[str, str]) -> None:
    """Hyperparameters, and where parameters stand; `pairs` maps the names of a to those of b."""
    groups_a, groups_b = _by_home(a), _by_home(b)
    meetings: dict[tuple[_Home, _Home], None] = {}
    for name, other in pairs.items():
        one, two = _home(a, name), _home(b, other)
        meetings[one, two] = None
        if one != two:
            found.add(Difference("group", name, None, _label(one), _label(two)))
    # Groups of which no parameter has a partner are held against those of the same number.
    alone_a = groups_a.keys() - {one for one, _ in meetings}
    alone_b = groups_b.keys() - {two for _, two in meetings}
    for home in sorted(alone_a - alone_b):
        found.add(Difference("group", _label(home), a=_members(groups_a[home])))
    for home in sorted(alone_b - alone_a):
        found.add(Difference("group", _label(home), b=_members(groups_b[home])))
    ordered = all(info.ordered for state in (a, b) for info in state.optimizers.values())
    for one, two in [*meetings, *((home, home) for home in sorted(alone_a & alone_b))]:
        _hyperparameters(found, _label(one, two), groups_a[one], groups_b[two])
        if ordered:
            _order(found, _label(one, two), groups_a[one], groups_b[two], pairs)
    _classes(found, a, b, {(one[0], two[0]) for one, two in meetings})


def _by_home(state: OptimizerState) -> dict[_Home, Group]:
    return {(_optimizer(state, group.optimizer), group.index): group for group in state.groups}


def _home(state: OptimizerState, name: str) -> _Home:
    facts = state[name].facts
    return _optimizer(state, facts.optimizer), facts.group


def _optimizer(state: OptimizerState, name: str) -> str:
    return "" if len(state.optimizers) == 1 else name


def _label(home: _Home, other: _Home | None = None) -> str:
    optimizer, index = home
    label = f"group {safe_text(optimizer, 40)}:{index}" if optimizer else f"group {index}"
    return label if other in (None, home) else f"{label} → {_label(other).removeprefix('group ')}"


def _members(group: Group) -> str:
    return count(len(group.parameters), "parameter")


def _hyperparameters(found: Found, label: str, a: Group, b: Group) -> None:
    for key in {**a.hyperparameters, **b.hyperparameters}:
        told = Difference("hyperparameter", label, str(key))
        found.tree(a.hyperparameters.get(key), b.hyperparameters.get(key), told)


def _order(found: Found, label: str, a: Group, b: Group, pairs: Mapping[str, str]) -> None:
    """The order of the parameters that both groups have."""
    members = set(b.parameters)
    mine = [pairs[name] for name in a.parameters if pairs.get(name) in members]
    shared = set(mine)
    theirs = [name for name in b.parameters if name in shared]
    moved = sum(one != other for one, other in zip(mine, theirs, strict=True))
    if moved:
        found.add(
            Difference("order", label, None, f"{moved:,} of {count(len(mine), 'parameter')} elsewhere", "in order")
        )


def _classes(found: Found, a: OptimizerState, b: OptimizerState, optimizers: Iterable[tuple[str, str]]) -> None:
    infos_a, infos_b = ({_optimizer(state, info.name): info for info in state.optimizers.values()} for state in (a, b))
    for one, two in sorted(optimizers):
        x, y = infos_a[one], infos_b[two]
        if None not in (x.class_name, y.class_name) and not {x.class_name, *x.alternatives} & {
            y.class_name,
            *y.alternatives,
        }:
            found.add(Difference("optimizer", safe_text(one) or "optimizer", None, x.short_name, y.short_name))

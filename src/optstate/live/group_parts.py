"""Param groups taken apart and put together again: which parameters make up which group, with which hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from optstate.live.group_rates import following, row_of, rows
from optstate.live.group_values import NAMES
from optstate.live.transaction import Transaction
from optstate.optimizers.spec import number


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that will make up one group.

    group, places
        The group whose dict and hyperparameters they had, and each one's group and position there.
    hyperparameters, changed
        All that the group will have, and which of them are other ones than before.
    rows
        For each scheduler its items for this group.
    is_new, touched
        Whether the group has no dict yet; whether anything about it is other than before.
    """

    group: int
    places: tuple[tuple[int, int], ...]
    hyperparameters: Mapping[str, Any]
    changed: frozenset[str]
    rows: Sequence[Mapping[str, Any]]
    is_new: bool
    touched: bool


def parts_of(
    optimizer: torch.optim.Optimizer,
    patterns: Mapping[int, tuple[str, ...]],
    values_of: Callable[[Mapping[str, Any], tuple[str, ...]], Mapping[str, Any]],
    schedulers: Sequence[Any],
) -> list[Part]:
    """The groups to be, given which patterns mean a parameter (by its `id`), and what some patterns make of a group.

    Of a group that splits, what nothing was asked of stays, and the others go to new groups at the end, so that a
    group keeps its number.
    """
    lists = [rows(scheduler, len(optimizer.param_groups)) for scheduler in schedulers]
    parts = []
    for index, group in enumerate(optimizer.param_groups):
        members = _members(group["params"], patterns)
        for rank, (asked, positions) in enumerate(members.items()):
            values, factor = following(group, values_of(group, asked))
            part = Part(
                index,
                tuple((index, position) for position in positions),
                {
                    key: _own(value, values.get(key, value), rank > 0)
                    for key, value in group.items()
                    if key not in NAMES
                },
                frozenset(key for key, value in values.items() if not same(group[key], value)),
                [row_of(each, index, group, values, factor) for each in lists],
                is_new=rank > 0,
                touched=len(members) > 1 or bool(asked),
            )
            parts.append(part)
    return sorted(parts, key=lambda part: part.is_new)


def _members(
    params: Sequence[torch.Tensor], patterns: Mapping[int, tuple[str, ...]]
) -> dict[tuple[str, ...], list[int]]:
    """The positions in a group by what is asked of them, those of which nothing is first."""
    members: dict[tuple[str, ...], list[int]] = {}
    for position, parameter in enumerate(params):
        members.setdefault(patterns.get(id(parameter), ()), []).append(position)
    return dict(sorted(members.items(), key=lambda item: bool(item[0]))) or {(): []}


def _own(old: Any, new: Any, is_new: bool) -> Any:
    """A hyperparameter as the group will hold it: what was a tensor stays one, and no two groups hold the same."""
    if not isinstance(old, torch.Tensor):
        return new
    if new is old:
        return old.clone() if is_new else old
    return torch.full_like(old, number(new) or 0.0) if not isinstance(new, torch.Tensor) else new.clone()


def same(one: Any, other: Any) -> bool:
    """Whether two hyperparameters are the same value; a tensor is never the same as a number."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and torch.equal(one, other)
        )
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def merged(optimizer: torch.optim.Optimizer, parts: Sequence[Part]) -> list[Part]:
    """The same with each part that was touched in one with an earlier part that it equals in everything."""
    result: list[Part] = []
    for part in parts:
        place = next((place for place, each in enumerate(result) if _alike(optimizer, each, part)), None)
        if place is None:
            result.append(part)
        else:
            places = tuple(sorted((*result[place].places, *part.places)))
            result[place] = replace(result[place], places=places, touched=True)
    return result


def _alike(optimizer: torch.optim.Optimizer, one: Part, other: Part) -> bool:
    """Whether two parts can be one group: all hyperparameters, in any order of keys, and all that schedulers hold."""
    return (
        (one.touched or other.touched)
        and _all_same(one.hyperparameters, other.hyperparameters)
        and all(_all_same(a, b) for a, b in zip(one.rows, other.rows, strict=True))
        # A fused kernel takes the buffers of all parameters of a group, or of none.
        and (not one.hyperparameters.get("fused") or _kept(optimizer, one) == _kept(optimizer, other))
    )


def _all_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())


def _kept(optimizer: torch.optim.Optimizer, part: Part) -> set[frozenset[str]]:
    parameters = [optimizer.param_groups[group]["params"][position] for group, position in part.places]
    return {frozenset(optimizer.state.get(parameter, ())) for parameter in parameters}


def install(
    transaction: Transaction, optimizer: torch.optim.Optimizer, parts: Sequence[Part], schedulers: Sequence[Any]
) -> None:
    """Give the optimizer these groups and the schedulers their items for them; nothing in `optimizer.state` is touched."""
    transaction.before_groups(optimizer)
    groups = optimizer.param_groups
    lists = [_lists(groups, part) for part in parts]
    result = [dict(groups[part.group]) if part.is_new else groups[part.group] for part in parts]
    for part, group, members in zip(parts, result, lists, strict=True):
        _fill(transaction, group, part, shared=_shared(groups, group))
        for key, value in members.items():
            if part.is_new:
                group[key] = value
            else:
                group[key][:] = value
    groups[:] = result
    for place, scheduler in enumerate(schedulers):
        _set_rows(transaction, scheduler, [part.rows[place] for part in parts])


def _lists(groups: Sequence[Mapping[str, Any]], part: Part) -> dict[str, list[Any]]:
    """The parameters and their recorded names."""
    keys = [key for key in NAMES if key in groups[part.group]]
    return {key: [groups[group][key][position] for group, position in part.places] for key in keys}


def _shared(groups: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> set[int]:
    """The `id`s of tensors that other groups hold as well: torch gives all groups the very learning rate it was given."""
    return {id(value) for other in groups if other is not group for value in other.values()}


def _fill(transaction: Transaction, group: dict[str, Any], part: Part, shared: set[int]) -> None:
    for key in part.hyperparameters if part.is_new else part.changed:
        value = part.hyperparameters[key]
        if part.is_new or id(group[key]) in shared:
            group[key] = value
        else:
            transaction.hyperparameter(group, key, value)


def _set_rows(transaction: Transaction, scheduler: Any, held: Sequence[Mapping[str, Any]]) -> None:
    before = {key: getattr(scheduler, key) for key in held[0]}
    transaction.on_rollback(lambda: vars(scheduler).update(before))
    for key in before:
        setattr(scheduler, key, [row[key] for row in held])

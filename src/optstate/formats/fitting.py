"""Whether the parameters of one optimizer can be these weights in an order, and which of them each one then is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from optstate.formats.orders import Order, Weight


@dataclass(frozen=True, slots=True)
class Position:
    """One parameter as a state dict has it. `key` is its number, or its name where the writer used names.

    `guessed` marks a shape that all slots of an optimizer that is not known share: it can confirm an order, no more.
    """

    optimizer: str
    group: int
    key: int | str
    recorded: str | None
    entry: Mapping[str, Any]
    shape: tuple[int, ...] | None
    dtype: str | None
    guessed: bool = False

    @property
    def place(self) -> str:
        """The name of a parameter of which nothing but its position is known."""
        return f"{self.optimizer}#{self.key}"

    @property
    def told(self) -> str | None:
        """The name that the file has for it."""
        return self.key if isinstance(self.key, str) else self.recorded


Run: TypeAlias = Sequence[Position]

Fit: TypeAlias = "list[tuple[Weight, ...]]"
"""For each position of an optimizer the weights that it can be; none where the order leaves it open."""


def in_order(
    run: Run, weights: Sequence[Weight], orders: Sequence[Order], *, whole: bool = False
) -> tuple[Fit | None, str]:
    """What the orders that fit agree on, and the words of one that is only a habit.

    Orders that the writer is known to keep come before those that many programs keep; one that has a position for every
    weight that it lays out before one that leaves some out. With `whole` only those count.
    """
    mine = [order for order in orders if order.optimizer in (None, run[0].optimizer)]
    for known in (True, False):
        fits = [
            (_is_whole(pairs), fit, order.what)
            for order in mine
            if order.known is known
            for pairs in _laid_out(order, run, weights)
            if (fit := _fit(order, pairs, run)) is not None
        ]
        best = [fit for complete, fit, _ in fits if complete] or [fit for _, fit, _ in fits if not whole]
        if best:
            return _merged(best), "" if known else fits[0][2]
    return None, ""


def _is_whole(pairs: Pairs) -> bool:
    return all(len(members) == len(theirs) for members, theirs in pairs)


def _merged(fits: Sequence[Fit]) -> Fit:
    if len(fits) == 1:
        return fits[0]
    merged: Fit = []
    for options in zip(*fits, strict=True):
        open_ = any(not 0 < len(each) <= _FEW for each in options)
        merged.append(() if open_ else tuple({weight.name: weight for each in options for weight in each}.values()))
    return merged


_FEW = 16  # weights that orders may leave a choice of; more are all that have the shape


Pairs: TypeAlias = "list[tuple[Run, Sequence[Weight]]]"
"""Runs of positions, and for each the weights in the order in which it has them."""


def _laid_out(order: Order, run: Run, weights: Sequence[Weight]) -> Iterator[Pairs]:
    """The ways in which an order pairs the groups of an optimizer with weights."""
    groups: dict[int, list[Position]] = {}
    for position in run:
        groups.setdefault(position.group, []).append(position)
    if order.groups is None:
        yield [(run, weights)]
        homes = _homes(run)
        if len(groups) > 1 and homes:
            yield [
                (members, [weight for weight in weights if homes.get(weight.tensor.shape) == index])
                for index, members in groups.items()
            ]
        return
    laid_out = order.groups(weights)
    if max(groups, default=-1) < len(laid_out):
        yield [(groups.get(index, ()), theirs) for index, theirs in enumerate(laid_out)]
    filled = [theirs for theirs in laid_out if theirs]
    if len(filled) == len(groups) and [*groups] != [index for index, theirs in enumerate(laid_out) if theirs]:
        yield list(zip(groups.values(), filled, strict=True))


def _homes(run: Run) -> dict[object, int]:
    """The only group that has each shape; empty where a shape is in several groups, or is not known."""
    homes: dict[object, int] = {}
    for position in run:
        if position.shape is None or homes.setdefault(position.shape, position.group) != position.group:
            return {}
    return homes


def _fit(order: Order, pairs: Pairs, run: Run) -> Fit | None:
    """What each position is if its run has these weights in this order, some of them left out; None if it has not."""
    found: dict[int, tuple[Weight, ...]] = {}
    for members, theirs in pairs:
        options = _listed(members, theirs) if order.lists_only else _embedded(members, theirs, known=order.known)
        if options is None:
            return None
        found.update(zip(map(id, members), options, strict=True))
    return [found[id(position)] for position in run]


def _embedded(run: Run, weights: Sequence[Weight], *, known: bool) -> Fit | None:
    """The weight of each position where some weights were left out: certain where the first and the last choice are one.

    With an order that is only a habit also every weight of its shape must have been trained.
    """
    first = _choices(run, weights)
    if first is None:
        return None
    if len(run) == len(weights):
        return [(weight,) for weight in weights]
    last = _choices(run[::-1], weights[::-1]) or []
    here = Counter(position.shape for position in run)
    there: Mapping[object, int] = Counter(weight.tensor.shape for weight in weights)
    return [
        (weights[one],)
        if one == len(weights) - 1 - other and (known or here[position.shape] == there.get(position.shape))
        else ()
        for position, one, other in zip(run, first, reversed(last), strict=True)
    ]


def _listed(run: Run, weights: Sequence[Weight]) -> Fit | None:
    """The weights of each position's shape: the one of its turn where all of them are one thing in the layers of a list."""
    fitting: dict[object, list[Weight]] = {}
    for weight in weights:
        fitting.setdefault(weight.tensor.shape, []).append(weight)
    here: Mapping[object, int] = Counter(position.shape for position in run)
    if None in here or any(len(fitting.get(shape, ())) < number for shape, number in here.items()):
        return None
    turns = {
        shape: iter(sorted(alike, key=_numbers))
        for shape, alike in fitting.items()
        if len(alike) == here[shape] and len({_NUMBER.sub(".", weight.name) for weight in alike}) == 1
    }
    options = {shape: tuple(alike) for shape, alike in fitting.items()}
    return [(next(turns[position.shape]),) if position.shape in turns else options[position.shape] for position in run]


_NUMBER = re.compile(r"\.\d+(?=\.)|^\d+(?=\.)")


def _numbers(weight: Weight) -> list[int]:
    return [int(part) for part in weight.name.split(".") if part.isdecimal() and len(part) < 10]


def _choices(run: Iterable[Position], weights: Sequence[Weight]) -> list[int] | None:
    """For each position the first weight behind the one before that has its shape; None where one finds none."""
    chosen, number = [], 0
    for position in run:
        while number < len(weights) and position.shape not in (None, weights[number].tensor.shape):
            number += 1
        if number == len(weights):
            return None
        chosen.append(number)
        number += 1
    return chosen

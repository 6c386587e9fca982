"""Which weight of the model each numbered parameter of an optimizer is, as far as order and shapes tell.

An order is tried on the whole model; where an optimizer has fewer parameters than the model, on each part of it (a
sub-module, the model of a pair), and last on any parameters in that order, as a partly frozen model has. Time grows with
the parameters, not with their square.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from optstate.formats.fitting import Fit, Run, in_order
from optstate.formats.orders import Order, Weight
from optstate.state.roles import Certainty

DEPTH = 100
"""Modules within modules; a name with more of them is in no part of a model, as looking for it takes their square."""

OPTIMIZERS = 32
"""Optimizers that are fitted to parts of a model; with more of them only shapes tell."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a position can be: one weight by rule or by shapes, or several of which nothing tells which.

    `rests_on` is the order that alone tells a weight from others of its shape, "" where it is known that the writer
    uses it, or where the shape is enough.
    """

    weights: tuple[Weight, ...]
    certainty: Certainty
    rests_on: str = ""


def place(positions: Run, weights: Sequence[Weight], orders: Sequence[Order]) -> list[Place | None]:
    """What each position can be, out of these weights; None where nothing is known, not even what fits."""
    numbers: dict[str, list[int]] = {}
    for number, position in enumerate(positions):
        numbers.setdefault(position.optimizer, []).append(number)
    runs = {name: [positions[number] for number in each] for name, each in numbers.items()}
    common = Counter(weight.tensor.shape for weight in weights)
    found: list[Place | None] = [None] * len(positions)
    fitted = _fit_all(runs, weights, orders) if orders and len(runs) <= OPTIMIZERS else {}
    times = Counter(options[0].name for fit, _ in fitted.values() for options in fit if len(options) == 1)
    for name, (fit, order) in fitted.items():
        for number, options in zip(numbers[name], fit, strict=True):
            if len(options) == 1 and times[options[0].name] == 1:
                found[number] = Place(options, "rule", order if common[options[0].tensor.shape] > 1 else "")
            elif len(options) > 1:
                found[number] = Place(options, "position")
    _by_shape(positions, weights, found)
    return found


def _by_shape(positions: Run, weights: Sequence[Weight], found: list[Place | None]) -> None:
    """For what no order told: the only weight of a shape, or all of it that are not placed for certain.

    Nothing for an optimizer with a shape that no weight has: these are not its weights, and the shapes that do agree
    prove nothing.
    """
    shapes = {weight.tensor.shape for weight in weights}
    strangers = {
        position.optimizer for position in positions if position.guessed or position.shape not in (None, *shapes)
    }
    used = {
        each.weights[0].name for each in found if each is not None and each.certainty == "rule" and not each.rests_on
    }
    left: dict[tuple[int, ...], list[Weight]] = {}
    for weight in weights:
        if weight.name not in used:
            left.setdefault(weight.tensor.shape, []).append(weight)
    options = {shape: tuple(fitting) for shape, fitting in left.items()}
    wanted = Counter(position.shape for position, each in zip(positions, found, strict=True) if each is None)
    for number, position in enumerate(positions):
        shape = position.shape
        if found[number] is None and shape in options and position.optimizer not in strangers:
            only = wanted[shape] == 1 == len(options[shape])
            found[number] = Place(options[shape], "shapes" if only else "position")


# --- fitting optimizers to parts of the model -------------------------------------------------------------------


def _fit_all(runs: Mapping[str, Run], weights: Sequence[Weight], orders: Sequence[Order]) -> dict[str, tuple[Fit, str]]:
    """The fit of each optimizer that has one, and the order it rests on."""
    fitted: dict[str, tuple[Fit, str]] = {}
    pending, left = dict(runs), list(weights)
    while pending and (new := _whole_parts(pending, left, orders)):
        for name in new:
            del pending[name]
        fitted |= new
        used = {options[0].name for fit, _ in new.values() for options in fit if len(options) == 1}
        left = [weight for weight in left if weight.name not in used]
    for name, theirs in _shared_out(pending, left).items():
        fit, order = in_order(pending[name], theirs, orders)
        if fit is not None:
            fitted[name] = fit, order
    return fitted


def _whole_parts(
    pending: Mapping[str, Run], weights: Sequence[Weight], orders: Sequence[Order]
) -> dict[str, tuple[Fit, str]]:
    """Optimizers that have exactly the parameters of the model, or of one part of it that no other one has."""
    parts = _Parts(weights)
    found: dict[str, tuple[Fit, str]] = {}
    for name, run in pending.items():
        fit, order = in_order(run, weights, orders)
        if fit is not None and all(len(options) == 1 for options in fit):
            found[name] = fit, order
            continue
        fits = [
            (prefix, fit, order or _known(orders))
            for prefix, part in parts.of(len(run))
            for fit, order in [in_order(run, part, orders, whole=True)]
            if fit is not None
        ]
        if len(fits) > 1:
            fits = [each for each in fits if words(each[0]) & words(name) - _COMMON]
        if len(fits) == 1:
            found[name] = fits[0][1:]
    times = Counter(options[0].name for fit, _ in found.values() for options in fit if options)
    return {
        name: each for name, each in found.items() if all(times[options[0].name] == 1 for options in each[0] if options)
    }


def _known(orders: Sequence[Order]) -> str:
    """What names rest on where the order is known, and the part of the model that was trained is not."""
    return next(order.what for order in orders if order.known)


class _Parts:
    """The parts of a model that lie together under one prefix."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._weights = weights

    def of(self, size: int) -> Iterator[tuple[str, Sequence[Weight]]]:
        """Every part of this many weights, with its prefix."""
        for first, prefix in self._by_size.get(size, {}).items():
            yield prefix, self._weights[first : first + size]

    @cached_property
    def _by_size(self) -> dict[int, dict[int, str]]:
        ranges: dict[str, tuple[int, int]] = {}
        for number, weight in enumerate(self._weights):
            if weight.name.count(".") > DEPTH:
                continue
            prefix, dot, _ = weight.name.rpartition(".")
            while dot:
                first, size = ranges.get(prefix, (number, 0))
                ranges[prefix] = first, size + 1
                prefix, dot, _ = prefix.rpartition(".")
        found: dict[int, dict[int, str]] = {}
        for prefix, (first, size) in ranges.items():
            if self._weights[first + size - 1].name.startswith(f"{prefix}."):
                found.setdefault(size, {}).setdefault(first, prefix)
        return found


_LONG = 200  # characters of a key that a program would write

_COMMON = {"optimizer", "optimizers", "optim", "opt", "state", "states", "dict", "model", "net"}
"""Words that do not tell one model or optimizer from another."""


def words(name: str) -> set[str]:
    """The words in a key, in lower case: of `state_dict_EMA`, `state`, `dict` and `ema`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name[:_LONG])}


def _shared_out(pending: Mapping[str, Run], weights: Sequence[Weight]) -> dict[str, Sequence[Weight]]:
    """The weights that each optimizer can have: those whose shape it has, where no other optimizer has that shape too."""
    homes: dict[object, set[str]] = {}
    for name, run in pending.items():
        for position in run:
            homes.setdefault(position.shape, set()).add(name)
    if None in homes:
        return dict.fromkeys(pending, weights)
    return {name: [weight for weight in weights if name in homes.get(weight.tensor.shape, ())] for name in pending}

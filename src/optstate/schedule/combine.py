"""Curves made of curves, and of functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from math import ceil
from typing import Any

from optstate.errors import ScheduleError
from optstate.optimizers.registry import qualified_name
from optstate.schedule.curve import Curve, CurveLike, bad, finite, positive
from optstate.schedule.curves import constant
from optstate.text import safe_text


def as_curve(value: Any) -> Curve:
    """`value` as a curve. Raises `ScheduleError` for what is none."""
    if isinstance(value, Curve):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return constant(value)
    if callable(value):
        return function(value)
    raise ScheduleError(
        "this is not a curve",
        expected="a curve such as linear(0.85, 0.95, 300), a number, or a function of the step",
        found=f"a {safe_text(qualified_name(type(value)))}",
    )


def join(*parts: tuple[CurveLike, float | None]) -> Curve:
    """Curves one after another, each with its length in steps; each starts at its own 0, and the last has no end.

    >>> from optstate import schedule as s
    >>> curve = s.join((s.linear(0.85, 0.95, 300), 300), (s.cosine(0.95, 0.85, 9700), None))
    >>> curve(0), curve(300), curve(10_000)
    (0.85, 0.95, 0.85)
    """
    if not parts or any(length is None for _, length in parts[:-1]):
        raise bad("the number of parts", len(parts), "one or more, all but the last with a length")
    pairs = tuple(
        (as_curve(curve), None if length is None else positive("a length", length)) for curve, length in parts
    )
    curves = [curve for curve, _ in pairs]
    starts = list(accumulate((length or 0.0 for _, length in pairs[:-1]), initial=0.0))

    def at(t: float) -> float:
        part = max(bisect_right(starts, t) - 1, 0)
        return curves[part].at(t - starts[part])

    lengths = [*(length for _, length in pairs[:-1]), None]
    turns = [
        start + turn
        for curve, start, length in zip(curves, starts, lengths, strict=True)
        for turn in _turns_within(curve, length)
    ]
    return Curve(join, pairs, at, tuple(turns))


def repeat(curve: CurveLike, period: float) -> Curve:
    """A curve that starts again every `period` steps.

    >>> from optstate import schedule as s
    >>> s.repeat(s.linear(0, 1, 10), 10)(25)
    0.5
    """
    curve, period = as_curve(curve), positive("the period", period)
    at = curve.at
    return Curve(repeat, (curve, period), lambda t: at(max(t, 0) % period), _turns_within(curve, period))


def scale(curve: CurveLike, factor: float) -> Curve:
    """A curve with all its values multiplied by `factor`.

    >>> from optstate import schedule as s
    >>> s.scale(s.cosine(1, 0, 100), 3e-4)(0)
    0.0003
    """
    curve, factor = as_curve(curve), finite("the factor", factor)
    at = curve.at
    return Curve(scale, (curve, factor), lambda t: factor * at(t), curve.turns)


def epochs(curve: CurveLike, steps_per_epoch: float, stairs: bool = False) -> Curve:
    """A curve that counts in epochs: after t steps it is asked for t/steps_per_epoch.

    With `stairs` it moves at the start of each epoch only, like a scheduler that is stepped once per epoch.

    >>> from optstate import schedule as s
    >>> s.epochs(s.linear(0.9, 0.8, 10), steps_per_epoch=500)(250)
    0.895
    >>> s.epochs(s.linear(0.9, 0.8, 10), steps_per_epoch=500, stairs=True)(250)
    0.9
    """
    curve, steps_per_epoch = as_curve(curve), positive("steps_per_epoch", steps_per_epoch)
    at = curve.at

    def by_epoch(t: float) -> float:
        return at(t // steps_per_epoch if stairs else t / steps_per_epoch)

    turns = tuple(turn * steps_per_epoch for turn in curve.turns)
    return Curve(epochs, (curve, steps_per_epoch, *((True,) if stairs else ())), by_epoch, turns)


def function(call: Callable[[int], float]) -> Curve:
    """Any callable of the step. What a checkpoint compares is its qualified name, not its code.

    >>> import math
    >>> from optstate import schedule as s
    >>> s.function(math.sqrt), s.function(math.sqrt)(9)
    (function(math.sqrt), 3.0)
    """
    return Curve(function, (call,), lambda t: float(call(t)))  # type: ignore[arg-type]  # a scheduler asks for whole steps


def _turns_within(curve: Curve, length: float | None) -> tuple[float, ...]:
    """The turns that come before `length`, and the last whole step before it."""
    if length is None:
        return curve.turns
    return (*(turn for turn in curve.turns if turn < length), max(ceil(length) - 1, 0))

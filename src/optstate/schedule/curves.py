"""The curves by themselves; `combine` makes curves of curves. Beyond its length a curve keeps its last value."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import cos, pi

from optstate.schedule.curve import Curve, bad, finite, positive, shown


def constant(value: float) -> Curve:
    """The same value always.

    >>> from optstate import schedule as s
    >>> s.constant(0.9)(1000)
    0.9
    """
    value = finite("the value", value)
    return Curve(constant, (value,), lambda _: value, (0,))


def linear(start: float, end: float, steps: float) -> Curve:
    """A straight line: start + (end - start)·t/steps.

    >>> from optstate import schedule as s
    >>> s.linear(1, 0, 4)(1)
    0.75
    """
    return _span(linear, start, end, steps, lambda share: share)


def cosine(start: float, end: float, steps: float) -> Curve:
    """Half a wave: start + (end - start)·(1 - cos(πt/steps))/2 (SGDR, arXiv 1608.03983, one run of it).

    >>> from optstate import schedule as s
    >>> round(s.cosine(0.95, 0.85, 100)(50), 12)
    0.9
    """
    start, end, steps = finite("the start", start), finite("the end", end), positive("steps", steps)
    middle, half, turn = (start + end) / 2, (start - end) / 2, pi / steps

    def at(t: float) -> float:
        if t >= steps:
            return end
        return middle + half * cos(turn * t) if t > 0 else start

    return Curve(cosine, (start, end, steps), at, (0, steps))


def polynomial(start: float, end: float, steps: float, power: float) -> Curve:
    """A falling power: end + (start - end)·(1 - t/steps)^power.

    >>> from optstate import schedule as s
    >>> s.polynomial(1, 0, 4, 2)(2)
    0.25
    """
    power = positive("the power", power)
    return _span(polynomial, start, end, steps, lambda share: 1 - (1 - share) ** power, power)


def exponential(start: float, factor: float, steps: float = 1) -> Curve:
    """Multiplied by `factor` in every `steps` steps, without end: start·factor^(t/steps).

    >>> from optstate import schedule as s
    >>> s.exponential(0.1, 0.5, 10)(20)
    0.025
    """
    start, factor, steps = finite("the start", start), positive("the factor", factor), positive("steps", steps)
    return Curve(exponential, (start, factor, steps), lambda t: start * factor ** (t / steps), (0,))


def inverse_power(power: float) -> Curve:
    """From 0 towards 1: 1 - (t+1)^-power, the second coefficient of Adafactor (arXiv 1804.04235, power 0.8).

    >>> from optstate import schedule as s
    >>> s.inverse_power(0.5)(3)
    0.5
    """
    power = positive("the power", power)
    return Curve(inverse_power, (power,), lambda t: 1 - (t + 1) ** -power, (0,))


def demon(start: float, steps: float) -> Curve:
    """β₀r/((1-β₀) + β₀r) with r = 1 - t/steps: β/(1-β) falls in a straight line to 0 (Demon, arXiv 1910.04952).

    >>> from optstate import schedule as s
    >>> round(s.demon(0.9, 100)(50), 4)
    0.8182
    """
    start, steps = finite("the start", start), positive("steps", steps)

    def at(t: float) -> float:
        left = start * (1 - _share(t, steps))
        return left / (1 - start + left) if left else 0.0

    return Curve(demon, (start, steps), at, (0, steps))


def multistep(start: float, factor: float, milestones: Iterable[float]) -> Curve:
    """`start`, multiplied by `factor` at each milestone.

    >>> from optstate import schedule as s
    >>> s.multistep(0.8, 0.5, (30, 60))(59), s.multistep(0.8, 0.5, (30, 60))(60)
    (0.4, 0.2)
    """
    start, factor = finite("the start", start), finite("the factor", factor)
    places = tuple(sorted(finite("a milestone", milestone) for milestone in milestones))

    def at(t: float) -> float:
        return start * factor ** bisect_right(places, t)

    return Curve(multistep, (start, factor, places), at, (0, *places))


def one_cycle(start: float, peak: float, end: float, steps: float, rise: float = 0.3) -> Curve:
    """From `start` to `peak` and on to `end`, in two half waves, within `steps` steps (1cycle, arXiv 1803.09820).

    The peak is in the last step of the first `rise·steps`, and the last step of all has `end`, as in torch's
    `OneCycleLR`. Momentum goes the other way: `one_cycle(0.95, 0.85, 0.95, steps)`.

    >>> from optstate import schedule as s
    >>> curve = s.one_cycle(0.95, 0.85, 0.95, 100)
    >>> curve(0), curve(29), curve(99)
    (0.95, 0.85, 0.95)
    """
    start, peak, end = finite("the start", start), finite("the peak", peak), finite("the end", end)
    steps, rise = positive("steps", steps), positive("rise", rise)
    top, last = rise * steps - 1, steps - 1
    if not 0 < top < last:
        raise bad("rise·steps", rise * steps, f"more than 1 and less than {shown(steps)}")

    before, after = (start + peak) / 2, (peak + end) / 2  # the middles of both waves
    rising, falling = (start - peak) / 2, (peak - end) / 2
    up, down = pi / top, pi / (last - top)

    def at(t: float) -> float:
        if t < top:
            return before + rising * cos(up * t) if t > 0 else start
        if t < last:
            return after + falling * cos(down * (t - top)) if t > top else peak
        return end

    return Curve(one_cycle, (start, peak, end, steps, rise), at, (0, top, last))


def triangular(low: float, high: float, up: float, down: float | None = None) -> Curve:
    """From `low` to `high` in `up` steps, back in `down`, again and again (CLR, arXiv 1506.01186). None: as many as up.

    >>> from optstate import schedule as s
    >>> [s.triangular(0, 1, 2)(t) for t in range(6)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
    """
    low, high, up = finite("low", low), finite("high", high), positive("up", up)
    down = up if down is None else positive("down", down)
    period = up + down

    def at(t: float) -> float:
        phase = max(t, 0) % period
        return _between(low, high, phase / up if phase <= up else (period - phase) / down)

    return Curve(triangular, (low, high, up, down), at, (0, up, period))


def piecewise(*points: tuple[float, float]) -> Curve:
    """Straight lines between points `(step, value)`; before the first and beyond the last, their values.

    >>> from optstate import schedule as s
    >>> s.piecewise((0, 0.85), (300, 0.95), (1000, 0.9))(650)
    0.925
    """
    pairs = tuple((finite("a step", step), finite("a value", value)) for step, value in points)
    steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    if not pairs or any(one >= following for one, following in pairwise(steps)):
        raise bad("the order of the points", shown(tuple(steps)), "one or more, each later than the one before")

    def at(t: float) -> float:
        right = bisect_right(steps, t)
        if right in (0, len(steps)):
            return values[max(right - 1, 0)]
        left = right - 1
        return _between(values[left], values[right], (t - steps[left]) / (steps[right] - steps[left]))

    return Curve(piecewise, pairs, at, (0, *steps))


def _span(
    make: Callable[..., Curve], start: float, end: float, steps: float, shape: Callable[[float], float], *more: float
) -> Curve:
    """From `start` to `end` as `shape` goes from 0 to 1 over `steps`."""
    start, end, steps = finite("the start", start), finite("the end", end), positive("steps", steps)
    rise = end - start

    def at(t: float) -> float:
        if t >= steps:
            return end
        return start + rise * shape(t / steps) if t > 0 else start

    return Curve(make, (start, end, steps, *more), at, (0, steps))


def _share(t: float, steps: float) -> float:
    return min(max(t / steps, 0.0), 1.0)


def _between(start: float, end: float, share: float) -> float:
    return end if share == 1 else start + (end - start) * share  # exactly the end, which rounding could miss

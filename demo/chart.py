"""Line charts as geometry: what a template needs to draw one, in the units of its `viewBox`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 880, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 866, 14, 282  # the frame; labels go outside

Points = Mapping[int, float]
"""A curve: step → value."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line: where, and what it is called."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to draw. `lines` are path data by the name of their curve, the first one on top."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Mapping[str, str]
    marks: Sequence[Tick] = ()  # vertical lines with a caption
    levels: Sequence[Tick] = ()  # horizontal ones


def loss_chart(curves: Mapping[str, Points], marks: Mapping[int, str]) -> Chart:
    """Loss over steps, both linear."""
    steps, values = _extent(curves)
    low, high = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    x = _scale(min(steps), max(steps), LEFT, RIGHT)
    y = _scale(low, high, BOTTOM, TOP)
    return Chart(
        title="Loss over steps for every run",
        x_label="step",
        y_label="loss (nats per byte)",
        x_ticks=_step_ticks(steps, x),
        y_ticks=[Tick(y(low + i / 2), f"{low + i / 2:.1f}") for i in range(round((high - low) * 2) + 1)],
        lines={name: _path(curve, x, y) for name, curve in curves.items()},
        marks=[Tick(x(step), caption) for step, caption in marks.items()],
    )


def gap_chart(curves: Mapping[str, Points], levels: Mapping[float, str]) -> Chart:
    """Differences over steps on a log axis; below its last decade there is a place for zero, where exact runs lie."""
    steps, values = _extent(curves)
    positive = [value for value in (*values, *levels) if value > 0]
    low, high = math.floor(math.log10(min(positive))), math.floor(math.log10(max(positive))) + 1
    x = _scale(min(steps), max(steps), LEFT, RIGHT)
    decade = _scale(low - 1, high, BOTTOM, TOP)

    def y(value: float) -> float:
        return decade(math.log10(value) if value > 0 else low - 1)

    decades = range(low, high + 1)
    return Chart(
        title="Difference of the loss to the uninterrupted run, after the resume",
        x_label="step",
        y_label="|difference of the loss|, log scale",
        x_ticks=_step_ticks(steps, x),
        y_ticks=[Tick(y(0), "0"), *(Tick(decade(power), f"1e{power}" if power else "1") for power in decades)],
        lines={name: _path(curve, x, y) for name, curve in curves.items()},
        levels=[Tick(y(value), caption) for value, caption in levels.items()],
    )


def _extent(curves: Mapping[str, Points]) -> tuple[list[int], list[float]]:
    return [step for curve in curves.values() for step in curve], [
        v for curve in curves.values() for v in curve.values()
    ]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _step_ticks(steps: Sequence[int], x: Callable[[float], float]) -> list[Tick]:
    first, last = min(steps), max(steps)
    rough = (last - first) / 8
    unit = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    every = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [Tick(x(step), str(step)) for step in range(math.ceil(first / every) * every, last + 1, every)]


def _path(curve: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in sorted(curve.items()))

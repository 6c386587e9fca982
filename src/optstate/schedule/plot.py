"""Plots as inline SVG: no script, no style sheet, nothing to fetch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from math import isfinite

from optstate.state.slot import format_number
from optstate.text import elide, safe_text

_COLOURS = ("#2f7ed8", "#e8710a", "#2a9d4a", "#b5459b", "#888888")
_INK = "#888888"  # readable on white and on black
_WIDTH, _PANEL, _LEFT, _TOP, _FOOT = 680, 120, 70, 40, 26
_POINTS = 600


def svg(panels: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "step") -> str:
    """Panels below each other, each with its title and lines by their names, over 0, 1, 2, ... of `unit`.

    A line of more points than the picture has columns is drawn by the smallest and largest of each column.

    >>> from optstate.schedule.plot import svg
    >>> svg({"momentum": {"cosine": [0.95, 0.9, 0.85]}})[:4]
    '<svg'
    """
    height = len(panels) * (_PANEL + _TOP) + _FOOT
    last = max((len(line) for lines in panels.values() for line in lines.values()), default=1) - 1
    body = "".join(
        _panel(title, lines, place * (_PANEL + _TOP) + _TOP, last)
        for place, (title, lines) in enumerate(panels.items())
    )
    axis = _text(_LEFT, height - 8, "0") + _text(_WIDTH - 10, height - 8, f"{unit} {last:,}", "end")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}" role="img">{body}{axis}</svg>'
    )


def _panel(title: str, lines: Mapping[str, Sequence[float]], top: float, last: int) -> str:
    values = [value for line in lines.values() for value in line if isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    frame = f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 10}" height="{_PANEL - 8}" fill="none" stroke="{_INK}" stroke-opacity="0.4"/>'
    labels = _text(_LEFT - 6, top + 10, format_number(high), "end") + _text(
        _LEFT - 6, top + _PANEL - 10, format_number(low), "end"
    )
    legend, x = "", float(_LEFT)
    for name, colour in zip(lines, cycle(_COLOURS), strict=False):
        legend += _text(x, top - 7, name, colour=colour) if len(lines) > 1 else ""
        x += 8 * len(name) + 24
    drawn = [
        _line(line, top, low, high, last, colour) for line, colour in zip(lines.values(), cycle(_COLOURS), strict=False)
    ]
    return frame + labels + _text(_LEFT, top - 24, title) + legend + "".join(drawn)


def _line(line: Sequence[float], top: float, low: float, high: float, last: int, colour: str) -> str:
    across, up = (_WIDTH - _LEFT - 10) / max(last, 1), (_PANEL - 16) / (high - low)
    points = " ".join(
        f"{_LEFT + place * across:.1f},{top + _PANEL - 12 - (value - low) * up:.1f}"
        for place, value in _thinned(line)
        if isfinite(value)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _thinned(line: Sequence[float]) -> Iterable[tuple[int, float]]:
    if len(line) <= _POINTS:
        return enumerate(line)
    width = -(-2 * len(line) // _POINTS)
    columns = [range(start, min(start + width, len(line))) for start in range(0, len(line), width)]
    return [
        (place, line[place])
        for column in columns
        for place in sorted({min(column, key=line.__getitem__), max(column, key=line.__getitem__)})
    ]


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(elide(safe_text(text), 90))}</text>'

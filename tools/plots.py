"""The plots of the pages, drawn from the recursions themselves: `python -m tools.plots`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from optstate.schedule.curves import linear
from optstate.schedule.plot import svg

TARGET = Path(__file__).parents[1] / "docs"

BASE, EPOCHS = 0.9, 20
Curve = Callable[[float], float]


def multiplied(curve: Curve, steps_per_epoch: int, *, moved: bool) -> Iterator[float]:
    """v = βv + 1 from its steady state, v multiplied by curve(epoch)/0.9 when an epoch begins; β follows where `moved`."""
    buffer = 1 / (1 - BASE)
    for epoch in range(EPOCHS * 10):
        buffer *= curve(epoch) / BASE
        for _ in range(steps_per_epoch):
            yield buffer
            buffer = (curve(epoch) if moved else BASE) * buffer + 1


def scheduled(curve: Curve, steps_per_epoch: int, *, steady: bool) -> Iterator[float]:
    """The same buffer when the coefficient follows the curve, step by step; with `steady` it is scaled to its new level."""
    buffer, before = 1 / (1 - BASE), BASE
    for step in range(EPOCHS * 10 * steps_per_epoch):
        beta = curve(step / steps_per_epoch)
        buffer *= (1 - before) / (1 - beta) if steady else 1
        yield buffer
        buffer, before = beta * buffer + 1, beta


def pages() -> dict[str, str]:
    """Each picture by its file name."""
    rising = linear(0.9, 0.95, EPOCHS)
    steps = EPOCHS * 10
    side_by_side = {
        "10 steps per epoch, gradient 1: the buffer, from 0.9 to 0.95 in 20 epochs": {
            "multiplied": tuple(multiplied(rising, 10, moved=False))[:steps],
            "… and β moved": tuple(multiplied(rising, 10, moved=True))[:steps],
            "keep": tuple(scheduled(rising, 10, steady=False))[:steps],
            "steady": tuple(scheduled(rising, 10, steady=True))[:steps],
        },
        "1 step per epoch, the same curve": {
            "… and β moved": tuple(multiplied(rising, 1, moved=True))[:steps],
            "keep": tuple(scheduled(rising, 1, steady=False))[:steps],
        },
    }
    return {"schedules.svg": svg(side_by_side) + "\n"}


def write(folder: Path = TARGET) -> None:
    """Put the pictures into the folder."""
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()

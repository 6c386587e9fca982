"""What a schedule will do, as values: a table, and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optstate.schedule.plot import svg
from optstate.state.slot import format_number
from optstate.state.table import Table
from optstate.text import safe_text

_ROWS = 11


@dataclass(frozen=True, slots=True)
class Preview:
    """The values of each driven hyperparameter, `values[label][t]` after t steps; printing shows some of them.

    >>> from optstate import schedule as s
    >>> print(s.Scheduler(optimizer, {"momentum": s.linear(0.85, 0.95, 100)}).preview(101))
    preview of 101 steps
    <BLANKLINE>
    STEP  momentum (betas[0])
       0                 0.85
      10                 0.86
      20                 0.87
      30                 0.88
      40                 0.89
      50                  0.9
      60                 0.91
      70                 0.92
      80                 0.93
      90                 0.94
     100                 0.95
    """

    values: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()

    def svg(self) -> str:
        """The values as an SVG picture, a panel for each."""
        return svg({label: {label: line} for label, line in self.values.items()})

    def table(self) -> Table:
        """Some of the values, evenly spread, the first and the last among them."""
        steps = len(next(iter(self.values.values()), ()))
        chosen = sorted({round(place * (steps - 1) / (_ROWS - 1)) for place in range(_ROWS)}) if steps else []
        return Table(
            title=[f"preview of {steps:,} steps"],
            header=["STEP", *map(safe_text, self.values)],
            rows=[[f"{t:,}", *(format_number(line[t]) for line in self.values.values())] for t in chosen],
            notes=self.notes,
            right=frozenset({"STEP", *map(safe_text, self.values)}),
        )

    def __str__(self) -> str:
        return self.table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.svg() + self.table().html()

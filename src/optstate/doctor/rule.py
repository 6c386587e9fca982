"""What a rule is: a question, and what it needs to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding

Needs = Literal["state", "file", "two files", "live", "file and live"]
"""`state`: the optimizer state of a file or of a program, whichever there is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A question that finds every case of its codes.

    `checks` is what it looks at, in a word or two: what a diagnosis ticks off where no rule of it found anything.
    `reads_values` says that it looks at `Case.values` and not only at headers.
    """

    codes: tuple[str, ...]
    needs: Needs
    ask: Callable[[Case], Iterable[Finding]]
    checks: str
    reads_values: bool = False

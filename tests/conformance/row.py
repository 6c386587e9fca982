"""A row of the table: an optimizer with its options, or a training with something special; and what a cell says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "fails", "none"]
"""Whether a property holds; `none` where it does not apply."""


@dataclass(frozen=True)
class Row:
    """What is tried. A row is pickled into the processes that try it.

    library
        Where it comes from: `torch`, the name of another package, or `training` for those that are special in
        something else than their optimizer.
    optimizer, options
        The qualified name of the class, and what it is built with.
    program
        The function of `programs` that builds it: how the model looks and how a step is taken. "" to find out.
    slow
        Whether a step takes seconds: left out of the sample.
    """

    library: str
    label: str
    optimizer: str = "torch.optim.AdamW"
    options: Mapping[str, Any] = field(default_factory=dict)
    program: str = "dense"
    slow: bool = False


@dataclass(frozen=True)
class Cell:
    """What came of a property: the verdict, and what differs or why it does not apply."""

    verdict: Verdict
    text: str = ""


@dataclass(frozen=True)
class Result:
    """A row with its cells by column, or the reason why the class takes no step here."""

    row: Row
    cells: Mapping[str, Cell] = field(default_factory=dict)
    refused: str | None = None

    @property
    def exact(self) -> bool:
        """Whether what follows a restore in a fresh process is the uninterrupted run, bit for bit."""
        return self.refused is None and self.cells["trajectory"].verdict == "holds"


class NotApplicable(Exception):
    """A property that a row does not have; the message is the reason."""

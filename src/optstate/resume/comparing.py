"""`diff`: any two states side by side, in files or in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from optstate.errors import OptstateError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.diff import differences
from optstate.formats.diff_report import Diff
from optstate.formats.difference import Part, Side, side_of
from optstate.formats.opening import open_checkpoint
from optstate.state.optimizer_state import OptimizerState
from optstate.text import safe_text

Comparable: TypeAlias = "str | os.PathLike[str] | Checkpoint | OptimizerState | Mapping[str, Any]"


def diff(a: Comparable, b: Comparable, only: Part | None = None, *, values: bool = True) -> Diff:
    """What is different between two states, the gravest first: names, slots, groups, types, values, objects.

    Each side is a path, an opened checkpoint, a state (attached, snapshot or of a file), or a dict of
    `named_state_dict`. `only` confines it to `"slots"`, `"weights"` or `"groups"`; without `values` only headers are
    read. Files are read block by block, so a checkpoint of any size takes the same memory; torch is not imported.
    Nothing is changed on either side.

    Raises `ReadError` for a path that cannot be opened. A part that cannot be read is a difference.

    >>> found = optstate.diff(checkpoint, state)
    >>> found.ok
    True
    """
    return differences(_side(a, "a"), _side(b, "b"), only, values=values)


def _side(given: Comparable, label: str) -> Side:
    if isinstance(given, (str, os.PathLike)):
        given = open_checkpoint(given)
    if isinstance(given, Checkpoint):
        return side_of(given)
    if isinstance(given, OptimizerState):
        return Side(f"state {label}", given)
    if isinstance(given, Mapping):
        from optstate.resume.source import saved_side

        return Side(f"by-name dict {label}", saved_side(given).state)
    raise OptstateError(
        "this is nothing to compare",
        expected="a path, optstate.open(path), a state, or optstate.named_state_dict(...)",
        found=f"a {safe_text(type(given).__name__)}",
    )

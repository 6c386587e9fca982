"""`assert_state_equal`: two optimizer states are the same bit for bit, or an error that says by name what is not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from optstate.formats.checkpoint import Checkpoint
from optstate.resume.comparing import diff
from optstate.state.optimizer_state import OptimizerState

_SHOWN = 20


def assert_state_equal(
    actual: str | os.PathLike[str] | Checkpoint | OptimizerState | Mapping[str, Any],
    expected: str | os.PathLike[str] | Checkpoint | OptimizerState | Mapping[str, Any],
) -> None:
    """Assert that two states are equal bit for bit, by parameter name: slots, weights, groups, types, objects.

    Each side is whatever `optstate.diff` takes: an attached state, a snapshot, a checkpoint, a path, the dict of
    `named_state_dict`. There is no tolerance: -0.0 is not 0.0, NaN equals the same NaN. Weights and objects are compared
    where both sides have them.

    Raises `AssertionError` with the gravest differences by name, and `ReadError` for what cannot be read.

    >>> optstate.assert_state_equal(state, checkpoint)
    >>> before = state.snapshot()
    >>> state["0.bias"].momentum.tensor[0] = 1
    >>> optstate.assert_state_equal(state, before)
    Traceback (most recent call last):
        ...
    AssertionError: Optimizer states are not equal!
    ...
    """
    __tracebackhide__ = True
    found = diff(actual, expected)
    if found.ok:
        return
    wrong = sum(found.counts().values())
    head = f"Optimizer states are not equal!\n\nDiffering: {wrong:,}; a is the actual one, b the expected one.\n\n"
    raise AssertionError(head + found.text(_SHOWN))

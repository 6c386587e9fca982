"""Holding what was read from a genuine file against the live optimizer that it was written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optstate.formats.checkpoint import Checkpoint
from optstate.live.view import attach
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import is_tensor


def same_bits(ours: Any, true: Any) -> bool:
    """Whether two values (tensor references, numbers, lists of them) are the same bit for bit, shapes and types included.

    A Python number and a tensor that holds it are the same where `true` is the number.
    """
    if is_tensor(ours) and is_tensor(true):
        mine, theirs = ours.array(), true.array()
        return (
            ours.dtype == true.dtype
            and mine.shape == theirs.shape
            and np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(theirs).tobytes()
        )
    if isinstance(true, (list, tuple)):
        return len(ours) == len(true) and all(map(same_bits, ours, true))
    if is_tensor(ours) or is_tensor(true):
        return False
    return bool(ours == true)


def assert_state_is(
    found: OptimizerState, live: OptimizerState, *, certainty: str | Mapping[str, str], but: Sequence[str] = ()
) -> None:
    """Every parameter, slot and value of `live`, and no more, with the certainty of its name.

    `certainty` is that of all names, or of each; `but` are parameters that the file is known not to have, which are
    checked to be absent.
    """
    expected = [name for name in live if name not in but]
    assert sorted(found) == sorted(expected)
    for name in expected:
        due = certainty if isinstance(certainty, str) else certainty[name]
        assert (name, found[name].facts.certainty) == (name, due)
        mine, true = found[name].slots, live[name].slots
        assert (name, sorted(mine)) == (name, sorted(true))
        for key in true:
            assert mine[key].role == true[key].role, f"{name}/{key}"
            assert same_bits(mine[key].value, true[key].value), f"{name}/{key}: {mine[key].value!r} is not as saved"


def assert_is(
    checkpoint: Checkpoint,
    optimizer: Any,
    model: Any,
    *,
    certainty: str | Mapping[str, str],
    but: Sequence[str] = (),
) -> None:
    """As `assert_state_is`, for a live pair; and the groups of the file are those of the optimizer."""
    live = attach(optimizer, model)
    assert_state_is(checkpoint.state, live, certainty=certainty, but=but)
    for mine, true in zip(checkpoint.state.groups, live.groups, strict=True):
        assert [name for name in true.parameters if name not in but] == [*mine.parameters]
        for key, value in true.hyperparameters.items():
            if key in mine.hyperparameters:
                ours = mine.hyperparameters[key]
                if is_tensor(value):
                    assert same_bits(ours, value), f"{key}: {ours!r} is not as saved"
                else:
                    assert (key, ours.item() if is_tensor(ours) else ours) == (key, value)

"""One difference between two states, and what a side of a comparison is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from optstate.formats.checkpoint import Checkpoint
from optstate.formats.compare import Change
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import TensorRef, Value
from optstate.text import safe_text

Kind = Literal[
    "unread",  # could not be read, so nobody knows
    "parameter",  # of the optimizer; only one side has it
    "weight",  # of the model; only one side has it
    "slot",  # only one side has it
    "shape",
    "dtype",  # or a tensor on one side and a plain number on the other
    "optimizer",  # its class
    "step",  # of the checkpoint, or a count of updates
    "values",
    "renamed",  # the same content under another name
    "group",  # a parameter in another group, or a group that only one side has
    "order",  # of the parameters in a group, by which torch loads
    "hyperparameter",
    "object",  # a part of what is saved besides
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of difference, the gravest first."""

Part = Literal["slots", "weights", "groups"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What a comparison can be confined to."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    kind
        One of `KINDS`.
    name
        What it is about, by its name in a, or in b where only b has it: a parameter, a weight, `group 0`, an object.
    key
        The slot, hyperparameter or path in an object; None for a parameter, weight or object as a whole.
    a, b
        What each side has; None where it has nothing. For `values` both are None and `change` says by how much.

    >>> found = optstate.diff(checkpoint, state)
    >>> [(each.kind, each.name, each.change.relative) for each in found.differences]
    []
    """

    kind: Kind
    name: str
    key: str | None = None
    a: Any = None
    b: Any = None
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison. `weights` and `objects` are None where it has no notion of them."""

    label: str
    state: OptimizerState
    format: str | None = None
    step: int | None = None
    weights: Mapping[str, TensorRef] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[str, Value] | None = None
    unplaced: Mapping[str, Value] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def side_of(checkpoint: Checkpoint) -> Side:
    """An opened checkpoint as a side."""
    return Side(
        safe_text(checkpoint.path),
        checkpoint.state,
        checkpoint.format,
        checkpoint.step,
        checkpoint.weights,
        checkpoint.aliases,
        checkpoint.objects,
        checkpoint.unplaced,
        checkpoint.unread,
    )

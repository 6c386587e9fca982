"""A checkpoint file or directory, opened: headers only, values on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optstate.state.journal import Journal
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import TensorRef, Value

if TYPE_CHECKING:
    from optstate.formats.ours.manifest import LineageEntry


@dataclass(frozen=True, slots=True)
class Clue:
    """Something that a reader saw and that a diagnosis is made of: the code it speaks for, and the evidence.

    `evidence` is one sentence with names and numbers, safe to print; `fix` what to do about it with this writer,
    None where the code's own advice holds.
    """

    code: str
    evidence: str
    fix: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer state and objects at one step, whatever program wrote them.

    path
        What was opened.
    format
        The layout found, such as `optstate/1` or `torch.save`.
    step
        The training step that the file states, None where it does not.
    state
        The optimizer state by name; empty where the file holds none.
    weights
        The model's tensors by name; each is read on demand with `.array()`.
    aliases
        Further names of tied weights, by the name in `weights`.
    objects
        Everything else (scheduler, RNG, ...) as plain trees with tensors as references.
    object_classes
        The qualified class of each object, where the file says.
    unplaced
        Optimizer state that belongs to no parameter that could be told, by its raw path in the file.
    unread
        Parts that are there and were not read, each with the reason: a missing shard, a layout not known.
    clues
        What the reader saw that `optstate doctor` explains.
    notes
        What the reader has to say: which calls in the file it did not make, what it could not verify.
    journal
        Every edit of the state that the file tells of, the oldest first.
    lineage
        The checkpoints of ours that it goes back to, the oldest first and itself last: what its run was resumed from, what it
        was edited or copied from. Each with `save_id`, `step` and the versions that it was written with.

    >>> opened = optstate.open(checkpoint)
    >>> opened.weights["0.weight"].shape, opened.state["0.weight"].momentum.array().dtype.name
    ((8, 4), 'float32')
    """

    path: Path
    format: str
    step: int | None
    state: OptimizerState
    weights: Mapping[str, TensorRef] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[str, Value] = field(default_factory=dict)
    object_classes: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, Value] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    clues: tuple[Clue, ...] = ()
    notes: tuple[str, ...] = ()
    journal: Journal = field(default_factory=Journal)
    lineage: tuple[LineageEntry, ...] = ()

"""What a layout finds in a file or folder, and how a `Checkpoint` is put together from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optstate.formats.checkpoint import Checkpoint, Clue
from optstate.formats.named import read_named
from optstate.formats.orders import Order, distinct_weights
from optstate.formats.state_dict import own, read_state_dicts
from optstate.state.roles import Certainty, Role
from optstate.state.tensors import TensorRef, Value
from optstate.text import safe_text


@dataclass(slots=True)
class Parts:
    """The parts of a checkpoint as they lie in a file, before parameters have names.

    format
        The layout, as a user would call it: `PyTorch Lightning`.
    weights
        The model's tensors by the name in the file, in the order of the model where the file keeps it.
    buffers
        Which of the weights are known to be no parameters.
    optimizers
        Name → a dict in the layout of `torch.optim.Optimizer.state_dict()`: `state` and `param_groups`. A parameter's
        key is its number, or its name where the writer used names. A single optimizer has the name "".
    classes
        Name → qualified class of an optimizer, where the writer says it.
    orders
        How the writer lays the model's parameters out in the groups, the likeliest first; empty where that is
        not known. Tried for each optimizer whose keys are numbers; see `optstate.formats.placing`.
    certainties
        Name of an optimizer whose keys are names → how sure these are, where they do not stand beside the slots.
    added
        Slot keys that something around the optimizer adds to its own → their role, such as the fp32 copy of a weight.
    paths
        Name of an optimizer → where its dict lies in the file, for the raw paths of what cannot be placed.
    named
        Where a dict of `named_state_dict` lies, and the dict, which then stands for all optimizers.
    step, objects, object_classes, unplaced, unread, clues, notes
        As `Checkpoint` has them.
    """

    format: str
    weights: Mapping[str, TensorRef] = field(default_factory=dict)
    buffers: Collection[str] = ()
    optimizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    orders: Sequence[Order] = ()
    certainties: Mapping[str, Certainty] = field(default_factory=dict)
    added: Mapping[str, Role] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, Mapping[str, Any]] | None = None
    step: int | None = None
    objects: Mapping[str, Value] = field(default_factory=dict)
    object_classes: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, Value] = field(default_factory=dict)
    unread: Sequence[str] = ()
    clues: Sequence[Clue] = ()
    notes: Sequence[str] = ()


def assemble(parts: Parts, path: Path) -> Checkpoint:
    """The checkpoint at `path` made of its parts. Raises `Refused`, with the place, where they contradict each other."""
    file = safe_text(path)
    for name, tensor in parts.weights.items():
        own(tensor, safe_text(name))
    weights = distinct_weights(parts.weights)
    if parts.named is not None:
        # A by-name dict describes all optimizers of a program at once.
        path_in_file, node = parts.named
        read = read_named(node, file, path_in_file)
    else:
        read = read_state_dicts(
            parts.optimizers,
            weights,
            file,
            buffers=parts.buffers,
            orders=parts.orders,
            classes=parts.classes,
            certainties=parts.certainties,
            added=parts.added,
            paths=parts.paths,
        )
    return Checkpoint(
        path=path,
        format=parts.format,
        step=read.step if parts.step is None else parts.step,
        state=read.state,
        weights={weight.name: weight.tensor for weight in weights},
        aliases={weight.name: weight.aliases for weight in weights if weight.aliases},
        objects=parts.objects,
        object_classes=parts.object_classes,
        unplaced={**parts.unplaced, **read.unplaced},
        unread=tuple(parts.unread),
        clues=(*parts.clues, *read.clues),
        notes=(*parts.notes, *read.notes),
    )

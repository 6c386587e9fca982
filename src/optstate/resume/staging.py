"""Reading and verifying everything that a plan will write, before anything is touched."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optstate.errors import Damaged
from optstate.live.source import LiveSource
from optstate.live.weights import live_weights
from optstate.resume.decided import Decided
from optstate.resume.decisions import Entry, EntryDecision, HyperparameterDecision, ObjectDecision, WeightDecision
from optstate.resume.materialise import materialise
from optstate.state.tensors import Value, is_tensor, nbytes


@dataclass(frozen=True, slots=True)
class Live:
    """The live side of a restore."""

    model: nn.Module | None
    state: LiveSource | None
    objects: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Staged:
    """Every value that will be written, read and verified, in memory that belongs to nobody else."""

    weights: Mapping[str, torch.Tensor]
    entries: Mapping[str, Entry]
    hyperparameters: Sequence[tuple[HyperparameterDecision, Any]]
    objects: Sequence[tuple[ObjectDecision, Any]]


READERS = 2
"""Threads that read and verify large tensors; more gain little, and a machine that trains has work of its own."""

LARGE = 1 << 20
"""Bytes from which a tensor is read by one of them: for small ones, threads only wait for the interpreter's lock."""


def stage(plan: Decided, live: Live) -> Staged:
    """Read everything that a plan will write. Reading verifies each digest, so `Damaged` is raised here or never."""
    weights = [item for item in plan.weights if item.saved is not None]
    entries = [item for item in plan.entries if not item.stays]
    try:
        values = deque(
            _read([item.saved for item in weights] + [value for item in entries for value in item.saved.values()])
        )
        hyperparameters = [(item, materialise(item.value)) for item in plan.hyperparameters if item.changes]
        objects = [(item, materialise(item.saved)) for item in plan.objects]
    except Damaged as error:
        raise _with_a_way_out(error) from error
    targets = {} if live.model is None else live_weights(live.model)
    return Staged(
        {item.name: _weight(item, values.popleft(), targets[item.name].tensor) for item in weights},
        {item.parameter: _entry(item, {key: values.popleft() for key in item.saved}) for item in entries},
        hyperparameters,
        [(item, state if item.transform is None else item.transform(state)) for item, state in objects],
    )


def _read(values: Sequence[Value | None]) -> list[Any]:
    with ThreadPoolExecutor(READERS) as readers:
        pending = {
            place: readers.submit(materialise, value)
            for place, value in enumerate(values)
            if is_tensor(value) and nbytes(value) >= LARGE
        }
        return [
            pending[place].result() if place in pending else materialise(value) for place, value in enumerate(values)
        ]


def _with_a_way_out(error: Damaged) -> Damaged:
    todo = 'use another checkpoint, or Policy(damaged="salvage") for everything in this one that is whole'
    return Damaged(error.what, where=error.where, expected=error.expected, found=error.found, todo=todo)


def _weight(item: WeightDecision, value: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    return value if item.transform is None else _alone(item.transform(value, live))


def _alone(value: Any) -> Any:
    """A tensor with memory that is its own and no larger: what a transform gives back may be part of another one."""
    if not isinstance(value, torch.Tensor) or type(value) is not torch.Tensor or value.layout != torch.strided:
        return value
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _entry(item: EntryDecision, entry: Entry) -> Entry:
    for transform in item.transforms:
        entry = transform(entry)
    return {key: _alone(value) for key, value in entry.items()} if item.transforms else entry

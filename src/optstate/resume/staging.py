"""Reading and verifying everything that a plan will write, before anything is touched."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from optstate.errors import Damaged
from optstate.live.source import LiveSource
from optstate.live.weights import live_weights
from optstate.resume.decided import Decided
from optstate.resume.decisions import Entry, EntryDecision, HyperparameterDecision, ObjectDecision, WeightDecision
from optstate.resume.homes import fits
from optstate.resume.materialise import materialise
from optstate.resume.reading import LARGE, InPlace, form_of, read_all
from optstate.state.tensors import Value, is_tensor, nbytes
from optstate.text import count, size


@dataclass(frozen=True, slots=True)
class Live:
    """The live side of a restore."""

    model: nn.Module | None
    state: LiveSource | None
    objects: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Staged:
    """Every value that will be written, verified.

    What is not `in_place` is in memory that belongs to nobody else; what is has been read and let go, and its live tensor
    stands for it among the weights and in the entries.
    """

    weights: Mapping[str, torch.Tensor]
    entries: Mapping[str, Entry]
    hyperparameters: Sequence[tuple[HyperparameterDecision, Any]]
    objects: Sequence[tuple[ObjectDecision, Any]]
    in_place: Sequence[InPlace] = ()


SMALL = 1 << 26
"""Bytes of small tensors that are staged even where they could be read in place, so that they can be put back."""


def stage(plan: Decided, live: Live, *, keep: bool) -> Staged:
    """Read everything that a plan will write. Reading verifies each digest, so `Damaged` is raised here or never.

    Without `keep`, large tensors that fit are only verified: they will be read again, straight into the live ones.
    """
    weights = [item for item in plan.weights if item.saved is not None]
    entries = [item for item in plan.entries if not item.stays]
    due: list[Any] = [item.saved for item in weights]
    due += [value for item in entries for value in item.saved.values()]
    if not keep:
        for number, item in in_place(plan, live):
            due[number] = item
    try:
        values = deque(read_all(due))
        hyperparameters = [(item, materialise(item.value)) for item in plan.hyperparameters if item.changes]
        objects = [(item, materialise(item.saved)) for item in plan.objects]
    except Damaged as error:
        raise _with_a_way_out(error) from error
    targets = {} if live.model is None else live_weights(live.model)
    return Staged(
        {item.name: _weight(item, values.popleft(), targets[item.name].tensor) for item in weights},
        {item.parameter: _entry(item, {key: values.popleft() for key in item.saved}) for item in entries},
        hyperparameters,
        [(item, loadable(item, state)) for item, state in objects],
        [item for item in due if isinstance(item, InPlace)],
    )


def loadable(item: ObjectDecision, state: Any) -> Any:
    """What an object is given to load."""
    return state if item.transform is None else item.transform(state)


def in_place(plan: Decided, live: Live) -> Iterator[tuple[int, InPlace]]:
    """What can be read straight into live tensors, with its number among all saved weights, then slots, of a plan.

    Small tensors are not among it as long as they are few: they are staged, and can be put back.
    """
    small = 0
    for number, (saved, over) in enumerate(_due(plan, live)):
        length = nbytes(saved) if is_tensor(saved) else 0
        small += length if length < LARGE else 0
        item = over() if length >= LARGE or small > SMALL else None
        if item is not None:
            yield number, item


def _due(plan: Decided, live: Live) -> Iterator[tuple[Value, Callable[[], InPlace | None]]]:
    """Each saved value that a plan takes, and what finds the live tensor that it can be read into."""
    targets = {} if live.model is None else live_weights(live.model)
    for weight in plan.weights:
        if weight.saved is not None:
            yield weight.saved, partial(_over_weight, weight, targets[weight.name].tensor)
    for entry in plan.entries:
        if not entry.stays:
            yield from ((value, partial(_over_slot, entry, key, live.state)) for key, value in entry.saved.items())


def _over_weight(item: WeightDecision, live: torch.Tensor) -> InPlace | None:
    form = form_of(item.saved)
    if item.saved is None or form is None or item.transform is not None or not _is_plain(live):
        return None
    return InPlace(item.name, item.saved, live) if (live.dtype, live.shape) == (form.dtype, form.shape) else None


def _over_slot(item: EntryDecision, key: str, state: LiveSource | None) -> InPlace | None:
    saved: Any = item.saved[key]
    form = form_of(saved)
    if form is None or item.transforms or state is None:
        return None
    bound = state.bound(item.parameter)
    optimizer = state.live_optimizers[bound.optimizer]
    old = optimizer.state.get(bound.tensor, {}).get(key)
    if not _is_plain(old) or not fits(old, form, bound, optimizer, key):
        return None
    return InPlace(f"{item.parameter}/{key}", saved, old)


def _is_plain(live: Any) -> bool:
    """Whether a live value is a tensor that is no more than its elements."""
    return type(live) in (torch.Tensor, nn.Parameter) and live.layout == torch.strided and not live.is_meta


def on_what_stays(plan: Decided, live: Live) -> Iterator[str]:
    """What is to be said of tensors that a restore cannot put back."""
    sizes = [nbytes(item.saved) for _, item in in_place(plan, live)]
    if sizes:
        yield (
            f"restore() writes {count(len(sizes), 'large tensor')} ({size(sum(sizes))}) last, and cannot put them back; "
            "plan(...).apply() keeps what was there"
        )


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

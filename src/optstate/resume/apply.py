"""Carrying a plan out: read and verify everything first, then write, and undo if a write fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optstate.errors import RestoreFailed
from optstate.live.bind import Bound
from optstate.live.source import LiveSource
from optstate.live.transaction import Transaction
from optstate.live.weights import live_weights
from optstate.optimizers.registry import by_class
from optstate.resume.decided import Decided
from optstate.resume.decisions import Entry, EntryDecision, HyperparameterDecision, ObjectDecision
from optstate.resume.materialise import materialise
from optstate.resume.sameness import same
from optstate.state.tensors import Value, is_tensor, nbytes
from optstate.text import safe_text


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
    entries: Mapping[str, Mapping[str, Any]]
    hyperparameters: Sequence[tuple[HyperparameterDecision, Any]]
    objects: Sequence[tuple[ObjectDecision, Any]]


READERS = 2
"""Threads that read and verify large tensors; more gain little, and a machine that trains has work of its own."""

LARGE = 1 << 20
"""Bytes from which a tensor is read by one of them: for small ones, threads only wait for the interpreter's lock."""


def _read(values: Sequence[Value]) -> list[Any]:
    with ThreadPoolExecutor(READERS) as readers:
        pending = {
            place: readers.submit(materialise, value)
            for place, value in enumerate(values)
            if is_tensor(value) and nbytes(value) >= LARGE
        }
        return [
            pending[place].result() if place in pending else materialise(value) for place, value in enumerate(values)
        ]


def stage(plan: Decided, live: Live) -> Staged:
    """Read everything that a plan will write. Reading verifies each digest, so `Damaged` is raised here or never."""
    weights = [item for item in plan.weights if item.saved is not None]
    entries = [item for item in plan.entries if not item.stays]
    values = iter(
        _read([item.saved for item in weights] + [value for item in entries for value in item.saved.values()])
    )
    targets = {} if live.model is None else live_weights(live.model)
    read = {item.name: next(values) for item in weights}
    return Staged(
        {
            item.name: read[item.name]
            if item.transform is None
            else item.transform(read[item.name], targets[item.name].tensor)
            for item in weights
        },
        {item.parameter: _entry(item, {key: next(values) for key in item.saved}) for item in entries},
        [(item, materialise(item.value)) for item in plan.hyperparameters if item.changes],
        [(item, _state(item)) for item in plan.objects],
    )


def _entry(item: EntryDecision, entry: Entry) -> Entry:
    for transform in item.transforms:
        entry = transform(entry)
    return entry


def _state(item: ObjectDecision) -> Any:
    state = materialise(item.saved)
    return state if item.transform is None else item.transform(state)


@dataclass(slots=True)
class Undo:
    """How to put back what has been written so far, newest first."""

    steps: list[tuple[str, Callable[[], None]]] = field(default_factory=list)

    def run(self) -> list[str]:
        """Undo everything; returns what could not be put back."""
        lost = []
        for name, step in reversed(self.steps):
            try:
                step()
            except Exception as error:  # noqa: BLE001  # one thing that cannot be undone must not stop the others
                lost.append(f"{safe_text(name)} ({type(error).__name__}: {safe_text(error)})")
        return lost


def commit(live: Live, staged: Staged, plan: Decided) -> None:
    """Write everything, objects last, and what comes after them. On a failure everything that can be put back is, then `RestoreFailed`."""
    undo = Undo()
    try:
        with torch.no_grad():
            _write_weights(live, staged, undo)
            if live.state is not None:
                _write_entries(live.state, staged, undo)
                _write_hyperparameters(live.state, staged, undo)
        for decision, state in staged.objects:
            _load_object(decision, live.objects[decision.name], state, undo)
        _do_last(plan, undo)
    except BaseException as error:
        with torch.no_grad():
            lost = undo.run()
        if not isinstance(error, Exception):
            raise  # an interrupt stays one
        raise RestoreFailed(
            f"the restore failed and was undone{' in part' if lost else ''}: {type(error).__name__}: {safe_text(error)}",
            where=plan.source,
            found=f"not put back: {', '.join(lost)}" if lost else "everything is as it was before",
            todo="mend the object that raised, then restore again",
        ) from error


def _do_last(plan: Decided, undo: Undo) -> None:
    transaction = Transaction()
    undo.steps.append(("the groups", transaction.rollback))
    for work in plan.last:
        work(transaction)


def _write_weights(live: Live, staged: Staged, undo: Undo) -> None:
    targets = {} if live.model is None else live_weights(live.model)
    for name, value in staged.weights.items():
        _exchange(name, targets[name].tensor, value, undo)


def _exchange(name: str, target: torch.Tensor, value: torch.Tensor, undo: Undo) -> None:
    """Write `value` into the storage of `target`, and keep the old content in the memory of `value`."""
    done: list[tuple[torch.Tensor, torch.Tensor]] = []  # pairs of a place and what was there

    def put_back() -> None:
        for place, before in done:
            place.copy_(before)

    undo.steps.append((name, put_back))
    for ours, theirs in _blocks(target.detach(), value):
        before = ours.to(theirs.device, copy=True)
        done.append((ours, before))  # first, so that an interrupt in the middle of a block can be undone
        ours.copy_(theirs)
        theirs.copy_(before)
        done[-1] = (ours, theirs)


_BLOCK = 1 << 15
"""Elements: a block and its copy stay in a processor's cache, and torch copies no more than this with one thread;
more threads wait for each other at every block, and for a long time where others use the cores as well."""


def _blocks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two tensors of one shape as pairs of blocks; as one pair where they are not dense or not on the CPU."""
    if a.device.type != "cpu" or not (a.is_contiguous() and b.is_contiguous()):
        return iter([(a, b)])
    return zip(a.view(-1).split(_BLOCK), b.view(-1).split(_BLOCK), strict=True)


def _write_entries(state: LiveSource, staged: Staged, undo: Undo) -> None:
    for name, entry in staged.entries.items():
        bound = state.bound(name)
        optimizer = state.live_optimizers[bound.optimizer]
        _write_entry(bound, optimizer, entry, undo)


def _write_entry(bound: Bound, optimizer: torch.optim.Optimizer, entry: Mapping[str, Any], undo: Undo) -> None:
    """Make the optimizer's entry for one parameter exactly `entry`, in place where a tensor of its kind is there."""
    existing = optimizer.state.get(bound.tensor)
    undo.steps.append((bound.name, _entry_restorer(optimizer, bound.tensor, existing)))
    if not entry:
        optimizer.state.pop(bound.tensor, None)
        return
    target: dict[str, Any] = optimizer.state.setdefault(bound.tensor, {}) if existing is None else existing
    for key in [key for key in target if key not in entry]:
        del target[key]
    for key, value in entry.items():
        old = target.get(key)
        if (
            isinstance(value, torch.Tensor)
            and isinstance(old, torch.Tensor)
            and _fits(old, value, bound, optimizer, key)
        ):
            _exchange(f"{bound.name}/{key}", old, value, undo)
        elif isinstance(value, torch.Tensor):
            target[key] = value.to(_home(bound, optimizer, key, value))
        else:
            target[key] = value


def _entry_restorer(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, existing: dict[str, Any] | None
) -> Callable[[], None]:
    before = None if existing is None else dict(existing)

    def put_back() -> None:
        if existing is None or before is None:
            optimizer.state.pop(parameter, None)
            return
        existing.clear()
        existing.update(before)
        optimizer.state[parameter] = existing

    return put_back


def _fits(old: torch.Tensor, new: torch.Tensor, bound: Bound, optimizer: torch.optim.Optimizer, key: str) -> bool:
    """Whether `old` can take the values of `new` and be exactly what a new tensor would have been."""
    return (
        old.dtype == new.dtype
        and old.shape == new.shape
        and old.layout == new.layout == torch.strided
        and old.stride() == new.stride()
        and old.device == _home(bound, optimizer, key, new)
    )


def _home(bound: Bound, optimizer: torch.optim.Optimizer, key: str, value: torch.Tensor) -> torch.device:
    """The device on which the live program, with its own flags, wants this slot."""
    spec = by_class(type(optimizer))
    rule = spec.slots.get(key) if spec is not None else None
    group = optimizer.param_groups[bound.group]
    if rule is not None and rule.home == "step" and not (group.get("capturable") or group.get("fused")):
        return torch.device("cpu")
    if rule is None:
        old = optimizer.state.get(bound.tensor, {}).get(key)
        if isinstance(old, torch.Tensor):
            return old.device
        if value.dim() == 0:  # an unknown scalar: torch lets one on the CPU meet tensors anywhere
            return torch.device("cpu")
    return bound.tensor.device


def _write_hyperparameters(state: LiveSource, staged: Staged, undo: Undo) -> None:
    for item, value in staged.hyperparameters:
        group = state.live_optimizers[item.optimizer].param_groups[item.group]
        existed, old = item.key in group, group.get(item.key)
        undo.steps.append((f"group {item.group} {item.key}", _key_restorer(group, item.key, existed, old)))
        if (
            isinstance(old, torch.Tensor)
            and isinstance(value, torch.Tensor)
            and old.shape == value.shape
            and old.dtype == value.dtype
        ):
            _exchange(item.key, old, value, undo)
        elif isinstance(old, torch.Tensor) and isinstance(value, (int, float)):
            number = torch.full_like(old, value)
            _exchange(item.key, old, number, undo)
        else:
            group[item.key] = value


def _key_restorer(group: dict[str, Any], key: str, existed: bool, old: Any) -> Callable[[], None]:
    def put_back() -> None:
        if existed:
            group[key] = old
        else:
            group.pop(key, None)

    return put_back


def _load_object(decision: ObjectDecision, item: Any, state: Any, undo: Undo) -> None:
    before = copy.deepcopy(item.state_dict()) if decision.reversible else None

    def put_back() -> None:
        if decision.reversible and not same(before, item.state_dict()):
            item.load_state_dict(before)
        if not decision.reversible or not same(before, item.state_dict()):
            raise RuntimeError("its state is another one now")

    undo.steps.append((decision.name, put_back))
    item.load_state_dict(state)

"""Carrying a plan out: everything is written in place, and can be put back as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optstate.errors import OptstateError, RestoreFailed
from optstate.live.bind import Bound
from optstate.live.journals import Restored
from optstate.live.source import LiveSource
from optstate.live.stamp import Stamp
from optstate.live.transaction import Transaction
from optstate.live.weights import live_weights
from optstate.resume.decided import Decided
from optstate.resume.decisions import ObjectDecision
from optstate.resume.homes import fits, home
from optstate.resume.materialise import materialise
from optstate.resume.reading import InPlace, write_all
from optstate.resume.sameness import same
from optstate.resume.schedulers import is_scheduler
from optstate.resume.staging import Live, Staged, loadable
from optstate.text import count, listing, safe_text


@dataclass(slots=True)
class Undo:
    """How to put back what has been written so far, newest first."""

    steps: list[tuple[str, Callable[[], None]]] = field(default_factory=list)

    def run(self) -> list[str]:
        """Undo everything; returns what could not be put back."""
        lost = []
        with torch.no_grad():
            for name, step in reversed(self.steps):
                try:
                    step()
                except Exception as error:  # noqa: BLE001  # one thing that cannot be undone must not stop the others
                    lost.append(f"{safe_text(name)} ({type(error).__name__}: {safe_text(error)})")
        return lost


@dataclass(frozen=True, slots=True)
class Applied:
    """What it takes to revert a plan: `undo` is None where that was not asked for, `stamp` is of what was made."""

    undo: Undo | None
    stamp: Stamp
    journal: Restored | None


def commit(live: Live, staged: Staged, plan: Decided) -> Undo:
    """Write everything but what is read in place, objects last, and what comes after them; returns how to put it back.

    On a failure everything that can be put back is, then `RestoreFailed`. What was there is kept in the memory of `staged`.
    """
    undo = Undo()
    try:
        with torch.no_grad():
            _write_weights(live, staged, undo)
            if live.state is not None:
                write_entries(live.state, staged.entries, undo)
                _write_hyperparameters(live.state, staged, undo)
        for decision, state in staged.objects:
            _load_object(decision, live.objects[decision.name], state, undo)
        _do_last(plan, undo)
        with torch.no_grad():
            for item in staged.in_place:
                item.announce()
    except BaseException as error:
        lost = undo.run()
        if not isinstance(error, Exception):
            raise  # an interrupt stays one
        raise RestoreFailed(
            f"the restore failed and was undone{' in part' if lost else ''}: {type(error).__name__}: {safe_text(error)}",
            where=plan.source,
            found=f"not put back: {', '.join(lost)}" if lost else "everything is as it was before",
            todo="mend the object that raised, then restore again",
        ) from error
    return undo


def finish(live: Live, in_place: Sequence[InPlace], plan: Decided) -> BaseException | None:
    """Read in place what `commit` left for that. Returns the interrupt that came meanwhile, to be raised.

    Nothing of it can be put back, so it goes on to the end, whatever happens. Objects that may have looked at weights or
    slots when they were loaded are loaded once more, now that all of them are there. Raises `RestoreFailed`, which names
    what is not as it was saved.
    """
    if not in_place:
        return None
    failed, interrupt = write_all(in_place)
    tensors = len(failed)
    for decision in plan.objects:
        item = live.objects[decision.name]
        if not is_scheduler(item):  # which looks at groups, and they were there; what came after it may have changed it
            try:
                item.load_state_dict(loadable(decision, materialise(decision.saved)))
            except Exception as error:  # noqa: BLE001  # the others are due as well
                failed[decision.name] = error
    if failed:
        raise _mixed(plan, failed, tensors) from next(iter(failed.values()))
    return interrupt


def _mixed(plan: Decided, failed: Mapping[str, Exception], tensors: int) -> RestoreFailed:
    what = count(tensors, "tensor") if tensors else count(len(failed), "object")
    return RestoreFailed(
        f"the checkpoint changed or could not be read again while it was restored: {what} not as saved",
        where=plan.source,
        expected="the bytes that were verified a moment before",
        found=f"{listing(map(_told, failed.items()), _NAMED)}; all else is as in the checkpoint",
        todo="restore again, from this checkpoint or another one, before you go on: those hold parts of both",
    )


_NAMED = 100
"""Names in the message: who restores again wants to know all of them."""


def _told(item: tuple[str, Exception]) -> str:
    name, error = item
    return f"{safe_text(name)} ({error.what if isinstance(error, OptstateError) else f'{type(error).__name__}: {safe_text(error)}'})"


def _do_last(plan: Decided, undo: Undo) -> None:
    transaction = Transaction()
    undo.steps.append(("the groups", transaction.rollback))
    for work in plan.last:
        work(transaction)


def _write_weights(live: Live, staged: Staged, undo: Undo) -> None:
    targets = {} if live.model is None else live_weights(live.model)
    for name, value in staged.weights.items():
        if value is not targets[name].tensor:  # which will be read in place
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
    undo.steps[-1] = (name, _refiller(target, value))


def _refiller(target: torch.Tensor, before: torch.Tensor) -> Callable[[], None]:
    """Writes into whatever memory the tensor has by then; into one that could not hold the same bits it does not."""

    def put_back() -> None:
        place = target.detach()
        if (place.dtype, place.shape) != (before.dtype, before.shape):
            raise RuntimeError(f"it is {place.dtype} {list(place.shape)} by now")
        place.copy_(before)

    return put_back


_BLOCK = 1 << 15
"""Elements: a block and its copy stay in a processor's cache, and torch copies no more than this with one thread;
more threads wait for each other at every block, and for a long time where others use the cores as well."""


def _blocks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two tensors of one shape as pairs of blocks; as one pair where they are not dense or not on the CPU."""
    if a.device.type != "cpu" or not (a.is_contiguous() and b.is_contiguous()):
        return iter([(a, b)])
    return zip(a.view(-1).split(_BLOCK), b.view(-1).split(_BLOCK), strict=True)


def write_entries(state: LiveSource, entries: Mapping[str, Mapping[str, Any]], undo: Undo) -> None:
    """Make the slots of each parameter exactly these, in place where a tensor of its kind is there."""
    kept = Transaction()
    undo.steps.append(("slots", kept.rollback))
    for name, entry in entries.items():
        bound = state.bound(name)
        optimizer = state.live_optimizers[bound.optimizer]
        kept.before_entry(optimizer, bound.tensor)
        _write_entry(bound, optimizer, entry, undo)


def _write_entry(bound: Bound, optimizer: torch.optim.Optimizer, entry: Mapping[str, Any], undo: Undo) -> None:
    """Make the optimizer's entry for one parameter exactly `entry`, in place where a tensor of its kind is there."""
    if not entry:
        optimizer.state.pop(bound.tensor, None)
        return
    target: dict[str, Any] = optimizer.state.setdefault(bound.tensor, {})
    for key in [key for key in target if key not in entry]:
        del target[key]
    for key, value in entry.items():
        old = target.get(key)
        if value is old and key in target:
            continue  # it will be read in place
        if (
            isinstance(value, torch.Tensor)
            and isinstance(old, torch.Tensor)
            and fits(old, value, bound, optimizer, key)
        ):
            _exchange(f"{bound.name}/{key}", old, value, undo)
        elif isinstance(value, torch.Tensor):
            target[key] = value.to(home(bound, optimizer, key, value))
        else:
            target[key] = value


def _write_hyperparameters(state: LiveSource, staged: Staged, undo: Undo) -> None:
    apart = _apart(state, staged)
    for item, value in staged.hyperparameters:
        group = state.live_optimizers[item.optimizer].param_groups[item.group]
        existed, old = item.key in group, group.get(item.key)
        undo.steps.append((f"group {item.group} {item.key}", _key_restorer(group, item.key, existed, old)))
        old = old.clone() if isinstance(old, torch.Tensor) and id(old) in apart else old
        group[item.key] = _written(item.key, old, value, undo)


def _apart(state: LiveSource, staged: Staged) -> set[int]:
    """The `id`s of tensors that several groups hold, as torch gives them the very rate it was given, and that will differ there."""
    new = {(item.optimizer, item.group, item.key): value for item, value in staged.hyperparameters}
    first: dict[int, Any] = {}
    apart = set()
    for name, optimizer in state.live_optimizers.items():
        for index, group in enumerate(optimizer.param_groups):
            for key, old in group.items():
                if isinstance(old, torch.Tensor):
                    value = new.get((name, index, key), old)
                    value = torch.full_like(old, value) if isinstance(value, (int, float)) else value
                    if not same(first.setdefault(id(old), value), value):
                        apart.add(id(old))
    return apart


def _written(key: str, old: Any, value: Any, undo: Undo) -> Any:
    """What a group will hold: the tensor that is there, with the value written into it, also within a tuple; else the value."""
    if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)) and len(old) == len(value):
        return type(old)(_written(key, *pair, undo) for pair in zip(old, value, strict=True))
    if not isinstance(old, torch.Tensor):
        return value
    if isinstance(value, (int, float)):
        value = torch.full_like(old, value)
    if not isinstance(value, torch.Tensor) or (old.shape, old.dtype) != (value.shape, value.dtype):
        return value
    _exchange(key, old, value, undo)
    return old


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

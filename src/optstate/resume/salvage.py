"""Salvage: everything is read while planning, and what is damaged is left out, with what means something only with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from optstate.errors import ReadError
from optstate.live.bind import Bound
from optstate.live.source import LiveSource
from optstate.live.tensors import HeldTensor
from optstate.optimizers.registry import by_class
from optstate.optimizers.resets import Fill, Fresh, Remove, fresh, together
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.decided import Decided
from optstate.resume.decisions import Entry, EntryDecision, Fate, HyperparameterDecision, Transform, WeightDecision
from optstate.resume.materialise import materialise
from optstate.resume.starting import started
from optstate.state.tensors import TensorRef, is_tensor, nbytes
from optstate.text import count, listing, safe_text

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, after each tensor."""

_NAMED = 100  # names in a warning: who salvages wants to know all of them


def salvage(found: Decided, live: LiveSource | None, progress: Progress | None = None) -> None:
    """Read whatever the plan would read, and change what it does with what cannot be read.

    A weight keeps its live value, a slot starts fresh with its companions, a hyperparameter stays live, an object is left
    out. What shares a count of steps with a whole group cannot start fresh alone: that is a fault.
    """
    reader = _Reader(sum(map(_size, _everything(found))), progress)
    weights = [_weight(item, reader) for item in found.weights]
    entries = [_entry(found, item, reader, live) for item in found.entries]
    found.faults += [fault for fault in entries if isinstance(fault, str)]
    damaged = [old.name for old, new in zip(found.weights, weights, strict=True) if old is not new]
    if damaged:
        found.warnings.append(
            f"{count(len(damaged), 'weight')} of the checkpoint cannot be read and will keep the live value, while slots come "
            f"back as they were for the saved one: {listing(damaged, _NAMED)}"
        )
    anew = [item.parameter for item, new in zip(found.entries, entries, strict=True) if item is not new]
    if anew:
        found.warnings.append(
            f"slots of {count(len(anew), 'parameter')} cannot be read and start fresh: {listing(anew, _NAMED)}"
        )
    found.weights[:] = weights
    found.entries[:] = [item for item in entries if not isinstance(item, str)]
    found.hyperparameters[:] = [_hyperparameter(found, item, reader) for item in found.hyperparameters]
    for item in list(found.objects):
        why = reader.fault(item.saved)
        if why is not None:
            found.objects.remove(item)
            found.left_out.append(f"object {safe_text(item.name)}, which cannot be read: {why}")


def _everything(found: Decided) -> Iterator[Any]:
    yield from (item.saved for item in found.weights)
    yield from (value for item in found.entries for value in item.saved.values())
    yield from (item.saved for item in found.objects)


def _size(value: Any) -> int:
    return nbytes(value) if is_tensor(value) else 0


@dataclass(slots=True)
class _Reader:
    """Reads values and keeps none of them."""

    total: int
    progress: Progress | None
    done: int = 0

    def fault(self, value: Any) -> str | None:
        """Why a value cannot be read, None where it can."""
        try:
            _read(value)
        except ReadError as error:
            return error.what
        finally:
            self.done += _size(value)
            if self.progress is not None:
                self.progress(self.done, self.total)
        return None


def _read(value: Any) -> None:
    if isinstance(value, HeldTensor):
        return  # in memory, where nothing is damaged
    if is_tensor(value):
        deque(value.blocks(), maxlen=0)
    else:
        materialise(value)


def _weight(item: WeightDecision, reader: _Reader) -> WeightDecision:
    why = None if item.saved is None else reader.fault(item.saved)
    return item if why is None else WeightDecision(item.name, "left out", f"cannot be read: {why}", item.source)


def _hyperparameter(found: Decided, item: HyperparameterDecision, reader: _Reader) -> HyperparameterDecision:
    why = reader.fault(item.value) if item.changes else None
    if why is None:
        return item
    found.warnings.append(f"{safe_text(item.key)} of group {item.group} cannot be read and stays: {why}")
    return replace(item, value=item.live, winner="live", reason=f"cannot be read: {why}")


# --- slots ------------------------------------------------------------------------------------------------------


def _entry(found: Decided, item: EntryDecision, reader: _Reader, live: LiveSource | None) -> EntryDecision | str:
    faults = {key: why for key, value in item.saved.items() if (why := reader.fault(value)) is not None}
    if not faults or live is None:
        return item
    bound = live.bound(item.parameter)
    optimizer = live.live_optimizers[bound.optimizer]
    spec = by_class(type(optimizer))
    counts = [] if spec is None else [key for key in (spec.group_step, *spec.group_state) if key]
    if counts:
        return (
            f"{safe_text(item.parameter)}: {listing(faults)} cannot be read, and cannot start fresh alone, for "
            f"{listing(counts)} of its group stands for all its parameters"
        )
    why = listing(f"{safe_text(key)} cannot be read: {fault}" for key, fault in faults.items())
    group = _group_after(found, bound, optimizer.param_groups[bound.group])
    values = {} if spec is None else _starts(spec, item, faults, group, optimizer.defaults)
    if values:
        return _partly(item, values, why)
    alone = {each.parameter for each in found.entries if not each.fates or each is item}
    others = [name for name in live.optimizers()[bound.optimizer].groups[bound.group].parameters if name not in alone]
    return started(
        item.parameter,
        bound.tensor,
        optimizer,
        group,
        Fate("fresh", why),
        beside_others=bool(others),
        source=item.source,
    )


def _group_after(found: Decided, bound: Bound, group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a group will have."""
    due = [item for item in found.hyperparameters if (item.optimizer, item.group) == (bound.optimizer, bound.group)]
    return {**group, **{item.key: item.value for item in due if item.changes}}


def _starts(
    spec: OptimizerSpec,
    item: EntryDecision,
    faults: Mapping[str, str],
    group: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, float]:
    """What the damaged slots and their companions hold in a fresh state; nothing where all must go, or nobody can tell."""
    converted = any(fate.decision == "converted" for fate in item.fates.values())
    if converted or item.saved.keys() != item.fates.keys() or not item.saved.keys() <= spec.slots.keys():
        return {}
    starts = {key: fresh(spec, key, group, defaults) for key in together(spec, faults, item.saved)}
    known = {key: _number(start) for key, start in starts.items()}
    return {key: value for key, value in known.items() if value is not None} if None not in known.values() else {}


def _number(start: Fresh) -> float | None:
    if isinstance(start, Remove):
        return 0.0 if start.whole_group else None
    return start.value if isinstance(start, Fill) else None


def _partly(item: EntryDecision, values: Mapping[str, float], why: str) -> EntryDecision:
    """The same decision with these slots as in a fresh state: made up first, so that all else is done to them too."""
    forms = {key: value if is_tensor(value) else type(value) for key, value in item.saved.items() if key in values}
    return replace(
        item,
        saved={key: value for key, value in item.saved.items() if key not in values},
        fates={key: Fate("fresh", why) if key in values else fate for key, fate in item.fates.items()},
        transforms=(_filler(tuple(item.saved), forms, values), *item.transforms),
    )


def _filler(keys: tuple[str, ...], forms: Mapping[str, Any], values: Mapping[str, float]) -> Transform:
    def fill(entry: Entry) -> Entry:
        return {key: entry[key] if key in entry else _filled(forms[key], values[key]) for key in keys}

    return fill


def _filled(form: TensorRef | type, value: float) -> Any:
    if isinstance(form, type):
        return form(value)
    return torch.full(form.shape, value, dtype=getattr(torch, form.dtype))

"""`lerp_`: slots part of the way towards those of another state, matched by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from optstate.errors import EditError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.live.batch import Batch
from optstate.live.rows import Rows
from optstate.live.tensors import HeldTensor
from optstate.live.verbs import Verb
from optstate.optimizers.arguments import real_number
from optstate.optimizers.conventions import convention_of, is_debiased, primary
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import OptimizerSpec, coefficient_value, number
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParamState
from optstate.state.slot import Slot
from optstate.state.tensors import is_tensor
from optstate.text import safe_text

Other: TypeAlias = "str | os.PathLike[str] | Checkpoint | OptimizerState"


def lerp(other: Any, weight: Any) -> Verb:
    """Move towards another state by a weight from 0 (stay) to 1 (become it)."""
    share = real_number(weight, "the weight")
    if not 0.0 <= share <= 1.0:
        raise EditError("the weight is not between 0 and 1", found=f"{share:g}")
    blend = _Blend(_state(other), share)
    told = safe_text(other, 120) if isinstance(other, (str, os.PathLike)) else "a state in memory"
    return Verb("lerp_", {"other": told, "weight": share}, blend.write, ready=blend.ready)


def _state(other: Any) -> OptimizerState:
    if isinstance(other, (str, os.PathLike)):
        other = open_checkpoint(other)
    if isinstance(other, Checkpoint):
        other = other.state
    if isinstance(other, OptimizerState):
        return other
    raise EditError(
        "this is no state to move towards",
        expected="a state, a snapshot, an opened checkpoint or its path",
        found=f"a {safe_text(type(other).__name__)}",
    )


class _Blend:
    def __init__(self, other: OptimizerState, weight: float) -> None:
        self._other = other
        self._weight = weight
        self._rows: Rows | None = None

    def ready(self, batches: Sequence[Batch], rows: Rows | None) -> None:
        """Find every counterpart before anything is written."""
        self._rows = rows
        for batch in batches:
            for place in range(len(batch.names)):
                self._counterpart(batch, place)

    def write(self, batch: Batch, chunk: range, tensors: list[torch.Tensor]) -> None:
        for place, tensor in zip(chunk, tensors, strict=True):
            slot, factor = self._counterpart(batch, place)
            target = _tensor(slot).to(tensor.device)
            if self._rows is not None:
                target = target.index_select(0, self._rows.of(target, slot.path))
            wide = torch.promote_types(torch.promote_types(tensor.dtype, target.dtype), torch.float32)
            tensor.copy_(tensor.to(wide).lerp(target.to(wide) * factor, self._weight))

    def _counterpart(self, batch: Batch, place: int) -> tuple[Slot, float]:
        """The other state's slot, and what it is multiplied by to mean the same here."""
        name = batch.names[place]
        theirs = self._other[name]
        slot = _alike(theirs, batch)
        value = batch.values[place]
        if slot is None or not is_tensor(slot.value) or slot.shape != tuple(value.shape):
            raise EditError(
                f"the other state has no counterpart of {batch.path(place)}",
                expected=f"a slot of the same meaning, of shape {list(value.shape)}",
                found="none" if slot is None else f"{slot.path} of shape {list(slot.shape or ())}",
                todo="select the parameters that both states have alike",
            )
        return slot, self._factor(batch, place, theirs, slot)

    def _factor(self, batch: Batch, place: int, theirs: ParamState, slot: Slot) -> float:
        """What makes their raw average ours: both are divided by 1-β^t of their own where they are used.

        Source: m = (1-β^t)·m̂, and m̂ is what both states mean. A slot with the learning rate inside goes by that.
        """
        info = self._other.optimizers[theirs.facts.optimizer]
        spec, group = by_name(info.class_name), info.groups[theirs.facts.group].hyperparameters
        ours = batch.place.spec
        if spec is None or ours is None or batch.slot is None or slot.key not in spec.slots:
            return 1.0
        entry = batch.place.optimizer.state[batch.parameters[place]]
        factor = _weight_sum(ours, batch.key, batch.place.group, entry)
        factor /= _weight_sum(spec, slot.key, group, {key: item.value for key, item in theirs.slots.items()})
        if convention_of(batch.slot, batch.place.group) == "lr_in_buffer":
            factor *= (number(batch.place.group["lr"]) or 0.0) / (number(group["lr"]) or 1.0)
        return factor


def _alike(theirs: ParamState, batch: Batch) -> Slot | None:
    """The slot of the same meaning: of the same key where the registry knows none."""
    ours = batch.slot
    if ours is None:
        return theirs.slots.get(batch.key)
    meaning = (ours.role, ours.convention, ours.of)
    slots = [slot for slot in theirs.slots.values() if (slot.role, slot.convention, slot.of) == meaning]
    same = [slot for slot in slots if slot.key == batch.key] or [
        slot for slot in slots if slot.primary and ours.primary
    ]
    return same[0] if same else None


def _weight_sum(spec: OptimizerSpec, key: str, group: Mapping[str, Any], entry: Mapping[str, Any]) -> float:
    """1-β^t for a slot that the optimizer divides by it, 1 for any other and before the first step."""
    slot = spec.slots[key]
    step = primary(spec, "step")
    steps = number(entry.get(step)) if step is not None else number(group.get(spec.group_step or ""))
    decay = number(coefficient_value(slot.coefficient or "", group))
    if not is_debiased(slot, group) or not steps or decay is None:
        return 1.0
    return 1.0 - float(decay**steps)


def _tensor(slot: Slot) -> torch.Tensor:
    value = slot.value
    if isinstance(value, HeldTensor):
        return value.tensor.detach()
    array = slot.array()
    plain = array if array.dtype.isbuiltin == 1 else array.astype(np.float32)  # exact: numpy's own are the wider ones
    return torch.from_numpy(np.array(plain))

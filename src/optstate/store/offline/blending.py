"""`lerp_` in a file: slots part of the way towards those of another state, matched by name and meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from optstate.errors import EditError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.optimizers.arguments import real_number
from optstate.optimizers.conventions import convention_of, is_debiased, primary
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import OptimizerSpec, coefficient_value, number
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParamState
from optstate.state.slot import Slot
from optstate.state.tensors import DTYPES, Value, is_tensor
from optstate.store.offline.draft import Aim, Draft, numbers
from optstate.store.offline.edited import Change, EditedTensor, rows_only
from optstate.store.offline.rows import chosen_rows
from optstate.store.offline.verbs import Mapped, Touch, permit, put, slots_of
from optstate.text import safe_text

Other: TypeAlias = "str | os.PathLike[str] | Checkpoint | OptimizerState"


@dataclass(frozen=True, slots=True)
class Lerp:
    """Move towards another state by a weight from 0 (stay) to 1 (become it)."""

    other: OptimizerState
    weight: float
    told: str
    name: str = "lerp_"
    alike: bool = False

    @property
    def arguments(self) -> Mapping[str, Any]:
        """As the live verb's."""
        return {"other": self.told, "weight": self.weight}

    def act(self, draft: Draft, aim: Aim) -> Iterator[Touch]:
        """Blend each slot with its counterpart."""
        for name, key, slot in slots_of(self.name, draft, aim):
            permit(Mapped(self.name, {}, _blend(1.0, 0.0)), slot, aim, draft.state[name].facts.shape)
            theirs = self._counterpart(slot)
            change = _blend(_factor(draft, slot, self.other, theirs), self.weight)
            value: Any = slot.value
            if aim.rows is not None:
                change = rows_only(change, chosen_rows(aim.rows, value.shape, slot.path), prod(value.shape[1:]))
            yield put(draft, name, key, EditedTensor(value, change, theirs.value))  # type: ignore[arg-type]

    def _counterpart(self, slot: Slot) -> Slot:
        found = _alike(self.other[slot.parameter], slot)
        if found is None or not is_tensor(found.value) or found.shape != slot.shape or found.dtype not in DTYPES:
            raise EditError(
                f"the other state has no counterpart of {slot.path}",
                expected=f"a slot of the same meaning, of shape {list(slot.shape or ())}",
                found="none" if found is None else f"{found.path} of shape {list(found.shape or ())}",
                todo="select the parameters that both states have alike",
            )
        return found


def lerp(other: Any, weight: Any) -> Lerp:
    """Move towards another state: a checkpoint, its path, or any state."""
    share = real_number(weight, "the weight")
    if not 0.0 <= share <= 1.0:
        raise EditError("the weight is not between 0 and 1", found=f"{share:g}")
    told = safe_text(other, 120) if isinstance(other, (str, os.PathLike)) else "a state in memory"
    if isinstance(other, (str, os.PathLike)):
        other = open_checkpoint(other)
    state = other.state if isinstance(other, Checkpoint) else other
    if not isinstance(state, OptimizerState):
        raise EditError("this is no state to move towards", expected="a checkpoint, its path, or a state")
    return Lerp(state, share, told)


def _blend(factor: float, weight: float) -> Change:
    def blended(block: Any, other: Any, _: int) -> Any:
        target = other * factor
        return block + weight * (target - block) if weight < 0.5 else target - (target - block) * (1.0 - weight)

    return blended


def _alike(theirs: ParamState, ours: Slot) -> Slot | None:
    """The slot of the same meaning: of the same key where there are several, or where nothing is known of it."""
    if ours.role == "other":
        return theirs.slots.get(ours.key)
    meaning = (ours.role, ours.convention, ours.of)
    slots = [slot for slot in theirs.slots.values() if (slot.role, slot.convention, slot.of) == meaning]
    same = [slot for slot in slots if slot.key == ours.key] or [slot for slot in slots if slot.primary and ours.primary]
    return same[0] if same else None


def _factor(draft: Draft, ours: Slot, other: OptimizerState, theirs: Slot) -> float:
    """What makes their raw average ours: both are divided by 1-β^t of their own where they are used.

    Source: m = (1-β^t)·m̂, and m̂ is what both states mean. A slot with the learning rate inside goes by that.
    """
    facts = other[theirs.parameter].facts
    info = other.optimizers[facts.optimizer]
    spec, known = draft.spec(ours.parameter), by_name(info.class_name)
    if spec is None or known is None or ours.key not in spec.slots or theirs.key not in known.slots:
        return 1.0
    group, their_group = numbers(draft.group(ours.parameter)), numbers(info.groups[facts.group].hyperparameters)
    entry = {key: slot.value for key, slot in other[theirs.parameter].slots.items()}
    factor = _weight_sum(spec, ours.key, group, draft.entry(ours.parameter))
    factor /= _weight_sum(known, theirs.key, their_group, entry)
    if convention_of(spec.slots[ours.key], group) == "lr_in_buffer":
        factor *= (number(group["lr"]) or 0.0) / (number(their_group["lr"]) or 1.0)
    return factor


def _weight_sum(spec: OptimizerSpec, key: str, group: Mapping[str, Any], entry: Mapping[str, Value]) -> float:
    """1-β^t for a slot that the optimizer divides by it, 1 for any other and before the first step."""
    slot, step = spec.slots[key], primary(spec, "step")
    steps = number(entry.get(step)) if step is not None else number(group.get(spec.group_step or ""))
    decay = number(coefficient_value(slot.coefficient or "", group))
    if not is_debiased(slot, group) or not steps or decay is None:
        return 1.0
    return 1.0 - float(decay**steps)

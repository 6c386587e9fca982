"""From the raw entry of `optimizer.state[p]` to slots with meaning, and to reasons for what is not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from optstate.optimizers.spec import OptimizerSpec, SlotSpec, coefficient_value
from optstate.state.absence import Absence
from optstate.state.roles import Role
from optstate.state.slot import Slot
from optstate.state.tensors import Value

_ASKED_FOR: tuple[Role, ...] = ("momentum", "second_moment", "step")
"""Roles whose absence is always explained, because every parameter has an accessor for them."""


def is_slot(value: Value) -> bool:
    """Whether a key has something for its value: None, which torch wrote until 2.3, and {}, which DCP leaves, are absences."""
    return value is not None and not (type(value) is dict and not value)


def interpret(
    spec: OptimizerSpec | None, name: str, entry: Mapping[str, Value], added: Mapping[str, Role] = MappingProxyType({})
) -> dict[str, Slot]:
    """The slots of one parameter; `added` gives the role of keys that something around the optimizer adds.

    A key that the description does not list, and every key of an unknown optimizer, has the role `other`:
    a key alone says nothing.
    """
    slots = {}
    for key, value in entry.items():
        if not is_slot(value):
            continue
        known = spec.slots.get(key) if spec is not None else None
        if known is None:
            slots[key] = Slot(name, key, added.get(key, "other"), value, primary=key in added)
        else:
            slots[key] = Slot(name, key, known.role, value, known.convention, known.of, known.primary)
    return slots


def described(spec: OptimizerSpec | None, entry: Mapping[str, Any]) -> dict[str, SlotSpec]:
    """What the description says of each slot in an entry; nothing of those that it does not list."""
    known = spec.slots if spec is not None else {}
    return {key: known[key] for key, value in entry.items() if key in known and is_slot(value)}


def explain_absences(
    spec: OptimizerSpec | None,
    slots: Mapping[str, Slot] | Mapping[str, SlotSpec],
    hyperparameters: Mapping[str, Any],
    ndim: int | None,
    otherwise: Absence,
) -> dict[Role, Absence]:
    """For each role without a primary slot, why. `otherwise` is the reason when the optimizer would keep one.

    State that is laid out over all parameters lives under the first of them, so no other one misses it.
    """
    present = {slot.role for slot in slots.values() if slot.primary}
    ndim = _told_ndim(spec, slots) if ndim is None else ndim
    if spec is None:
        return {role: Absence.UNKNOWN_OPTIMIZER for role in _ASKED_FOR if role not in present}
    absences: dict[Role, Absence] = {}
    for role in _ASKED_FOR:
        if role not in present:
            in_group = role == "step" and spec.group_step is not None
            absences[role] = Absence.IN_GROUP if in_group else Absence.NOT_KEPT
    for slot in () if spec.order_matters else spec.slots.values():
        if slot.role in present or not slot.primary or slot.role in ("other", "counter"):
            continue
        if slot.exists(hyperparameters, ndim):
            absences[slot.role] = otherwise
        elif slot.role in _ASKED_FOR and slot.coefficient is not None and slot.when == slot.coefficient:
            zero = coefficient_value(slot.coefficient, hyperparameters) == 0
            absences[slot.role] = Absence.COEFFICIENT_ZERO if zero else Absence.NOT_KEPT
    return absences


def _told_ndim(spec: OptimizerSpec | None, slots: Iterable[str]) -> int | None:
    """As many dimensions as a slot tells that only a matrix, or only a vector, has."""
    conditions = {spec.slots[key].when for key in slots if key in spec.slots} if spec is not None else set()
    return 2 if "matrix" in conditions else 1 if "vector" in conditions else None

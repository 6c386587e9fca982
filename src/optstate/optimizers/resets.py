"""What "as if fresh" is for each slot, from the rows: whole, with its companions, and for rows that share a step count."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from optstate.errors import RegistryError
from optstate.optimizers.arrays import Array, larger, library, where
from optstate.optimizers.conventions import is_debiased
from optstate.optimizers.spec import OptimizerSpec, SlotSpec, number
from optstate.text import safe_text

_NOTHING: Mapping[str, Any] = {}
_STATISTICS = ("second_moment", "max_second_moment", "factored_row", "factored_column", "preconditioner")
REFERENCE_ROWS = 4096
"""Of so many rows at most the mean is taken that reset rows get: an even sample of a large table says as much as all."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A fresh slot holds this number everywhere."""

    value: float


@dataclass(frozen=True, slots=True)
class Copy:
    """A fresh slot is a copy of the parameter."""


@dataclass(frozen=True, slots=True)
class Remove:
    """A fresh state has no such slot.

    With `whole_group` the optimizer insists that all parameters of the group have it or none: where only some are reset,
    fill it with zero instead, from which the first update is (1-dampening) times that of a fresh start.
    """

    whole_group: bool = False


Fresh: TypeAlias = Fill | Copy | Remove


def fresh(
    spec: OptimizerSpec, key: str, hyperparameters: Mapping[str, Any], defaults: Mapping[str, Any] = _NOTHING
) -> Fresh:
    """What the slot `key` is in the state of an optimizer that has never stepped.

    `hyperparameters` are those of the param group, `defaults` the optimizer's own (`optimizer.defaults`): a slot that
    the constructor makes is filled from them alone, and from the group only where they are not known, as in a file.
    A sum without dampening starts alike from zero and from nothing, so there `delete` becomes a fill, which keeps the
    storage of the tensor.

    Raises `RegistryError` for a slot that the row does not describe, and where a hyperparameter is missing.

    >>> spec = OptimizerSpec(name="Rprop", slots={"step_size": SlotSpec(role="step_size", reset="lr")})
    >>> fresh(spec, "step_size", {"lr": 0.01})
    Fill(value=0.01)
    """
    slot = _described(spec, key)
    if slot.reset == "parameter":
        return Copy()
    if slot.reset == "delete":
        undamped = slot.convention == "accumulate" and number(hyperparameters.get("dampening", 0.0)) == 0.0
        return Fill(0.0) if undamped else Remove(whole_group=bool(hyperparameters.get("fused")))
    if not isinstance(slot.reset, str):
        return Fill(float(slot.reset))
    source = defaults if slot.created == "constructor" and slot.reset in defaults else hyperparameters
    value = number(source.get(slot.reset))
    if value is None:
        raise RegistryError(
            f"{safe_text(spec.name)}: a fresh {safe_text(key)} is {slot.reset}, which is no number here",
            expected=f"{slot.reset} among the hyperparameters",
            found=safe_text(source.get(slot.reset, "nothing")),
        )
    return Fill(value)


def _described(spec: OptimizerSpec, key: str) -> SlotSpec:
    if key not in spec.slots:
        raise RegistryError(
            f"{safe_text(spec.name)}: what a fresh {safe_text(key)} is, nobody said",
            expected=f"one of {', '.join(map(safe_text, spec.slots))}",
            todo="optstate.register describes an optimizer; a slot that a program adds is edited by its key",
        )
    return spec.slots[key]


def fresh_group(
    spec: OptimizerSpec, hyperparameters: Mapping[str, Any], defaults: Mapping[str, Any] = _NOTHING
) -> dict[str, Any]:
    """What a param group keeps that stepping changes, as it was before the first step: a reset of all its parameters
    resets it too. What the optimizer's `defaults` do not have starts at 0, in the type that it has.

    >>> fresh_group(OptimizerSpec(name="Averaging", slots={}, group_step="k", group_state=("lr_max",)),
    ...             {"lr": 0.1, "k": 300, "lr_max": 0.1}, {"k": 0, "lr_max": -1.0})
    {'k': 0, 'lr_max': -1.0}
    """
    kept = [key for key in (spec.group_step, *spec.group_state) if key is not None and key in hyperparameters]
    return {key: defaults.get(key, hyperparameters[key] * 0) for key in kept}


def together(spec: OptimizerSpec, keys: Collection[str], present: Collection[str]) -> tuple[str, ...]:
    """The slots that must be reset when `keys` are: these, their companions and theirs, those that are `present`.

    >>> slots = {"step": SlotSpec(role="step", companions=("m",)), "m": SlotSpec(role="momentum", companions=("step",))}
    >>> together(OptimizerSpec(name="Counted", slots=slots), ["m"], ["m", "step", "mine"])
    ('m', 'step')
    """
    reached, todo = set(), list(keys)
    while todo:
        key = todo.pop()
        if key not in reached:
            reached.add(key)
            todo.extend(spec.slots[key].companions if key in spec.slots else ())
    return tuple(key for key in present if key in reached)


def row_fresh(
    spec: OptimizerSpec,
    key: str,
    value: Array,
    rows: Array,
    others: Array,
    hyperparameters: Mapping[str, Any],
    defaults: Mapping[str, Any] = _NOTHING,
) -> Array | Fresh | None:
    """What some rows of a slot get while the step count, which they share with the other rows, stays.

    `value` is the slot, `rows` and `others` are index arrays along its first dimension. Most slots get what a fresh
    state holds, returned as `fresh` does. A statistic that `is_counted` cannot: of a second moment, zero would count as
    "no gradient in t steps" and its first updates would be up to 1/√(1-β2) of a fresh start's. It gets the mean of the
    other rows, element by element, or what it holds where that is larger, as an array for the rows: gradients no
    larger than those that the state has seen then move them by no more than a fresh start. None: the slot stays, as
    one number for all rows does.

    Source: v_row = (1-β2^t)·v̂ of a reference, and v is (1-β2^t)·v̂ already, so no β is needed. Values that are not finite
    are left out of the mean and replaced.

    Raises `RegistryError` for a slot whose rows nobody can tell, and as `fresh` does.
    """
    slot = _described(spec, key)
    if slot.shape in ("flat", "list"):
        raise RegistryError(
            f"{safe_text(spec.name)}: which part of {safe_text(key)} belongs to which row, nobody can tell",
            todo="reset the whole parameter",
        )
    if not _has_rows(slot, value):
        return None
    if is_counted(spec, key, hyperparameters):
        return _reference(value, rows, others)
    whole = fresh(spec, key, hyperparameters, defaults)
    return Fill(0.0) if isinstance(whole, Remove) else whole


def is_counted(spec: OptimizerSpec, key: str, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether zero in a part of the slot would say "no gradient in as many steps as were counted", and not "fresh".

    So it is for statistics of the gradient that the optimizer corrects by the count, or by another number for the whole
    parameter, and for those of an optimizer whose rule for updates is not known.
    """
    slot = spec.slots[key]
    corrected = slot.age in ("weighted", "stored") or is_debiased(slot, hyperparameters)
    return slot.role in _STATISTICS and (corrected or spec.update is None)


def _has_rows(slot: SlotSpec, value: Array) -> bool:
    """Whether the slot's first dimension is the parameter's; of a matrix, columns lack it."""
    if slot.shape == "scalar":
        return False
    return bool(value.ndim > {"column": 2, "squeezed column": 1}.get(slot.shape, 0))


def _reference(value: Array, rows: Array, others: Array) -> Array:
    own, _ = _finite(value[rows])
    return own if len(others) == 0 else larger(own, average(value[_sampled(others)]))


def average(lines: Array) -> Array:
    """The mean along the first dimension of what is finite: of a large table, of an even sample of its rows."""
    sample, counted = _finite(_sampled(lines))
    return sample.sum(0) / larger(counted.sum(0), 1)


def _sampled(lines: Array) -> Array:
    return lines[:: -(-len(lines) // REFERENCE_ROWS)]


def _finite(array: Array) -> tuple[Array, Array]:
    """The array with 0 for what is not finite, and where it was finite."""
    told = library(array).isfinite(array)
    return where(told, array, 0.0), told

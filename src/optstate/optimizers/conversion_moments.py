"""What an optimizer has learned of the gradients, in coordinates that all of them share: read from its slots."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from optstate.optimizers.arrays import Array, larger, smaller
from optstate.optimizers.at import At
from optstate.optimizers.conventions import convention_of, is_debiased, primary
from optstate.optimizers.conversion_families import COUNTED_FROM, INVERTED, Square, family, family_name
from optstate.optimizers.spec import OptimizerSpec, SlotSpec, number, steady_gain
from optstate.state.tensors import is_tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """The gradients that a parameter has seen, as estimates in the parameter's shape; None where an optimizer keeps none.

    `steps`: how many they were; `mean`: of the gradients; `square`: the mean of their squares, corrected for the zero that
    averages start from; `largest`: the largest that `square` has been, of an optimizer that divides by it.
    """

    steps: float | None
    mean: Array | None
    square: Array | None
    largest: Array | None = None


def at_rest(
    spec: OptimizerSpec, slots: Mapping[str, Any], hyperparameters: Mapping[str, Any], parameter: Array | None
) -> At:
    """Slots between two steps, with hyperparameters as plain numbers: those of two optimizers may be tensors of two kinds.

    A flag that the group lacks is off.
    """
    flags = {slot.when: False for slot in spec.slots.values() if slot.when not in (None, slot.coefficient, *_SHAPES)}
    plain = {**flags, **{key: _plain(value) for key, value in hyperparameters.items() if key != "params"}}
    return At(spec, slots, plain, None, parameter)


_SHAPES = ("matrix", "vector", "sometimes")


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if not isinstance(value, Hashable):
        return None
    return number(value) if is_tensor(value) or hasattr(value, "ndim") else value


def read(at: At) -> Moments:
    """The moments of one parameter.

    A momentum that its optimizer uses as it is, is taken for the mean as it is; sums are divided by what a constant gradient
    of 1 makes of them, averages of squares by 1-β^t.
    """
    steps = counted(at)
    keys = mean_keys(at.spec, at.hyperparameters, at.slots)
    mean = next((_mean(at, key, steps) for key in keys if not of_updates(at.spec, key)), None)
    square = _square(at, steps, mean)
    if mean is None and square is not None and keys:
        mean = _direction(at, keys[0], steps) * root(at, square)
    return Moments(steps, mean, square, _largest(at, steps))


def counted(at: At) -> float | None:
    """How many updates the parameter has had; None where neither a slot nor the group counts them."""
    key, shared = primary(at.spec, "step"), at.spec.group_step
    if shared is None and "k" in at.spec.group_state and key is None:
        shared = "k"
    count = at.slots.get(key) if key is not None else at.hyperparameters.get(shared or "")
    plain = number(count)
    return None if plain is None else plain - (COUNTED_FROM.get(at.spec.name, 0) if key is None else 0)


def counts(at: At) -> bool:
    """Whether the optimizer counts steps at all, for a parameter or in the group."""
    return primary(at.spec, "step") is not None or at.spec.group_step is not None or "k" in at.spec.group_state


def horizon(at: At) -> float:
    """Over how many gradients the second moment averages, 1/(1-β); without end where it forgets none."""
    key = square_key(at.spec, at.spec.slots)
    return float(round(1.0 / (1.0 - decay(at, key)))) if key is not None and averages(at, key) else inf


def decay(at: At, key: str) -> float:
    """The β of an average or a sum."""
    inverted = INVERTED.get(at.spec.name, {}).get(key)
    if inverted is not None:
        return 1.0 - float(at.option(f"betas[{inverted}]"))
    return float(at.decay(key))


def filled(beta: float, steps: float | None) -> float:
    """How much of a constant gradient has arrived in an average that started from zero; all of it after unknown steps."""
    return 1.0 if steps is None else 1.0 - beta**steps


def convention(spec: OptimizerSpec, key: str, hyperparameters: Mapping[str, Any]) -> str | None:
    """As `convention_of`; where the row has none because of a scale, how the scaled gradient accumulates."""
    slot = spec.slots[key]
    told = convention_of(slot, hyperparameters)
    if told is None and (family(spec).scaled or family(spec).of_updates):
        return "ema_debiased" if is_debiased(slot, hyperparameters) else "ema"
    return told


def of_updates(spec: OptimizerSpec, key: str) -> bool:
    """Whether a momentum is of normalised gradients: to be one of gradients, it needs the second moment beside it."""
    return spec.slots[key].of not in (None, "gradient") or (spec.slots[key].of is None and family(spec).of_updates)


def gain(at: At, key: str) -> float:
    """What a constant 1 makes of a momentum after very many steps, the correction of it left out."""
    slot, kind = at.spec.slots[key], convention(at.spec, key, at.hyperparameters) or ""
    value = 1.0
    if kind.startswith("accumulate") or (kind == "lr_in_buffer" and not slot.averages):
        sums = SlotSpec(role="momentum", convention="accumulate", of="gradient", coefficient=slot.coefficient)
        value = steady_gain(sums, at.hyperparameters) or 1.0
    return value * unit(at)[0] * (rate(at) if kind == "lr_in_buffer" else 1.0)


def unit(at: At) -> tuple[float, float]:
    """The scales in which the first and the second moment are kept, of optimizers that estimate their step size.

    Source: Prodigy, arXiv:2306.06101, keeps d·g and d²·g²; D-Adaptation's Adam, arXiv:2301.07733, keeps d·lr·g and g².
    """
    its = family(at.spec)
    if not its.scaled:
        return 1.0, 1.0
    size = float(at.option("d"))
    if not its.lr_scaled:
        return size, size * size
    scale = size * float(at.option("lr"))
    mean, square, steps = primary(at.spec, "momentum"), primary(at.spec, "second_moment"), counted(at)
    if steps and mean and square and is_debiased(at.spec.slots[mean], at.hyperparameters):
        scale *= filled(decay(at, square), steps) ** 0.5 / filled(decay(at, mean), steps)
    return scale, 1.0


def rate(at: At) -> float:
    """The learning rate that enters a buffer: `lr`, or what the optimizer makes of it and of the weights by itself.

    Source: `relative_step` and `scale_parameter` as in transformers' Adafactor.
    """
    lr = number(at.hyperparameters.get("lr"))
    steps = max(counted(at) or 1.0, 1.0)
    if at.flag("relative_step"):
        lr = min(1e-6 * steps if at.flag("warmup_init") else 1e-2, steps**-0.5)
    if at.flag("scale_parameter") and at.parameter is not None:
        size = float((at.parameter * at.parameter).mean() ** 0.5)
        lr = (lr or 0.0) * max(size, at.hyperparameters["eps"][1])
    return lr or 0.0


def root(at: At, square: Array) -> Array:
    """What a gradient is divided by."""
    eps = at.hyperparameters.get("eps")
    eps = eps if isinstance(eps, (int, float)) else 0.0  # Adafactors have two, which are something else
    return (square + eps) ** 0.5 if family_name(at.spec) == "rmsprop_tf" else square**0.5 + eps


def mean_keys(spec: OptimizerSpec, hyperparameters: Mapping[str, Any], present: Any) -> list[str]:
    """The slots from which a mean of the gradients can be read, the best first: of gradients, then of updates."""
    if family(spec).unread:
        return []
    found = [
        key
        for key, slot in spec.slots.items()
        if slot.role == "momentum" and key in present and (slot.primary or slot.when == "centered")
        and convention(spec, key, hyperparameters) is not None
    ]  # fmt: skip
    return sorted(found, key=lambda key: (of_updates(spec, key), not spec.slots[key].primary))


def square_key(spec: OptimizerSpec, present: Any) -> str | None:
    """The slot that holds the second moment, or the first of several that do together; None where none is there."""
    roles = ("second_moment", "infinity_norm", "factored_row")
    found = (key for key, slot in spec.slots.items() if slot.role in roles and slot.primary and key in present)
    return next(found, None)


def square_of(spec: OptimizerSpec, key: str) -> Square:
    """What the second moment in this slot is."""
    slot = spec.slots[key]
    if slot.role == "infinity_norm":
        return "maximum"
    if slot.role in ("factored_row", "factored_column"):
        return "factored"
    return "weighted" if slot.age == "weighted" else family(spec).square


def averages(at: At, key: str) -> bool:
    """Whether a slot is a momentum or a second moment that forgets by a constant β."""
    slot = at.spec.slots[key]
    driven = slot.coefficient is not None or key in INVERTED.get(at.spec.name, {})
    roles = ("momentum", "second_moment", "factored_row", "infinity_norm")
    return driven and slot.age != "weighted" and slot.role in roles


def starts_at_zero(slot: SlotSpec) -> bool:
    """Whether an average holds 1-β^t of what it averages."""
    return slot.age != "weighted" and not (isinstance(slot.reset, float) and slot.reset > 0)


def _mean(at: At, key: str, steps: float | None) -> Array:
    kind = convention(at.spec, key, at.hyperparameters) or ""
    as_it_is = kind == "ema" and at.spec.slots[key].primary
    return at.slots[key] / (gain(at, key) * (1.0 if as_it_is else filled(decay(at, key), steps)))


def _direction(at: At, key: str, steps: float | None) -> Array:
    """The mean over the root of the second moment, which no mean exceeds."""
    return larger(smaller(_mean(at, key, steps), 1.0), -1.0)


def _square(at: At, steps: float | None, mean: Array | None) -> Array | None:
    key = square_key(at.spec, at.slots)
    if key is None:
        return None
    slot, value = at.spec.slots[key], at.slots[key]
    if slot.role == "infinity_norm":
        return value * value
    if slot.role == "factored_row":
        value = _outer(at, key)
    if square_of(at.spec, key) == "sum":
        return value / max(steps or 1.0, 1.0)
    scale = filled(decay(at, key), steps) if starts_at_zero(slot) else 1.0
    value = value / (scale * unit(at)[1])
    return value + mean * mean if square_of(at.spec, key) == "variance" and mean is not None else value


def _outer(at: At, key: str) -> Array:
    """row ⊗ column / mean(row), exact where the second moment has rank 1. Source: Adafactor, arXiv:1804.04235."""
    column = at.slots[next(name for name, slot in at.spec.slots.items() if slot.role == "factored_column")]
    row = at.slots[key]
    if at.spec.slots[key].shape == "squeezed row":
        row, column = row[..., None], column[..., None, :]
    mean = row.mean(-2)[..., None, :]
    return row / larger(mean, 1e-38) * column


def _largest(at: At, steps: float | None) -> Array | None:
    key, square = primary(at.spec, "max_second_moment"), primary(at.spec, "second_moment")
    if key is None or square is None or key not in at.slots:
        return None
    return at.slots[key] / filled(decay(at, square), steps)

"""What a probe measures: which slots exist and of what kind, then what the numbers in them do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf, isclose, log2
from typing import Any

import torch
from torch import Tensor

from optstate.live.rig import MATRIX, Rig, Trial
from optstate.optimizers.measured import MeasuredSlot, close
from optstate.optimizers.spec import Created, Dtype, Shape, number

STEPS = 5
"""Of runs that are compared with each other."""
_PATIENCE = 2000  # steps of a run whose limit is sought,
_STRIDE = 8  # looked at this often
_UNIFORM = 1e-6  # relative; a slot in float32 passes
_SETTLED = {torch.float32: 2e-6}  # relative change that is rounding; of float64, what is not here

# --- structure: what exists, where, in which shape and type -----------------------------------------


def structure(first: Trial, stepped: Trial) -> dict[str, MeasuredSlot]:
    """Every slot that exists after several steps, without its numbers; `first` took one step."""
    entries, shapes = stepped.entries(), stepped.rig.shapes
    mixed = _mixed(stepped.rig)
    return {
        key: MeasuredSlot(
            ranks=tuple(len(shape) for shape, entry in zip(shapes, entries, strict=True) if key in entry),
            shape=_shape(shapes, entries, key),
            dtype=_dtype(entries, mixed, key),
            created=_created(first, key),
        )
        for key in dict.fromkeys(key for entry in entries for key in entry)
    }


def _created(first: Trial, key: str) -> Created:
    if any(key in born for born in first.born):
        return "constructor"
    return "first gradient" if any(key in entry for entry in first.entries()) else "after first step"


def _shape(shapes: tuple[tuple[int, ...], ...], entries: list[dict[str, Any]], key: str) -> Shape | None:
    """The rule that the slot's shape obeys for every parameter that has it."""
    pairs = [(shape, entry[key]) for shape, entry in zip(shapes, entries, strict=True) if key in entry]
    if any(isinstance(value, (list, tuple, dict)) for _, value in pairs):
        return "list"
    seen = [(shape, tuple(value.shape) if isinstance(value, Tensor) else ()) for shape, value in pairs]
    total = (sum(torch.Size(shape).numel() for shape in shapes),)
    rules: dict[Shape, list[tuple[int, ...]]] = {
        "parameter": [shape for shape, _ in seen],
        "scalar": [() for _ in seen],
        "row": [(*shape[:-1], 1) for shape, _ in seen],
        "column": [(*shape[:-2], 1, *shape[-1:]) for shape, _ in seen],
        "squeezed row": [shape[:-1] for shape, _ in seen],
        "squeezed column": [(*shape[:-2], *shape[-1:]) for shape, _ in seen],
        "flat": [total for _ in seen],
    }
    return next((rule for rule, expected in rules.items() if expected == [found for _, found in seen]), None)


def _mixed(rig: Rig) -> list[dict[str, Any]]:
    """State made under bfloat16 parameters and float64 gradients, as far as the class gets with them."""
    trial = Trial(rig, dtype=torch.bfloat16)
    with suppress(Exception):
        for parameter in trial.parameters:
            parameter.grad_dtype = torch.float64
        trial.step(rig.gradient(1))
    return trial.entries()


def _dtype(entries: list[dict[str, Any]], mixed: list[dict[str, Any]], key: str) -> Dtype | None:
    plain, other = (
        next((_tensor(entry[key]) for entry in source if key in entry), None) for source in (entries, mixed)
    )
    if plain is None:
        return "python"
    if plain.dtype != torch.float64:
        return "scalar"
    # Under a default of float64 two rules give the same scalars; some classes refuse mixed types.
    if other is None or (not other.ndim and torch.get_default_dtype() == torch.float64):
        return None
    return "parameter" if other.dtype == torch.bfloat16 else "gradient"


def _tensor(value: Any) -> Tensor | None:
    """The value, or the first tensor in it."""
    if isinstance(value, (list, tuple)):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value if isinstance(value, Tensor) else None


# --- behaviour: what the numbers do -----------------------------------------------------------------


def behaviour(
    slots: Mapping[str, MeasuredSlot], first: Trial, stepped: Trial, group: Mapping[str, Any]
) -> dict[str, MeasuredSlot]:
    """The slots with their numbers; `group` holds the hyperparameters that the trials started with."""
    rig, end = stepped.rig, stepped.entries()
    louder = Trial(rig).steps(STEPS, scale=2.0)
    faster = Trial(rig, lr_scale=2.0).steps(STEPS).entries() if group.get("lr") else [{}]
    decays = _decays(rig, slots)
    measured = {}
    for key, slot in slots.items():
        numbers = _numbers(end, key)
        weights = slot.shape == "parameter" and _copies_weights(first, key)
        measured[key] = replace(
            slot,
            fresh="parameter" if weights else _fresh(first, louder, key),
            counts=_constant(numbers) == STEPS and _constant(_numbers(first.entries(), key)) == 1,
            signed=None if numbers is None or not numbers.any() else bool((numbers < 0).any()),
            gradient_degree=None if weights else _degree(_numbers(louder.entries(), key), numbers),
            lr_degree=None if weights else _degree(_numbers(faster, key), numbers),
            decay=decays[key],
            coefficients=_coefficients(decays[key], group),
        )
    matrix = replace(rig, shapes=(MATRIX,))
    for key, gain in _gains(matrix, measured).items():
        measured[key] = replace(measured[key], gain=gain)
    for key, slot in measured.items():
        if slot.role == "momentum" and slot.coefficients:
            measured[key] = replace(slot, debiased=_debiased(matrix, slot))
    return measured


def _numbers(entries: list[dict[str, Any]], key: str) -> Tensor | None:
    """All numbers of a slot in one flat tensor; None where it holds something else."""
    values = [entry[key] for entry in entries if key in entry]
    if not values or not all(isinstance(value, (int, float, Tensor)) for value in values):
        return None
    tensors = [value.detach() if isinstance(value, Tensor) else torch.tensor(value) for value in values]
    if any(tensor.is_complex() or tensor.dtype == torch.bool for tensor in tensors):
        return None
    dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
    return torch.cat([tensor.to(torch.float64).flatten() for tensor in dense])


def _constant(values: Tensor | None) -> float | None:
    """The one value that all elements have, to nine digits; None where they differ."""
    if values is None or not values.numel():
        return None
    low, high = values.min().item(), values.max().item()
    return float(f"{high:.9g}") if isclose(low, high, rel_tol=_UNIFORM) else None


def _ratio(after: Tensor | None, before: Tensor | None) -> float | None:
    """The one factor between two runs or two times; None where elements differ in it."""
    if after is None or before is None or after.shape != before.shape:
        return None
    there = before != 0
    return None if after[~there].any() else _constant(after[there] / before[there])


def _degree(scaled: Tensor | None, base: Tensor | None) -> int | None:
    """The n of a factor 2^n."""
    factor = _ratio(scaled, base)
    if factor is None or not 0 < factor < inf:
        return None
    # ASGD's eta is lr / (1 + λ lr t)^α: a power of lr but for a part in a million.
    return round(log2(factor)) if abs(log2(factor) - round(log2(factor))) < 1e-3 else None


def _copies_weights(first: Trial, key: str) -> bool:
    """Whether the slot is born as a copy of the parameter, or is one after the first step."""
    return any(
        all(torch.equal(entry[key], weight) for entry, weight in zip(entries, weights, strict=True) if key in entry)
        for entries, weights in ((first.first(), first.start), (first.entries(), first.parameters))
        if any(key in entry for entry in entries)
    )


def _fresh(first: Trial, louder: Trial, key: str) -> float | str | None:
    one, other = _numbers(first.first(), key), _numbers(louder.first(), key)
    if one is None or other is None:
        return None
    return _constant(one) if torch.equal(one, other) else "delete"


def _decays(rig: Rig, slots: Mapping[str, MeasuredSlot]) -> dict[str, float | None]:
    """What a step with a zero gradient multiplies each slot by, where it is the same early and late."""
    factors = []
    for count in (STEPS - 2, STEPS + 2):
        trial = Trial(rig).steps(count)
        before = trial.copies()
        trial.step(rig.zero())
        factors.append({key: _ratio(_numbers(trial.entries(), key), _numbers(before, key)) for key in slots})
    early, late = factors
    return {
        key: late[key] if slot.shape != "scalar" and _agree(early[key], late[key]) else None
        for key, slot in slots.items()
    }


def _agree(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and isclose(one, other, rel_tol=_UNIFORM)


def _coefficients(decay: float | None, group: Mapping[str, Any]) -> tuple[str, ...]:
    """The hyperparameters that have this value."""
    if decay in (None, 0.0, 1.0):
        return ()
    named = {key: value for key, value in group.items() if not isinstance(value, (tuple, list))}
    for key in group.keys() - named.keys():
        named |= {f"{key}[{index}]": value for index, value in enumerate(group[key])}
    return tuple(name for name, value in named.items() if close(number(value), decay))


def _gains(rig: Rig, slots: Mapping[str, MeasuredSlot]) -> dict[str, float | None]:
    """The limit of each slot that mirrors a parameter, in units of its gradient's power."""
    gradient = rig.gradient(1)
    units = {
        key: gradient[0].abs() ** slot.gradient_degree * (gradient[0].sign() if slot.signed else 1.0)
        for key, slot in slots.items()
        if slot.shape == "parameter" and slot.gradient_degree is not None and slot.lr_degree == 0
    }
    trial = Trial(rig)
    limits = {key: _Limit() for key in units if 2 in slots[key].ranks}
    for count in range(_PATIENCE):
        if all(limit.known for limit in limits.values()):
            break
        trial.step(gradient)
        entry = trial.entries()[0]
        for key, limit in limits.items():
            if count % _STRIDE == 0 and key in entry:
                limit.add(entry[key].to(torch.float64) / units[key], _SETTLED.get(entry[key].dtype, 1e-12))
    return {key: _constant(limit.value) if limit.known else None for key, limit in limits.items()}


class _Limit:
    """The limit of a sequence, known long before it is reached: three terms of a geometric approach tell it.

    Known once two estimates in a row agree to seven digits; infinite for a sequence that grows by equal steps.
    """

    def __init__(self) -> None:
        self.terms: list[Tensor] = []
        self.value: Tensor | None = None
        self.known = False

    def add(self, term: Tensor, settled: float) -> None:
        """A further term, which counts as the limit itself when it is within `settled` of the one before, relatively."""
        self.terms = [*self.terms[-2:], term]
        if len(self.terms) == 3:
            one, two, three = self.terms
            estimate = _aitken(one, two, three, settled)
            self.known = self.value is not None and torch.allclose(estimate, self.value, rtol=1e-7, atol=0.0)
            self.value = estimate


def _aitken(one: Tensor, two: Tensor, three: Tensor, settled: float) -> Tensor:
    """The limit to which differences that shrink by one factor lead; not a number where they do not shrink."""
    earlier, later = two - one, three - two
    rate = later / earlier
    limit = three + later * rate / (1.0 - rate)
    limit = limit.where(rate.abs() < 1.0 - 1e-6, torch.where((rate - 1.0).abs() <= 1e-6, inf, torch.nan))
    return three.where(later.abs() <= settled * three.abs(), limit)


def _debiased(rig: Rig, slot: MeasuredSlot) -> bool | None:
    """Whether the update divides the slot by 1 - β^t; None where the update does not show it.

    With its coefficient halved for one step without gradient, the update halves too if it uses the slot as it
    is; if it debiases, it does so with the new coefficient. Nothing else in the update depends on it.
    """
    as_is, halved = (_moved(rig, slot.coefficients[0], scale) for scale in (1.0, 0.5))
    factor, beta = _ratio(halved, as_is), slot.decay or 0.0
    if close(factor, 0.5):
        return False
    count = STEPS + 1
    return True if close(factor, 0.5 * (1.0 - beta**count) / (1.0 - (0.5 * beta) ** count)) else None


def _moved(rig: Rig, coefficient: str, scale: float) -> Tensor:
    """Where a parameter goes from zero in a step without gradient, its slots filled by earlier ones."""
    trial = Trial(rig).steps(STEPS)
    key, _, index = coefficient.partition("[")
    group = trial.optimizer.param_groups[0]
    if index:
        place = int(index.removesuffix("]"))
        group[key] = tuple(value * (scale if at == place else 1.0) for at, value in enumerate(group[key]))
    else:
        group[key] = group[key] * scale
    with torch.no_grad():
        trial.parameters[0].zero_()
    trial.step(rig.zero(), put_back=False)
    return trial.parameters[0].detach().flatten()

"""State of one optimizer class as that of another: which slots there will be, and the transform that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from optstate.optimizers.conversion import converted, shared
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.classes import Way
from optstate.resume.decisions import Entry
from optstate.resume.layout import stored
from optstate.state.tensors import Value, is_tensor


@dataclass(frozen=True, slots=True, eq=False)
class Convert:
    """The transform. `weights` gives the saved weights of the parameter; it is asked only where slots copy them."""

    way: Way
    parameter: torch.Tensor
    weights: Callable[[], torch.Tensor]
    group: Mapping[str, float]

    def __call__(self, entry: Entry) -> Entry:
        way = self.way
        before, after = way.rows
        wide = self.wide(entry)
        weights = _wide(self.weights(), scalar=False) if holds_weights(after) else None
        made = converted(before, after, wide, way.before, way.after, weights, self.group)
        return {key: stored(value, after.slots[key], self.parameter, way.after) for key, value in made.items()}

    def wide(self, entry: Entry) -> Entry:
        """The slots as formulas take them: counts as numbers, the rest at least 32 bits wide."""
        before, _ = self.way.rows
        return {key: _wide(value, scalar=_is_scalar(before, key)) for key, value in entry.items()}


def holds_weights(spec: OptimizerSpec) -> bool:
    """Whether a fresh state of the class has copies of the weights."""
    return any(slot.reset == "parameter" or slot.role == "averaged_weights" for slot in spec.slots.values())


def _is_scalar(spec: OptimizerSpec, key: str) -> bool:
    return key in spec.slots and spec.slots[key].shape == "scalar"


def _wide(value: Any, *, scalar: bool) -> Any:
    """Counts as numbers, floats at least 32 bits wide, complex ones as pairs."""
    if not isinstance(value, torch.Tensor):
        return value
    if scalar and value.numel() == 1:
        return value.item()
    if value.is_complex():
        return torch.view_as_real(value)
    return value.float() if value.is_floating_point() and value.element_size() < torch.float32.itemsize else value


@cache
def keys_after(way: Way, keys: tuple[str, ...], dimensions: int) -> tuple[str, ...]:
    """The slots that there will be: the conversion is rehearsed on a state of one element."""
    one = torch.ones((1,) * dimensions)
    before, after = way.rows
    entry = {key: 1.0 if _is_scalar(before, key) else one for key in keys}
    return tuple(converted(before, after, entry, way.before, way.after, one))


def shared_values(entries: Iterable[tuple[Way, Mapping[str, Value]]]) -> dict[str, float]:
    """What a live group holds for all its parameters, by what was saved of each; see `optimizers.conversion.shared`."""
    found: list[dict[str, float]] = []
    for way, saved in entries:
        if way.saved_spec is not None and way.spec is not None:
            counts = {key: _count(value) for key, value in saved.items() if _is_scalar(way.saved_spec, key)}
            found.append(shared(way.saved_spec, way.spec, [(counts, way.before)], way.after))
    return {key: min(each[key] for each in found if key in each) for key in {key: 0 for each in found for key in each}}


def _count(value: Value) -> Any:
    return value.item() if is_tensor(value) else value

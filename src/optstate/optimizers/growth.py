"""State for a parameter of another shape: what was saved stays at its place, and what is new starts safely."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optstate.errors import RestoreError
from optstate.optimizers.arrays import Array, larger, library, where
from optstate.optimizers.at import At
from optstate.optimizers.conventions import primary
from optstate.optimizers.resets import Copy, Remove, average, fresh, is_counted
from optstate.optimizers.resizing import How, Shape, filled, framed, misfit, only_ones_differ, owned, refuse
from optstate.optimizers.spec import OptimizerSpec
from optstate.text import listing, safe_text

_NOTHING: Mapping[str, Any] = {}
AVERAGED = {"row": -1, "squeezed row": -1, "column": -2, "squeezed column": -2}
"""The dimension of the parameter over which a factor of a second moment is a mean."""

_OF_DISTANCE = ("exp_avg_var", "max_exp_avg_var")
"""Second moments of the gradient's distance from its mean (AdaBelief)."""


# --- whether --------------------------------------------------------------------------------------------------


def resizable(spec: OptimizerSpec | None, keys: Collection[str], saved: Shape, live: Shape, how: How) -> str | None:
    """Why the slots `keys` of a parameter of shape `saved` cannot be made those of one of shape `live`; None: they can.

    Nothing is read. Of slots in codes, ask with the keys of what they stand for, without scales and maps.

    >>> from optstate.optimizers.registry import by_name
    >>> resizable(by_name("torch.optim.adam.Adam"), ["step", "exp_avg"], (50257, 768), (50304, 768), "pad")
    >>> resizable(by_name("torch.optim.lbfgs.LBFGS"), ["d"], (8, 4), (8, 5), "pad")
    'd has a layout of its own: nobody can tell which part of it belongs to which element'
    """
    if spec is None:
        return "the optimizer is not described: nobody can tell what its slots should hold for new elements"
    why = misfit(saved, live, how)
    if why is not None:
        return why
    strangers = [key for key in keys if key not in spec.slots]
    if strangers:
        return f"nobody said what {listing(strangers)} means"
    for key in keys:
        if spec.slots[key].shape in ("flat", "list"):
            return (
                f"{safe_text(key)} has a layout of its own: nobody can tell which part of it belongs to which element"
            )
    changes = _other_dimensions if only_ones_differ(saved, live) else _other_slots
    return None if saved == live else next(changes(spec, keys, len(live), how), None)


def _other_dimensions(spec: OptimizerSpec, keys: Iterable[str], *_: object) -> Iterator[str]:
    for key in keys:
        if spec.slots[key].shape in AVERAGED or spec.slots[key].when in ("matrix", "vector", "sometimes"):
            yield f"{safe_text(key)} depends on which dimensions the parameter has"


def _other_slots(spec: OptimizerSpec, keys: Collection[str], dimensions: int, how: How) -> Iterator[str]:
    """What speaks against slots that the optimizer keeps for some shapes only, and for half a pair of factors.

    Of matrices, larger ones stay factored and smaller ones stay whole; of more dimensions, even which of them are
    factored may depend on the shape.
    """
    factors = {key for key, slot in spec.slots.items() if slot.shape in AVERAGED}
    own = {key for key, slot in spec.slots.items() if slot.shape == "list" and slot.when == "sometimes"}
    for key in keys:
        slot = spec.slots[key]
        by_size = slot.when == "sometimes" and (key in factors or (slot.role == "second_moment" and factors | own))
        if by_size and dimensions > 1 and (dimensions > 2 or how != ("pad" if key in factors else "slice")):
            yield f"whether {safe_text(key)} is kept for a parameter depends on its shape"
        if key in factors and _partner(spec, key) not in keys:
            yield f"{safe_text(key)} is there without the factor that belongs to it"


def _partner(spec: OptimizerSpec, key: str) -> str | None:
    """The other factor of the same second moment: rows and columns are described in one order."""
    rows, columns = (
        [each for each, slot in spec.slots.items() if AVERAGED.get(slot.shape) == axis] for axis in (-1, -2)
    )
    pairs = dict(zip(rows, columns, strict=False))
    return pairs.get(key) or {column: row for row, column in pairs.items()}.get(key)


# --- where an element of a parameter is in a slot ---------------------------------------------------------------


def layout(spec: OptimizerSpec, key: str, dimensions: int) -> list[int | None]:
    """For each dimension of the parameter, the slot's dimension that is the same; None for the one that it averages."""
    shape = spec.slots[key].shape
    averaged = dimensions + AVERAGED[shape] if shape in AVERAGED else dimensions
    squeezed = shape.startswith("squeezed")
    return [None if axis == averaged else axis - (squeezed and axis > averaged) for axis in range(dimensions)]


def _check(spec: OptimizerSpec, key: str, value: Array, shape: Shape) -> None:
    """That a slot is shaped as its row says, so that none of another layout is taken for it."""
    places = layout(spec, key, len(shape))
    kept = [size for size, place in zip(shape, places, strict=True) if place is not None]
    due = kept if spec.slots[key].shape.startswith("squeezed") else [
        size if place is not None else 1 for size, place in zip(shape, places, strict=True)
    ]  # fmt: skip
    found = getattr(value, "shape", None)
    if found is None or list(found) != due:
        raise RestoreError(
            f"{safe_text(key)} is not shaped as {safe_text(spec.name)} keeps it",
            expected=f"{due} for a parameter of shape {list(shape)}",
            found=f"a {type(value).__name__}" if found is None else f"{list(found)}",
        )


# --- how ------------------------------------------------------------------------------------------------------


def resized(
    spec: OptimizerSpec | None,
    entry: Mapping[str, Array | float],
    saved: Shape,
    live: Shape,
    hyperparameters: Mapping[str, Any],
    how: How,
    parameter: Array | None = None,
    defaults: Mapping[str, Any] = _NOTHING,
) -> dict[str, Array | float]:
    """The slots of a parameter of shape `saved` as slots of one of shape `live`; `entry` is not changed.

    Old elements keep their bits in slots shaped as the parameter, and numbers that stand for the whole parameter stay.
    New elements share the step count with the old ones. They hold what a fresh slot does (momentum 0; copies of the
    weights are taken from `parameter`, which has the live shape), but for second moments that are judged by that count:
    there zero would say "no gradient in t steps", so they get the mean of the old elements in line with them, or of all
    where that is zero; where several dimensions grow, the mean of those means. As long as its gradients are no larger
    than the root mean square of those, a new element is moved by no more than a fresh start moves it.

    The factors of a second moment are means, and a padded mean is the mean of what is padded, so they stay true. Of
    a slice, each factor is scaled by what the other's mean changes by: the estimate row·column/mean(row) of every
    element that is kept stays as it was.

    Arrays are numpy arrays or torch tensors, of float32 or wider, or complex. `hyperparameters` are the group's,
    `defaults` the optimizer's own. Source: v = (1-β2^t)·v̂ of a reference, as in `resets.row_fresh`; where v is of the
    distance from the mean, a new element's mean is 0, so it will see v̂ + m̂².

    Raises `RestoreError` where `resizable` has a reason, and for a slot in a shape that its row does not say.

    >>> import numpy as np
    >>> from optstate.optimizers.registry import by_name
    >>> aged = {"step": 500.0, "exp_avg": np.ones(2), "exp_avg_sq": np.array([1.0, 3.0])}
    >>> grown = resized(by_name("torch.optim.adam.Adam"), aged, (2,), (3,), {"betas": (0.9, 0.999)}, "pad")
    >>> grown["exp_avg"].tolist(), grown["exp_avg_sq"].tolist()
    ([1.0, 1.0, 0.0], [1.0, 3.0, 2.0])
    """
    why = resizable(spec, entry, saved, live, how)
    if spec is None or why is not None:
        refuse(why, "the state", saved, live)
        raise AssertionError  # not reached: without a description there is a reason
    slots = {key: value for key, value in entry.items() if spec.slots[key].shape != "scalar"}
    for key, value in slots.items():
        _check(spec, key, value, saved)
    if only_ones_differ(saved, live):
        slots = {key: owned(value).reshape(live) for key, value in slots.items()}
    elif how == "pad":
        growth = _Growth(spec, entry, live, hyperparameters, parameter, defaults)
        slots = {key: growth.of(key, value) for key, value in slots.items()}
    else:
        slots = _cut(spec, slots, live)
    return {**entry, **slots}


@dataclass(frozen=True, slots=True)
class _Growth:
    """Padding of the slots of one parameter."""

    spec: OptimizerSpec
    entry: Mapping[str, Array | float]
    live: Shape
    hyperparameters: Mapping[str, Any]
    parameter: Array | None
    defaults: Mapping[str, Any]

    def of(self, key: str, value: Array) -> Array:
        if self.spec.slots[key].shape in AVERAGED or is_counted(self.spec, key, self.hyperparameters):
            return self._referred(key, value)
        start = fresh(self.spec, key, self.hyperparameters, self.defaults)
        if not isinstance(start, Copy):
            number = 0.0 if isinstance(start, Remove) else start.value
            both = complex(number, number) if "complex" in str(value.dtype) else number  # as optimizers fill them
            return framed(value, filled(value, self.live, both))
        if self.parameter is None or tuple(self.parameter.shape) != self.live:
            raise RestoreError(f"{safe_text(key)} starts as a copy of the weights", expected=f"them, {list(self.live)}")
        return framed(value, framed(self.parameter, filled(value, self.live, 0.0)))

    def _referred(self, key: str, value: Array) -> Array:
        """One dimension after the other gets the mean along it."""
        seen = self._seen(key, value)
        for place, size in zip(layout(self.spec, key, len(self.live)), self.live, strict=True):
            if place is not None and size > value.shape[place]:
                line = _line(seen, place)
                shape = [*value.shape[:place], size - value.shape[place], *value.shape[place + 1 :]]
                new = library(value).broadcast_to(line, tuple(shape))
                value, seen = (library(value).concatenate([old, new], place) for old in (value, seen))
        return value

    def _seen(self, key: str, value: Array) -> Array:
        """The second moment that elements would have seen whose mean is 0."""
        if key not in _OF_DISTANCE:
            return value
        mean = primary(self.spec, "momentum") or ""
        at = At(self.spec, self.entry, self.hyperparameters, None)
        steps = larger(at.t - 1.0, 1.0)
        known = at.slots[mean] / (1.0 - at.decay(mean) ** steps)
        return value + (1.0 - at.decay(key) ** steps) * known * known


def _line(seen: Array, place: int) -> Array:
    """The mean along one dimension, which stays with size 1; of all where it is zero, for zero tells of no gradient."""
    line = average(seen.swapaxes(0, place))[None].swapaxes(0, place)
    return where(line != 0, line, line.mean())


def _cut(spec: OptimizerSpec, slots: Mapping[str, Array], live: Shape) -> dict[str, Array]:
    """The leading part, one dimension after the other; factors are scaled where their mean is cut."""
    found = dict(slots)
    for axis, size in enumerate(live):
        found = {key: _shortened(spec, found, key, axis, size, len(live)) for key in found}
    return {key: owned(value) for key, value in found.items()}


def _shortened(
    spec: OptimizerSpec, slots: Mapping[str, Array], key: str, axis: int, size: int, dimensions: int
) -> Array:
    value, place = slots[key], layout(spec, key, dimensions)[axis]
    if place is not None:
        return value[(slice(None),) * place + (slice(size),)]
    other = _partner(spec, key) or ""
    along = layout(spec, other, dimensions)[axis]
    kept = slots[other][(slice(None),) * (along or 0) + (slice(size),)]
    old, new = (each.mean(along, keepdims=True) for each in (slots[other], kept))
    return value * where(old > 0, new / where(old > 0, old, 1.0), 1.0)

"""What the slots of a parameter hold in rows that come from none: never a larger next update than a fresh start's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from optstate.errors import EditError
from optstate.optimizers.arrays import Array, larger, library, smaller, where
from optstate.optimizers.growth import resized
from optstate.optimizers.resets import REFERENCE_ROWS, Copy, average, fresh, is_counted
from optstate.optimizers.resizing import Shape
from optstate.optimizers.row_map import RowMap
from optstate.optimizers.spec import OptimizerSpec
from optstate.optimizers.updates import elementwise, fresh_update, next_update, typical_gradient
from optstate.text import safe_text

FillWord: TypeAlias = Literal["zero", "mean", "copy"]
_SCALES = ("second_moment", "max_second_moment", "infinity_norm")
"""Roles that an update divides by: what a row takes over from the row that it is like, whatever its momentum is."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """What the slots hold in rows that come from none."""

    spec: OptimizerSpec
    slots: Mapping[str, Any]
    numbers: Mapping[str, Any]
    shape: Shape
    rows: RowMap
    hyperparameters: Mapping[str, Any]
    defaults: Mapping[str, Any]
    weights: Array

    def starts(self, fill: FillWord | Array) -> tuple[dict[str, Any], tuple[float, float] | None]:
        """Each slot's new rows, and the largest update that they can expect with a fresh start's."""
        sample = self._sample()
        plain = self._safe(sample)
        momenta = [key for key in self.slots if self.spec.slots[key].role == "momentum"]
        if not momenta and not isinstance(fill, str):
            raise EditError(
                f"there is no momentum to fill: {safe_text(self.spec.name)} keeps none here", todo='fill="zero"'
            )
        if not momenta or (isinstance(fill, str) and fill == "zero"):
            return plain, self._effect(plain)
        filled = {**plain, **{key: self._filled(key, fill, sample[key]) for key in momenta}}
        return self._bounded(filled, plain, momenta)

    def _sample(self) -> dict[str, Any]:
        """An even sample of the rows that stay, in float32 or wider."""
        kept = self.rows.kept
        if not len(kept):
            raise EditError("no row stays, so nothing tells new rows how large gradients are")
        every = -(-len(kept) // REFERENCE_ROWS)
        return {key: _wide(self._at(value, kept[::every])) for key, value in self.slots.items()}

    def _at(self, value: Array, index: Array) -> Array:
        return value.index_select(self.rows.dim, index.to(value.device))

    def _safe(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """New rows as `growth` has them, and divisors not below those of the rows that they are like."""
        copies = [key for key in sample if isinstance(fresh(self.spec, key, self.hyperparameters, self.defaults), Copy)]
        known = {key: value for key, value in sample.items() if key not in copies}
        found = {key: self._at(self.weights.detach(), self.rows.new) for key in copies}
        if known:
            shape = tuple(next(iter(known.values())).shape)
            live = self.rows.sized(shape, shape[self.rows.dim] + 1)
            entry = {**known, **self.numbers}
            grown = resized(self.spec, entry, shape, live, self.hyperparameters, "pad", None, self.defaults)
            size = self._new_shape()
            found |= {key: self._last(grown[key], size) for key in known}
        return {key: self._not_below(key, found[key]) for key in sample}

    def _last(self, grown: Array, size: Shape) -> Array:
        """The row that was added to a sample, as often as there are new rows."""
        return grown.narrow(self.rows.dim, grown.shape[self.rows.dim] - 1, 1).expand(size)

    def _not_below(self, key: str, value: Array) -> Array:
        like = self.rows.like
        if like is None or self.spec.slots[key].role not in _SCALES:
            return value
        own = _wide(self._at(self.slots[key], like))
        if not is_counted(self.spec, key, self.hyperparameters):
            return own  # uncorrected: what a fresh row has is no more than what it has seen
        return _parts(larger, value, own)

    def _new_shape(self) -> Shape:
        return self.rows.sized(self.shape, len(self.rows.new))

    def _filled(self, key: str, fill: FillWord | Array, sample: Array) -> Array:
        dim, size = self.rows.dim, self._new_shape()
        if not isinstance(fill, str):
            primary = self.spec.slots[key].primary
            return _wide(fill).expand(size) if primary else _wide(sample).new_zeros(size)
        if fill == "copy" and self.rows.like is not None:
            return _wide(self._at(self.slots[key], self.rows.like))
        return average(sample.swapaxes(0, dim))[None].swapaxes(0, dim).expand(size)

    # --- the size of the next update ------------------------------------------------------------------------

    def _bounded(
        self, filled: Mapping[str, Any], plain: Mapping[str, Any], momenta: list[str]
    ) -> tuple[dict[str, Any], tuple[float, float] | None]:
        """Momenta shrunk until no element moves further than a fresh start's, or than it would without any."""
        there, none = self._updates(filled), self._updates({**filled, **{key: filled[key] * 0 for key in momenta}})
        if there is None or none is None or not elementwise(self.spec):
            raise EditError(
                f"how far a momentum would move each new row is not known for {safe_text(self.spec.name)}",
                todo='fill="zero": the first updates of new rows are then small, and never above a fresh start\'s',
            )
        share = smaller(_room(there.next, none.next, there.fresh), _room(there.idle, none.idle, there.fresh))
        return self._checked(self._shrunk(filled, momenta, share), plain)

    def _shrunk(self, slots: Mapping[str, Any], momenta: list[str], share: Array) -> dict[str, Any]:
        share = share * (1.0 - 1e-6)  # what is rounded to float32 stays below
        return {key: _times(value, share) if key in momenta else value for key, value in slots.items()}

    def _checked(
        self, filled: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[float, float] | None]:
        """Where the update is still too large, as of a rule that is no sum, the new row starts without a momentum."""
        there, none = self._updates(filled), self._updates(plain)
        if there is None or none is None:
            raise AssertionError  # not reached: both were known a moment ago
        most = larger(there.fresh, none.next.abs()) * (1.0 + 1e-9)
        good = (there.next.abs() <= most) & (there.idle.abs() <= most)
        found = {key: _parts(lambda a, b: where(good, a, b), filled[key], plain[key]) for key in filled}
        return found, self._effect(found)

    def _effect(self, starts: Mapping[str, Any]) -> tuple[float, float] | None:
        """The largest of an even sample of the new rows."""
        every = max(1, -(-len(self.rows.new) // REFERENCE_ROWS))
        found = self._updates(starts, every) if elementwise(self.spec) else None
        if found is None or not found.next.numel():
            return None
        return float(larger(found.next.abs().amax(), found.idle.abs().amax())), float(found.fresh.amax())

    def _updates(self, starts: Mapping[str, Any], every: int = 1) -> _Updates | None:
        """Those of each new row, or of every so many of them."""
        pick = (slice(None),) * self.rows.dim + (slice(None, None, every),)
        slots = {**self.numbers, **{key: _real(value[pick]).double() for key, value in starts.items()}}
        gradient = typical_gradient(self.spec, slots, self.hyperparameters)
        if gradient is None:
            return None
        weights = _real(self._at(self.weights.detach(), self.rows.new[::every])).double()
        group = self.hyperparameters
        there = next_update(self.spec, slots, group, gradient, weights)
        idle = next_update(self.spec, slots, group, 0.0 * gradient, weights)
        start = fresh_update(self.spec, group, gradient, weights)
        return None if there is None or idle is None or start is None else _Updates(there, idle, abs(start))


class _Updates(NamedTuple):
    """The next update under the gradient that the slots tell of, under none, and the size of a fresh start's."""

    next: Array
    idle: Array
    fresh: Array


def _room(with_it: Array, without: Array, most: Array) -> Array:
    """The share of a momentum that brings an update to `most` where it is more; 0 where it is more without any."""
    room, more = larger(most, without.abs()) - without.abs(), (with_it - without).abs()
    return where(more > room, room / where(more > 0, more, 1.0), 1.0 + 0.0 * more)


def _wide(value: Array) -> Array:
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value


def _real(value: Array) -> Array:
    return library(value).view_as_real(value.contiguous()) if value.is_complex() else value


def _parts(make: Callable[[Array, Array], Array], one: Array, other: Array) -> Array:
    """What `make` makes of two tensors, of complex ones component by component."""
    if not one.is_complex():
        return make(one, other)
    return library(one).view_as_complex(make(_real(one), _real(other)))


def _times(value: Array, share: Array) -> Array:
    return _parts(lambda a, _: a * share, value, value)

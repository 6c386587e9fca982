"""The verbs for files: what each makes of a block of values, and to what slots it may be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import hypot, prod
from typing import Any, NamedTuple, Protocol

from optstate.errors import EditError, MissingSlot
from optstate.formats.containers.sparse import SparseRef
from optstate.optimizers.arguments import as_before, limits, real_number
from optstate.optimizers.permits import ALLOWED, NOT_NEGATIVE
from optstate.state.slot import Slot
from optstate.state.stats import stats
from optstate.state.tensors import DTYPES, TensorRef, Value, is_tensor
from optstate.store.offline.draft import Aim, Draft
from optstate.store.offline.edited import Change, EditedTensor, Filled, rows_only
from optstate.store.offline.rows import chosen_rows
from optstate.text import safe_text


class Touch(NamedTuple):
    """One slot before and after a verb; `after` is None where it is removed."""

    parameter: str
    key: str
    before: Value
    after: Value


class Verb(Protocol):
    """A verb with its arguments.

    `alike` says that it treats all elements of a slot alike, so that a sample tells its effect.
    """

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> Mapping[str, Any]: ...
    @property
    def alike(self) -> bool: ...

    def act(self, draft: Draft, aim: Aim) -> Iterator[Touch]:
        """Do it to a draft; returns what it touched. Raises `EditError` for what does not fit."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A verb that makes each element of a slot anew of the element itself.

    `linear` says that it may be done to the values of a sparse slot, `fill` is the number that all become, if it is one.
    """

    name: str
    arguments: Mapping[str, Any]
    change: Change
    alike: bool = False
    linear: bool = False
    fill: float | None = None

    def act(self, draft: Draft, aim: Aim) -> Iterator[Touch]:
        """Replace each slot by one whose values are made when they are read."""
        for name, key, slot in slots_of(self.name, draft, aim):
            permit(self, slot, aim, draft.state[name].facts.shape)
            yield put(draft, name, key, self._made(slot.value, slot.path, aim))

    def _made(self, value: Any, path: str, aim: Aim) -> Value:
        if isinstance(value, SparseRef):
            return replace(value, values=self._tensor(value.values, path, aim))
        if is_tensor(value):
            return self._tensor(value, path, aim)
        return as_before(value, self.fill or 0.0, self.name, path)  # only set_ is permitted to change a number

    def _tensor(self, value: TensorRef, path: str, aim: Aim) -> TensorRef:
        if aim.rows is not None:
            chosen = chosen_rows(aim.rows, value.shape, path)
            return EditedTensor(value, rows_only(self.change, chosen, prod(value.shape[1:])))
        return EditedTensor(value, self.change) if self.fill is None else Filled(value, self.fill)


def scale(factor: Any) -> Mapped:
    """Multiply."""
    number = real_number(factor, "the factor")
    return Mapped("scale_", {"factor": number}, lambda block, _, __: block * number, alike=True, linear=True)


def zero() -> Mapped:
    """Make zero."""
    return Mapped("zero_", {}, lambda block, _, __: _full(block, 0.0), alike=True, linear=True, fill=0.0)


def set_to(value: Any) -> Mapped:
    """Replace by one number."""
    number = real_number(value, "the value")
    return Mapped("set_", {"value": number}, lambda block, _, __: _full(block, number), alike=True, fill=number)


def clamp(low: Any, high: Any) -> Mapped:
    """Limit every element to a range."""
    least, most = limits(low, high)

    def clamped(block: Any, _: Any, __: int) -> Any:
        return block.clip(least, most)

    return Mapped("clamp_", {"min": least, "max": most}, clamped)


def _full(block: Any, value: float) -> Any:
    import numpy as np

    return np.full_like(block, value)


@dataclass(frozen=True, slots=True)
class Clip:
    """Scale down to an L2 norm, of all that is selected together or of each parameter. Norms are those of whole slots."""

    limit: float
    per_parameter: bool
    name: str = "clip_norm_"
    alike: bool = True

    @property
    def arguments(self) -> Mapping[str, Any]:
        """As the live verb's."""
        return {"max_norm": self.limit, "per_parameter": self.per_parameter}

    def act(self, draft: Draft, aim: Aim) -> Iterator[Touch]:
        """Measure every slot first, then scale."""
        measure = Mapped(self.name, {}, _same)
        norms = {}
        for name, key, slot in slots_of(self.name, draft, aim):
            permit(measure, slot, aim, draft.state[name].facts.shape)
            norms[name, key] = _norm(slot, aim)
        total = hypot(*norms.values())
        for (name, key), norm in norms.items():
            factor = self._factor(norm if self.per_parameter else total)
            yield from replace(scale(factor), name=self.name).act(
                draft, replace(aim, names=(name,), role=None, key=key)
            )

    def _factor(self, norm: float) -> float:
        return self.limit / norm if norm > self.limit else 1.0


def clip_norm(limit: Any, *, per_parameter: bool = False) -> Clip:
    """Scale down to a norm."""
    number = real_number(limit, "max_norm")
    if number < 0:
        raise EditError("a norm is not negative", found=f"max_norm={number:g}")
    return Clip(number, per_parameter)


def _same(block: Any, _: Any, __: int) -> Any:
    return block


def _norm(slot: Slot, aim: Aim) -> float:
    value: Any = slot.value
    return stats(touched_rows(value, aim, slot.path)).norm


def touched_rows(value: TensorRef, aim: Aim, path: str) -> TensorRef:
    """A tensor whose other rows are zero, of which a norm is that of the rows meant."""
    if aim.rows is None or not value.shape:
        return value
    chosen = chosen_rows(aim.rows, value.shape, path)
    return EditedTensor(value, rows_only(lambda block, _, __: _full(block, 0.0), ~chosen, prod(value.shape[1:])))


# --- what a verb may be done to ---------------------------------------------------------------------------


def slots_of(verb: str, draft: Draft, aim: Aim) -> Iterator[tuple[str, str, Slot]]:
    """The slots meant, as they will be. Raises `EditError` where that was not said, `MissingSlot` where there is none."""
    if aim.whole:
        raise EditError(
            f"{verb} needs to know which slot", todo=f"name it: .momentum.{verb}(...), or ['exp_avg'] by its key"
        )
    found = [(name, key) for name, keys in draft.keys(aim) for key in keys]
    if not found:
        first = draft.state[aim.names[0]]
        first[aim.key] if aim.key is not None else first.role(aim.role or "momentum")  # these say why
        raise MissingSlot(f"{aim} is no longer there", found="a verb before this one that removed it")
    for name, key in found:
        yield name, key, replace(draft.state[name].slots[key], value=draft.entry(name)[key])


def put(draft: Draft, name: str, key: str, value: Value) -> Touch:
    """Give a parameter another value of a slot."""
    entry = draft.entry(name)
    before, entry[key] = entry[key], value
    return Touch(name, key, before, value)


def permit(verb: Mapped, slot: Slot, aim: Aim, shape: tuple[int, ...] | None) -> None:
    """Raise `EditError`, with the reason and a way out, where a verb makes no sense for a slot."""
    reason = _refusal(verb, slot, aim, shape)
    if reason is not None:
        raise EditError(f"{verb.name} does not fit {slot.path}: {reason}", todo="reset_() makes it as if fresh")


def _refusal(verb: Mapped, slot: Slot, aim: Aim, shape: tuple[int, ...] | None) -> str | None:
    allowed, reason = ALLOWED.get(slot.role, (None, ""))
    if allowed is not None and verb.name not in allowed:
        return reason
    if verb.name == "scale_" and verb.arguments["factor"] < 0 and slot.role in NOT_NEGATIVE:
        return "it cannot become negative"
    value = slot.value
    if isinstance(value, SparseRef):
        exact = verb.linear and aim.rows is None
        return None if exact else "it is sparse, where only scale_ and zero_ of the whole are exact"
    if not is_tensor(value):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if number and verb.name == "set_" and aim.rows is None else _no_tensor(value)
    if value.dtype not in DTYPES:
        return f"it is stored as codes, {safe_text(value.dtype, 40)}"
    if verb.name == "set_" and aim.rows is None:
        return None
    if not value.dtype.startswith(("float", "bfloat", "complex")):
        return f"it holds {value.dtype}, no real numbers"
    if verb.name == "clamp_" and value.dtype.startswith("complex"):
        return "it is complex, and complex numbers have no order"
    return None if shape is None or value.shape == shape else "it is not shaped as the parameter"


def _no_tensor(value: object) -> str:
    one = isinstance(value, (int, float))
    return "it is one number for the whole parameter" if one else f"it is a {type(value).__name__}"

"""The verbs as values: what each writes, to what it may, and what it says of itself in the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch

from optstate.errors import EditError
from optstate.live.backup import flat
from optstate.live.batch import Batch, Keys, KeysOf
from optstate.live.measuring import exact_square
from optstate.live.rows import Rows
from optstate.optimizers.arguments import as_before, limits, real_number
from optstate.optimizers.interpret import is_slot
from optstate.optimizers.permits import ALLOWED, NOT_NEGATIVE
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.roles import Role
from optstate.text import listing, safe_text

Write: TypeAlias = Callable[[Batch, range, list[torch.Tensor]], None]
"""Writes in place to the tensors of a chunk of a batch, or to copies of some of their rows."""


class Choice(NamedTuple):
    """Which slots of a parameter a verb was asked to act on: by role, by key, or by neither, which means all."""

    role: Role | None = None
    key: str | None = None

    def keys(self, spec: OptimizerSpec | None) -> KeysOf:
        """Which keys of an entry are meant, of those that are there."""
        if self == ALL:
            return lambda entry: [key for key, value in entry.items() if is_slot(value)]
        slots = {} if spec is None or self.role is None else spec.slots
        keys = (
            [self.key]
            if self.key is not None
            else [key for key, slot in slots.items() if slot.role == self.role and slot.primary]
        )
        return lambda entry: [key for key in keys if type(value := entry.get(key)) is torch.Tensor or is_slot(value)]

    def __str__(self) -> str:
        return safe_text(self.role or self.key or "", 60)


ALL = Choice()


class Work(NamedTuple):
    """What is done to a batch: in place by `write`, or to each parameter's entry by `rewrite`."""

    batch: Batch
    write: Write | None = None
    rewrite: Callable[[dict[str, Any], int], None] | None = None
    """Called with a parameter's entry and its number in the batch."""
    hyperparameters: Mapping[str, Any] = MappingProxyType({})
    """What the param group gets."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb with its arguments.

    `alike` says that it treats all elements of a slot alike, so that a sample tells its effect, `linear` that it may be
    done to the scales of a slot in place of the slot, `joined` that it does the same to every element of a chunk, so that it
    may be done to a joined copy of many small tensors; `ready` is called with everything that will be written to before
    the first write; it raises `EditError` for what does not fit.
    """

    name: str
    arguments: Mapping[str, Any]
    write: Write
    alike: bool = False
    linear: bool = False
    joined: bool = False
    ready: Callable[[Sequence[Batch], Rows | None], None] = lambda _batches, _rows: None

    def keys(self, choice: Choice) -> Keys:
        """Which slots it will write to. Raises `EditError` where that was not said."""
        if choice == ALL:
            raise EditError(
                f"{self.name} needs to know which slot",
                todo=f"name it: .momentum.{self.name}(...), or ['exp_avg'] by its key",
            )
        return choice.keys

    def works(self, batches: Sequence[Batch], rows: Rows | None) -> list[Work]:
        """What will be done. Raises `EditError` where the verb makes no sense for one of the slots."""
        for batch in batches:
            permit(self, batch, rows)
        self.ready(batches, rows)
        return [
            Work(batch, self.write) if batch.form != "number" else Work(batch, rewrite=self._rewrite(batch))
            for batch in batches
        ]

    def _rewrite(self, batch: Batch) -> Callable[[dict[str, Any], int], None]:
        """The same write to a Python number, which stays one of its type."""

        def rewrite(entry: dict[str, Any], number: int) -> None:
            old = entry[batch.key]
            new = torch.tensor(old, dtype=torch.float64)
            self.write(batch, range(number, number + 1), [new])
            entry[batch.key] = as_before(old, new.item(), self.name, batch.path(number))

        return rewrite


def scale(factor: Any) -> Verb:
    """Multiply."""
    number = real_number(factor, "the factor")

    def ready(batches: Sequence[Batch], _: Rows | None) -> None:
        for batch in batches:
            if number < 0 and batch.slot is not None and batch.slot.role in NOT_NEGATIVE:
                raise EditError(f"{batch.path()} cannot become negative", found=f"the factor {number:g}")

    return Verb(
        "scale_",
        {"factor": number},
        lambda _batch, _chunk, tensors: torch._foreach_mul_(tensors, number),
        alike=True,
        linear=True,
        joined=True,
        ready=ready,
    )


def zero() -> Verb:
    """Make zero."""
    return Verb(
        "zero_", {}, lambda _batch, _chunk, tensors: torch._foreach_zero_(tensors), alike=True, linear=True, joined=True
    )


def clamp(low: Any, high: Any) -> Verb:
    """Limit every element to a range."""
    least, most = limits(low, high)

    def ready(batches: Sequence[Batch], _: Rows | None) -> None:
        for batch in batches:
            if batch.values[0].is_complex():
                raise EditError(f"{batch.path()} is complex, and complex numbers have no order", todo="scale_ or set_")

    def write(_batch: Batch, _chunk: range, tensors: list[torch.Tensor]) -> None:
        if least is not None:
            torch._foreach_clamp_min_(tensors, least)
        if most is not None:
            torch._foreach_clamp_max_(tensors, most)

    return Verb("clamp_", {"min": least, "max": most}, write, joined=True, ready=ready)


class _Clip:
    """Factors that bring norms down to a limit; they stay on the device."""

    def __init__(self, limit: float, per_parameter: bool) -> None:
        self.limit = limit
        self.per_parameter = per_parameter
        self._factor = torch.ones(())

    def ready(self, batches: Sequence[Batch], rows: Rows | None) -> None:
        if self.per_parameter:
            return
        squares = [exact_square(flat(pieces(batch, chunk, rows))) for batch in batches for chunk in batch.chunks()]
        if squares:
            device = squares[0].device
            self._factor = self._down(torch.stack([square.to(device) for square in squares]).sum())

    def _down(self, square: torch.Tensor) -> torch.Tensor:
        return (self.limit / square.sqrt()).clamp(max=1.0)

    def write(self, _batch: Batch, _chunk: range, tensors: list[torch.Tensor]) -> None:
        if self.per_parameter:
            torch._foreach_mul_(
                tensors, [self._down(exact_square(flat([tensor]))).to(tensor.dtype) for tensor in tensors]
            )
        else:
            torch._foreach_mul_(tensors, self._factor.to(tensors[0].device))


def clip_norm(max_norm: Any, per_parameter: bool) -> Verb:
    """Scale down to an L2 norm, of all that is selected together or of each parameter."""
    limit = real_number(max_norm, "max_norm")
    if limit < 0:
        raise EditError("a norm is not negative", found=f"max_norm={limit:g}")
    clip = _Clip(limit, per_parameter)
    arguments = {"max_norm": limit, "per_parameter": per_parameter}
    return Verb("clip_norm_", arguments, clip.write, alike=True, joined=not per_parameter, ready=clip.ready)


def pieces(batch: Batch, chunk: range, rows: Rows | None) -> list[torch.Tensor]:
    """The tensors of a chunk, or copies of some rows of each."""
    tensors: list[torch.Tensor] = batch.values[chunk.start : chunk.stop]
    if rows is None:
        return tensors
    return [
        tensor.index_select(0, rows.of(tensor, batch.path(number)))
        for number, tensor in zip(chunk, tensors, strict=True)
    ]


class _Set:
    """New values: one for all, one by parameter, or made of the old one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def ready(self, batches: Sequence[Batch], _: Rows | None) -> None:
        if not isinstance(self.value, Mapping):
            return
        names = {name for batch in batches for name in batch.names}
        strangers, missing = [name for name in self.value if name not in names], sorted(names - set(self.value))
        if strangers or missing:
            raise EditError(
                "the values do not fit the selection",
                expected=f"one for each of {listing(sorted(names))}",
                found=f"{'none for ' + listing(missing) if missing else 'some for ' + listing(strangers)}",
            )

    def write(self, batch: Batch, chunk: range, tensors: list[torch.Tensor]) -> None:
        for number, tensor in zip(chunk, tensors, strict=True):
            new = self._new(batch.names[number], tensor)
            if isinstance(new, (bool, int, float, complex)):
                tensor.fill_(new)
            else:
                tensor.copy_(_fitting(new, tensor, batch.path(number)))

    def _new(self, name: str, tensor: torch.Tensor) -> Any:
        if isinstance(self.value, Mapping):
            return self.value[name]
        return self.value(tensor.clone()) if callable(self.value) else self.value


def set_to(value: Any) -> Verb:
    """Replace the values."""
    setter = _Set(value)
    return Verb("set_", {"value": _told(value)}, setter.write, ready=setter.ready)


def _fitting(new: Any, tensor: torch.Tensor, path: str) -> torch.Tensor:
    try:
        values = torch.as_tensor(new)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(
            f"{path} cannot be set to this",
            expected="a tensor, an array, a number, or a callable that makes one of the old value",
            found=f"a {safe_text(type(new).__name__)}",
        ) from None
    if values.shape != tensor.shape:
        raise EditError(
            f"{path} cannot be set to a tensor of another shape",
            expected=f"{list(tensor.shape)}",
            found=f"{list(values.shape)}",
        )
    if values.is_complex() and not tensor.is_complex():
        raise EditError(f"{path} holds real numbers", found="complex ones")
    return values.detach()


def _told(value: Any) -> Any:
    """A value as the journal tells it."""
    if isinstance(value, Mapping):
        return f"{len(value)} tensors by name"
    if callable(value):
        return safe_text(getattr(value, "__qualname__", type(value).__qualname__), 80)
    shape = getattr(value, "shape", None)
    if shape is not None and tuple(shape):
        return f"a tensor of {list(shape)}"
    return value if isinstance(value, (bool, int, float)) else safe_text(value, 40)


# --- what each role allows ------------------------------------------------------------------------------


def permit(verb: Verb, batch: Batch, rows: Rows | None) -> None:
    """Raise `EditError`, with the reason and a way out, where a verb makes no sense for a slot."""
    reason = _refusal(verb, batch, rows)
    if reason is not None:
        others = f", and {len(batch.names) - 1} more" if len(batch.names) > 1 else ""
        known = batch.slot is not None
        raise EditError(
            f"{verb.name} does not fit {batch.path()}{others}: {reason}",
            todo="reset_() makes it as if fresh" if known else "choose slots of the parameter's shape by their key",
        )


def _refusal(verb: Verb, batch: Batch, rows: Rows | None) -> str | None:
    slot = batch.slot
    allowed, reason = ALLOWED.get(slot.role if slot else "other", (None, ""))
    if allowed is not None and verb.name not in allowed:
        return reason
    if batch.form == "foreign":
        return f"it is a {safe_text(type(batch.values[0]).__name__)}"
    if batch.form == "parts":
        if not verb.linear or rows is not None:
            return "it is stored sparsely or as codes, where only scale_ and zero_ of the whole are exact"
        return None
    if verb.name == "set_":
        return None if batch.form == "dense" or rows is None else "it is one number"
    return _not_a_moment(batch)


def _not_a_moment(batch: Batch) -> str | None:
    """Why the values of a batch are none that a factor or a limit means something for."""
    if batch.form == "number":
        return "it is one number for the whole parameter"
    first = batch.values[0]
    if not (first.is_floating_point() or first.is_complex()):
        return f"it holds {str(first.dtype).removeprefix('torch.')}, no real numbers"
    scalar = batch.slot is not None and batch.slot.shape == "scalar"
    strange = batch.slot is None and any(
        value.shape != parameter.shape for value, parameter in zip(batch.values, batch.parameters, strict=True)
    )
    if scalar or strange:
        return "it is not shaped as the parameter"
    return None

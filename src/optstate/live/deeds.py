"""What a verb did: the marks that it leaves while it writes, and what they say when their numbers have been read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from operator import is_

import torch

from optstate.live.backup import flat
from optstate.live.batch import Batch, Place
from optstate.live.effect import Asked, Touched
from optstate.live.measuring import exact_square, extremes, square
from optstate.live.readout import Readout
from optstate.live.rows import Rows
from optstate.live.verbs import Verb, Work
from optstate.optimizers.conventions import primary
from optstate.optimizers.permits import NOT_NEGATIVE

_TINY = 1e-30
"""Below this a sum of squares in float32 may have lost what is too small to be squared."""


@dataclass(slots=True)
class Mark:
    """One chunk that was written to: how it was measured, and how to see whether something else wrote to it since."""

    batch: Batch
    chunk: range
    old: Callable[[], torch.Tensor | None]  # the elements as they were, where they are kept
    new: Callable[[], torch.Tensor | None]  # as the verb left them
    before: int | None = None
    after: int | None = None
    bounds: int | None = None
    versions: list[int] = field(init=False)
    addresses: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = [tensor._version for tensor in self.tensors]
        self.addresses = [tensor.data_ptr() for tensor in self.tensors]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What was written to, each whole."""
        tensors: list[torch.Tensor] = self.batch.values[self.chunk.start : self.chunk.stop]
        return tensors

    @property
    def not_negative(self) -> bool:
        """Whether the slot cannot have negative values."""
        slot = self.batch.slot
        return slot is not None and slot.role in NOT_NEGATIVE

    def measure(self, readout: Readout, elements: torch.Tensor, *, norms: bool) -> None:
        """Measure elements just written: their norm, which also tells whether all are finite, and where it matters
        their extremes.
        """
        if not elements.numel():
            return
        if norms or not self.not_negative:
            self.after = readout.ask(square(elements))
        if self.not_negative:
            self.bounds = readout.ask(extremes(elements))

    def again(self, readout: Readout) -> None:
        """Measure once more where something wrote to a tensor after this verb."""
        now = [tensor._version for tensor in self.tensors]
        if now != self.versions:
            self.versions = now
            self.bounds = readout.ask(extremes(flat(self.tensors)))

    def sound(self, numbers: Sequence[Sequence[float]]) -> bool:
        """Whether every element is finite, and not negative where it must not be."""
        if self.bounds is not None:
            low, high = numbers[self.bounds]
            return isfinite(low) and isfinite(high) and not (self.not_negative and low < 0)
        return self.after is None or isfinite(numbers[self.after][0]) or bool(torch.isfinite(flat(self.tensors)).all())

    def moved(self) -> str | None:
        """The path of a tensor that is no longer the slot, or no longer where it was."""
        batch, get = self.batch, self.batch.place.optimizer.state.get
        parameters = batch.parameters[self.chunk.start : self.chunk.stop]
        held = [(get(parameter) or {}).get(batch.key) for parameter in parameters]
        addresses = [tensor.data_ptr() for tensor in self.tensors]
        if addresses == self.addresses and (batch.form != "dense" or all(map(is_, held, self.tensors))):
            return None
        for number, tensor, value, now, then in zip(
            self.chunk, self.tensors, held, addresses, self.addresses, strict=True
        ):
            if now != then or (batch.form == "dense" and value is not tensor):
                return batch.path(number)
        return None

    def faulty(self) -> str:
        """The path of the first tensor with a value that it must not have, and that value."""
        for number, tensor in zip(self.chunk, self.tensors, strict=True):
            values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            wrong = ~torch.isfinite(values) | (
                (values < 0) if self.not_negative else torch.zeros_like(values, dtype=torch.bool)
            )
            if wrong.any():
                return f"{self.batch.path(number)} holds {values[wrong].reshape(-1)[0].item():g}"
        return self.batch.path(self.chunk.start)


@dataclass(slots=True)
class Deed:
    """One verb on one selection."""

    verb: Verb
    selection: str
    rows: Rows | None
    touched: list[Touched]
    marks: list[Mark] = field(default_factory=list)
    slots: int = 0
    elements: int = 0
    step: int | None = None
    step_reading: int | None = None
    asked: list[Asked] = field(default_factory=list)

    def note_step(self, readout: Readout) -> None:
        """Remember how many steps the optimizer had taken before this, as its first parameter tells it."""
        for found in self.touched[:1]:
            place, entry = found.place, found.place.optimizer.state.get(found.parameters[0], {})
            key = primary(place.spec, "step") if place.spec is not None else None
            counted = place.spec.group_step if place.spec is not None else None
            value = entry.get(key) if key is not None else place.group.get(counted or "")
            if isinstance(value, torch.Tensor):
                self.step_reading = readout.ask(value.clone())
            elif isinstance(value, (int, float)):
                self.step = int(value)

    @property
    def parameters(self) -> int:
        """How many parameters it touched."""
        return sum(len(touched.names) for touched in self.touched)

    @property
    def keys(self) -> list[str]:
        """The slot keys that it wrote to."""
        return list(dict.fromkeys(mark.batch.key for mark in self.marks))

    def norms(self, numbers: Sequence[Sequence[float]]) -> Mapping[str, tuple[float | None, float | None]]:
        """The norm of each key over all that was touched, before and after; numbers such as step counts have none."""
        found: dict[str, tuple[float, float]] = {}
        for mark in self.marks:
            counted = mark.batch.slot is not None and mark.batch.slot.shape == "scalar"
            if counted or mark.before is None or mark.after is None:
                continue
            before, after = found.get(mark.batch.key, (0.0, 0.0))
            before += _trusted(numbers[mark.before][0], mark.old)
            after += 0.0 if self.verb.name == "zero_" else _trusted(numbers[mark.after][0], mark.new)
            found[mark.batch.key] = (before, after)
        return {key: (sqrt(before), sqrt(after)) for key, (before, after) in found.items()}


def _trusted(total: float, elements: Callable[[], torch.Tensor | None]) -> float:
    """A sum of squares, taken anew in float64 where float32 may have lost it."""
    if isfinite(total) and total >= _TINY:
        return total
    known = elements()
    return total if known is None else float(exact_square(known).item())


def touched(works: Sequence[Work], verb: Verb, rows: Rows | None) -> list[Touched]:
    """The parameters that works write to, by param group, each once."""
    places: dict[tuple[str, int], tuple[Place, dict[str, torch.Tensor]]] = {}
    for work in works:
        place = work.batch.place
        _, parameters = places.setdefault((place.name, place.number), (place, {}))
        parameters.update(zip(work.batch.names, work.batch.parameters, strict=True))
    sampled = verb.alike and rows is None
    return [Touched(place, list(found), list(found.values()), sampled) for place, found in places.values()]

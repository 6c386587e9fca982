"""The size of the next update before and after an edit, and of a fresh start's: predicted, nothing steps.

A verb that treats all elements alike is judged by an even sample of them, any other by all that it may have written.
The gradient to come is taken to be the one that the state has been seeing; weight decay is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from optstate.live.batch import Place
from optstate.live.measuring import real
from optstate.live.readout import Readout
from optstate.optimizers.effect import Effect, updates
from optstate.optimizers.spec import OptimizerSpec
from optstate.optimizers.updates import elementwise

PARAMETERS = 32
"""Parameters of a param group that are looked at where a sample will do."""

ELEMENTS = 128
"""Elements of each of them."""

_BLOCK = 1 << 20
"""Elements that are predicted together."""

_WHOLE = 4
"""Parameters that are looked at where an update is one of whole matrices, each of at most a block of elements."""

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Touched:
    """Parameters of one param group that a verb wrote to, and whether a sample of their elements will do."""

    place: Place
    names: Sequence[str]
    parameters: Sequence[torch.Tensor]
    sampled: bool


class Asked(NamedTuple):
    """Effects whose numbers are still on their device."""

    names: Sequence[str]
    place: Place
    readings: Sequence[int]

    def told(self, numbers: Sequence[Sequence[float]]) -> list[Effect]:
        """The effects, when the numbers have been read."""
        columns = [numbers[reading] for reading in self.readings]
        return [Effect(name, *sizes) for name, *sizes in zip(self.names, *columns, strict=True)]


def ask(
    touched: Touched, before: Callable[[torch.Tensor], Entry], after: Callable[[torch.Tensor], Entry], readout: Readout
) -> Iterator[Asked]:
    """Have the effects on these parameters computed, those that can be known; `before` and `after` give their slots."""
    spec = touched.place.spec
    if spec is None or spec.update is None:
        return
    for numbers in _side_by_side(touched, before, spec):
        parameters = [touched.parameters[number] for number in numbers]
        layout = _Layout(spec, parameters, ELEMENTS if touched.sampled else None)
        sides = [layout.slots([look(each) for each in parameters]) for look in (before, after)]
        sizes = _sizes(touched.place, spec, layout, *sides)
        if sizes is not None:
            names = [touched.names[number] for number in numbers]
            yield Asked(names, touched.place, [readout.ask(size) for size in sizes])


def picked(touched: Touched) -> list[int]:
    """Which of the parameters are looked at."""
    spec = touched.place.spec
    if spec is not None and not elementwise(spec):
        return spread(len(touched.names), _WHOLE)
    return spread(len(touched.names), PARAMETERS if touched.sampled else len(touched.names))


def spread(length: int, most: int) -> list[int]:
    """At most so many places, evenly over a length, the first and the last among them."""
    if length <= most:
        return list(range(length))
    return [number * (length - 1) // (most - 1) for number in range(most)]


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of as many elements as a sample has, evenly spread."""
    return _spread(tensor.detach().reshape(-1), ELEMENTS).clone()


def _spread(elements: torch.Tensor, most: int) -> torch.Tensor:
    return elements if elements.numel() <= most else elements[:: elements.numel() // most][:most]


def _side_by_side(
    touched: Touched, before: Callable[[torch.Tensor], Entry], spec: OptimizerSpec
) -> Iterator[list[int]]:
    """Numbers of parameters with the same slots, together up to a block of elements; one at a time for matrices."""
    alone = not elementwise(spec)
    under_way: dict[tuple[Any, ...], tuple[list[int], int]] = {}
    for number in picked(touched):
        parameter = touched.parameters[number]
        elements = parameter.numel() if alone or not touched.sampled else min(parameter.numel(), ELEMENTS)
        if not elements or (alone and elements > _BLOCK):
            continue
        kind = (parameter.device, parameter.is_complex(), *sorted(before(parameter)))
        numbers, so_far = under_way.pop(kind, ([], 0))
        if numbers and (alone or so_far + elements > _BLOCK):
            yield numbers
            numbers, so_far = [], 0
        numbers.append(number)
        under_way[kind] = (numbers, so_far + elements)
    yield from (numbers for numbers, _ in under_way.values())


def _sizes(
    place: Place, spec: OptimizerSpec, layout: _Layout, before: Entry | None, after: Entry | None
) -> list[torch.Tensor] | None:
    """The largest element of each update of each parameter, as an `Effect` has them. None where one is not known."""
    if before is None or after is None:
        return None
    group = {key: value for key, value in place.group.items() if key != "params"}
    found = updates(spec, before, after, (group, group), layout.weights)
    return None if found is None else [layout.largest(update) for update in found]


class _Layout:
    """Elements of several parameters side by side in float64, or one parameter in its shape.

    Complex numbers are pairs. A slot of one number for the whole parameter is repeated for each of its elements.
    """

    def __init__(self, spec: OptimizerSpec, parameters: Sequence[torch.Tensor], most: int | None) -> None:
        self._spec = spec
        self._whole = not elementwise(spec)
        self._most = most
        self._device = parameters[0].device
        self._sizes = [parameter.numel() for parameter in parameters]
        pairs = 2 if parameters[0].is_complex() else 1
        self._lengths = [pairs * (size if most is None else min(size, most)) for size in self._sizes]
        self.weights = self._tensors(parameters)

    def slots(self, entries: Sequence[Entry]) -> Entry | None:
        """The slots of the parameters; None where one is not stored plainly."""
        found = {}
        for key in entries[0]:
            values = [entry[key] for entry in entries if key in entry]
            slot = self._spec.slots.get(key)
            if slot is None or len(values) < len(entries):
                continue
            if slot.shape == "scalar":
                found[key] = self._numbers(values)
            elif all(_plain(value) for value in values) and (self._whole or self._fit(values)):
                found[key] = self._tensors(values)
            else:
                return None
        return found

    def largest(self, update: torch.Tensor) -> torch.Tensor:
        """The largest element of each parameter's share of an update."""
        shares = [update] if self._whole else torch.broadcast_to(update, (sum(self._lengths),)).split(self._lengths)
        return torch.stack([share.abs().amax() for share in shares])

    def _fit(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether these are as long as their parameters, or samples of what was."""
        return all(value.numel() in (size, self._most) for value, size in zip(values, self._sizes, strict=True))

    def _numbers(self, values: Sequence[Any]) -> torch.Tensor:
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64).reshape(()) for value in values])
        numbers = numbers.to(self._device)
        if self._whole:
            return numbers[0]
        return numbers.repeat_interleave(
            torch.tensor(self._lengths, device=self._device), output_size=sum(self._lengths)
        )

    def _tensors(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if self._whole:
            return tensors[0].detach().to(torch.float64)
        parts = [tensor.detach().reshape(-1) for tensor in tensors]
        if self._most is not None:
            parts = [_spread(part, self._most) for part in parts]
        return real(torch.cat(parts)).to(torch.float64)


def _plain(value: Any) -> bool:
    plain = type(value) is torch.Tensor and value.layout is torch.strided
    return plain and (value.is_floating_point() or value.is_complex())

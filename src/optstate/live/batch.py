"""What a verb writes to: the same slot of many parameters at once, found by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from optstate.errors import EditError
from optstate.live.backup import chunks
from optstate.live.bind import Binding
from optstate.live.tensors import is_quantised
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec, SlotSpec
from optstate.text import safe_text

Form = Literal[
    "dense",
    "number",  # no tensor: a Python number
    "parts",  # sparse values, or the scales of codes: multiplying these multiplies the slot, nothing else does
    "foreign",  # anything else
]


class Place(NamedTuple):
    """A param group of an optimizer, and what the registry knows of its class."""

    name: str
    optimizer: torch.optim.Optimizer
    number: int
    spec: OptimizerSpec | None

    @property
    def group(self) -> dict[str, Any]:
        """The live group: its parameters and hyperparameters."""
        return self.optimizer.param_groups[self.number]


@dataclass(slots=True)
class Batch:
    """One slot of many parameters of one param group; tensors among them are of one type on one device.

    `values` are what is written to, side by side with `names` and `parameters`; of a slot in parts, those parts.
    """

    place: Place
    key: str
    form: Form
    names: list[str] = field(default_factory=list)
    parameters: list[torch.Tensor] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def slot(self) -> SlotSpec | None:
        """What the registry says of the slot."""
        return None if self.place.spec is None else self.place.spec.slots.get(self.key)

    def path(self, number: int = 0) -> str:
        """`parameter/key` of one of them, safe to print."""
        return f"{safe_text(self.names[number])}/{safe_text(self.key)}"

    def chunks(self) -> Iterator[range]:
        """Which of the values are worked on together."""
        start = 0
        for chunk in chunks(self.values):
            yield range(start, start + len(chunk))
            start += len(chunk)


KeysOf = Callable[[Mapping[str, Any]], Iterable[str]]
"""Which keys of a parameter's entry are meant."""

Keys = Callable[[OptimizerSpec | None], KeysOf]
"""The same for an optimizer of this description."""


def batches(
    binding: Binding, optimizers: Mapping[str, torch.optim.Optimizer], names: Collection[str], keys: Keys
) -> list[Batch]:
    """The slots that `keys` names of these parameters; those that a parameter does not have are not among them.

    Raises `EditError` where two of the slots are one tensor, for a verb would act on it twice.
    """
    wanted = frozenset(names)
    found: list[Batch] = []
    for group in binding.groups:
        optimizer = optimizers[group.optimizer]
        place = Place(group.optimizer, optimizer, group.number, by_class(type(optimizer)))
        state, keys_of = optimizer.state, keys(place.spec)
        there = [  # .get: reading a missing one would create it
            (name, parameter, entry)
            for name, parameter in zip(group.names, group.tensors, strict=True)
            if name in wanted and (entry := state.get(parameter))
        ]
        if there:
            found += _uniform(place, there, keys_of) or _various(place, there, keys_of)
    _refuse_shared(found)
    return found


There: TypeAlias = Sequence[tuple[Any, torch.Tensor, Mapping[str, Any]]]
"""Names, parameters and their entries."""


def _uniform(place: Place, there: There, keys_of: KeysOf) -> list[Batch] | None:
    """One batch for each key, where the entries differ in nothing but their values, as they nearly always do.

    What follows takes several times as long.
    """
    names, parameters, entries = map(list, zip(*there, strict=True))
    if len(set(map(tuple, entries))) > 1:
        return None
    found = []
    for key in keys_of(entries[0]):
        values = [entry[key] for entry in entries]
        if key in _SCALES or set(map(type, values)) != {torch.Tensor}:
            return None
        if len({(value.dtype, value.device, value.layout) for value in values} | {_layout(values[0])}) > 1:
            return None
        found.append(Batch(place, key, "dense", list(names), list(parameters), values))
    return found


def _layout(value: torch.Tensor) -> tuple[torch.dtype, torch.device, torch.layout]:
    return value.dtype, value.device, torch.strided


def _various(place: Place, there: There, keys_of: KeysOf) -> list[Batch]:
    """A batch for each key, type and device."""
    found: list[Batch] = []
    alike = _Alike(place, found)
    for name, parameter, entry in there:
        for key in keys_of(entry):
            alike.add(name, parameter, entry, key)
    return found


class _Alike:
    """Puts slots of one param group into batches."""

    def __init__(self, place: Place, found: list[Batch]) -> None:
        self._place = place
        self._found = found
        self._batches: dict[tuple[Any, ...], Batch] = {}

    def add(self, name: str, parameter: torch.Tensor, entry: Mapping[str, Any], key: str) -> None:
        form, values = stored(entry, key, entry[key])
        for item in values:
            kind = (item.dtype, item.device) if isinstance(item, torch.Tensor) else (type(item), None)
            batch = self._batch(key, form, kind)
            batch.names.append(name)
            batch.parameters.append(parameter)
            batch.values.append(item)

    def _batch(self, key: str, form: Form, kind: tuple[Any, ...]) -> Batch:
        batch = self._batches.get((key, form, *kind))
        if batch is None:
            batch = self._batches[(key, form, *kind)] = Batch(self._place, key, form)
            self._found.append(batch)
        return batch


def stored(entry: Mapping[str, Any], key: str, value: Any) -> tuple[Form, list[Any]]:
    """How a slot is stored, and what there is to write to."""
    if type(value) is torch.Tensor and value.layout is torch.strided:
        scale = entry.get(_SCALES.get(key, ""))
        if scale is not None and not value.is_floating_point():
            return "parts", [scale]
        return "dense", [value]
    if isinstance(value, (int, float)):
        return "number", [value]
    if isinstance(value, torch.Tensor):
        if value.layout is torch.sparse_coo:
            return "parts", [value._values()]
        scale = getattr(value, "scale", None) if is_quantised(value) else None
        if isinstance(scale, torch.Tensor):
            return "parts", [scale]
    return "foreign", [value]


_SCALES = {"state1": "absmax1", "state2": "absmax2"}
"""bitsandbytes keeps the scales of its codes beside them."""


def _refuse_shared(found: Iterable[Batch]) -> None:
    dense = [batch for batch in found if batch.form == "dense"]
    if len({id(value) for batch in dense for value in batch.values}) == sum(len(batch.values) for batch in dense):
        return
    seen: dict[int, str] = {}
    for batch in dense:
        for number, value in enumerate(batch.values):
            if id(value) in seen:
                raise EditError(
                    "two slots are one tensor, which the edit would change twice",
                    found=f"{seen[id(value)]} and {batch.path(number)}",
                    todo="optstate.diagnose(optimizer, model) says how that came to be",
                )
            seen[id(value)] = batch.path(number)

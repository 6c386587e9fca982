"""A stamp of running objects: cheap to take, and told later from how they are then."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from optstate.live.source import LiveSource
from optstate.live.weights import live_weights, modules_with_extra_state
from optstate.state.slot import format_number
from optstate.text import listing, safe_text

_NUMBERS = (bool, int, float, complex, str, type(None))


class _Entries(NamedTuple):
    """All slots of an optimizer in long lists, for there may be a million: by parameter the keys, by slot the rest."""

    parameters: list[int]
    keys: list[tuple[str, ...]]
    values: list[int]
    versions: list[Any]


class Stamp:
    """How model, optimizers and the objects beside them were at one moment.

    Tensors are known by identity and by the counter that torch raises at each write in place, numbers by their value,
    everything else by identity. What goes round that counter is not seen: writes through `.data` or through numpy,
    writes to inference tensors, and what an object holds inside. Without `values` it only knows which tensors, groups and
    objects there were.
    """

    def __init__(
        self, model: nn.Module | None, state: LiveSource | None, objects: Mapping[str, Any], *, values: bool = True
    ) -> None:
        self._parts = model, state, objects
        self._held: list[list[Any]] = []  # no other object can have the id of one that is kept
        tensors = {} if model is None else {name: weight.tensor for name, weight in live_weights(model).items()}
        modules = {} if model is None else modules_with_extra_state(model)
        driven = {name: getattr(item, "optimizer", None) for name, item in objects.items()}
        optimizers = {} if state is None else state.live_optimizers
        self.weights = dict(zip(tensors, self._ids(tensors.values()), strict=True))
        self.parts = dict(zip((*modules, *driven), self._ids((*modules.values(), *driven.values())), strict=True))
        self.groups = {name: self._groups(each) for name, each in optimizers.items()}
        if values:
            self.places = _places(tensors.values())
            self.versions = self._versions(tensors.values())
            self.hyperparameters = {
                (name, number): {key: self._mark(value) for key, value in group.items() if key != "params"}
                for name, each in optimizers.items()
                for number, group in enumerate(each.param_groups)
            }
            self.entries = {name: self._entries(each) for name, each in optimizers.items()}

    def rebuilt(self) -> str | None:
        """Which tensors, groups or objects are other ones now, in words; None where all are the same ones."""
        return self._rebuilt(Stamp(*self._parts, values=False))

    def changed(self) -> str | None:
        """What is other than it was, values too, in words; None where nothing is."""
        now = Stamp(*self._parts)
        return self._rebuilt(now) or self._written(now)

    # --- taking it ------------------------------------------------------------------------------------------

    def _ids(self, items: Iterable[Any]) -> list[int]:
        kept = list(items)
        self._held.append(kept)
        return list(map(id, kept))

    def _groups(self, optimizer: torch.optim.Optimizer) -> list[list[int]]:
        """Which dicts and tensors they are; the list of groups itself may be another one."""
        return [
            self._ids([optimizer.state]),
            *(self._ids([group, *group["params"]]) for group in optimizer.param_groups),
        ]

    def _entries(self, optimizer: torch.optim.Optimizer) -> _Entries:
        # What stands beside the parameters need not be an entry.
        entries = [each if isinstance(each, Mapping) else {None: each} for each in optimizer.state.values()]
        values = [value for entry in entries for value in entry.values()]
        return _Entries(
            self._ids(optimizer.state), list(map(tuple, entries)), self._ids(values), self._versions(values)
        )

    def _versions(self, values: Iterable[Any]) -> list[Any]:
        """For each of some values that are kept, something that stays equal as long as nothing is written to it."""
        kept = list(values)
        try:
            return [value._version for value in kept]
        except (AttributeError, RuntimeError):  # not all are tensors, or some are of inference
            return list(map(self._version, kept))

    def _version(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return -1 if value.is_inference() else value._version
        return list(map(self._mark, value)) if isinstance(value, (list, tuple)) else None

    def _mark(self, value: Any) -> Any:
        return value if isinstance(value, _NUMBERS) else (self._ids([value]), self._version(value))

    # --- comparing ------------------------------------------------------------------------------------------

    def _rebuilt(self, now: Stamp) -> str | None:
        if self.weights.keys() != now.weights.keys():
            return f"the model has other tensors: {listing(sorted(self.weights.keys() ^ now.weights.keys()))}"
        for name, before in self.weights.items():
            if before != now.weights[name]:
                return f"{safe_text(name)} is another tensor"
        if self.groups != now.groups:
            return "the param groups are others, as after add_param_group or load_state_dict"
        other = [name for name, part in self.parts.items() if now.parts.get(name) != part]
        return f"{listing(other)} is or drives another object" if other else None

    def _written(self, now: Stamp) -> str | None:
        for old, new, what in (
            (self.places, now.places, "has another memory or shape"),
            (self.versions, now.versions, "was written to, as by a step"),
        ):
            if old != new:
                return f"{_first_other(self.weights, old, new)} {what}"
        for (optimizer, number), before in self.hyperparameters.items():
            after = now.hyperparameters[optimizer, number]
            if before != after:
                label = f"{safe_text(optimizer)}:{number}" if optimizer else str(number)
                return f"group {label}: {_difference(before, after)}"
        for optimizer, entries in self.entries.items():
            if entries != now.entries[optimizer]:
                return self._other_entry(entries, now.entries[optimizer])
        return None

    def _other_entry(self, before: _Entries, after: _Entries) -> str:
        _, state, _ = self._parts
        names = {} if state is None else {id(state.bound(name).tensor): safe_text(name) for name in state.names()}
        old, new = (dict(zip(each.parameters, each.keys, strict=True)) for each in (before, after))
        for parameter in {**old, **new}:
            keys = set(old.get(parameter, ())) ^ set(new.get(parameter, ()))
            if keys or (parameter in old) != (parameter in new):
                return (
                    f"{names.get(parameter, 'a parameter')} has other slots ({listing(sorted(keys))}), as after a step"
                )
        if before[:2] != after[:2]:
            return "the slots come in another order"
        slots = [f"{names.get(parameter, 'a parameter')}/{key}" for parameter, keys in old.items() for key in keys]
        pairs = [list(zip(each.values, each.versions, strict=True)) for each in (before, after)]
        return f"{_first_other(slots, *pairs)} was written to, as by a step"


def _first_other(names: Iterable[str], before: Sequence[Any], after: Sequence[Any]) -> str:
    return safe_text(next(name for name, old, new in zip(names, before, after, strict=True) if old != new))


def _places(tensors: Collection[torch.Tensor]) -> list[Any]:
    """Where the values of each tensor are; of those that do not say, what they look like."""
    try:
        return [tensor.data_ptr() for tensor in tensors]
    except RuntimeError:  # sparse, or of a class that only stands for others
        return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    for key in {**before, **after}:
        if key not in before or key not in after:
            return f"{safe_text(key)} was {'added' if key in after else 'removed'}"
        if before[key] != after[key]:
            numbers = [format_number(each) for each in (before[key], after[key]) if isinstance(each, (int, float))]
            return f"{safe_text(key)} was {' and is '.join(numbers) if len(numbers) == 2 else 'another one'}"
    return "its hyperparameters come in another order"

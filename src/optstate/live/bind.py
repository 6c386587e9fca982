"""Names by identity: which parameter of which optimizer is which tensor of the model, now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from optstate.errors import BindError
from optstate.live.unwrap import find, walk
from optstate.state.roles import Certainty
from optstate.text import safe_text


class Bound(NamedTuple):
    """A parameter in an optimizer: the tensor, its names, and its place."""

    name: str
    tensor: torch.Tensor
    certainty: Certainty
    aliases: tuple[str, ...]
    optimizer: str
    group: int
    position: int

    def holds(self, optimizers: Mapping[str, torch.optim.Optimizer], model: nn.Module) -> bool:
        """Whether this tensor still has this name and this place: a look-up, not a search."""
        groups = optimizers[self.optimizer].param_groups
        if self.group >= len(groups) or self.position >= len(groups[self.group]["params"]):
            return False
        if groups[self.group]["params"][self.position] is not self.tensor:
            return False
        return self.certainty != "identity" or find(model, self.name) is self.tensor


class BoundGroup(NamedTuple):
    """A param group as it was bound: its tensors and their names side by side.

    A tensor that the group holds twice has the name None the second time.
    """

    optimizer: str
    number: int
    tensors: list[torch.Tensor]
    names: list[str | None]


class Binding:
    """All parameters of all optimizers by name, and the model's parameters that no optimizer has."""

    def __init__(
        self, groups: list[BoundGroup], model_names: dict[int, str], aliases: dict[int, tuple[str, ...]]
    ) -> None:
        self.groups: Sequence[BoundGroup] = groups
        self._model_names = model_names
        self._aliases = aliases

    def names(self) -> list[str]:
        """The names in the optimizers' own order."""
        return [name for group in self.groups for name in group.names if name is not None]

    def parameters(self) -> Iterator[Bound]:
        """Every parameter, in the optimizers' own order."""
        return (bound for name in self._places if (bound := self.get(name)) is not None)

    def group(self, optimizer: str, index: int) -> tuple[str, ...]:
        """The names in one param group, in its order."""
        group = next(group for group in self.groups if (group.optimizer, group.number) == (optimizer, index))
        return tuple(name for name in group.names if name is not None)

    def get(self, name: str) -> Bound | None:
        """The parameter that had this name when it was bound, or None."""
        place = self._places.get(name)
        if place is None:
            return None
        group, position = place
        tensor = group.tensors[position]
        certainty: Certainty = "identity" if id(tensor) in self._model_names else "position"
        aliases = self._aliases.get(id(tensor), ())
        return Bound(name, tensor, certainty, aliases, group.optimizer, group.number, position)

    @cached_property
    def _places(self) -> dict[str, tuple[BoundGroup, int]]:
        return {
            name: (group, position)
            for group in self.groups
            for position, name in enumerate(group.names)
            if name is not None
        }

    def not_optimized(self) -> list[str]:
        """Parameters of the model that are in no optimizer."""
        bound = {id(tensor) for group in self.groups for tensor in group.tensors}
        return [name for key, name in self._model_names.items() if key not in bound]

    def not_in_model(self) -> list[str]:
        """Parameters of an optimizer that are not in the model; their name is their position."""
        return [
            name
            for group in self.groups
            for tensor, name in zip(group.tensors, group.names, strict=True)
            if name is not None and id(tensor) not in self._model_names
        ]


def bind(optimizers: Mapping[str, torch.optim.Optimizer], model: nn.Module) -> Binding:
    """Match every parameter of every optimizer with the model by identity.

    A tensor that is not in the model gets its position as name, `#7`, with its optimizer in front where there
    are several. Raises `BindError` when one tensor is in two optimizers.
    """
    model_names, aliases = names_by_identity(model)
    groups = [
        BoundGroup(name, index, list(group["params"]), [model_names.get(id(tensor)) for tensor in group["params"]])
        for name, optimizer in optimizers.items()
        for index, group in enumerate(optimizer.param_groups)
    ]
    if any(None in group.names for group in groups) or _repeats(groups):
        groups = _numbered(groups)
    return Binding(groups, model_names, aliases)


def names_by_identity(model: nn.Module) -> tuple[dict[int, str], dict[int, tuple[str, ...]]]:
    """For each parameter tensor of the model, by `id`: the name that torch would give it, and any further names."""
    names: dict[int, str] = {}
    aliases: dict[int, tuple[str, ...]] = {}
    for prefix, module in walk(model):
        for attribute, tensor in module._parameters.items():
            if tensor is None:
                continue
            name = prefix + attribute
            if names.setdefault(id(tensor), name) is not name:
                aliases[id(tensor)] = (*aliases.get(id(tensor), ()), name)
    return names, aliases


def _repeats(groups: list[BoundGroup]) -> bool:
    total = sum(len(group.names) for group in groups)
    return len({name for group in groups for name in group.names}) < total


def _numbered(groups: list[BoundGroup]) -> list[BoundGroup]:
    """The same groups with a position for each tensor without a name, and None where a tensor comes again."""
    owner: dict[int, str] = {}
    numbers: Counter[str] = Counter()
    result = []
    for group in groups:
        names: list[str | None] = []
        for tensor, name in zip(group.tensors, group.names, strict=True):
            shown = name or f"{group.optimizer}#{numbers[group.optimizer]}"
            again = id(tensor) in owner
            if owner.setdefault(id(tensor), group.optimizer) != group.optimizer:
                raise _stepped_twice(shown, owner[id(tensor)], group.optimizer)
            names.append(None if again else shown)
            numbers[group.optimizer] += not again  # torch allows a tensor twice in a group and numbers it once
        result.append(group._replace(names=names))
    return result


def _stepped_twice(name: str, first: str, second: str) -> BindError:
    return BindError(
        f"{safe_text(name)} is in two optimizers",
        found=f"{safe_text(first)!r} and {safe_text(second)!r} both step it",
        todo="give each parameter to one optimizer",
    )

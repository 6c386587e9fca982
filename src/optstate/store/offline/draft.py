"""The state of a file as it will be: values that verbs replaced, beside those that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optstate.formats.checkpoint import Checkpoint
from optstate.optimizers.interpret import explain_absences
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParamState
from optstate.state.roles import Role
from optstate.state.slot import Slot
from optstate.state.tensors import TensorRef, Value, is_tensor
from optstate.text import safe_text

GroupPlace = tuple[str, int]
"""The name of an optimizer, and the number of one of its groups."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a verb acts on: parameters by name, and of them slots by role, by key, or all; `rows` None for all rows."""

    names: tuple[str, ...]
    description: str
    role: Role | None = None
    key: str | None = None
    rows: Any = None

    @property
    def whole(self) -> bool:
        """Whether no slot was named."""
        return self.role is None and self.key is None

    def __str__(self) -> str:
        rows = "" if self.rows is None else f" rows {safe_text(self.rows, 40)}"
        return f"{self.description} {safe_text(self.role or self.key or '', 60)}".rstrip() + rows


@dataclass(slots=True)
class Draft:
    """A checkpoint and what verbs made of it so far: `entries` has the slots of each parameter that one touched."""

    checkpoint: Checkpoint
    entries: dict[str, dict[str, Value]] = field(default_factory=dict)
    groups: dict[GroupPlace, dict[str, Any]] = field(default_factory=dict)

    @property
    def state(self) -> OptimizerState:
        """The state as the file has it."""
        return self.checkpoint.state

    def spec(self, name: str) -> OptimizerSpec | None:
        """What the registry knows of the optimizer of a parameter."""
        return by_name(self.state.optimizers[self.state[name].facts.optimizer].class_name)

    def group(self, name: str) -> Mapping[str, Any]:
        """The hyperparameters of a parameter's group, as they will be."""
        facts = self.state[name].facts
        known = self.state.optimizers[facts.optimizer].groups[facts.group].hyperparameters
        return {**known, **self.groups.get((facts.optimizer, facts.group), {})}

    def entry(self, name: str) -> dict[str, Value]:
        """The slots of a parameter, as they will be; writing to them changes the draft."""
        if name not in self.entries:
            self.entries[name] = self.saved(name)
        return self.entries[name]

    def present(self, name: str) -> Mapping[str, Value]:
        """The slots of a parameter as they will be, to look at."""
        return self.entries[name] if name in self.entries else self.saved(name)

    def saved(self, name: str) -> dict[str, Value]:
        """The slots of a parameter, as the file has them."""
        return {key: slot.value for key, slot in self.state[name].slots.items()}

    def weight(self, name: str) -> TensorRef | None:
        """The weight of a parameter, if the file has it."""
        names = (name, *self.state[name].facts.aliases)
        return next((self.checkpoint.weights[each] for each in names if each in self.checkpoint.weights), None)

    def keys(self, aim: Aim) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each parameter of an aim with those of its slots that are meant."""
        for name in aim.names:
            entry, slots = self.present(name), self.state[name].slots
            if aim.role is None:
                yield name, tuple(key for key in entry if aim.key in (None, key))
            else:
                yield name, tuple(key for key in entry if slots[key].role == aim.role and slots[key].primary)

    def made(self) -> Checkpoint:
        """The checkpoint with everything that was changed."""
        parameters = [self._parameter(name, parameter) for name, parameter in self.state.items()]
        infos = {name: self._info(name, info) for name, info in self.state.optimizers.items()}
        state = OptimizerState(FrozenSource(parameters, infos, self.state.left_out))
        return replace(self.checkpoint, state=state)

    def _parameter(self, name: str, parameter: ParamState) -> FrozenParameter:
        if name not in self.entries:
            return FrozenParameter(parameter.facts, parameter.slots, parameter.absences)
        slots = {key: replace(parameter.slots[key], value=value) for key, value in self.entries[name].items()}
        return FrozenParameter(parameter.facts, slots, self._absences(name, parameter, slots))

    def _absences(self, name: str, parameter: ParamState, slots: Mapping[str, Slot]) -> Mapping[Role, Absence]:
        if slots.keys() == parameter.slots.keys():
            return parameter.absences
        shape = parameter.facts.shape
        ndim = None if shape is None else len(shape)
        return explain_absences(self.spec(name), slots, self.group(name), ndim, Absence.NEVER_STEPPED)

    def _info(self, name: str, info: OptimizerInfo) -> OptimizerInfo:
        groups = [
            Group(
                group.optimizer,
                group.index,
                {**group.hyperparameters, **self.groups[name, group.index]},
                group.parameters,
            )
            if (name, group.index) in self.groups
            else group
            for group in info.groups
        ]
        return replace(info, groups=tuple(groups))


def numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters to compute with: a tensor of one element as its number."""
    return {key: number(value) if is_tensor(value) else value for key, value in group.items()}

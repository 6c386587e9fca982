"""A source that never changes: what a file holds, or a snapshot of a running optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from optstate.state.absence import Absence
from optstate.state.groups import OptimizerInfo
from optstate.state.parameter import ParameterFacts
from optstate.state.roles import Role
from optstate.state.slot import Slot


@dataclass(frozen=True, slots=True)
class FrozenParameter:
    """One parameter of a frozen source."""

    facts: ParameterFacts
    slots: Mapping[str, Slot]
    absences: Mapping[Role, Absence]


class FrozenSource:
    """Parameters in the optimizers' order; satisfies `optstate.state.optimizer_state.Source`."""

    def __init__(
        self,
        parameters: Sequence[FrozenParameter],
        optimizers: Mapping[str, OptimizerInfo],
        left_out: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._parameters = {parameter.facts.name: parameter for parameter in parameters}
        self._optimizers = MappingProxyType(dict(optimizers))
        self._left_out = MappingProxyType(dict(left_out))

    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def facts(self, name: str) -> ParameterFacts:
        return self._parameters[name].facts

    def slots(self, name: str) -> Mapping[str, Slot]:
        return self._parameters[name].slots

    def absences(self, name: str) -> Mapping[Role, Absence]:
        return self._parameters[name].absences

    def optimizers(self) -> Mapping[str, OptimizerInfo]:
        return self._optimizers

    def left_out(self) -> Mapping[str, Sequence[str]]:
        return self._left_out

    def freeze(self) -> FrozenSource:
        return self

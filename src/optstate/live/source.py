"""A running optimizer as the source of an `OptimizerState`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from optstate.live.bind import Binding, Bound, bind
from optstate.live.tensors import dtype_name, frozen, held, live_entry
from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import SlotSpec
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.parameter import ParameterFacts
from optstate.state.roles import Role
from optstate.state.slot import Slot

NOT_OPTIMIZED = "in the model, but in no optimizer"
NOT_IN_MODEL = "in an optimizer, but not in the model"


class LiveSource:
    """Reads optimizer and model at each access; satisfies `optstate.state.optimizer_state.Source`.

    Names are cached, and every use of one checks in constant time that its tensor still has that name and
    that place; only when it does not is everything bound again.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer], model: nn.Module) -> None:
        self.live_optimizers = optimizers
        self.model = model
        self._binding = Binding([], {}, {})

    def bind(self) -> Binding:
        """Match names and tensors anew."""
        self._binding = bind(self.live_optimizers, self.model)
        return self._binding

    def names(self) -> Sequence[str]:
        return self.bind().names()

    def bound(self, name: str) -> Bound:
        """The tensor that has this name now, and its place. Raises `KeyError`."""
        known = self._binding.get(name)
        if known is not None and known.holds(self.live_optimizers, self.model):
            return known
        bound = self.bind().get(name)
        if bound is None:
            raise KeyError(name)
        return bound

    def facts(self, name: str) -> ParameterFacts:
        return facts_of(self.bound(name))

    def slots(self, name: str) -> Mapping[str, Slot]:
        bound = self.bound(name)
        optimizer = self.live_optimizers[bound.optimizer]
        return interpret(by_class(type(optimizer)), name, live_entry(optimizer, bound.tensor))

    def absences(self, name: str) -> Mapping[Role, Absence]:
        return self.absences_of(self.bound(name), self.slots(name))

    def absences_of(self, bound: Bound, slots: Mapping[str, Slot] | Mapping[str, SlotSpec]) -> dict[Role, Absence]:
        """As `absences`, of a parameter whose slots are known."""
        optimizer = self.live_optimizers[bound.optimizer]
        return explain_absences(
            by_class(type(optimizer)),
            slots,
            optimizer.param_groups[bound.group],
            None if is_lazy(bound.tensor) else bound.tensor.dim(),
            _why_absent(optimizer, bound.tensor),
        )

    def optimizers(self) -> Mapping[str, OptimizerInfo]:
        binding = self.bind()
        return {
            name: OptimizerInfo(
                name=name,
                class_name=qualified_name(type(optimizer)),
                groups=tuple(
                    Group(name, index, hyperparameters(group), binding.group(name, index))
                    for index, group in enumerate(optimizer.param_groups)
                ),
                known=by_class(type(optimizer)) is not None,
            )
            for name, optimizer in self.live_optimizers.items()
        }

    def left_out(self) -> Mapping[str, Sequence[str]]:
        binding = self.bind()
        return {NOT_OPTIMIZED: binding.not_optimized(), NOT_IN_MODEL: binding.not_in_model()}

    def freeze(self) -> FrozenSource:
        optimizers = {
            name: OptimizerInfo(name, info.class_name, tuple(_frozen_group(group) for group in info.groups), info.known)
            for name, info in self.optimizers().items()
        }
        parameters = [
            FrozenParameter(
                self.facts(name),
                {key: _frozen_slot(slot) for key, slot in self.slots(name).items()},
                dict(self.absences(name)),
            )
            for name in self.names()
        ]
        return FrozenSource(parameters, optimizers, self.left_out())


def facts_of(bound: Bound) -> ParameterFacts:
    """What is known of a parameter besides its state."""
    return ParameterFacts(
        name=bound.name,
        certainty=bound.certainty,
        shape=None if is_lazy(bound.tensor) else tuple(bound.tensor.shape),
        dtype=dtype_name(bound.tensor),
        optimizer=bound.optimizer,
        group=bound.group,
        aliases=bound.aliases,
        trainable=bound.tensor.requires_grad,
    )


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """A live group's keys besides its parameters, tensors as references."""
    return {key: held(value) for key, value in group.items() if key not in ("params", "param_names")}


def load_hooks(optimizer: torch.optim.Optimizer) -> int:
    """How many hooks are registered on loading, which writing state by name does not call."""
    kinds = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
    return sum(len(getattr(optimizer, kind, ())) for kind in kinds)  # a wrapper may not have called Optimizer.__init__


def _why_absent(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> Absence:
    if optimizer.state.get(tensor):
        return Absence.DROPPED
    if not any(entry for key, entry in optimizer.state.items() if isinstance(key, torch.Tensor)):
        return Absence.NEVER_STEPPED
    return Absence.NO_GRADIENT if tensor.requires_grad else Absence.FROZEN


def _frozen_group(group: Group) -> Group:
    return Group(group.optimizer, group.index, frozen(dict(group.hyperparameters)), group.parameters)


def _frozen_slot(slot: Slot) -> Slot:
    return Slot(slot.parameter, slot.key, slot.role, frozen(slot.value), slot.convention, slot.of, slot.primary)

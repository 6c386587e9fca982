"""What a rule for the next update reads: the slots of a parameter by role, the hyperparameters, the gradient to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optstate.optimizers.arrays import Array, library
from optstate.optimizers.conventions import convention_of, is_debiased, primary
from optstate.optimizers.resets import Copy, Fill, fresh
from optstate.optimizers.spec import OptimizerSpec, coefficient_value, number
from optstate.state.roles import Role


@dataclass(frozen=True, slots=True)
class At:
    """One parameter before a step, or several laid side by side.

    A slot that is not there counts as fresh, so an empty mapping is a fresh start. Hyperparameters that are tensors
    stay tensors, so that reading them does not wait for a device.
    """

    spec: OptimizerSpec
    slots: Mapping[str, Array]
    hyperparameters: Mapping[str, Any]
    gradient: Array
    parameter: Array | None = None

    def slot(self, key: str) -> Array | None:
        """What a slot holds or, where it is not there, would be created with; None where it would not be there."""
        if key in self.slots:
            return self.slots[key]
        start = fresh(self.spec, key, self.hyperparameters)
        if isinstance(start, Fill):
            return start.value
        return self.parameter if isinstance(start, Copy) else None

    def role(self, role: Role) -> Array | None:
        """The slot that the optimizer uses in this role; 0 where it has none."""
        key = primary(self.spec, role)
        return 0.0 if key is None else self.slot(key)

    def option(self, name: str, otherwise: float = 0.0) -> Array:
        """A hyperparameter such as `lr` or `betas[0]`, or `otherwise` where the group lacks it."""
        value = coefficient_value(name, self.hyperparameters)
        return otherwise if value is None else scalar(value)

    def flag(self, name: str) -> bool:
        """Whether a flag of the group is on."""
        return bool(self.hyperparameters.get(name, False))

    def decay(self, key: str) -> Array:
        """The coefficient that drives a slot."""
        return self.option(self.spec.slots[key].coefficient or "")

    @property
    def t(self) -> Array:
        """The number of the step to come, 1 for the first."""
        key, counted = primary(self.spec, "step"), self.spec.group_step
        if key is not None:
            count = self.slots.get(key, 0.0)
        else:
            count = self.hyperparameters.get(counted, 0.0) if counted else 0.0
        return scalar(count) + 1.0

    def averaged(self, key: str, entering: Array) -> Array:
        """An average or a sum after `entering` has entered it, as its convention says; divided by 1-β^t where the
        optimizer does so.
        """
        slot, decay, held = self.spec.slots[key], self.decay(key), self.slot(key)
        sums = str(convention_of(slot, self.hyperparameters)).startswith("accumulate")
        before = 0.0 if held is None else held
        after = decay * before + (entering if sums else (1.0 - decay) * entering)
        return after / (1.0 - decay**self.t) if is_debiased(slot, self.hyperparameters) else after


def scalar(value: Any) -> Array:
    """A hyperparameter or a step count with which to compute: a float, or the tensor that it is, in float64."""
    if hasattr(value, "double"):
        return value.float() if value.device.type == "mps" else value.double()  # which has no float64
    if getattr(value, "ndim", 0) > 0:
        return library(value).asarray(value, dtype="float64")
    plain = number(value)
    return 0.0 if plain is None else plain

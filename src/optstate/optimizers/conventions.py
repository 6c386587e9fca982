"""What a row says of a slot, under the flags of the param group that it lives in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optstate.optimizers.spec import OptimizerSpec, SlotSpec
from optstate.state.roles import Convention, Role

_CORRECTING = ("bias_correction", "use_bias_correction", "correct_bias")
"""Group flags, each of other libraries, without which an optimizer uses its averages as they are."""


def convention_of(slot: SlotSpec, hyperparameters: Mapping[str, Any]) -> Convention | None:
    """How a momentum accumulates under these hyperparameters.

    The row holds for flags as they come; three of them change it: `grad_averaging` (off: a sum instead of an average),
    `lr_in_momentum` (off: a sum without the learning rate), and the flags that switch bias correction.

    >>> average = SlotSpec(role="momentum", convention="ema_debiased", of="gradient", coefficient="betas[0]")
    >>> convention_of(average, {"grad_averaging": False}), convention_of(average, {"bias_correction": False})
    ('accumulate_debiased', 'ema')
    """
    convention = slot.convention
    if convention is None:
        return None
    if convention == "lr_in_buffer":
        return convention if hyperparameters.get("lr_in_momentum", True) else "accumulate"
    averages = convention.startswith("ema") and bool(hyperparameters.get("grad_averaging", True))
    if convention.endswith("_debiased") and corrects(hyperparameters):
        return "ema_debiased" if averages else "accumulate_debiased"
    return "ema" if averages else "accumulate"


def is_debiased(slot: SlotSpec, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether the optimizer divides the slot by 1-β^t where it uses it."""
    if slot.convention is None:
        return slot.age == "debiased" and corrects(hyperparameters)
    return slot.age != "stored" and str(convention_of(slot, hyperparameters)).endswith("_debiased")


def corrects(hyperparameters: Mapping[str, Any]) -> bool:
    """Whether the group leaves bias correction on, for an optimizer that has it."""
    return not any(flag in hyperparameters and not hyperparameters[flag] for flag in _CORRECTING)


def primary(spec: OptimizerSpec, role: Role) -> str | None:
    """The key of the slot that an optimizer uses in this role; None where it keeps none."""
    return next((key for key, slot in spec.slots.items() if slot.role == role and slot.primary), None)

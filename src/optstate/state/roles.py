"""What a slot is, and how a momentum accumulates: two closed lists."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "momentum",  # signed, the direction of the update
    "second_moment",  # an average or a sum of squared gradients, never negative
    "max_second_moment",  # the running maximum of a second moment
    "infinity_norm",  # a running maximum of |gradient|: degree 1 in the gradient, unlike a second moment
    "factored_row",  # second moment averaged over the last dimension
    "factored_column",  # second moment averaged over the next-to-last dimension
    "update_average",  # an average of past updates or their squares
    "previous_gradient",
    "preconditioner",
    "averaged_weights",  # weights, not a moment: never scaled, follows the parameter
    "master_weights",
    "step_size",  # a learning rate that the optimizer adapts by itself
    "step",  # number of updates that this parameter has had
    "counter",
    "other",
]
ROLES: tuple[Role, ...] = get_args(Role)

Convention = Literal[
    "accumulate",  # v = βv + (1-d)g      steady state g(1-d)/(1-β)
    "accumulate_debiased",
    "lr_in_buffer",  # u = βu - ηg
    "ema",  # v = βv + (1-β)g             steady state g
    "ema_debiased",  # as ema; the optimizer divides by 1-β^t where it uses the slot
]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

Of = Literal["gradient", "preconditioned", "update"]  # what is accumulated
OFS: tuple[Of, ...] = get_args(Of)

Certainty = Literal["identity", "file", "recorded", "rule", "shapes", "position"]
"""How sure a name is.

identity: the live object itself · file: written beside the slot · recorded: torch's `param_names`, which lie
after a load in another order · rule: the writer's order is known and every shape agrees · shapes: the only
assignment that the shapes allow · position: not recoverable, the position is the name.
"""
CERTAINTIES: tuple[Certainty, ...] = get_args(Certainty)

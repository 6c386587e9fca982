"""Kinds of slots that the tables of all libraries use: a row says how a slot differs from its kind."""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.spec import SlotSpec

COUNT = SlotSpec(role="step", shape="scalar", dtype="scalar", home="step")
INTEGER_COUNT = SlotSpec(role="step", shape="scalar", dtype="python", reset=0)
MEAN = SlotSpec(role="momentum", convention="ema_debiased", of="gradient", gradient_degree=1)
PLAIN_MEAN = replace(MEAN, convention="ema")
SUM = replace(MEAN, convention="accumulate")
SQUARE = SlotSpec(role="second_moment", gradient_degree=2)
DEBIASED_SQUARE = replace(SQUARE, age="debiased")
PREVIOUS = SlotSpec(role="previous_gradient", gradient_degree=1)
WEIGHTS = SlotSpec(role="averaged_weights", reset="parameter", gradient_degree=None, lr_degree=None)

DIRECTION = SlotSpec(role="momentum", gradient_degree=0)
"""A momentum whose convention is none of the known ones, or depends on hyperparameters: no gain is assumed."""

OWN = SlotSpec(role="other", shape="list", gradient_degree=None, lr_degree=None)
"""Something in a shape and a scale of its own, such as the factors of a preconditioner."""

ROW = replace(SQUARE, role="factored_row", shape="squeezed row", dtype="gradient", when="matrix")
COLUMN = replace(ROW, role="factored_column", shape="squeezed column")


def together(**slots: SlotSpec) -> dict[str, SlotSpec]:
    """Slots of which each is a companion of all others."""
    return {
        key: replace(slot, companions=tuple(other for other in slots if other != key)) for key, slot in slots.items()
    }


ADAM_GROUP = ("lr", "betas", "eps", "weight_decay")
ADAM = together(
    step=COUNT,
    exp_avg=replace(MEAN, coefficient="betas[0]"),
    exp_avg_sq=replace(DEBIASED_SQUARE, coefficient="betas[1]"),
    max_exp_avg_sq=replace(DEBIASED_SQUARE, role="max_second_moment", when="amsgrad"),
)

"""The size of the next update: what a state will do to its parameter, before it does it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from optstate.optimizers.arrays import Array, silent
from optstate.optimizers.at import At
from optstate.optimizers.other_rules import OTHER_RULES
from optstate.optimizers.resets import together
from optstate.optimizers.rules import TORCH_RULES, Rule
from optstate.optimizers.spec import OptimizerSpec
from optstate.text import listing

UPDATES: Mapping[str, Rule] = {**TORCH_RULES, **OTHER_RULES}
"""What a row may name as its `update`."""

BOUND = 2.0
"""How many times the larger of the update before an edit and a fresh start's an update may be after it.

Every edit of moments that users were hurt by lies above: a second moment at zero with its step kept (4.5 to 32 times), both
moments at zero (2.5 to 3.2 with β2=.999), the step alone at zero with short averages (2.2 to 4.5). What is harmless lies below:
a full reset and a momentum at zero (at most 1), both moments at zero where β1 and β2 are close (at most 1), and doubling a
momentum, whose newest part does not double.
"""


def next_update(
    spec: OptimizerSpec,
    slots: Mapping[str, Array],
    hyperparameters: Mapping[str, Any],
    gradient: Array,
    parameter: Array | None = None,
) -> Array | None:
    """The signed change of a parameter in the step to come, if this is its gradient; shaped as the gradient.

    `slots` are those of the parameter before that step, one that is missing counts as fresh; all are read, none is
    changed. Arrays are numpy arrays or torch tensors, computed with in their own type: pass float32 or wider, and complex
    ones as pairs of reals. Where `elementwise`, pieces of several parameters of a group may lie side by side, if slots of
    one number (`step`, `mu_product`, `eta`) are repeated for each element. `parameter` is needed where the update is
    scaled by the weights (Adafactor, LAMB, LARS). Weight decay is left out.

    None where no rule is known, and where options mask the update (`caution`).

    >>> import numpy as np
    >>> from optstate.optimizers.registry import by_name
    >>> adam = by_name("torch.optim.adam.Adam")
    >>> group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    >>> aged = {"step": 2000.0, "exp_avg": np.ones(1), "exp_avg_sq": np.ones(1)}
    >>> next_update(adam, {**aged, "exp_avg_sq": np.zeros(1)}, group, np.ones(1)).round(2)
    array([-2.94])
    """
    rule = UPDATES.get(spec.update or "")
    if rule is None or hyperparameters.get("caution"):
        return None
    sign = -1.0 if hyperparameters.get("maximize") else 1.0
    with silent():
        return rule.delta(At(spec, slots, hyperparameters, sign * gradient, parameter))


def fresh_update(
    spec: OptimizerSpec, hyperparameters: Mapping[str, Any], gradient: Array, parameter: Array | None = None
) -> Array | None:
    """The first update of a fresh optimizer on this gradient; see `next_update`."""
    started = {key: value for key, value in hyperparameters.items() if key != spec.group_step}
    return next_update(spec, {}, started, gradient, parameter)


def typical_gradient(
    spec: OptimizerSpec, slots: Mapping[str, Array], hyperparameters: Mapping[str, Any]
) -> Array | None:
    """The gradient that a state has been seeing, as its slots tell it; shaped as the parameter.

    The root of the corrected second moment with the sign of the momentum where there are both; a momentum brought to
    the scale of the gradient; the previous gradient. None where the slots tell nothing: plain SGD, a fresh state, an
    optimizer without a rule.
    """
    rule = UPDATES.get(spec.update or "")
    with silent():
        seen = None if rule is None else rule.seen(At(spec, slots, hyperparameters, None))
    return -seen if seen is not None and hyperparameters.get("maximize") else seen


def elementwise(spec: OptimizerSpec) -> bool:
    """Whether the update of each element depends on that element alone; False where no rule is known."""
    rule = UPDATES.get(spec.update or "")
    return rule is not None and rule.elementwise


def safe_verb(spec: OptimizerSpec, touched: Collection[str], hyperparameters: Mapping[str, Any]) -> str:
    """What to do instead of an edit of these slots whose next update would be too large."""
    kept = tuple(key for key, slot in spec.slots.items() if slot.exists(hyperparameters, None))
    companions = [key for key in together(spec, touched, kept) if key not in touched]
    if companions and any(spec.slots[key].role != "momentum" for key in touched if key in spec.slots):
        return f"reset_() of the whole parameter, which also resets {listing(companions)}"
    return "a smaller factor, or clip_norm_() with the norm that the slot has now"

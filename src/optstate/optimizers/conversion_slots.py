"""What an optimizer would keep, had it seen the gradients of which these moments tell: written into its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optstate.optimizers.arrays import Array, larger, library, where
from optstate.optimizers.at import At
from optstate.optimizers.conventions import is_debiased, primary
from optstate.optimizers.conversion_families import COUNTED_FROM, family_name
from optstate.optimizers.conversion_moments import (
    Moments,
    convention,
    decay,
    filled,
    gain,
    of_updates,
    root,
    square_of,
    unit,
)
from optstate.optimizers.resets import Copy, Fill, fresh

FORMER_LR = "lr of the former optimizer"
"""Among the hyperparameters of the target: the learning rate that its first updates follow, 0 where that means another thing."""

SQUARES = ("second_moment", "infinity_norm", "factored_row", "factored_column")


def completed(moments: Moments, steps: float | None, *, needs_square: bool) -> Moments:
    """The moments as of so many steps, with what the optimizer needs and nobody told.

    Without a second moment, the momentum counts as the one gradient that was ever seen: t=1, square = mean². What follows
    is then a fresh start that saw one more gradient, so that no gradients whatever make an update larger than such a start
    can make. Zero, or any guess beside a larger t, would let the next gradient through at up to 1/√(1-β2) times its size.
    """
    if moments.square is None and moments.mean is not None and needs_square:
        return Moments(steps, moments.mean, moments.mean * moments.mean)
    return replace(moments, steps=steps)


def written(moments: Moments, at: At) -> dict[str, Any]:
    """The slots that hold these moments, which `completed` has made enough; `at` has the slots that are known already."""
    template = moments.mean if moments.mean is not None else moments.square
    ndim = None if template is None else int(template.ndim)
    slots = dict(at.slots)
    at = replace(at, slots=slots)  # what is written is known to what follows: the count comes first
    for key, slot in at.spec.slots.items():
        counts_sometimes = slot.role == "step" and slot.when == "sometimes"  # in some versions, which then need it
        if key not in slots and (counts_sometimes or slot.exists(at.hyperparameters, ndim)):
            value = _value(moments, at, key, template)
            if value is not None:
                slots[key] = value
    return slots


def _value(moments: Moments, at: At, key: str, template: Array) -> Any:
    slot = at.spec.slots[key]
    special = _SPECIAL.get((at.spec.name, key)) or _SPECIAL.get((family_name(at.spec), key))
    if special is not None:
        return special(moments, at)
    if slot.role == "step":
        return moments.steps
    if slot.role in SQUARES and slot.primary and moments.square is not None:
        return _square(moments.square, moments, at, key)
    if slot.role == "max_second_moment" and moments.square is not None:
        return _maximum(moments, at, primary(at.spec, "second_moment") or key)
    if slot.role == "momentum" and slot.primary and moments.mean is not None:
        return momentum(moments, at, key)
    return _fresh(at, key, template)


def momentum(moments: Moments, at: At, key: str) -> Array:
    """The mean in the convention of a slot.

    Sums, and averages that the optimizer corrects by 1-β^t, are as full as they are after so many steps; an average that
    nobody corrects holds the mean itself.
    """
    value: Array = moments.mean
    if of_updates(at.spec, key):
        value = value / larger(root(at, moments.square), 1e-38)
    full = convention(at.spec, key, at.hyperparameters) == "ema" or at.spec.slots[key].averages
    return value * (gain(at, key) * (1.0 if full else filled(decay(at, key), moments.steps)))


def _square(square: Array, moments: Moments, at: At, key: str) -> Array:
    """The second moment as a slot holds it; full where nobody corrects it."""
    slot, kind = at.spec.slots[key], square_of(at.spec, key)
    if kind == "maximum":
        return square**0.5 + at.option("eps")
    if kind == "sum":
        return square * (moments.steps or 1.0) + at.option("initial_accumulator_value")
    if kind == "variance" and moments.mean is not None:
        square = _variance(square, moments.mean, at)
    full = filled(decay(at, key), moments.steps) if is_debiased(slot, at.hyperparameters) else 1.0
    return _reduced(square, slot.shape) * (full * unit(at)[1])


def _maximum(moments: Moments, at: At, key: str) -> Array:
    """The largest second moment so far: the one that there is, where nobody kept it."""
    if moments.largest is None:
        return 1.0 * at.slots[key]
    return larger(_square(moments.largest, moments, at, key), at.slots[key])


def _variance(square: Array, mean: Array, at: At) -> Array:
    """v̂ - m̂², which is nothing where all gradients were alike: there β1²·m̂², what one gradient leaves in a fresh state.

    Source: AdaBelief, arXiv:2010.07468.
    """
    seen = at.option("betas[0]") * mean
    return larger(square - mean * mean, seen * seen)


def _reduced(square: Array, shape: str) -> Array:
    if not shape.endswith(("row", "column")):
        return square
    axis = -1 if shape.endswith("row") else -2
    mean = square.mean(axis)
    return mean if shape.startswith("squeezed") else mean[..., None] if axis == -1 else mean[..., None, :]


def _fresh(at: At, key: str, template: Array) -> Any:
    """What the optimizer would create; None where it would create nothing, or not yet."""
    slot, start = at.spec.slots[key], fresh(at.spec, key, at.hyperparameters)
    if isinstance(start, Copy):
        return None if at.parameter is None else 1.0 * at.parameter
    if not isinstance(start, Fill) or slot.reset == "delete":
        return None
    if slot.shape == "scalar":
        return start.value
    return 0.0 * _reduced(where(template != template, 0.0, template), slot.shape) + start.value  # noqa: PLR0124


# --- what only one family keeps -------------------------------------------------------------------------------


def _mu_product(moments: Moments, at: At) -> float:
    """Π μ_i over the steps taken, with μ_i = β1·(1 - 0.96^(i·ψ)/2). Source: NAdam as in torch, Dozat 2016."""
    import numpy as np

    beta, steps = float(at.option("betas[0]")), int(moments.steps or 0)
    rate = float(at.option("momentum_decay") or at.option("schedule_decay"))
    product, done = 1.0, 0
    while done < steps and product > 0.0 and done * rate < _FADED:
        block = np.arange(done + 1, min(done + 4096, steps) + 1, dtype=np.float64)
        product *= float(np.prod(beta * (1.0 - 0.5 * 0.96 ** (block * rate))))
        done = int(block[-1])
    return product * beta ** (steps - done)


_FADED = 1000.0
"""From here on 0.96^(i·ψ) is less than the last bit of 1."""


def _squared_updates(moments: Moments, at: At) -> Array | None:
    """Of updates that Adadelta would have made to move weights as far as `lr` of the former optimizer did."""
    if moments.mean is None:
        return 0.0 * moments.square if moments.square is not None else None
    step = at.option(FORMER_LR) / (at.option("lr") or 1.0) * moments.mean / larger(root(at, moments.square), 1e-38)
    return step * step


def _update_average(moments: Moments, at: At) -> Array | None:
    """An average of updates, the learning rate in it where `gain` says so; zero where no mean is known."""
    if moments.mean is None:
        return 0.0 * moments.square if moments.square is not None else None
    return momentum(moments, at, "exp_avg")


def _ones(shape: str) -> Callable[[Moments, At], Array | None]:
    """As much instability as an update has length: no update is made larger for being steady. Source: CAME, arXiv:2307.02047."""

    def rule(moments: Moments, _: At) -> Array | None:
        return None if moments.square is None else 0.0 * _reduced(moments.square, shape) + 1.0

    return rule


def _sliced(at: At) -> Array | None:
    return None if at.parameter is None else at.parameter.reshape(-1)[:: int(at.option("slice_p", 1.0))]


def _start(_: Moments, at: At) -> Array | None:
    """Of every `slice_p`-th weight; 0 without dimensions where all weights are 0."""
    weights: Array = at.parameter
    if weights is None:
        return None
    return _sliced(at) if bool((weights != 0).any()) else 0.0 * weights.sum()


def _no_distance(_: Moments, at: At) -> Array | None:
    sliced = _sliced(at)
    return None if sliced is None else 0.0 * sliced


def _norm(moments: Moments, _: At) -> Array:
    template = moments.mean if moments.mean is not None else moments.square
    return library(template).zeros(1)


def _previous(sign: float) -> Callable[[Moments, At], Array | None]:
    """The mean for the gradient before: differences from it are no larger than those between gradients."""
    return lambda moments, _: None if moments.mean is None else sign * moments.mean


_SPECIAL: Mapping[tuple[str, str], Callable[[Moments, At], Any]] = {
    # By class where siblings differ, otherwise by family.
    ("nadam", "mu_product"): _mu_product,
    ("nadam", "m_schedule"): _mu_product,
    ("adadelta", "acc_delta"): _squared_updates,
    ("lr_adafactor", "exp_avg"): _update_average,
    ("came", "exp_avg"): _update_average,
    ("came", "exp_avg_res_row"): _ones("squeezed row"),
    ("came", "exp_avg_res_col"): _ones("squeezed column"),
    ("lamb", "unorm_vec"): _norm,
    ("adan_pytorch.adan.Adan", "prev_grad"): _previous(1.0),
    ("pytorch_optimizer.optimizer.adan.Adan", "previous_grad"): _previous(-1.0),
    ("prodigyopt.prodigy.Prodigy", "s"): _no_distance,
    ("prodigyopt.prodigy.Prodigy", "p0"): _start,
    ("muon", "use_muon"): lambda *_: True,
    ("adam", "use_muon"): lambda *_: False,
}


def counted_by_group(moments_steps: float | None, at: At) -> dict[str, float]:
    """What the group counts, after so many steps."""
    keys = [at.spec.group_step] if at.spec.group_step is not None else []
    keys += ["k"] if "k" in at.spec.group_state else []
    return {key: (moments_steps or 0.0) + COUNTED_FROM.get(at.spec.name, 0) for key in keys}

"""Rules of optimizers that only other libraries have; see `rules`.

None is here of those whose update needs more than the parameter's own slots, or was not held against the class: there
the size of the next update is unknown.
"""

from __future__ import annotations

from optstate.optimizers.arrays import Array, larger, norm, smaller, where
from optstate.optimizers.at import At
from optstate.optimizers.conventions import primary
from optstate.optimizers.rules import Rule, adam_direction, adam_seen, mean_and_square, rectified, sum_seen, velocity


def _adabelief(at: At) -> Array:
    """The second moment is of the gradient's distance from its mean, and eps enters it with every step."""
    mean, square = mean_and_square(at)
    eps, decay = at.option("eps"), at.decay(mean)
    distance = at.gradient - (decay * at.slot(mean) + (1.0 - decay) * at.gradient)
    decay = at.decay(square)
    variance = decay * at.slot(square) + (1.0 - decay) * distance * distance + eps
    if at.flag("rectify"):
        scale = rectified(at, square, variance**0.5 + eps)
    else:
        largest, correction = primary(at.spec, "max_second_moment"), (1.0 - decay**at.t) ** 0.5
        if largest is not None and at.flag(at.spec.slots[largest].when or ""):
            variance = larger(variance, at.slot(largest))
        scale = correction / (variance**0.5 + eps * correction)
    return -at.option("lr") * at.averaged(mean, at.gradient) * scale


def _adan(at: At) -> Array:
    """The mean and the mean of differences, over the root of a second moment of both; previous gradients are stored negated."""
    mean, square = mean_and_square(at)
    negated = at.slot(primary(at.spec, "previous_gradient") or "")
    difference = 0.0 * at.gradient if negated is None else at.gradient + negated
    weight = at.option("betas[1]")
    moved = at.averaged(mean, at.gradient) + weight * at.averaged("exp_avg_diff", difference)
    ahead = at.gradient + weight * difference
    return -at.option("lr") * moved / (at.averaged(square, ahead * ahead) ** 0.5 + at.option("eps"))


def _prodigy(at: At) -> Array | None:
    """With the step size estimate of the last step, which this one may still raise."""
    if at.flag("bias_correction"):  # of pytorch_optimizer, by the count of the step before
        return None
    mean, square = mean_and_square(at)
    size = at.option("d")
    scaled = size * at.gradient
    rate = size * at.option("lr")
    return -rate * at.averaged(mean, scaled) / (at.averaged(square, scaled * scaled) ** 0.5 + size * at.option("eps"))


def _nadamw(at: At) -> Array:
    """The mean takes the gradient in twice."""
    mean, square = mean_and_square(at)
    decay, correction = at.decay(mean), 1.0 - at.decay(mean) ** at.t
    ahead = decay * at.averaged(mean, at.gradient) + (1.0 - decay) * at.gradient / correction
    return -at.option("lr") * ahead / (at.averaged(square, at.gradient * at.gradient) ** 0.5 + at.option("eps"))


def _rmsprop_tf(at: At) -> Array:
    """As RMSprop with eps under the root; the learning rate enters the momentum with `lr_in_momentum`."""
    variance = at.averaged("square_avg", at.gradient * at.gradient)
    if at.flag("centered"):
        mean = at.averaged("grad_avg", at.gradient)
        variance = variance - mean * mean
    step = at.gradient / (variance + at.option("eps")) ** 0.5
    if at.flag("lr_in_momentum"):
        return -velocity(at, at.option("lr") * step)
    return -at.option("lr") * velocity(at, step)


def _rmsprop_tf_seen(at: At) -> Array | None:
    square = at.slots.get("square_avg")
    if square is None:
        return None
    direction = at.slots.get("grad_avg", at.slots.get("momentum_buffer"))
    return square**0.5 if direction is None else where(direction < 0, -1.0, 1.0) * square**0.5


def _ademamix(at: At) -> Array | None:
    """With the slow average at its full weight; while that is warmed up, the rule does not hold."""
    if at.hyperparameters.get("t_alpha_beta3"):
        return None
    mean, square = mean_and_square(at)
    moved = at.averaged(mean, at.gradient) + at.option("alpha") * at.averaged("exp_avg_slow", at.gradient)
    return -at.option("lr") * moved / (at.averaged(square, at.gradient * at.gradient) ** 0.5 + at.option("eps"))


# --- scaled to the weights ------------------------------------------------------------------------------------


def _lamb(at: At) -> Array | None:
    """Of the gradient after the clipping that LAMB does to all of them together."""
    if at.parameter is None:
        return None
    update = adam_direction(at) + at.option("weight_decay") * at.parameter
    if not (at.option("weight_decay") or at.flag("always_adapt")):
        return -at.option("lr") * update
    trust = _ratio(norm(at.parameter), norm(update))
    return -at.option("lr") * (smaller(trust, 1.0) if at.flag("trust_clip") else trust) * update


def _lars(at: At) -> Array | None:
    if at.parameter is None:
        return None
    gradient, decay = at.gradient, at.option("weight_decay")
    if decay or at.flag("always_adapt"):
        weights, size = norm(at.parameter), norm(gradient)
        trust = where(
            size > 0, _ratio(at.option("trust_coeff") * weights, size + weights * decay + at.option("eps")), 1.0
        )
        trust = smaller(trust / at.option("lr"), 1.0) if at.flag("trust_clip") else trust
        gradient = (gradient + decay * at.parameter) * trust
    return -at.option("lr") * velocity(at, gradient)


def _ratio(weights: Array, size: Array) -> Array:
    """Weights over size; 1 where either is zero."""
    whole = (weights > 0) & (size > 0)
    return where(whole, weights / where(whole, size, 1.0), 1.0)


OTHER_RULES = {
    "adabelief": Rule(_adabelief, lambda at: at.slots.get(mean_and_square(at)[0])),
    "adan": Rule(_adan, adam_seen),
    "ademamix": Rule(_ademamix, adam_seen),
    "lamb": Rule(_lamb, adam_seen, elementwise=False),
    "lars": Rule(_lars, sum_seen, elementwise=False),
    "nadamw": Rule(_nadamw, adam_seen),
    "prodigy": Rule(_prodigy, lambda at: _unscaled(at, adam_seen(at))),
    "rmsprop_tf": Rule(_rmsprop_tf, _rmsprop_tf_seen),
}


def _unscaled(at: At, seen: Array | None) -> Array | None:
    return None if seen is None else seen / at.option("d")

"""How each family of optimizers makes its next update from its slots, and what gradient its slots tell of.

Source of each rule: the optimizer's own code, without weight decay; `tests/test_updates.py` holds each against a step of
the real class. A sign is the optimizer's: what `maximize` does to the gradient is done before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from optstate.optimizers.arrays import Array, larger, library, norm, sign, smaller, where
from optstate.optimizers.at import At
from optstate.optimizers.conventions import primary


@dataclass(frozen=True, slots=True)
class Rule:
    """One family: the change of the parameter in the step to come, and the gradient that the slots have been seeing.

    `elementwise` says that each element's update depends on that element alone.
    """

    delta: Callable[[At], Array | None]
    seen: Callable[[At], Array | None]
    elementwise: bool = True


# --- sums and averages of the gradient -----------------------------------------------------------------------


def velocity(at: At, entering: Array) -> Array:
    """What a momentum buffer that sums, dampens and may look ahead makes of what enters it."""
    key = primary(at.spec, "momentum")
    decay = 0.0 if key is None else at.decay(key)
    if key is None or not decay:
        return entering
    buffer = at.slot(key)
    after = entering if buffer is None else decay * buffer + (1.0 - at.option("dampening")) * entering
    return entering + decay * after if at.flag("nesterov") else after


def _sgd(at: At) -> Array:
    return -at.option("lr") * velocity(at, at.gradient)


def sum_seen(at: At) -> Array | None:
    """A sum of a constant gradient g tends to g(1-d)/(1-β)."""
    key = primary(at.spec, "momentum")
    if key is None or key not in at.slots:
        return None
    return (1.0 - at.decay(key)) / (1.0 - at.option("dampening")) * at.slots[key]


def _lion(at: At) -> Array:
    weight = at.option("betas[0]")
    return -at.option("lr") * sign(weight * at.role("momentum") + (1.0 - weight) * at.gradient)


def _average_seen(at: At) -> Array | None:
    return at.slots.get(primary(at.spec, "momentum") or "")


def _muon(at: At) -> Array | None:
    """Newton and Schulz's iteration in the arrays' own type; torch iterates in bfloat16, which differs by a percent."""
    decay = at.option("momentum")
    after = decay * at.role("momentum") + (1.0 - decay) * at.gradient
    mixed = (1.0 - decay) * at.gradient + decay * after if at.flag("nesterov") else after
    rows, columns = mixed.shape
    direction = mixed.T if rows > columns else mixed
    direction = direction / larger(norm(direction), at.option("eps"))
    a, b, c = at.hyperparameters["ns_coefficients"]
    for _ in range(at.hyperparameters["ns_steps"]):
        gram = direction @ direction.T
        direction = a * direction + (b * gram + c * gram @ gram) @ direction
    ratio = {"match_rms_adamw": 0.2 * sqrt(max(rows, columns))}.get(
        at.hyperparameters.get("adjust_lr_fn") or "", sqrt(max(1.0, rows / columns))
    )
    return -at.option("lr") * ratio * (direction.T if rows > columns else direction)


# --- Adam and its kin ----------------------------------------------------------------------------------------


def mean_and_square(at: At) -> tuple[str, str]:
    """The keys of the first and of the second moment."""
    return primary(at.spec, "momentum") or "", primary(at.spec, "second_moment") or ""


def _mean_square(at: At) -> Array:
    """The corrected second moment after the step; the running maximum of it with `amsgrad`."""
    _, key = mean_and_square(at)
    largest = primary(at.spec, "max_second_moment")
    if largest is None or not at.flag(at.spec.slots[largest].when or ""):
        return at.averaged(key, at.gradient * at.gradient)
    decay = at.decay(key)
    after = decay * at.slot(key) + (1.0 - decay) * at.gradient * at.gradient
    return larger(after, at.slot(largest)) / _correction(at, key)


def _correction(at: At, key: str) -> Array:
    return 1.0 - at.decay(key) ** at.t


def adam_direction(at: At) -> Array:
    """Adam's update for a learning rate of -1."""
    mean, _ = mean_and_square(at)
    return at.averaged(mean, at.gradient) / (_mean_square(at) ** 0.5 + at.option("eps"))


def _adam(at: At) -> Array:
    return -at.option("lr") * adam_direction(at)


def _sparse_adam(at: At) -> Array:
    """As Adam where the gradient has an entry, but eps joins the uncorrected root."""
    mean, square = mean_and_square(at)
    correction = _correction(at, square) ** 0.5
    return -at.option("lr") * at.averaged(mean, at.gradient) / (_mean_square(at) ** 0.5 + at.option("eps") / correction)


def adam_seen(at: At) -> Array | None:
    """The sign of the mean with the size of the corrected root mean square."""
    mean, square = mean_and_square(at)
    if square not in at.slots:
        return None
    decay, steps = at.decay(square), at.t - 1.0
    size = (at.slots[square] / where(steps > 0, 1.0 - decay**steps, 1.0)) ** 0.5
    return _signed(size, at.slots.get(mean))


def _signed(size: Array, direction: Array | None) -> Array:
    return size if direction is None else where(direction < 0, -size, size)


def _nadam(at: At) -> Array:
    mean, square = mean_and_square(at)
    decay, t = at.decay(mean), at.t

    def weight(step: Array) -> Array:
        """Of the mean, which grows with the steps."""
        return decay * (1.0 - 0.5 * 0.96 ** (step * at.option("momentum_decay")))

    product = at.slot("mu_product") * weight(t)
    after = decay * at.slot(mean) + (1.0 - decay) * at.gradient
    new = (1.0 - weight(t)) / (1.0 - product) * at.gradient
    old = weight(t + 1.0) / (1.0 - product * weight(t + 1.0)) * after
    return -at.option("lr") * (new + old) / (at.averaged(square, at.gradient * at.gradient) ** 0.5 + at.option("eps"))


def _radam(at: At) -> Array:
    mean, square = mean_and_square(at)
    root = (at.averaged(square, at.gradient * at.gradient) * _correction(at, square)) ** 0.5
    return -at.option("lr") * at.averaged(mean, at.gradient) * rectified(at, square, root + at.option("eps"))


def rectified(at: At, square: str, root: Array) -> Array:
    """What RAdam multiplies the mean by: nothing while there are too few steps to know a variance from."""
    decay, t, correction = at.decay(square), at.t, _correction(at, square)
    longest = 2.0 / (1.0 - decay) - 1.0
    if not longest > 5.0:
        return 1.0
    length = longest - 2.0 * t * decay**t / correction
    rectifier = abs((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)) ** 0.5
    return where(length > 5.0, rectifier * correction**0.5 / root, 1.0)


def _adamax(at: At) -> Array:
    mean, _ = mean_and_square(at)
    largest = larger(abs(at.gradient) + at.option("eps"), at.option("betas[1]") * at.slot("exp_inf"))
    return -at.option("lr") * at.averaged(mean, at.gradient) / largest


def _adamax_seen(at: At) -> Array | None:
    size = at.slots.get("exp_inf")
    return None if size is None else _signed(size, at.slots.get("exp_avg"))


# --- others of torch -----------------------------------------------------------------------------------------


def _adagrad(at: At) -> Array:
    _, key = mean_and_square(at)
    rate = at.option("lr") / (1.0 + (at.t - 1.0) * at.option("lr_decay"))
    return -rate * at.gradient / ((at.slot(key) + at.gradient * at.gradient) ** 0.5 + at.option("eps"))


def _adagrad_seen(at: At) -> Array | None:
    _, key = mean_and_square(at)
    total = at.slots.get(key)
    return None if total is None else (total / larger(at.t - 1.0, 1.0)) ** 0.5


def _adadelta(at: At) -> Array:
    eps = at.option("eps")
    square = at.averaged("square_avg", at.gradient * at.gradient)
    return -at.option("lr") * ((at.slot("acc_delta") + eps) / (square + eps)) ** 0.5 * at.gradient


def _rmsprop(at: At) -> Array:
    _, square = mean_and_square(at)
    variance = at.averaged(square, at.gradient * at.gradient)
    if at.flag("centered"):
        mean = at.averaged("grad_avg", at.gradient)
        variance = variance - mean * mean
    return -at.option("lr") * velocity(at, at.gradient / (variance**0.5 + at.option("eps")))


def _rmsprop_seen(at: At) -> Array | None:
    size = adam_seen(at)
    return None if size is None else _signed(abs(size), at.slots.get("grad_avg", at.slots.get("momentum_buffer")))


def _rprop(at: At) -> Array:
    shrink, grow = at.hyperparameters["etas"]
    smallest, largest = at.hyperparameters["step_sizes"]
    agrees = at.gradient * at.slot("prev")
    size = where(agrees > 0, grow, where(agrees < 0, shrink, 1.0 + 0.0 * agrees)) * at.slot("step_size")
    size = where(size < smallest, smallest, where(size > largest, largest, size))
    return -where(agrees < 0, 0.0, sign(at.gradient)) * size


def _asgd(at: At) -> Array:
    pull = 0.0 if at.parameter is None else at.option("lambd") * at.parameter
    eta: Array = at.slot("eta")
    return -eta * (at.gradient + pull)


def _adafactor(at: At) -> Array | None:
    if at.parameter is None:
        return None
    weight = at.t ** at.option("beta2_decay")
    tiny, floor = at.hyperparameters["eps"]
    tiny = library(at.parameter).finfo(at.parameter.dtype).eps if tiny is None else tiny
    square = at.gradient * at.gradient
    if at.gradient.ndim > 1:
        row = _towards(at.slot("row_var"), square.mean(-1)[..., None], weight)
        column = _towards(at.slot("col_var"), square.mean(-2)[..., None, :], weight)
        variance = row @ column / larger(row.mean(-2)[..., None, :], tiny)
    else:
        variance = _towards(at.slot("variance"), square, weight)
    update = at.gradient / larger(variance, tiny * tiny) ** 0.5
    rate = smaller(at.option("lr"), 1.0 / at.t**0.5)
    rate = rate * larger(_rms(at.parameter), floor)
    return -rate / larger(_rms(update) / at.option("d", 1.0), 1.0) * update


def _towards(old: Array, new: Array, weight: Array) -> Array:
    return old + weight * (new - old)


def _rms(array: Array) -> Array:
    return (array * array).mean() ** 0.5


def _adafactor_seen(at: At) -> Array | None:
    if "row_var" in at.slots:
        row, column = at.slots["row_var"], at.slots["col_var"]
        mean = row.mean(-2)[..., None, :]
        return (row @ column / where(mean > 0, mean, 1.0)) ** 0.5
    variance = at.slots.get("variance")
    return None if variance is None else variance**0.5


TORCH_RULES = {
    "sgd": Rule(_sgd, sum_seen),
    "lion": Rule(_lion, _average_seen),
    "muon": Rule(_muon, _average_seen, elementwise=False),
    "adam": Rule(_adam, adam_seen),
    "sparse_adam": Rule(_sparse_adam, adam_seen),
    "nadam": Rule(_nadam, adam_seen),
    "radam": Rule(_radam, adam_seen),
    "adamax": Rule(_adamax, _adamax_seen),
    "adagrad": Rule(_adagrad, _adagrad_seen),
    "adadelta": Rule(_adadelta, adam_seen),
    "rmsprop": Rule(_rmsprop, _rmsprop_seen),
    "rprop": Rule(_rprop, lambda at: at.slots.get("prev")),
    "asgd": Rule(_asgd, lambda _: None),
    "adafactor": Rule(_adafactor, _adafactor_seen, elementwise=False),
}
"""The rules of torch's own classes, and of those in other libraries that update alike."""

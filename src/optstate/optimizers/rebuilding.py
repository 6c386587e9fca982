"""Moments that were measured, as the slots of an optimizer; and which optimizers can be served so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from optstate.optimizers.arrays import Array
from optstate.optimizers.at import At
from optstate.optimizers.conventions import primary
from optstate.optimizers.conversion import shared
from optstate.optimizers.conversion_families import family_name, is_undecided
from optstate.optimizers.conversion_moments import (
    Moments,
    convention,
    decay,
    filled,
    gain,
    mean_keys,
    of_updates,
    rate,
    read,
    root,
)
from optstate.optimizers.conversion_pair import Pair, existing, pair_of, writes_mean
from optstate.optimizers.conversion_slots import FORMER_LR, completed, written
from optstate.optimizers.kinds import ADAM
from optstate.optimizers.spec import OptimizerSpec
from optstate.text import safe_text

_MEASURED = OptimizerSpec(name="gradients, measured", slots=ADAM, update="adam", decoupled=True)
"""What was measured is what Adam would have kept, had its averages no end: so every way from Adam leads on from here."""

_OWN_ESTIMATES = ("d", "d_max")
"""What the live group goes on with: estimates of its own that gradients at one point do not tell."""


def obstacle(spec: OptimizerSpec | None, hyperparameters: Mapping[str, Any]) -> str | None:
    """Why measured gradients do not tell the state of a group with these hyperparameters; None where they do.

    >>> from optstate.optimizers.registry import by_name
    >>> obstacle(by_name("torch.optim.lbfgs.LBFGS"), {"lr": 1.0})
    'LBFGS keeps a history of differences over all parameters, which no moments tell and which tells none'
    """
    if spec is None:
        return "it is not in the registry, so what it keeps is not known: optstate.register describes it"
    if spec.stored_as is not None:
        return f"it keeps its moments in codes ({spec.stored_as}): rebuild the plain class, save, and restore into this one"
    pair = _pair(spec, hyperparameters)
    if pair.reason is None and not existing(pair.after):
        return "it keeps nothing under these hyperparameters: there is nothing to rebuild"
    return pair.reason


def needs_square(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether the optimizer keeps a second moment, so that squares have to be measured."""
    return _pair(spec, hyperparameters).needs_square


def common(spec: OptimizerSpec, hyperparameters: Mapping[str, Any], steps: float) -> dict[str, float]:
    """What the group itself is to hold, of an optimizer that counts or weighs for all its parameters at once."""
    found = shared(_MEASURED, spec, [({"step": steps}, _before(hyperparameters))], hyperparameters)
    return {key: value for key, value in found.items() if key not in _OWN_ESTIMATES}


def rebuilt(
    spec: OptimizerSpec,
    moments: Moments,
    hyperparameters: Mapping[str, Any],
    parameter: Array | None,
    group: Mapping[str, float],
) -> dict[str, Any]:
    """The slots with which the optimizer's own estimates are these moments, after as many steps as they say.

    Sums, and averages that nobody corrects, hold as much as they would after so many steps; all of it where `steps` is None.

    Arrays are float32 or wider, complex ones pairs of reals; counts are floats. `moments` need a mean, and a square where
    `needs_square`; `parameter` are the weights, of which some optimizers keep a copy; `group` is what `common` said.

    >>> import numpy as np
    >>> from optstate.optimizers.registry import by_name
    >>> sgd = by_name("torch.optim.sgd.SGD")
    >>> rebuilt(sgd, Moments(2.0, np.ones(1), None), {"lr": 0.1, "momentum": 0.5}, None, {})
    {'momentum_buffer': array([1.5])}
    """
    pair = _pair(spec, hyperparameters)
    steps = None if moments.steps is None else min(moments.steps, pair.most_steps)
    target = {**pair.after.hyperparameters, **group, FORMER_LR: 0.0}
    at: At = replace(pair.after, hyperparameters=target, parameter=parameter)
    key = writes_mean(at)
    if key is not None and moments.mean is not None and convention(at.spec, key, target) == "ema":
        moments = replace(moments, mean=moments.mean * filled(decay(at, key), steps))  # nobody corrects it
    return written(completed(moments, steps, needs_square=pair.needs_square), at)


def known(spec: OptimizerSpec, slots: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> Moments:
    """The moments that slots tell, float32 or wider; nothing where there are none."""
    return read(replace(_pair(spec, hyperparameters).after, slots=slots)) if slots else Moments(None, None, None)


def direction(spec: OptimizerSpec, slots: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> Direction | None:
    """The momentum in units of the gradient, where slots tell one; float32 or wider."""
    if not slots or is_undecided(spec):
        return None
    at = replace(_pair(spec, hyperparameters).after, slots=slots)
    keys = [key for key in mean_keys(at.spec, at.hyperparameters, slots) if at.spec.slots[key].primary]
    if not keys:
        return None
    key = keys[0]
    moments = read(at)
    if of_updates(at.spec, key):
        return None if moments.mean is None else Direction(moments.mean, 1.0, decay(at, key), moments.square)
    factor: Array = read(replace(at, slots={**slots, key: 1.0})).mean
    return Direction(slots[key], float(factor), decay(at, key), moments.square)


class Direction(NamedTuple):
    """`value` times `factor` is the mean of the gradients; `decay` is its β, `square` the mean of their squares or None."""

    value: Array
    factor: float
    decay: float
    square: Array | None


def mean_behind(
    spec: OptimizerSpec, hyperparameters: Mapping[str, Any], direction: Array, square: Array | None
) -> Array | str:
    """The mean of the gradients that moved weights this way; why it cannot be told.

    `direction` is by how much a learning rate of 1 lowers each weight in a step, weight decay beside the gradients left out.

    Source: SGD lowers by b, which holds the mean 1/(1-β) times, and Adam by m̂/(√v̂+ε), so that m̂ is known where v̂ is.
    """
    at, name = _pair(spec, hyperparameters).after, spec.name.rpartition(".")[2]
    key = primary(at.spec, "momentum")
    if family_name(at.spec) == "sgd" and key is not None:
        inside = convention(at.spec, key, at.hyperparameters) == "lr_in_buffer"
        return direction / (gain(at, key) / (rate(at) if inside else 1.0))
    if family_name(at.spec) not in ("adam", "nadam", "radam"):
        return f"from weights alone the momentum of {safe_text(name)} cannot be told: pass a closure instead"
    if square is None:
        return f"{safe_text(name)} divides by its second moment, so weights tell its momentum up to a scale only: pass a closure too"
    return direction * root(at, square)


def _pair(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> Pair:
    return pair_of(_MEASURED, spec, _before(hyperparameters), hyperparameters)


def _before(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": 0.0, "betas": (0.9, 1.0 - 1e-9), "eps": 0.0, "maximize": bool(hyperparameters.get("maximize"))}

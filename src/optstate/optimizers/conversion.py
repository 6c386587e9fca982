"""How the state of one optimizer class becomes that of another: whether it can, what is lost, and the slots themselves.

Every class is read into the same coordinates (the mean of the gradients, the mean of their squares, how many they were) and
written from them, so that a row of the registry is enough and n classes need no n² rules. Where both keep a statistic in the
same form, its bits are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optstate.errors import RegistryError
from optstate.optimizers.arrays import Array
from optstate.optimizers.at import At
from optstate.optimizers.conventions import primary
from optstate.optimizers.conversion_families import ZEROED, family, family_name
from optstate.optimizers.conversion_losses import bound, losses, note
from optstate.optimizers.conversion_moments import convention, counted, decay, read
from optstate.optimizers.conversion_pair import Pair, existing, pair_of
from optstate.optimizers.conversion_slots import FORMER_LR, completed, counted_by_group, written
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.optimizers.updates import next_update


@dataclass(frozen=True, slots=True)
class Route:
    """How the state of one optimizer class becomes that of another.

    exact
        The other class gets the very statistics that it would have kept itself: nothing is lost.
    lost
        What is lost or approximated, short sentences; empty where exact.
    note
        One line for a plan.
    bound
        None of the next 50 updates is more than so many times as large as the largest that a fresh start, the former optimizer
        or one of the other class with the same past would make in these steps, each in units of its learning rate. Where the
        conversion is exact, they are the last one's.
    """

    exact: bool
    lost: tuple[str, ...]
    note: str
    bound: float = 1.0


def route(
    before: OptimizerSpec,
    after: OptimizerSpec,
    hyperparameters_before: Mapping[str, Any],
    hyperparameters_after: Mapping[str, Any],
) -> Route | str:
    """The way from one class to another under the hyperparameters of the saved and of the live group; why there is none.

    The classes may be one and the same: then it is a way between two settings of flags such as `amsgrad`. Learning rates
    are never converted; see `matching_lr`.

    Source: closed forms of each optimizer's averages, held against the classes in `tests/test_conversions.py`.

    >>> from optstate.optimizers.registry import by_name
    >>> sgd, muon = by_name("torch.optim.sgd.SGD"), by_name("torch.optim.Muon")
    >>> found = route(sgd, muon, {"momentum": 0.9}, {"momentum": 0.9})
    >>> found.exact, found.note
    (True, 'momentum: momentum_buffer → momentum_buffer')
    """
    pair = pair_of(before, after, hyperparameters_before, hyperparameters_after)
    reason = pair.reason
    if reason is not None:
        return reason
    lost = losses(pair)
    return Route(not lost, lost, note(pair), bound(pair) if lost else 1.0)


def converted(
    before: OptimizerSpec,
    after: OptimizerSpec,
    slots: Mapping[str, Array | float],
    hyperparameters_before: Mapping[str, Any],
    hyperparameters_after: Mapping[str, Any],
    parameter: Array | None,
    group: Mapping[str, float] | None = None,
) -> dict[str, Array | float]:
    """The slots that the other optimizer keeps for this parameter, from those that the first one kept.

    Arrays are numpy's or torch's, float32 or wider, and complex ones pairs of reals; none is changed, and one whose
    statistic both optimizers keep in the same form is returned itself. Counts come as floats: the caller gives every slot the
    type that `after` stores. `parameter` holds the weights, of which some optimizers keep a copy. `group` is what
    `shared` says for all parameters of the live group; without it, this parameter is taken to be its only one. A state that
    has not stepped yet becomes {}: a fresh start.

    Raises `RegistryError` where `route` finds no way.

    >>> import numpy as np
    >>> from optstate.optimizers.registry import by_name
    >>> adam, sgd = by_name("torch.optim.adam.Adam"), by_name("torch.optim.sgd.SGD")
    >>> state = {"step": 2000.0, "exp_avg": np.full(1, 2.0), "exp_avg_sq": np.full(1, 4.0)}
    >>> converted(adam, sgd, state, {"betas": (0.9, 0.99), "eps": 1e-8}, {"momentum": 0.75}, None)
    {'momentum_buffer': array([8.])}
    """
    pair = pair_of(before, after, hyperparameters_before, hyperparameters_after)
    reason = pair.reason
    if reason is not None:
        raise RegistryError(reason, todo="start it fresh")
    former = replace(pair.before, slots=slots, parameter=parameter)
    if not slots or counted(former) == 0:
        return {}
    if pair.is_same:
        return dict(slots)
    if group is None:
        group = shared(before, after, [(slots, hyperparameters_before)], hyperparameters_after)
    target, steps = _target(pair, group), pair.steps(former)
    told = counted(target)
    moments = completed(read(former), steps if told is None else told, needs_square=pair.needs_square)
    known = _kept(pair, slots, same_count=counted(former) == moments.steps)
    return written(moments, replace(target, slots=known, parameter=parameter))


def shared(
    before: OptimizerSpec,
    after: OptimizerSpec,
    entries: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    hyperparameters_after: Mapping[str, Any],
) -> dict[str, float]:
    """What the live group itself must hold, of an optimizer that counts or estimates for all parameters of a group at once.

    `entries` are the saved slots of each parameter of the live group, of which only the count is read, with the hyperparameters
    of its saved group. Of several values the least is taken: a young count corrects every average for fewer steps, with
    which new gradients weigh more and no update grows, and a small estimate takes small steps. An empty entry is a parameter
    that starts fresh, and counts as one step. {} where the group holds nothing of the kind.

    >>> from optstate.optimizers.registry import by_name
    >>> adam, fused = by_name("torch.optim.adam.Adam"), by_name("apex.optimizers.fused_adam.FusedAdam")
    >>> group = {"betas": (0.9, 0.99), "lr": 0.1, "eps": 1e-8}
    >>> shared(adam, fused, [({"step": 500.0}, group), ({"step": 20.0}, group)], {**group, "step": 0})
    {'step': 20.0}
    """
    found = [_shared_by_one(before, after, *entry, hyperparameters_after) for entry in entries]
    return {key: min(each[key] for each in found) for key in (found[0] if found else ())}


def matching_lr(
    before: OptimizerSpec,
    after: OptimizerSpec,
    entries: Iterable[tuple[Mapping[str, Array | float], Mapping[str, Array | float], Array | None]],
    hyperparameters_before: Mapping[str, Any],
    hyperparameters_after: Mapping[str, Any],
) -> float | None:
    """The learning rate with which the other optimizer's steps are as long as the former one's, as the root mean square.

    Advice for a plan to print: learning rates mean another thing in each family, and are never converted. `entries` are the
    slots of each parameter as saved, as converted, and its weights. It is for gradients that go on as their mean tells.
    None where either update is not known, or nothing moves.

    >>> import numpy as np
    >>> from optstate.optimizers.registry import by_name
    >>> adam, sgd = by_name("torch.optim.adam.Adam"), by_name("torch.optim.sgd.SGD")
    >>> state = {"step": 2000.0, "exp_avg": np.full(1, 2.0), "exp_avg_sq": np.full(1, 4.0)}
    >>> advice = matching_lr(adam, sgd, [(state, {"momentum_buffer": np.full(1, 20.0)}, None)],
    ...                      {"lr": 1.0, "betas": (0.9, 0.99), "eps": 0.0}, {"lr": 0.1, "momentum": 0.9})
    >>> round(advice, 6)
    0.05
    """
    pair = pair_of(before, after, hyperparameters_before, hyperparameters_after)
    if pair.reason is not None:
        return None
    total_before = total_after = 0.0
    for slots, new, parameter in entries:
        lengths = _lengths(pair, slots, new, parameter)
        if lengths is None:
            return None
        total_before, total_after = total_before + lengths[0], total_after + lengths[1]
    return (total_before / total_after) ** 0.5 if total_before > 0.0 and total_after > 0.0 else None


def table() -> Iterator[tuple[str, str, str, str]]:
    """Every ordered pair of torch's classes under their usual options: from, to, `exact`, `approximate` or `none`, and what
    is lost or why there is no way.

    >>> next(row for row in table() if row[:2] == ("Adam", "AdamW"))
    ('Adam', 'AdamW', 'exact', '')
    """
    from optstate.optimizers.torch_optim import TORCH_OPTIM

    for before in TORCH_OPTIM:
        for after in TORCH_OPTIM:
            if before is not after:
                yield _row(before, after)


USUAL: Mapping[str, Any] = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.9, "dampening": 0.0, "alpha": 0.99, "rho": 0.9,
    "momentum_decay": 4e-3, "beta2_decay": -0.8, "initial_accumulator_value": 0.0, "lr_decay": 0.0,
}  # fmt: skip
"""torch's own defaults, with a momentum where there may be none."""


def _row(before: OptimizerSpec, after: OptimizerSpec) -> tuple[str, str, str, str]:
    found = route(before, after, _usual(before), _usual(after))
    names = (before.name.rpartition(".")[2], after.name.rpartition(".")[2])
    if isinstance(found, str):
        return (*names, "none", found)
    return (*names, "exact" if found.exact else "approximate", "; ".join(found.lost))


def _usual(spec: OptimizerSpec) -> dict[str, Any]:
    own = {"betas": spec.hyperparameters} if "momentum" not in spec.hyperparameters else {}
    usual = {key: value for key, value in USUAL.items() if key in spec.hyperparameters or key not in own}
    flags = {
        slot.when: False for slot in spec.slots.values() if slot.when not in (None, "momentum", "matrix", "vector")
    }
    return {**usual, **{str(key): value for key, value in flags.items()}}


# --- one pair ------------------------------------------------------------------------------------------------


def _target(pair: Pair, common: Mapping[str, float]) -> At:
    """The other optimizer with what its group holds, and the learning rate of the former one where that says how far it goes."""
    rate = float(pair.before.option("lr")) if family(pair.before.spec).normalised else 0.0
    return replace(pair.after, hyperparameters={**pair.after.hyperparameters, **common, FORMER_LR: rate})


def _kept(pair: Pair, slots: Mapping[str, Any], *, same_count: bool) -> dict[str, Any]:
    """The slots that both keep in one form, as they are: of the same count where that enters."""
    found = {key: pair.kept(key, slots, same_count=same_count) for key in existing(pair.after)}
    return {key: slots[name] for key, name in found.items() if name is not None}


def _shared_by_one(
    before: OptimizerSpec,
    after: OptimizerSpec,
    slots: Mapping[str, Any],
    group_before: Mapping[str, Any],
    group_after: Mapping[str, Any],
) -> dict[str, float]:
    pair = pair_of(before, after, group_before, group_after)
    steps = (pair.steps(replace(pair.before, slots=slots)) if slots else None) or 1.0
    values = counted_by_group(steps, pair.after)
    for key in pair.after.spec.group_state:
        value = None if key in values or key not in pair.after.hyperparameters else _estimate(pair, key, steps)
        if value is not None:
            values[key] = value
    return values


def _estimate(pair: Pair, key: str, steps: float) -> float | None:
    """A group's own estimate: what the former class holds if it has the same, or as the learning rate tells it."""
    if family_name(pair.before.spec) == family_name(pair.after.spec) and key in pair.before.hyperparameters:
        return number(pair.before.hyperparameters[key])
    if key in ("d", "d_max"):
        return _step_size(pair)
    if key == "lr_max":
        return float(pair.after.option("lr"))
    return _averaged_weight(pair.after, steps) if key == "weight_sum" else 0.0 if key in ZEROED else None


def _step_size(pair: Pair) -> float:
    """The estimate d with which d·lr is the former learning rate; where that means something else, as in a fresh start."""
    former, new = float(pair.before.option("lr")), float(pair.after.option("lr"))
    least = float(pair.after.option("d0", pair.after.option("d")))
    return max(former / new, least) if family(pair.before.spec).normalised and former > 0 and new > 0 else least


def _averaged_weight(at: At, steps: float) -> float:
    """The weight of the iterates averaged so far: today's weights stand for 1/(1-β1) of them.

    With no weight, the first step would move the average and the point where gradients are taken as far as the iterate
    itself, by a gradient over its root mean square instead of its mean. Source: schedule-free, arXiv:2405.15682.
    """
    each = steps ** float(at.option("r")) * float(at.option("lr")) ** float(at.option("weight_lr_power", 2.0))
    return float(each / (1.0 - float(at.option("betas[0]"))))


def _lengths(
    pair: Pair, slots: Mapping[str, Any], new: Mapping[str, Any], parameter: Array | None
) -> tuple[float, float] | None:
    """The sums of squares of the next update before, and after with a learning rate of 1 once its sums are full."""
    former = replace(pair.before, slots=slots, parameter=parameter)
    moments = read(former)
    if moments.mean is None:
        return None
    old = next_update(former.spec, slots, former.hyperparameters, moments.mean, parameter)
    key, steps = primary(pair.after.spec, "momentum"), moments.steps
    if (
        key is not None
        and key in new
        and str(convention(pair.after.spec, key, pair.after.hyperparameters)) == "accumulate"
        and steps
    ):
        new = {**new, key: new[key] / (1.0 - decay(pair.after, key) ** steps)}
    after = next_update(pair.after.spec, new, {**pair.after.hyperparameters, "lr": 1.0}, moments.mean, parameter)
    return None if old is None or after is None else (float((old * old).sum()), float((after * after).sum()))

"""What a change of hyperparameters asks of the slots: exact factors, by convention.

The facts behind the rules, with b a sum, e an average, u a buffer with the learning rate in it, m̂ and v̂ averages divided by
1-β^t, and F = (1-β)/(1-β') · (1-d')/(1-d) the ratio of the values to which a sum tends:

* The learning rate is in u alone: u·η'/η is what a sum would have made of it.
* A sum tends to g(1-d)/(1-β). Left alone it gets there by itself in about 3/(1-β') steps; b·F is there at once.
* An average tends to g whatever β is, so it needs nothing; but torch divides m and v by 1-β^t with the β of now, so that
  without a factor of (1-β'^t)/(1-β^t) a change of β makes m̂ and v̂ jump. With it they are continuous, all later corrections
  are exact too, and the result does not depend on the path by which β got there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from optstate.optimizers.change import Change, OnChange, differing
from optstate.optimizers.ranges import check
from optstate.optimizers.spec import OptimizerSpec, coefficient_value


@dataclass(frozen=True, slots=True)
class Carry:
    """What to do to the slots of the parameters of one group, and to the group, with a change of hyperparameters.

    `factors`: by how much to multiply a slot, in float64; slots that stay are not named. `hyperparameters`: further values
    to set in the group. `remove`: slots to delete from the state. `notes`: what a user should know, one sentence each.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.factors or self.hyperparameters or self.remove)


def carry(
    spec: OptimizerSpec | None,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    step: float | None,
    on_change: OnChange,
    *,
    new_step: float | None = None,
    lr_coupling: bool = False,
    slots_present: Collection[str],
) -> Carry:
    """What a change of a group's hyperparameters from `before` to `after` asks of the slots of its parameters.

    `step` is the number of updates that a parameter has had, `new_step` another one if that is edited too; parameters
    with other counts need a call of their own. `before` must not be the live group, whose tensors change in place.
    Averages that the optimizer divides by 1-β^t always get the factor that keeps their estimates continuous, and
    an ASGD's stored learning rate follows `lr`. `on_change` decides about sums, and about buffers with the learning
    rate in them. `lr_coupling` makes a sum remember displacements instead of gradients, as the classical velocity
    u = βu - ηg does: a new learning rate then applies to new gradients only (b·η/η').

    `lr` among the hyperparameters is the one asked for divided by F, of this one change; whoever sets `lr` anew from
    a schedule multiplies it by `steady_gain` at the start over `steady_gain` now.

    Raises `CoefficientError` for a value outside its range, for a slot that the new values need and that the optimizer
    makes only when it starts, and for a debiased slot whose step count is unknown.

    Source: steady values and debiasing in closed form; momentum correction for a learning rate in the buffer, Goyal
    et al., arXiv:1706.02677, section 2.

    >>> from optstate.optimizers.registry import by_name
    >>> carry(by_name("torch.optim.sgd.SGD"), {"lr": 0.01, "momentum": 0.75}, {"lr": 0.01, "momentum": 0.5}, None,
    ...       "steady", slots_present=["momentum_buffer"]).factors
    {'momentum_buffer': 0.5}
    """
    moved = differing(before, after)
    for key in moved:
        check(spec, key, coefficient_value(key, after))
    if spec is None:
        return Carry(notes=("nobody described this optimizer: its slots stay as they are",)) if moved else Carry()
    if not moved and new_step is None:
        return Carry()
    change = Change(spec, before, after, moved, step, new_step, on_change, lr_coupling)
    present = [key for key in slots_present if key in spec.slots]
    change.refuse_missing(present)
    if new_step is not None:
        change.refuse_stored(present)
    removed = tuple(key for key in present if change.ends(key))
    factors = {key: change.factor(key) for key in present if key not in removed}
    return Carry(
        factors={key: factor for key, factor in factors.items() if factor != 1.0},
        hyperparameters=change.equivalent(),
        remove=removed,
        notes=tuple(change.notes(present)),
    )

"""What an edit does to the next update: how large it was, will be, and would be from a fresh start."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

from optstate.optimizers.arrays import Array
from optstate.optimizers.spec import OptimizerSpec
from optstate.optimizers.updates import BOUND, fresh_update, next_update, typical_gradient
from optstate.text import safe_text


class Effect(NamedTuple):
    """The largest element of the next update of one parameter: before an edit, after it, and of a fresh optimizer's first.

    They are for the gradient that the state has been seeing. `idle_before` and `idle_after` are for none: any gradient
    fills a second moment of zero, but where none comes, as for a unit that is not active, a momentum beside it is divided by
    epsilon alone.
    """

    name: str
    before: float
    after: float
    fresh: float
    idle_before: float
    idle_after: float

    @property
    def growth(self) -> float:
        """How many times the larger of the update before and a fresh start's; 0 where neither is known to be any."""
        return _times(self.after, self.before, self.fresh)

    @property
    def idle_growth(self) -> float:
        """The same where no gradient comes."""
        return _times(self.idle_after, self.idle_before, self.before, self.fresh)

    @property
    def excessive(self) -> bool:
        """Whether it is above the bound, or no number at all although the update before was one."""
        lost = self.before > 0 and not isfinite(self.after)
        return lost or self.growth > BOUND or self.idle_growth > BOUND

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The greater, the worse."""
        return self.excessive, self.growth, self.idle_growth

    def __str__(self) -> str:
        usual = self.growth > BOUND or not isfinite(self.after)
        growth, after = (self.growth, self.after) if usual else (self.idle_growth, self.idle_after)
        size = f"{growth:.3g} times as large" if isfinite(after) else "no finite number"
        return (
            f"the next update of {safe_text(self.name)} would be {size}{'' if usual else ' where no gradient comes'}: "
            f"{self.before:.3g} before, {after:.3g} after, {self.fresh:.3g} from a fresh start"
        )


def _times(after: float, *usual: float) -> float:
    largest = max((each for each in usual if isfinite(each)), default=0.0)
    return after / largest if largest > 0 else 0.0


def updates(
    spec: OptimizerSpec,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    groups: tuple[Mapping[str, Any], Mapping[str, Any]],
    parameter: Array | None,
) -> list[Array] | None:
    """The updates of which an `Effect` has the largest elements, in its order; None where one of them is not known.

    `before` and `after` are slots as `next_update` takes them, `groups` the hyperparameters before and after.
    """
    gradient = typical_gradient(spec, before, groups[0])
    if gradient is None:
        return None
    found = [
        next_update(spec, before, groups[0], gradient, parameter),
        next_update(spec, after, groups[1], gradient, parameter),
        fresh_update(spec, groups[0], gradient, parameter),
        next_update(spec, before, groups[0], 0.0 * gradient, parameter),
        next_update(spec, after, groups[1], 0.0 * gradient, parameter),
    ]
    return None if any(update is None for update in found) else found

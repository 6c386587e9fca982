"""The values that a hyperparameter may have: torch checks them in the constructor and never again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from optstate.errors import CoefficientError
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.text import safe_text


@dataclass(frozen=True, slots=True)
class Range:
    """An interval that ends before `high`, and with `closed` at it; it begins at `low`, and with `open` after it.

    >>> 1.0 in Range(0.0, 1.0), str(Range(0.0, 1.0)), str(Range(0.0))
    (False, '[0, 1)', 'at least 0')
    """

    low: float = -inf
    high: float = inf
    open: bool = False
    closed: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open else value >= self.low
        below = value <= self.high if self.closed else value < self.high
        return isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == inf and self.low == -inf:
            return "a finite number"
        if self.high == inf:
            return f"{'more than' if self.open else 'at least'} {self.low:g}"
        if self.low == -inf:
            return f"{'at most' if self.closed else 'less than'} {self.high:g}"
        return f"{'(' if self.open else '['}{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


DECAY, NOT_NEGATIVE, FINITE = Range(0.0, 1.0), Range(0.0), Range()

_BY_NAME: Mapping[str, Range] = {
    **dict.fromkeys(
        ("lr", "eps", "weight_decay", "wd", "lambd", "lr_decay", "momentum_decay", "t0", "step_sizes", "initial_lr", "d"),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("betas", "momentum", "mom", "sqr_mom", "beta", "beta1", "beta2", "beta3"), DECAY),
    "dampening": Range(0.0, 1.0, closed=True),
    "beta2_decay": Range(high=0.0, closed=True),
    "etas[0]": Range(0.0, 1.0, open=True),
    "etas[1]": Range(1.0, open=True),
}  # fmt: skip


def range_of(spec: OptimizerSpec | None, key: str) -> Range:
    """The range in which a hyperparameter, or one element of it such as `betas[0]`, means something to an optimizer.

    What drives a slot is a decay, 0 or more and less than 1, unless its name says otherwise; of what neither the name
    nor the row tells, any finite number.

    >>> str(range_of(None, "betas[1]")), str(range_of(None, "lr"))
    ('[0, 1)', 'at least 0')
    """
    known = _BY_NAME.get(key) or _BY_NAME.get(key.partition("[")[0])
    if known is not None:
        return known
    drives = spec is not None and any(slot.coefficient == key for slot in spec.slots.values())
    return DECAY if drives else FINITE


def check(spec: OptimizerSpec | None, key: str, value: Any, where: str | None = None) -> None:
    """Raise `CoefficientError` where a hyperparameter would get a value outside its range; tuples are checked by element.

    What is no number (a flag, None, a name) is none of its business.

    >>> check(None, "momentum", 1.5)
    Traceback (most recent call last):
    optstate.errors.CoefficientError: momentum would be 1.5
      expected  [0, 1)
      found     1.5
    """
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            check(spec, f"{key}[{index}]", item, where)
        return
    plain = None if isinstance(value, (bool, str)) else number(value)
    if plain is None:
        return
    allowed = range_of(spec, key)
    if plain not in allowed:
        raise CoefficientError(
            f"{safe_text(key)} would be {plain:g}",
            where=where or (safe_text(spec.name) if spec is not None else None),
            expected=str(allowed),
            found=f"{plain:g}",
        )

"""What the losses say: differences between two arms, paired by seed, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, sqrt
from statistics import mean, stdev
from typing import NamedTuple

from study.results import Results

_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
"""Of Student's distribution, two-sided 95 %, by degrees of freedom from 1."""


class Difference(NamedTuple):
    """A mean over seeds, and half of its 95 % interval."""

    mean: float
    half: float

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.mean - self.half > 0

    def __str__(self) -> str:
        if not isfinite(self.mean) or abs(self.mean) >= 1e4:
            return "diverges"
        digits = 3 if abs(self.mean) < 10 else 0
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def differences(results: Results, task: str, optimizer: str, arm: str, base: str) -> Mapping[int, Difference]:
    """By steps after the cut, how much higher the held-out loss of one arm is than that of another; {} where there are no runs."""
    seeds = sorted(key.seed for key in results if (key.task, key.optimizer, key.arm) == (task, optimizer, arm))
    pairs = [
        (results[type(key)(task, optimizer, seed, arm)], results[type(key)(task, optimizer, seed, base)])
        for key in list(results)[:1]
        for seed in seeds
    ]
    if not pairs:
        return {}
    return {step: _difference([one[step] - other[step] for one, other in pairs]) for step in pairs[0][0]}


def _difference(numbers: list[float]) -> Difference:
    if len(numbers) < 2 or not all(map(isfinite, numbers)):
        return Difference(mean(numbers), inf)
    quantile = _QUANTILES[min(len(numbers) - 1, len(_QUANTILES)) - 1]
    return Difference(mean(numbers), quantile * stdev(numbers) / sqrt(len(numbers)))

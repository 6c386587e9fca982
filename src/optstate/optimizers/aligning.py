"""Does a momentum still fit the gradients? What can be told from a few numbers of each batch, and how surely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import Literal

Action = Literal["keep", "decay", "reset", "rescale", "cannot be told", "nothing to fit"]

_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Of Student's distribution, by degrees of freedom from 1: 95 % lie within so many standard errors."""

_SURE = 2.0
"""A standard normal number is below this 98 % of the time."""

_CLEAR = 0.5
"""A ceiling from which on a momentum that shows no part of the mean gradient is told to have none."""

_FOLD = 4.0
"""Squared gradients are told to be others than those in a second moment from this factor on, which is 2 in the gradient."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Numbers of one parameter, or of all of them together: m̂ is its momentum in units of the gradient, g one batch's gradient.

    `momentum`: ‖m̂‖²; `second`: the sum of v̂, None where there is none; `averaged`: over how many gradients the noise in m̂ is
    averaged, (1+β)/(1-β); `total`: ‖Σg‖². By batch: `squares` ‖g‖², `along` m̂·g, `onward` g times the sum of those before it.
    """

    momentum: float
    second: float | None
    averaged: float
    total: float
    squares: Sequence[float]
    along: Sequence[float]
    onward: Sequence[float]

    @property
    def batches(self) -> int:
        """How many there were."""
        return len(self.squares)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a momentum fits the gradients of some batches.

    cosine
        Between momentum and mean gradient.
    ceiling
        What it would be, on average, if both meant the same direction, for both are noisy; NaN where that is not known.
    spread
        Within ± this, it would be 95 % of the time if the momentum meant nothing here; infinite for one batch.
    squares
        Observed mean of squared gradients, over the second moment; NaN where there is none.
    squares_range
        Its 95 % interval.
    action, factor, scale, second
        What to do: multiply momentum by `factor`; `rescale` every slot as for gradients `scale` times as large; or
        multiply the second moment alone by `second`, where gradients are larger than it knows and no momentum says so.
    """

    cosine: float
    ceiling: float
    spread: float
    squares: float
    squares_range: tuple[float, float]
    action: Action
    factor: float = 1.0
    scale: float = 1.0
    second: float = 1.0


def together(samples: Iterable[Sample]) -> Sample:
    """All parameters as one long one. Those with fewer batches than the most are left out."""
    every = list(samples)
    most = max(each.batches for each in every)
    alike = [each for each in every if each.batches == most]
    seconds = [each.second for each in alike]
    return Sample(
        sum(each.momentum for each in alike),
        None if None in seconds else sum(second or 0.0 for second in seconds),
        min(each.averaged for each in alike),
        sum(each.total for each in alike),
        *(
            [sum(numbers) for numbers in zip(*columns, strict=True)]
            for columns in zip(*((each.squares, each.along, each.onward) for each in alike), strict=True)
        ),
    )


def fit(sample: Sample) -> Fit:
    """What a sample tells.

    With k gradients of mean μ and variance σ² in all: ‖μ‖² = (‖Σg‖² - Σ‖g‖²)/(k(k-1)) without bias; the measured mean holds
    noise σ²/k and the momentum σ²(1-β)/(1+β), which is what keeps the cosine below 1. Its spread is that of k numbers m̂·g
    around their mean. Whether there is any μ is told by each gradient's product with those before it.

    >>> steady = Sample(4.0, 8.0, 19.0, 256.0, [4.0] * 8, [4.0] * 8, [4.0 * i for i in range(1, 8)])
    >>> fit(steady).action, fit(steady).cosine
    ('keep', 1.0)
    """
    k = sample.batches
    if not sample.momentum or not sample.total:
        return Fit(nan, nan, inf, *_ratio(sample), "nothing to fit")
    length = sqrt(sample.momentum * sample.total)
    cosine = sum(sample.along) / length
    if k < 2:
        return Fit(cosine, nan, inf, *_ratio(sample), "cannot be told")
    ceiling = _ceiling(sample)
    spread = _quantile(k - 1) * sqrt(k) * _deviation(sample.along) / length
    squares, interval = _ratio(sample)
    scale = _scale(sample, squares, interval, cosine > spread, ceiling)
    action, factor = _advice(sample, cosine, spread, ceiling)
    if scale != 1.0:
        return Fit(cosine, ceiling, spread, squares, interval, "rescale", factor, scale)
    second = squares if interval[0] > _FOLD else 1.0
    return Fit(cosine, ceiling, spread, squares, interval, action, factor, scale, second)


def _advice(sample: Sample, cosine: float, spread: float, ceiling: float) -> tuple[Action, float]:
    """What the direction of the momentum asks for.

    The factor for a decay is the cosine over its ceiling: the multiple of the old mean gradient that is nearest to the new
    one, where both are as long.
    """
    if cosine + spread <= 0:
        return "reset", 0.0
    if cosine > spread:
        fits = cosine + spread >= ceiling or not ceiling > 0
        return ("keep", 1.0) if fits else ("decay", cosine / ceiling)
    if _has_mean(sample) and ceiling > _CLEAR and cosine + spread < ceiling / 2:
        return "reset", 0.0
    return "cannot be told", 1.0


def _scale(sample: Sample, squares: float, interval: tuple[float, float], aligned: bool, ceiling: float) -> float:
    """By how much gradients grew; 1 where second moment and momentum do not say alike that they did."""
    if not (interval[0] > _FOLD or interval[1] < 1 / _FOLD) or not aligned or not ceiling > 0:
        return 1.0
    by_squares = sqrt(squares)
    by_momentum = sum(sample.along) / sample.batches / (sample.momentum * _signal_in_momentum(sample))
    return by_squares if by_squares / 2 < by_momentum < by_squares * 2 else 1.0


def _signal(sample: Sample) -> float:
    k = sample.batches
    return max((sample.total - sum(sample.squares)) / (k * (k - 1)), 0.0)


def _noise(sample: Sample) -> float:
    k = sample.batches
    return max((sum(sample.squares) - sample.total / k) / (k - 1), 0.0)


def _signal_in_momentum(sample: Sample) -> float:
    """Which share of ‖m̂‖² is of the mean gradient, where batches were as noisy as these."""
    signal, noise = _signal(sample), _noise(sample)
    return signal / (signal + noise / sample.averaged) if signal else 0.0


def _ceiling(sample: Sample) -> float:
    measured = _signal(sample) / (sample.total / sample.batches**2)
    return sqrt(measured * _signal_in_momentum(sample))


def _has_mean(sample: Sample) -> bool:
    """Whether gradients agree with those before them more than chance allows: 98 % sure, from six batches on."""
    steps = [value / sqrt(place) for place, value in enumerate(sample.onward, 1)]
    length = sqrt(sum(step * step for step in steps))
    return length > 0 and sum(steps) / length > _SURE


def _ratio(sample: Sample) -> tuple[float, tuple[float, float]]:
    """Observed squares over the second moment, and its interval."""
    if not sample.second:
        return nan, (0.0, inf)
    mean = sum(sample.squares) / sample.batches / sample.second
    if sample.batches < 2:
        return mean, (0.0, inf)
    error = _quantile(sample.batches - 1) * _deviation(sample.squares) / sqrt(sample.batches) / sample.second
    return mean, (mean - error, mean + error)


def _deviation(numbers: Sequence[float]) -> float:
    mean = sum(numbers) / len(numbers)
    return sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def _quantile(freedom: int) -> float:
    return _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else 1.96 + 2.4 / freedom

"""What the values of one tensor, or of two that belong together, are like: counted block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

UNDERFLOW = 1e-18
"""A first moment above this has a square that float32 can hold: a second moment of zero beside it was lost."""

ROUNDING = 2**-6
"""Twice the relative distance between neighbours in bfloat16: no rounding moves a value further."""

SMALLEST = 2.0**-23
"""Twice the smallest number of float16, below which it has no other."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What the values of one tensor are like.

    `smallest` and `largest` are those of the finite values, of a complex tensor those of their magnitudes, 0 where
    there is none; `nonfinite`, `zeros` and `negative` count elements; `digest` is the xxh3-128 of the values in
    row-major order, so that equal tensors are found whatever their names.
    """

    elements: int
    nonfinite: int
    zeros: int
    negative: int
    smallest: float
    largest: float
    digest: bytes

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.smallest), abs(self.largest))

    @property
    def all_zero(self) -> bool:
        """Whether there are values and all of them are zero."""
        return self.zeros == self.elements > 0


@dataclass(frozen=True, slots=True)
class Pair:
    """What two tensors that belong together say of each other, in elements.

    dead
        The denominator is zero although the first moment is not.
    below
        The denominator is below half the square of the first moment, which no average of squares can be.
    apart
        A weight is further from its float32 copy than rounding explains.
    """

    dead: int = 0
    below: int = 0
    apart: int = 0


class Counter:
    """The measure of blocks that are added one by one."""

    def __init__(self) -> None:
        from xxhash import xxh3_128

        self._hash = xxh3_128()
        self._elements = self._nonfinite = self._zeros = self._negative = 0
        self._smallest, self._largest = inf, -inf

    def add(self, block: Array) -> None:
        """Count a flat array in."""
        import numpy as np

        self._hash.update(np.ascontiguousarray(block).view(np.uint8).data)
        values = _wide(block)
        self._elements += values.size
        self._zeros += int(np.count_nonzero(values == 0))  # four times as fast as counting what is not zero
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (isfinite(low) and isfinite(high)):  # NaN is the least and the greatest of whatever it is among
            values = values[np.isfinite(values)]
            self._nonfinite += block.size - values.size
            low, high = (float(values.min()), float(values.max())) if values.size else (inf, -inf)
        self._smallest, self._largest = min(self._smallest, low), max(self._largest, high)
        self._negative += int(np.count_nonzero(values < 0)) if low < 0 else 0

    @property
    def measure(self) -> Measure:
        """Of all blocks so far."""
        ends = (self._smallest, self._largest) if self._nonfinite < self._elements else (0.0, 0.0)
        return Measure(self._elements, self._nonfinite, self._zeros, self._negative, *ends, self._hash.digest())


def _wide(block: Array) -> Array:
    """Real values that numpy computes with at full speed: of complex ones the magnitudes, of short ones float32."""
    import numpy as np

    if block.dtype.kind == "c":
        return np.abs(block)
    return block if block.dtype in (np.float32, np.float64) else block.astype(np.float32)


def compare_moments(mean: Array, squares: Array) -> Pair:
    """Elements whose denominator is zero although the first moment is not."""
    import numpy as np

    zero = squares == 0
    return Pair(dead=int(np.count_nonzero(np.abs(_wide(mean[zero])) > UNDERFLOW))) if zero.any() else Pair()


def compare_centred(mean: Array, squares: Array) -> Pair:
    """As `compare_moments`, and elements whose average of squares is below half the square of the average."""
    import numpy as np

    with np.errstate(all="ignore"):
        below = int(np.count_nonzero(_wide(squares) < _wide(mean) ** 2 / 2))
    return Pair(compare_moments(mean, squares).dead, below)


def compare_copies(weight: Array, copy: Array) -> Pair:
    """Elements of a weight that are not its float32 copy rounded, in whichever way."""
    import numpy as np

    with np.errstate(all="ignore"):
        apart = np.abs(_wide(weight) - _wide(copy)) > np.abs(_wide(copy)) * ROUNDING + SMALLEST
    return Pair(apart=int(np.count_nonzero(apart)))


def side_by_side(first: Iterator[Array], second: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """The blocks of two tensors of one size, cut to equal lengths, whichever lengths each comes in; both to their end."""
    left, right = next(first, None), next(second, None)
    while left is not None and right is not None:
        length = min(left.size, right.size)
        yield left[:length], right[:length]
        left = left[length:] if length < left.size else next(first, None)
        right = right[length:] if length < right.size else next(second, None)

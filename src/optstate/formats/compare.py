"""Two tensors, block by block: the same bits, or by how much they differ. Memory is bounded, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from optstate.state.stats import Scratch, dot
from optstate.state.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Change:
    """By how much the values of two tensors of one shape differ.

    differing
        Elements, of `elements`, that are not the same to the last bit; of two element types, that are not equal.
    max_abs
        The largest |a - b|; 0 where nothing differs but signs of zeros, or values that are no numbers.
    relative
        ‖a - b‖ divided by the larger of ‖a‖ and ‖b‖, None where that leaves float64.
    cosine
        Of the angle between a and b, None where one of them is zero.
    nonfinite
        How many values of a and of b are NaN or infinite; the other figures are of the elements finite in both.

    Figures are computed in float64; of a complex element, both parts count as values.
    """

    elements: int
    differing: int
    max_abs: float
    relative: float | None
    cosine: float | None
    nonfinite: tuple[int, int]


def compare(a: TensorRef, b: TensorRef) -> Change | None:
    """None where every bit of two tensors of one shape is the same, else by how much they differ.

    Raises what reading them raises; each is read to its end, so that its checksum is checked.
    """
    sums = _Sums()
    same = a.dtype == b.dtype
    equal_at_first = 0
    for x, y in aligned(a.blocks(), b.blocks()):
        unequal = _unequal_bits(x, y) if same and x.dtype == y.dtype else None
        if unequal is None or unequal or sums.elements:
            sums.add(x, y, unequal)
        else:
            equal_at_first += x.size
    if not sums.differing and same:
        return None
    # What was equal before the first difference counts in the norms: it was only compared, so it is read again.
    for x in _first(a, equal_at_first):
        sums.add(x, x, 0)
    return sums.change()


def aligned(
    a: Iterator[np.ndarray[Any, Any]], b: Iterator[np.ndarray[Any, Any]]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Blocks of two tensors as pairs of one length, however each is cut; both are read to their ends."""
    x, y = next(a, None), next(b, None)
    while x is not None and y is not None:
        length = min(x.size, y.size)
        if length:
            yield x[:length], y[:length]
        x = x[length:] if length < x.size else next(a, None)
        y = y[length:] if length < y.size else next(b, None)


def bits(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements of a flat array as whole numbers, whatever their type; wide ones as several."""
    width = min(block.itemsize, 8)
    return block.view(f"u{width}")


def _unequal_bits(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> int:
    import numpy as np

    unequal = np.not_equal(bits(x), bits(y))
    if unequal.size > x.size:
        unequal = unequal.reshape(x.size, -1).any(axis=1)
    return int(np.count_nonzero(unequal))


def _first(ref: TensorRef, elements: int) -> Iterator[np.ndarray[Any, Any]]:
    if elements:
        for block in ref.blocks():
            yield block[:elements]
            elements -= block.size
            if elements <= 0:
                return


class _Sums:
    """What is added up over pairs of blocks."""

    def __init__(self) -> None:
        self.elements = 0
        self.differing = 0
        self.nonfinite = [0, 0]
        self.max_abs = 0.0
        self.aa = self.bb = self.ab = self.dd = 0.0
        self._scratch = Scratch(), Scratch()

    def add(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], unequal: int | None) -> None:
        """Add a pair of blocks; `unequal` of their elements differ, None where their types do."""
        import numpy as np

        with np.errstate(all="ignore"):  # what overflows is looked at below
            a = self._scratch[0].widen(x)
            b = a if unequal == 0 else self._scratch[1].widen(y)
            self.elements += x.size
            self.differing += int(np.count_nonzero(a != b)) if unequal is None else unequal
            squares = dot(a, a), dot(b, b)
            # Finite sums of squares prove every value finite; only a pair that fails is looked at again.
            if not (isfinite(squares[0]) and isfinite(squares[1])):
                a, b = self._finite(a, b)
                squares = dot(a, a), dot(b, b)
            self._accumulate(a, b, *squares)

    def _finite(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        import numpy as np

        in_a, in_b = np.isfinite(a), np.isfinite(b)
        self.nonfinite[0] += a.size - int(np.count_nonzero(in_a))
        self.nonfinite[1] += b.size - int(np.count_nonzero(in_b))
        both = in_a & in_b
        return a[both], b[both]

    def _accumulate(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], square_a: float, square_b: float) -> None:
        import numpy as np

        self.aa += square_a
        self.bb += square_b
        if a is b:
            self.ab += square_a
            return
        self.ab += dot(a, b)
        # Into the memory of b, which is not needed any more: a third array would not fit into the cache.
        difference = np.subtract(a, b, out=self._scratch[1].memory(a.size))
        self.dd += dot(difference, difference)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)), -float(difference.min(initial=0.0)))

    def change(self) -> Change:
        larger = sqrt(max(self.aa, self.bb))
        relative = sqrt(self.dd) / larger if larger else 0.0
        product = sqrt(self.aa) * sqrt(self.bb)
        cosine = max(-1.0, min(1.0, self.ab / product)) if product else None
        return Change(
            self.elements,
            self.differing,
            self.max_abs,
            relative if isfinite(relative) else None,
            cosine if cosine is not None and isfinite(cosine) else None,
            (self.nonfinite[0], self.nonfinite[1]),
        )

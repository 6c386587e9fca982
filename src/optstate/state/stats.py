"""Statistics of tensors, streamed: bounded memory whatever their size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any, TypeVar

from optstate.state.parallel import in_threads
from optstate.state.tensors import TensorRef, nbytes

if TYPE_CHECKING:
    import numpy as np

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Stats:
    """`norm` is the L2 norm of the finite values, infinite where its square leaves float64; the counts are of elements."""

    elements: int
    norm: float
    nonfinite: int
    zeros: int


def stats_of(refs: Mapping[K, TensorRef]) -> Iterator[tuple[K, Stats]]:
    """The statistics of many tensors, in order; large ones are read in several threads."""
    keys = list(refs)
    return zip(keys, in_threads(stats, list(refs.values()), nbytes), strict=True)


def stats(ref: TensorRef) -> Stats:
    """One pass over the values of `ref`, a block at a time: counts are exact, squares are added up in float64.

    A complex element counts once; its norm is that of both parts.
    """
    import numpy as np

    elements = nonfinite = zeros = 0
    square = 0.0
    scratch = Scratch()
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is a result here, not an accident
        for block in ref.blocks():
            elements += block.size
            wide = scratch.widen(block)
            # Numbers of numpy's own are compared as they are; the others are slow at everything.
            plain = block if block.dtype.isbuiltin == 1 else wide
            zeros += int(np.count_nonzero(plain == 0))  # four times as fast as counting what is not zero
            total = dot(wide, wide)
            # A finite sum of squares proves every element finite; only a block that fails is looked at again.
            if not isfinite(total):
                finite = np.isfinite(wide).reshape(block.size, -1).all(axis=1)
                nonfinite += block.size - int(np.count_nonzero(finite))
                kept = wide.reshape(block.size, -1)[finite].reshape(-1)
                total = dot(kept, kept)
            square += total
    return Stats(elements, sqrt(square), nonfinite, zeros)


_ROW = 1 << 13
"""Elements that one call of a BLAS adds up: below the length from which it would use threads of its own, which
gain nothing here, cost much on a busy machine, and make the last digit depend on their number."""


class Scratch:
    """Memory for float64 numbers, one block after the other; as much as the largest needs."""

    def __init__(self) -> None:
        self._memory: np.ndarray[Any, Any] | None = None

    def memory(self, size: int) -> np.ndarray[Any, Any]:
        """So many float64 numbers, in memory that the next call reuses."""
        import numpy as np

        if self._memory is None or self._memory.size < size:
            self._memory = np.empty(size, np.float64)
        return self._memory[:size]

    def widen(self, block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The elements of a block in float64, in memory that the next call reuses; complex ones as pairs."""
        import numpy as np

        if block.dtype == np.float64:
            return block
        if block.dtype.kind == "c":
            block = np.ascontiguousarray(block).view(np.float32 if block.itemsize == 8 else np.float64)
        elif (
            block.dtype.isbuiltin != 1 and block.dtype.name == "bfloat16"
        ):  # the upper half of a float32, which is faster than its own conversion
            block = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        wide = self.memory(block.size)
        np.copyto(wide, block, casting="unsafe")
        return wide


def dot(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """The inner product of two flat float64 arrays, the same on any number of cores."""
    import numpy as np

    whole = a.size - a.size % _ROW
    rest = float(np.dot(a[whole:], b[whole:])) if whole < a.size else 0.0
    rows = np.matmul(a[:whole].reshape(-1, 1, _ROW), b[:whole].reshape(-1, _ROW, 1)) if whole else None
    return rest if rows is None else rest + float(rows.sum())

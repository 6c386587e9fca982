"""Statistics of a tensor, streamed: bounded memory whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from optstate.state.tensors import TensorRef

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Stats:
    """`norm` is the L2 norm of the finite values, infinite where its square leaves float64; the counts are of elements."""

    elements: int
    norm: float
    nonfinite: int
    zeros: int


def stats(ref: TensorRef) -> Stats:
    """One pass over the values of `ref`, a block at a time, accumulated in float64.

    A complex element counts once; its norm is that of both parts.
    """
    import numpy as np

    elements = nonfinite = zeros = 0
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is a result here, not an accident
        for block in ref.blocks():
            elements += block.size
            zeros += int(np.count_nonzero(block == 0))  # four times as fast as counting what is not zero
            total = _sum_of_squares(block)
            # A finite sum of squares proves every element finite; only a block that fails is looked at again.
            if not np.isfinite(total):
                finite = np.isfinite(block.astype(np.complex128 if block.dtype.kind == "c" else np.float64))
                nonfinite += block.size - int(np.count_nonzero(finite))
                total = _sum_of_squares(block[finite])
            square += total
    return Stats(elements, sqrt(square), nonfinite, zeros)


def _sum_of_squares(block: np.ndarray[Any, Any]) -> float:
    """Of a flat array, in float64; a complex element counts with both parts.

    By einsum and not dot: the threads of a BLAS gain nothing on one block, cost much on a busy machine, and
    make the last digit depend on their number.
    """
    import numpy as np

    if block.dtype.kind == "c":
        wide = np.ascontiguousarray(block, dtype=np.complex128).view(np.float64)
    else:
        wide = block.astype(np.float64)
    return float(np.einsum("i,i->", wide, wide))

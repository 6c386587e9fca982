"""A tensor of a file with other values: nothing is computed before a block of it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from optstate.formats.compare import aligned
from optstate.formats.containers.stored_tensor import row_major
from optstate.state.tensors import BLOCK, TensorRef, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    Block = np.ndarray[Any, Any]

Change = Callable[["Block", "Block | None", int], "Block"]
"""New values of a block, given its values, those of the same place in another tensor, and its first element's place. Both
are float32 or wider; so may the new ones be."""


class EditedTensor:
    """A tensor whose values are those of `source`, changed; satisfies `optstate.state.tensors.TensorRef`.

    Values are changed in float32, or in the tensor's own type where that is wider, and rounded to its own once. `other` is a
    tensor of the same shape that the change reads as well.
    """

    def __init__(self, source: TensorRef, change: Change, other: TensorRef | None = None) -> None:
        self.source = source
        self.dtype = source.dtype
        self.shape = source.shape
        self.device = str(getattr(source, "device", "cpu"))
        self.stride: tuple[int, ...] = getattr(source, "stride", None) or row_major(source.shape)
        self._change = change
        self._other = other

    def blocks(self) -> Iterator[Block]:
        """The values in row-major order, a block at a time."""
        import numpy as np

        place, dtype = 0, numpy_dtype(self.dtype)
        with np.errstate(all="ignore"):  # what is no number afterwards is found by whoever looks at it
            for block, other in self._pairs():
                wide = widened(block)
                new = self._change(wide, None if other is None else widened(other), place)
                place += block.size
                yield np.ascontiguousarray(new.astype(dtype, copy=False))

    def _pairs(self) -> Iterator[tuple[Block, Block | None]]:
        if self._other is None:
            return ((block, None) for block in self.source.blocks())
        return aligned(self.source.blocks(), self._other.blocks())

    def array(self) -> Block:
        """All values."""
        import numpy as np

        whole = np.empty(prod(self.shape), numpy_dtype(self.dtype))
        place = 0
        for block in self.blocks():
            whole[place : place + block.size] = block
            place += block.size
        return whole.reshape(self.shape)

    def item(self) -> bool | int | float | complex:
        """The value of a single element."""
        number: bool | int | float | complex = self.array().item()
        return number


class Filled(EditedTensor):
    """A tensor like another one that holds one number everywhere; the other one is not read."""

    def __init__(self, like: TensorRef, value: float) -> None:
        super().__init__(like, _unused)
        self.value = value

    def blocks(self) -> Iterator[Block]:
        """The values in row-major order, a block at a time."""
        import numpy as np

        for start in range(0, prod(self.shape), BLOCK):
            yield np.full(min(BLOCK, prod(self.shape) - start), self.value, numpy_dtype(self.dtype))


def _unused(block: Block, _other: Block | None, _place: int) -> Block:
    return block


def widened(block: Block) -> Block:
    """A block in a type that numpy computes in without loss: float32, or its own where that is wider."""
    import numpy as np

    return block.astype(np.float32) if block.dtype.kind not in "fc" or block.itemsize < 4 else block


def rows_only(change: Change, chosen: Block, width: int) -> Change:
    """A change of those rows alone for which `chosen` holds, each of `width` elements."""
    import numpy as np

    def changed(block: Block, other: Block | None, place: int) -> Block:
        rows = chosen[(place + np.arange(block.size)) // width]
        return np.where(rows, change(block, other, place), block)

    return changed

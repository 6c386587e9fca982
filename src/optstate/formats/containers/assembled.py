"""A tensor in several places: the shards of ranks, the chunks of a file, the pieces of a flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, product
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from optstate.errors import Damaged, Refused
from optstate.state.tensors import BLOCK, TensorRef, new_bytes, numpy_dtype
from optstate.text import safe_text, size

if TYPE_CHECKING:
    import numpy as np

CUTS = 6
"""Dimensions along which one tensor may be cut; a mesh of five kinds of parallelism cuts along three."""


class Piece(NamedTuple):
    """A part of a tensor: the index of its first element in each dimension, and its values."""

    start: tuple[int, ...]
    tensor: TensorRef


class Assembled:
    """A tensor that is made of pieces; satisfies `optstate.state.tensors.TensorRef`.

    name
        Whose it is, for messages.
    pieces
        Boxes that should tile it; those without elements are left out. With `flat`, each is a run of the tensor in
        row-major order, and starts at one index into that order.
    missing
        What is not there, in words; None when the pieces are the whole tensor.

    Opening reads no values. Raises `ValueError` for a piece of another type, outside the tensor, or on top of another
    one: who is right cannot be told. A hole is no error before the values are asked for.
    """

    __slots__ = ("_grid", "dtype", "missing", "name", "pieces", "shape")

    def __init__(
        self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[Piece], *, flat: bool = False
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._grid: tuple[int, ...] = (prod(shape),) if flat else shape
        self.pieces: Sequence[Piece] = [self._fitting(piece) for piece in pieces if prod(piece.tensor.shape)]
        self.missing = uncovered(self._grid, [(start, tensor.shape) for start, tensor in self.pieces])

    @property
    def flat(self) -> bool:
        """Whether pieces are runs of the tensor in row-major order."""
        return self._grid != self.shape

    def array(self) -> np.ndarray[Any, Any]:
        """The values, in memory of their own.

        Raises `Damaged` where a piece is missing or damaged, `Refused` where there is not memory enough.
        """
        dtype = self._check_readable()
        nbytes = prod(self.shape) * dtype.itemsize
        try:
            whole = new_bytes(nbytes).view(dtype).reshape(self._grid)
        except MemoryError:
            raise Refused(f"not enough memory for {safe_text(self.name)}, {size(nbytes)}") from None
        for start, tensor in self.pieces:
            whole[_box(start, tensor.shape)] = tensor.array()
        return whole.reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order, `BLOCK` elements at a time; raises as `array` does.

        Pieces of the same rows are read side by side: what is in memory at once is a block of each of them, and a row
        where that is longer than a block.
        """
        dtype = self._check_readable()
        wide = [axis for axis, length in enumerate(self._grid) if length != 1]
        if all(piece.tensor.shape[axis] == self._grid[axis] for piece in self.pieces for axis in wide[1:]):
            one_by_one = sorted(self.pieces, key=lambda piece: piece.start)
            return _even(chain.from_iterable(piece.tensor.blocks() for piece in one_by_one))
        return _even(self._bands(dtype, wide))

    def item(self) -> bool | int | float | complex:
        """The value of a tensor with a single element. Raises `Refused` for any other, `Damaged` where it is missing."""
        if prod(self.shape) != 1:
            raise Refused(f"{safe_text(self.name)} is not a single number", found=f"shape {list(self.shape)}")
        if self.missing:
            self._raise_missing(self.missing)
        return self.pieces[0].tensor.item()

    def _fitting(self, piece: Piece) -> Piece:
        start, tensor = piece
        if tensor.dtype != self.dtype:
            raise ValueError(f"a piece of {safe_text(tensor.dtype)} in a tensor of {safe_text(self.dtype)}")
        if not len(start) == len(tensor.shape) == len(self._grid) or any(
            first < 0 or length < 0 or first + length > whole
            for first, length, whole in zip(start, tensor.shape, self._grid, strict=True)
        ):
            raise ValueError(f"a piece of shape {list(tensor.shape)} at {list(start)} of {list(self._grid)}")
        return piece

    def _check_readable(self) -> np.dtype[Any]:
        if self.missing:
            self._raise_missing(self.missing)
        try:
            return numpy_dtype(self.dtype)
        except KeyError:
            raise Refused(
                f"values of type {safe_text(self.dtype)} cannot be read", where=safe_text(self.name)
            ) from None

    def _raise_missing(self, missing: str) -> NoReturn:
        raise Damaged(
            f"{safe_text(self.name)} is not whole: {missing}",
            todo="bring the files of all ranks together, or use an earlier checkpoint",
        )

    def _bands(self, dtype: np.dtype[Any], wide: list[int]) -> Iterator[np.ndarray[Any, Any]]:
        """Some rows at a time, flat: about `BLOCK` elements of them, at least one row; `wide` are dimensions that count."""
        import numpy as np

        rows, *row = [self._grid[axis] for axis in wide] or [1]
        waiting = sorted((_Stream(piece, wide) for piece in self.pieces), key=lambda stream: -stream.top)
        reading: list[_Stream] = []
        step = max(1, BLOCK // max(1, prod(row)))
        for top in range(0, rows if prod(row) else 0, step):
            bottom = min(top + step, rows)
            band = np.empty((bottom - top, *row), dtype)
            while waiting and waiting[-1].top < bottom:
                reading.append(waiting.pop())
            for stream in reading:
                stream.fill(band, top, bottom)
            reading = [stream for stream in reading if stream.bottom > bottom]
            yield band.reshape(-1)

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {safe_text(self.name)}"


def joined(parts: Sequence[Assembled]) -> Assembled:
    """One tensor of the pieces that several files have of it. Raises `ValueError` where they contradict each other."""
    first, *others = parts
    odd = [each for each in others if (each.dtype, each.shape, each.flat) != (first.dtype, first.shape, first.flat)]
    if odd:
        raise ValueError(f"{first!r} in one file, {odd[0]!r} in another")
    pieces = {piece.start: piece for part in parts for piece in part.pieces}  # a replica of a piece is the same piece
    return Assembled(first.name, first.dtype, first.shape, pieces.values(), flat=first.flat)


class Absent:
    """A tensor that is described but not there; satisfies `optstate.state.tensors.TensorRef`.

    `why` completes "its values are not there: ...". Asking for values raises `Damaged`.
    """

    __slots__ = ("dtype", "name", "shape", "why")

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], why: str) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.why = why

    def array(self) -> np.ndarray[Any, Any]:
        self._refuse()

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        self._refuse()

    def item(self) -> bool | int | float | complex:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Damaged(f"the values of {safe_text(self.name)} are not there", found=self.why)

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {safe_text(self.name)} ({self.why})"


# --- do the pieces tile the tensor? -----------------------------------------------------------------------

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""The first index in each dimension, and the sizes."""


def uncovered(shape: tuple[int, ...], boxes: Sequence[Box]) -> str | None:
    """What boxes within a tensor, none of them empty, leave uncovered; None where they tile it.

    Raises `ValueError` where they overlap.

    Count each element's covers modulo 2: the function is told by the corners of its boxes, each counted modulo 2 (take
    differences along every axis). The corners of the whole, taken with those of the boxes, cancel exactly where every
    element is covered an odd number of times; the first corner left is the first element that is not. With as many
    elements in the boxes as in the whole, that is once. Time goes with the number of boxes, whatever their order.
    """
    there, due = sum(prod(own) for _, own in boxes), prod(shape)
    if not due or (len(boxes) == 1 and there == due):
        return None
    cut = [axis for axis in range(len(shape)) if any(own[axis] != shape[axis] for _, own in boxes)]
    if len(cut) > CUTS:
        raise ValueError(f"a tensor cut along {len(cut)} dimensions, at most {CUTS}")
    corners = sorted(chain.from_iterable(_corners(box, cut) for box in (((0,) * len(shape), shape), *boxes)))
    odd = next((corner for corner, equal in groupby(corners) if sum(1 for _ in equal) % 2), None)
    if odd is None and there == due:
        return None
    if odd is None or any(_holds(box, cut, odd) for box in boxes):
        raise ValueError("pieces that lie on top of each other")
    index = [0] * len(shape)
    for axis, first in zip(cut, odd, strict=True):
        index[axis] = first
    return f"{there:,} of {due:,} elements are there, and the one at {index} is not"


def _corners(box: Box, cut: list[int]) -> Iterator[tuple[int, ...]]:
    start, shape = box
    return product(*((start[axis], start[axis] + shape[axis]) for axis in cut))


def _holds(box: Box, cut: list[int], corner: tuple[int, ...]) -> bool:
    start, shape = box
    return all(start[axis] <= index < start[axis] + shape[axis] for axis, index in zip(cut, corner, strict=True))


# --- reading ----------------------------------------------------------------------------------------------


def _box(start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + length) for first, length in zip(start, shape, strict=True))


class _Stream:
    """A piece that is read row by row. `wide` are the dimensions that count: those of length 1 do not."""

    def __init__(self, piece: Piece, wide: list[int]) -> None:
        start, shape = ([each[axis] for axis in wide] for each in (piece.start, piece.tensor.shape))
        self.top, *self._start = start or [0]
        rows, *self._row = shape or [1]
        self.bottom = self.top + rows
        self._tensor = piece.tensor
        self._blocks: Iterator[np.ndarray[Any, Any]] | None = None
        self._left: list[np.ndarray[Any, Any]] = []

    def fill(self, band: np.ndarray[Any, Any], top: int, bottom: int) -> None:
        """Put the rows that this piece has from `top` to `bottom` into a band that starts at `top`."""
        first, last = max(top, self.top), min(bottom, self.bottom)
        target = band[slice(first - top, last - top), *_box(self._start, self._row)]
        target[...] = self._take((last - first) * prod(self._row)).reshape(target.shape)

    def _take(self, number: int) -> np.ndarray[Any, Any]:
        import numpy as np

        if self._blocks is None:
            self._blocks = iter(self._tensor.blocks())
        there = sum(block.size for block in self._left)
        while there < number:
            block = next(self._blocks)
            self._left.append(block)
            there += block.size
        flat = self._left[0] if len(self._left) == 1 else np.concatenate(self._left)
        self._left = [flat[number:]]
        return flat[:number]


def _even(bands: Iterator[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """The same elements, `BLOCK` at a time."""
    import numpy as np

    left: list[np.ndarray[Any, Any]] = []
    there = 0
    for band in bands:
        left.append(band)
        there += band.size
        if there < BLOCK:
            continue
        flat = left[0] if len(left) == 1 else np.concatenate(left)
        for start in range(0, there - BLOCK + 1, BLOCK):
            yield flat[start : start + BLOCK]
        left, there = [flat[there - there % BLOCK :]], there % BLOCK
    if there:
        yield left[0] if len(left) == 1 else np.concatenate(left)

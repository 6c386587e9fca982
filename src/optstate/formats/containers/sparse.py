"""Sparse tensors in a file: where the values are, and the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from optstate.errors import Refused
from optstate.formats.containers.stored_tensor import EXPANDED_LIMIT
from optstate.state.tensors import DTYPES, TensorRef, array_blocks, nbytes
from optstate.text import size

if TYPE_CHECKING:
    import numpy as np

DENSITY = 1000
"""How many times what a file holds of it a sparse tensor may take as a dense array, where that is large."""


@dataclass(frozen=True, slots=True)
class SparseRef:
    """A sparse COO tensor in a file; satisfies `TensorRef` with its dense values.

    `indices` has one row per sparse dimension, `values` one entry per column of it. Where `coalesced` is
    False an index may occur several times, and its values add up.
    """

    indices: TensorRef
    values: TensorRef
    shape: tuple[int, ...]
    coalesced: bool

    @property
    def dtype(self) -> str:
        return self.values.dtype

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is stored as."""
        return self.indices, self.values

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored as."""
        return sum(map(nbytes, self.parts))

    def array(self) -> np.ndarray[Any, Any]:
        """The dense values. Raises `Refused` for far more than the file holds of it, or indices outside the shape."""
        import numpy as np

        _check_dense(self)
        where, values = self.indices.array(), self.values.array()
        _check_indices(where, np.asarray(self.shape[: len(where)], np.int64).reshape(-1, 1))
        dense = _zeros(self.shape, values)
        if self.coalesced:
            dense[tuple(where)] = values
        else:
            np.add.at(dense, tuple(where), values)
        return dense

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        return array_blocks(self.array())

    def item(self) -> bool | int | float | complex:
        number: bool | int | float | complex = self.array().item()
        return number

    def __repr__(self) -> str:
        return _described("COO", self.dtype, self.shape, self.values.shape[:1])


@dataclass(frozen=True, slots=True)
class CompressedRef:
    """A sparse tensor whose rows or columns are compressed; satisfies `TensorRef` with its dense values.

    layout
        torch's: `csr` and `csc` compress rows and columns, `bsr` and `bsc` those of blocks.
    compressed, plain, values
        Where each row (column) starts among the values; the column (row) of each value; the values, of blocks two
        dimensions each.
    """

    layout: Literal["csr", "csc", "bsr", "bsc"]
    compressed: TensorRef
    plain: TensorRef
    values: TensorRef
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.values.dtype

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is stored as."""
        return self.compressed, self.plain, self.values

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored as."""
        return sum(map(nbytes, self.parts))

    def array(self) -> np.ndarray[Any, Any]:
        """The dense values. Raises `Refused` as `SparseRef` does, and for more than two dimensions."""
        import numpy as np

        if len(self.shape) != 2:
            raise Refused(f"{self!r}: only matrices are laid out", todo="read its parts instead")
        _check_dense(self)
        compressed, plain, values = (part.array() for part in self.parts)
        height, width = values.shape[1:] or (1, 1)
        grid = self.shape[0] // max(1, height), self.shape[1] // max(1, width)
        lines, across = grid if self.layout in ("csr", "bsr") else grid[::-1]
        starts = np.asarray(compressed, np.int64)
        if starts.shape != (lines + 1,) or (starts[0], starts[-1]) != (0, len(values)) or (np.diff(starts) < 0).any():
            raise Refused(f"{self!r} has rows or columns that start nowhere")
        _check_indices(plain, np.asarray(across))
        line = np.repeat(np.arange(lines), np.diff(starts))
        row, column = (line, plain) if self.layout in ("csr", "bsr") else (plain, line)
        dense = _zeros((grid[0], height, grid[1], width), values)
        dense[row, :, column, :] = values.reshape(len(values), height, width)
        return dense.reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        return array_blocks(self.array())

    def item(self) -> bool | int | float | complex:
        number: bool | int | float | complex = self.array().item()
        return number

    def __repr__(self) -> str:
        return _described(self.layout.upper(), self.dtype, self.shape, self.values.shape[:1])


def _described(layout: str, dtype: str, shape: tuple[int, ...], stored: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)} sparse {layout}, {stored[0] if stored else 1:,} stored"


def _check_dense(tensor: SparseRef | CompressedRef) -> None:
    dense = prod(tensor.shape) * DTYPES[tensor.dtype][0]
    limit = max(EXPANDED_LIMIT, DENSITY * tensor.nbytes)
    if dense > limit:
        raise Refused(
            f"a sparse tensor of shape {list(tensor.shape)} would take {size(dense)} as a dense array",
            expected=f"at most {size(limit)}",
            todo="read its .values and where they are instead",
        )


def _check_indices(indices: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> None:
    if ((indices < 0) | (indices >= sizes)).any():
        raise Refused("a sparse tensor has indices outside its shape", found=f"sizes {sizes.reshape(-1).tolist()}")


def _zeros(shape: tuple[int, ...], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        return np.zeros(shape, values.dtype)
    except MemoryError:
        raise Refused(f"not enough memory for a sparse tensor of shape {list(shape)} as a dense array") from None

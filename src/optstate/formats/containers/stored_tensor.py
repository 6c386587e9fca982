"""A tensor in a file: where its bytes are and how they are laid out. Values are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from optstate.errors import Refused
from optstate.state.tensors import BLOCK, DTYPES, array_blocks, new_bytes, numpy_dtype, scalar
from optstate.text import safe_text, size

if TYPE_CHECKING:
    import numpy as np

MAX_RANK = 64
"""Dimensions that a tensor may have: as many as torch and numpy allow."""

EXPANDED_LIMIT = 1 << 28
"""Bytes that a tensor may grow to in memory beyond what the file holds for it, as a stride of zero does."""


class Record(Protocol):
    """A run of bytes in a file: one storage, whichever tensors look into it.

    `owner` is the name of what it holds, for messages, "" where that is not known.
    """

    owner: str

    @property
    def where(self) -> str:
        """File and place, safe to print."""

    @property
    def nbytes(self) -> int:
        """Its length."""

    def read(self, offset: int, length: int) -> bytes:
        """Some of it; checked when that is all of it. Raises `Damaged`."""

    def into(self, memory: memoryview) -> None:
        """All of it, checked, into memory of its length. Raises `Damaged`, after which anything may be in there."""

    def pieces(self, piece: int) -> Iterator[bytes]:
        """All of it, `piece` bytes at a time, checked at the end. Raises `Damaged`."""

    def verify(self) -> None:
        """Check all of it, unless that was done before. Raises `Damaged`."""


class MemoryRecord:
    """Bytes that stand in the pickle itself, as those of numpy arrays do."""

    def __init__(self, raw: bytes | bytearray, where: str) -> None:
        self.raw = raw
        self.where = where
        self.nbytes = len(raw)
        self.owner = ""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.raw[offset : offset + length])

    def into(self, memory: memoryview) -> None:
        memory[:] = self.raw

    def pieces(self, piece: int) -> Iterator[bytes]:
        return (bytes(self.raw[start : start + piece]) for start in range(0, self.nbytes, piece))

    def verify(self) -> None:
        """Nothing to do: the pickle's own checksum covers them."""


class StoredTensor:
    """A tensor in a file; satisfies `optstate.state.tensors.TensorRef`.

    dtype, shape
        As torch names them.
    offset, stride
        In elements, within the record.
    swap
        The record is big-endian.
    conj, neg
        The values are the complex conjugates, the negatives of what is stored (torch's lazy views).

    `array` and `blocks` check the whole record against its checksum; `item` does where the record holds
    nothing else. Raises `ValueError` for a layout that reaches outside the record: all bounds are checked
    here, in Python's integers, before anything is allocated.
    """

    __slots__ = ("conj", "dtype", "neg", "offset", "record", "shape", "stride", "swap")

    def __init__(
        self,
        record: Record,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        swap: bool = False,
        conj: bool = False,
        neg: bool = False,
    ) -> None:
        _check_layout(offset, shape, stride, record.nbytes // DTYPES[dtype][0])
        self.record = record
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self.swap = swap
        self.conj = conj
        self.neg = neg

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two names of one tensor."""
        return id(self.record), self.offset, self.shape, self.stride

    def array(self) -> np.ndarray[Any, Any]:
        """The values as a numpy array of `shape`. One that can be written is in memory that is nobody else's.

        Raises `Damaged` when the checksum does not fit, `Refused` when it would take far more memory than the
        file holds for it, or more than there is.
        """
        import numpy as np

        elements, itemsize = prod(self.shape), self._itemsize
        if elements == 0:
            try:
                return self._values(b"").reshape(self.shape)
            except ValueError:  # numpy multiplies the other lengths all the same
                raise Refused(f"no array has the shape {list(self.shape)}", where=self.record.where) from None
        span = _span(self.shape, self.stride)
        if elements > span and elements * itemsize > EXPANDED_LIMIT:
            raise Refused(
                f"a tensor of shape {list(self.shape)} is stored as {size(span * itemsize)} and stands for "
                f"{size(elements * itemsize)}",
                where=self.record.where,
                todo="nothing is lost: its elements repeat those that are stored",
            )
        try:
            flat = self._values(self._checked(self.offset * itemsize, span * itemsize))
        except MemoryError:
            raise Refused(
                f"not enough memory for a tensor of {size(span * itemsize)}", where=self.record.where
            ) from None
        if self.contiguous:
            return flat.reshape(self.shape)
        array: np.ndarray[Any, Any] = np.ndarray(
            self.shape, flat.dtype, buffer=flat, strides=[step * itemsize for step in self.stride]
        )
        array.flags.writeable = False
        return array

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order, at most `BLOCK` elements at a time; see `array` for the errors.

        A tensor that is not contiguous is read whole first.
        """
        if not self.contiguous:
            yield from array_blocks(self.array())
            return
        itemsize = self._itemsize
        start, length = self.offset * itemsize, prod(self.shape) * itemsize
        if length == self.record.nbytes:
            yield from map(self._values, self.record.pieces(BLOCK * itemsize))
            return
        self.record.verify()
        for position in range(start, start + length, BLOCK * itemsize):
            yield self._values(self.record.read(position, min(BLOCK * itemsize, start + length - position)))

    def item(self) -> bool | int | float | complex:
        """The value of a tensor with a single element. Raises `Refused` for any other."""
        if prod(self.shape) != 1:
            raise Refused(f"a tensor of shape {list(self.shape)} is not a single number", where=self.record.where)
        itemsize = self._itemsize
        raw = self.record.read(self.offset * itemsize, itemsize)
        if self.swap or self.conj or self.neg:
            number: bool | int | float | complex = self._values(raw)[0].item()
            return number
        return scalar(raw, self.dtype)

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        expected = 1
        for length, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length != 1 and step != expected:
                return prod(self.shape) == 0
            expected *= length
        return True

    @property
    def _itemsize(self) -> int:
        if self.dtype not in DTYPES:
            raise Refused(f"values of type {safe_text(self.dtype)} cannot be read", where=self.record.where)
        return DTYPES[self.dtype][0]

    def _checked(self, offset: int, length: int) -> bytes | np.ndarray[Any, Any]:
        if length == self.record.nbytes:
            raw = new_bytes(length)
            self.record.into(raw.data)
            return raw
        self.record.verify()
        return self.record.read(offset, length)

    def _values(self, raw: bytes | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The bytes of whole elements as a flat array."""
        import numpy as np

        dtype = numpy_dtype(self.dtype)
        if self.swap:
            # A complex number is two numbers, each with its own bytes the other way round.
            width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            raw = np.frombuffer(raw, f"u{width}").byteswap().tobytes()
        values: np.ndarray[Any, Any] = np.frombuffer(raw, dtype)
        if self.conj:
            values = values.conj()
        return -values if self.neg else values

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} in {self.record.where}"


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor in row-major order."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def _check_layout(offset: object, shape: object, stride: object, elements: int) -> None:
    if type(offset) is not int or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("offset, size and stride must be an integer and two tuples")
    if len(shape) != len(stride) or len(shape) > MAX_RANK:
        raise ValueError(f"{len(shape)} sizes and {len(stride)} strides, at most {MAX_RANK} dimensions")
    last, empty = offset, False
    for length, step in zip(shape, stride, strict=True):
        if type(length) is not int or type(step) is not int or length < 0 or step < 0:
            raise ValueError(f"size {safe_text(length, 40)} with stride {safe_text(step, 40)}")
        empty = empty or length == 0
        last += (length - 1) * step
    if offset < 0 or (not empty and last >= elements):
        raise ValueError(f"elements {offset} to {last} of a storage that has {elements}")


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last that the tensor uses."""
    return 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))

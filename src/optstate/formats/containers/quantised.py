"""Tensors that are stored as small codes and the scales to read them with."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from optstate.errors import Refused
from optstate.state.tensors import TensorRef, array_blocks, is_tensor, nbytes
from optstate.text import safe_text, size

if TYPE_CHECKING:
    import numpy as np


_BITS: dict[tuple[int, ...], int] = {(256,): 8, (16,): 4}
"""How long a code is, by the shape of the map of its values."""


class Blockwise:
    """A tensor in blocks of codes, each block with a scale of its own; satisfies `TensorRef` with its values in float32.

    codes
        One code for each element in row-major order: numbers in float8, or places in `qmap`, of which two are in one
        byte, the first in its upper half, where `qmap` has 16 entries.
    scale
        float32, one for each block. Of several dimensions, the last counts blocks and those before it are those of
        `codes`: each part of the tensor has blocks of its own.
    qmap
        float32, the value of each of 16 or 256 codes; None where codes are numbers.
    shape, block
        Sizes of the tensor, elements in a block; the last block may be shorter.

    A value is `qmap[code] * scale`, as the libraries compute it. `dtype` names no type of torch but says what is
    stored, such as `8-bit blocks of 256`. Raises `ValueError` for parts that do not fit each other.
    """

    __slots__ = ("block", "codes", "dtype", "qmap", "scale", "shape")

    def __init__(
        self, codes: TensorRef, scale: TensorRef, qmap: TensorRef | None, shape: tuple[int, ...], block: int
    ) -> None:
        if not getattr(codes, "contiguous", True):
            raise ValueError("codes that do not lie one behind the other")
        bits = 8 if qmap is None else _BITS.get(qmap.shape, 0)
        if not bits or (qmap is not None and qmap.dtype != "float32"):
            raise ValueError("codes whose values are neither 16 nor 256 in float32")
        if not (codes.dtype.startswith("float8") if qmap is None else codes.dtype == "uint8"):
            raise ValueError(f"codes of type {safe_text(codes.dtype)}")
        elements = prod(shape)
        if prod(codes.shape) != elements * bits // 8 or elements * bits % 8:
            raise ValueError(f"codes of shape {list(codes.shape)} for a tensor of shape {list(shape)}")
        *outer, blocks = scale.shape or (0,)
        parts = prod(outer)
        if scale.dtype != "float32" or shape[: len(outer)] != tuple(outer) or block < 1:
            raise ValueError(f"scales of {safe_text(scale.dtype)} {list(scale.shape)} for shape {list(shape)}")
        if blocks != -(-(elements // max(1, parts)) // block):
            raise ValueError(f"{blocks} scales for {elements // max(1, parts)} elements in blocks of {block}")
        self.codes = codes
        self.scale = scale
        self.qmap = qmap
        self.shape = shape
        self.block = block
        self.dtype = f"{'fp8' if qmap is None else f'{bits}-bit'} blocks of {block}"

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is stored as."""
        return (self.codes, self.scale, *(() if self.qmap is None else (self.qmap,)))

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored as."""
        return sum(map(nbytes, self.parts))

    def array(self) -> np.ndarray[Any, Any]:
        """The values in float32; see `StoredTensor.array` for the errors."""
        import numpy as np

        try:
            values = np.empty(prod(self.shape), np.float32)
        except MemoryError:
            raise _too_large(self.shape) from None
        done = 0
        for block in self.blocks():
            values[done : done + block.size] = block
            done += block.size
        return values.reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order, at most `BLOCK` at a time."""
        import numpy as np

        scale = self.scale.array()
        blocks = scale.shape[-1]
        row = max(1, prod(self.shape) // max(1, scale.size // max(1, blocks)))  # elements that have blocks of their own
        done = 0
        for values in self._unscaled():
            part, within = np.divmod(np.arange(done, done + values.size), row)
            yield values * scale.reshape(-1)[part * blocks + within // self.block]
            done += values.size

    def _unscaled(self) -> Iterator[np.ndarray[Any, Any]]:
        import numpy as np

        if self.qmap is None:
            yield from (codes.astype(np.float32) for codes in self.codes.blocks())
            return
        qmap = self.qmap.array()
        for codes in self.codes.blocks():
            if qmap.size == 16:
                codes = np.stack([codes >> 4, codes & 15], axis=-1)
            yield from (qmap[block] for block in array_blocks(codes))

    def item(self) -> float:
        """The value of a tensor with a single element. Raises `Refused` for any other."""
        return _only(self)

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Affine:
    """A tensor that torch quantised; satisfies `TensorRef` with its values, `(code - zero point) * scale`, in float32.

    dtype
        torch's: `qint8`, `quint8` or `qint32`.
    codes
        The integers that are stored.
    scale, zero_point
        Numbers; where each slice along `axis` has its own, float64 and int64 tensors.

    Raises `ValueError` for parts that do not fit each other.
    """

    __slots__ = ("axis", "codes", "dtype", "scale", "zero_point")

    def __init__(
        self, dtype: str, codes: TensorRef, scale: float | TensorRef, zero_point: float | TensorRef, axis: int | None
    ) -> None:
        if axis is not None:
            if not 0 <= axis < len(codes.shape):
                raise ValueError(f"scales along dimension {axis} of shape {list(codes.shape)}")
            if any(getattr(each, "shape", None) != (codes.shape[axis],) for each in (scale, zero_point)):
                raise ValueError(f"scales that are not one for each of {codes.shape[axis]} slices")
        self.dtype = dtype
        self.codes = codes
        self.scale = scale
        self.zero_point = zero_point
        self.axis = axis

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is stored as."""
        return (self.codes, *(each for each in (self.scale, self.zero_point) if is_tensor(each)))

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored as."""
        return sum(map(nbytes, self.parts))

    def array(self) -> np.ndarray[Any, Any]:
        """The values in float32; see `StoredTensor.array` for the errors."""
        try:
            return self._values(self.codes.array(), self._along(self.scale), self._along(self.zero_point))
        except MemoryError:
            raise _too_large(self.shape) from None

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order, at most `BLOCK` at a time; with scales along an axis it is read whole first."""
        if self.axis is not None:
            yield from array_blocks(self.array())
            return
        for codes in self.codes.blocks():
            yield self._values(codes, self.scale, self.zero_point)

    def _values(self, codes: np.ndarray[Any, Any], scale: Any, zero_point: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        moved = codes.astype(np.float32) - np.asarray(zero_point, np.float32)
        # torch multiplies in float64 where each slice has its own scale.
        return np.asarray(moved * np.asarray(scale, np.float32 if self.axis is None else np.float64), np.float32)

    def _along(self, value: Any) -> Any:
        if self.axis is None:
            return value
        return value.array().reshape([-1 if axis == self.axis else 1 for axis in range(len(self.shape))])

    def item(self) -> float:
        """The value of a tensor with a single element. Raises `Refused` for any other."""
        return _only(self)

    def __repr__(self) -> str:
        how = (
            f"scale {self.scale:g}, zero point {self.zero_point}" if self.axis is None else f"scales along {self.axis}"
        )
        return f"{self.dtype} {list(self.shape)}, {how}"


def _too_large(shape: tuple[int, ...]) -> Refused:
    return Refused(f"not enough memory for a tensor of {size(prod(shape) * 4)}", found=f"shape {list(shape)}")


def _only(tensor: Blockwise | Affine) -> float:
    if prod(tensor.shape) != 1:
        raise Refused(f"a tensor of shape {list(tensor.shape)} is not a single number")
    return float(next(iter(tensor.blocks()))[0])

"""References to tensors, and the names of their element types. No torch, and numpy only when values are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard

if TYPE_CHECKING:
    import numpy as np

# Element types by torch's name: bytes per element, and the numpy or ml_dtypes name of the same type.
# Written out rather than derived, because these names are stored in files and must not depend on a library.
DTYPES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "float64": (8, "float64"),
        "float32": (4, "float32"),
        "float16": (2, "float16"),
        "bfloat16": (2, "ml_dtypes.bfloat16"),
        "float8_e4m3fn": (1, "ml_dtypes.float8_e4m3fn"),
        "float8_e5m2": (1, "ml_dtypes.float8_e5m2"),
        "float8_e4m3fnuz": (1, "ml_dtypes.float8_e4m3fnuz"),
        "float8_e5m2fnuz": (1, "ml_dtypes.float8_e5m2fnuz"),
        "complex128": (16, "complex128"),
        "complex64": (8, "complex64"),
        "int64": (8, "int64"),
        "int32": (4, "int32"),
        "int16": (2, "int16"),
        "int8": (1, "int8"),
        "uint64": (8, "uint64"),
        "uint32": (4, "uint32"),
        "uint16": (2, "uint16"),
        "uint8": (1, "uint8"),
        "bool": (1, "bool"),
    }
)

BLOCK = 1 << 17
"""Elements per block when values are streamed. Two of them with their float64 copies just fit into the cache of one core;
smaller ones make threads hand Python's lock to each other more often than they compute."""


class TensorRef(Protocol):
    """A tensor that is somewhere: in a file, in a live optimizer, in a snapshot.

    Knowing its type and shape costs nothing; only `array` and `blocks` read values.
    """

    @property
    def dtype(self) -> str:
        """The element type by torch's name, such as `float32`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, `()` for a scalar tensor."""

    def array(self) -> np.ndarray[Any, Any]:
        """The values, as a numpy array of `shape`; checked where the file has a checksum.

        Of a live tensor it may share the memory. From a file it may be read-only; where it can be written, its
        memory is nobody else's.
        """

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order as flat arrays of at most `BLOCK` elements, read one at a time."""

    def item(self) -> bool | int | float | complex:
        """The value of a tensor with a single element, read without importing numpy where that is possible."""


Value: TypeAlias = (
    "TensorRef | bool | int | float | complex | str | bytes | list[Any] | tuple[Any, ...] | dict[Any, Any] | None"
)
"""What a slot or a hyperparameter may hold: a tensor, a number, or a plain tree of them (as LBFGS keeps)."""


def is_tensor(value: object) -> TypeGuard[TensorRef]:
    """Whether a value is a reference to a tensor.

    Asked of every value of a checkpoint, tens of thousands of times, so it looks for one member of the class
    and not, as a runtime-checkable protocol does, at all of them in the object.
    """
    return hasattr(type(value), "blocks")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype for one of `DTYPES`. Raises `KeyError` for any other name."""
    import numpy as np

    target = DTYPES[name][1]
    if target.startswith("ml_dtypes."):
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, target.removeprefix("ml_dtypes.")))
        return dtype
    return np.dtype(target)


def nbytes(ref: TensorRef) -> int:
    """Bytes that the values take, whatever memory they share with others; of a quantised or sparse tensor, its parts.

    Unknown types count as nothing.
    """
    parts: int | None = getattr(ref, "nbytes", None)
    return prod(ref.shape) * DTYPES.get(ref.dtype, (0, ""))[0] if parts is None else parts


ALIGNMENT = 64
"""Bytes; where torch puts its own tensors. Linear algebra libraries may add in another order for memory that lies
elsewhere, and nothing about a restored tensor should differ from one that was never saved."""


def new_bytes(length: int) -> np.ndarray[Any, Any]:
    """An array of bytes in new memory, not cleared, that starts where a tensor of torch would."""
    import numpy as np

    raw = np.empty(length + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + length]


# What `struct` calls the element types that a scalar slot usually has; always little-endian, as files are.
_STRUCT = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i", "uint8": "<B", "bool": "<?"}


def scalar(raw: bytes, dtype: str) -> bool | int | float | complex:
    """The number that the little-endian bytes of one element hold."""
    if dtype in _STRUCT:
        number: bool | int | float = struct.unpack(_STRUCT[dtype], raw)[0]
        return number
    import numpy as np

    other: complex = np.frombuffer(raw, numpy_dtype(dtype))[0].item()
    return other


def array_blocks(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """An array in memory as the flat blocks that `TensorRef.blocks` promises."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]

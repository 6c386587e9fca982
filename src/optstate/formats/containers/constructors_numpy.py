"""What numpy's calls in a pickle stand for: element types, scalars, and arrays whose values are in the pickle."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

from optstate.formats.containers.constructors_python import expect
from optstate.formats.containers.pickle_machine import Buildable, Constructor, Global, Node
from optstate.formats.containers.stored_tensor import MAX_RANK, MemoryRecord, StoredTensor, row_major
from optstate.state.tensors import DTYPES, scalar
from optstate.text import safe_text

# numpy's type codes, and the same element types by torch's names.
NUMPY_TYPES: Mapping[str, str] = MappingProxyType(
    {
        **{f"f{width}": f"float{8 * width}" for width in (2, 4, 8)},
        **{
            f"{kind}{width}": f"{name}{8 * width}"
            for kind, name in (("i", "int"), ("u", "uint"))
            for width in (1, 2, 4, 8)
        },
        **{f"c{width}": f"complex{8 * width}" for width in (8, 16)},
        "b1": "bool",
    }
)


class NumpyType(Buildable):
    """numpy's description of an element type; `swap` marks big-endian values."""

    __slots__ = ("code", "swap")

    def __init__(self, code: str) -> None:
        self.code = code
        self.swap = False

    def set_state(self, state: Node) -> None:
        """(version, byte order, ...), of which only the byte order is needed."""
        self.swap = expect(state, tuple)[1] == ">"

    @property
    def dtype(self) -> str:
        """torch's name of the type; `numpy <code>` where it has none, such as text."""
        return NUMPY_TYPES.get(self.code) or (self.code if self.code in DTYPES else f"numpy {safe_text(self.code, 40)}")

    def __str__(self) -> str:
        return self.dtype


class NumpyArray(StoredTensor, Buildable):
    """A numpy array in the pickle: empty when it is made, filled by its state."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MemoryRecord(b"", "the pickle"), "uint8", 0, (0,), (1,))

    def set_state(self, state: Node) -> None:
        """(version, shape, element type, whether in column-major order, content)."""
        _, shape, kind, column_major, content = expect(state, tuple)
        self.fill(shape, kind, column_major, content)

    def fill(self, shape: Node, kind: Node, column_major: Node, content: Node) -> None:
        """Raises `ValueError` where the content is not as long as shape and type say."""
        _check_shape(shape)
        stride = row_major(shape[::-1])[::-1] if column_major else row_major(shape)
        if type(kind) is not NumpyType:
            raise ValueError("an element type that is none")
        if kind.dtype not in DTYPES:
            self.dtype, self.shape, self.stride = kind.dtype, shape, stride
            return
        record = MemoryRecord(expect(content, bytes), "the pickle")
        if record.nbytes != prod(shape) * DTYPES[kind.dtype][0]:
            raise ValueError(f"{record.nbytes} bytes for an array of shape {list(shape)}")
        super().__init__(record, kind.dtype, 0, shape, stride, swap=kind.swap)


def _check_shape(shape: Node) -> None:
    if len(expect(shape, tuple)) > MAX_RANK or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError("a shape that is none")


def _type(code: Node, align: Node = False, copy: Node = False) -> NumpyType:
    if type(code) is Global and code.module == "ml_dtypes":
        return NumpyType(code.name)
    return NumpyType(expect(code, str))


def _array(kind: Node, shape: Node, code: Node) -> Node:
    if type(kind) is not Global or (kind.module, kind.name) != ("numpy", "ndarray"):
        return NotImplemented
    return NumpyArray()


def _buffer(content: Node, kind: Node, shape: Node, order: Node) -> NumpyArray:
    array = NumpyArray()
    array.fill(shape, kind, order == "F", content)
    return array


def _scalar(kind: Node, content: Node = b"") -> Node:
    if type(kind) is not NumpyType:
        raise ValueError("an element type that is none")
    if kind.dtype not in DTYPES:
        return NotImplemented
    if len(expect(content, bytes)) != DTYPES[kind.dtype][0]:
        raise ValueError(f"{len(content)} bytes for one {kind.dtype}")
    if kind.swap and kind.dtype.startswith("complex"):
        return NotImplemented
    return scalar(content[::-1] if kind.swap else content, kind.dtype)


NUMPY: Mapping[tuple[str, str], Constructor] = MappingProxyType(
    {
        ("numpy", "dtype"): _type,
        **{
            (f"numpy.{core}.{module}", name): constructor
            for core in ("core", "_core")  # before and since numpy 2
            for module, name, constructor in (
                ("multiarray", "_reconstruct", _array),
                ("multiarray", "scalar", _scalar),
                ("numeric", "_frombuffer", _buffer),
            )
        },
    }
)

"""The calls in a pickle that are interpreted, each by a constructor of ours; every other call stays a record.

Read a row of `CONSTRUCTORS` as: module and name as a pickle spells them, and what is made of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

from optstate.formats.containers.pickle_machine import Buildable, Constructor, Global, Node
from optstate.formats.containers.stored_tensor import MAX_RANK, MemoryRecord, Record, StoredTensor, row_major
from optstate.state.tensors import DTYPES, scalar
from optstate.text import safe_text

# Storage classes of torch, and the element type each is for. An untyped one counts bytes.
STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "ComplexDoubleStorage": "complex128",
        "ComplexFloatStorage": "complex64",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
    }
)
UNTYPED = ("torch.storage", "UntypedStorage")


class Storage:
    """What a persistent id of torch stands for: a record, and its element type as `storage_dtype` has it."""

    __slots__ = ("dtype", "record", "swap")

    def __init__(self, record: Record, dtype: str | None, swap: bool) -> None:
        self.record = record
        self.dtype = dtype
        self.swap = swap

    def __str__(self) -> str:
        return f"{self.dtype or 'untyped'} storage in {self.record.where}"


def storage_dtype(kind: Node) -> str | None:
    """The element type of a storage class: None for an untyped one, the class itself where its type is not known."""
    if type(kind) is not Global:
        raise ValueError("a storage whose class is none")
    if (kind.module, kind.name) == UNTYPED:
        return None
    return STORAGES.get(kind.name, str(kind)) if kind.module == "torch" else str(kind)


# --- torch ------------------------------------------------------------------------------------------------


def _tensor(
    storage: Node, offset: Node, shape: Node, stride: Node, grad: Node, hooks: Node, flags: Node = None
) -> Node:
    if type(storage) is not Storage or storage.dtype is None:
        raise ValueError("a storage that is none, or has no type")
    if storage.dtype not in DTYPES:
        return NotImplemented
    return _view(storage, storage.dtype, offset, shape, stride, flags)


def _typed_tensor(
    storage: Node, offset: Node, shape: Node, stride: Node, grad: Node, hooks: Node, dtype: Node, flags: Node = None
) -> Node:
    if type(storage) is not Storage or type(dtype) is not Global or dtype.module != "torch":
        raise ValueError("a storage or an element type that is none")
    if dtype.name not in DTYPES:
        return NotImplemented
    if storage.dtype not in (None, dtype.name):
        raise ValueError(f"elements {safe_text(dtype.name)} in a storage of {storage.dtype}")
    return _view(storage, dtype.name, offset, shape, stride, flags)


def _view(storage: Storage, dtype: str, offset: Node, shape: Node, stride: Node, flags: Node) -> Node:
    if not flags:
        return StoredTensor(storage.record, dtype, offset, shape, stride, swap=storage.swap)
    if type(flags) is not dict or not flags.keys() <= {"conj", "neg"}:
        return NotImplemented
    conj, neg = bool(flags.get("conj")), bool(flags.get("neg"))
    return StoredTensor(storage.record, dtype, offset, shape, stride, swap=storage.swap, conj=conj, neg=neg)


def _parameter(tensor: Node, grad: Node, hooks: Node, state: Node = None) -> Node:
    return tensor


_PLAIN_TENSORS = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer")}


def _tensor_with_attributes(rebuild: Node, kind: Node, arguments: Node, state: Node) -> Node:
    """A tensor that someone hung attributes on; of a subclass nothing is known, so that stays a record."""
    if type(rebuild) is not Global or type(kind) is not Global or type(arguments) is not tuple:
        raise ValueError("a function, a class or arguments that are none")
    if rebuild.constructor not in (_tensor, _typed_tensor) or (kind.module, kind.name) not in _PLAIN_TENSORS:
        return NotImplemented
    return rebuild.constructor(*arguments)


def _size(sizes: Node) -> Node:
    return _expect(sizes, tuple)


def _device(kind: Node, index: Node = None) -> str:
    return _expect(kind, str) if index is None else f"{_expect(kind, str)}:{_expect(index, int)}"


# --- Python -----------------------------------------------------------------------------------------------
# A collection takes over the list or dict that it is made of, as no genuine pickle uses that a second time:
# copying it would let a small file ask for the same copy a million times.


def _expect(node: Node, *kinds: type) -> Node:
    if type(node) not in kinds:
        raise ValueError(f"{type(node).__name__} where {kinds[0].__name__} is due")
    return node


def _ordered_dict(pairs: Node = ()) -> Node:
    return {} if not _expect(pairs, tuple, list) else NotImplemented


def _dict(items: Node = None) -> Node:
    return {} if items is None else _expect(items, dict)


def _default_dict(factory: Node = None, items: Node = None) -> Node:
    return _dict(items)


def _list(items: Node = (), most: Node = None) -> Node:
    return [] if type(items) is tuple and not items else _expect(items, list)


def _tuple(items: Node = ()) -> Node:
    return NotImplemented if type(items) is list else _expect(items, tuple)


def _complex(real: Node, imaginary: Node) -> complex:
    return complex(_expect(real, float, int), _expect(imaginary, float, int))


def _bytes(content: Node = b"", encoding: Node = "latin-1") -> bytes:
    if type(content) is str:
        return _encode(content, encoding)
    return bytes(_expect(content, bytes))


def _encode(text: Node, encoding: Node) -> bytes:
    """Protocol 2 writes bytes as text in which each character stands for one byte."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding of bytes that pickle does not write")
    return bytes(_expect(text, str).encode("latin-1"))


def _path(*parts: Node) -> str:
    text = "/".join(_expect(part, str) for part in parts)
    return text[1:] if text.startswith("//") else text


# --- numpy ------------------------------------------------------------------------------------------------

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
        self.swap = _expect(state, tuple)[1] == ">"

    @property
    def dtype(self) -> str:
        """torch's name of the type; `numpy <code>` where it has none, such as text."""
        return NUMPY_TYPES.get(self.code, f"numpy {safe_text(self.code, 40)}")

    def __str__(self) -> str:
        return self.dtype


class NumpyArray(StoredTensor, Buildable):
    """A numpy array in the pickle: empty when it is made, filled by its state."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MemoryRecord(b"", "the pickle"), "uint8", 0, (0,), (1,))

    def set_state(self, state: Node) -> None:
        """(version, shape, element type, whether in column-major order, content)."""
        _, shape, kind, column_major, content = _expect(state, tuple)
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
        record = MemoryRecord(_expect(content, bytes), "the pickle")
        if record.nbytes != prod(shape) * DTYPES[kind.dtype][0]:
            raise ValueError(f"{record.nbytes} bytes for an array of shape {list(shape)}")
        super().__init__(record, kind.dtype, 0, shape, stride, swap=kind.swap)


def _check_shape(shape: Node) -> None:
    if len(_expect(shape, tuple)) > MAX_RANK or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError("a shape that is none")


def _numpy_type(code: Node, align: Node = False, copy: Node = False) -> NumpyType:
    return NumpyType(_expect(code, str))


def _numpy_array(kind: Node, shape: Node, code: Node) -> Node:
    if type(kind) is not Global or (kind.module, kind.name) != ("numpy", "ndarray"):
        return NotImplemented
    return NumpyArray()


def _numpy_buffer(content: Node, kind: Node, shape: Node, order: Node) -> NumpyArray:
    array = NumpyArray()
    array.fill(shape, kind, order == "F", content)
    return array


def _numpy_scalar(kind: Node, content: Node = b"") -> Node:
    if type(kind) is not NumpyType:
        raise ValueError("an element type that is none")
    if kind.dtype not in DTYPES:
        return NotImplemented
    if len(_expect(content, bytes)) != DTYPES[kind.dtype][0]:
        raise ValueError(f"{len(content)} bytes for one {kind.dtype}")
    if kind.swap and kind.dtype.startswith("complex"):
        return NotImplemented
    return scalar(content[::-1] if kind.swap else content, kind.dtype)


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

CONSTRUCTORS: Mapping[tuple[str, str], Constructor] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
        ("torch", "Size"): _size,
        ("torch", "device"): _device,
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): _default_dict,
        ("collections", "Counter"): _dict,
        ("collections", "deque"): _list,
        ("builtins", "dict"): _dict,
        ("builtins", "list"): _list,
        ("builtins", "set"): _list,
        ("builtins", "frozenset"): _list,
        ("builtins", "tuple"): _tuple,
        ("builtins", "complex"): _complex,
        ("builtins", "bytes"): _bytes,
        ("builtins", "bytearray"): _bytes,
        ("_codecs", "encode"): _encode,
        **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
        ("numpy", "dtype"): _numpy_type,
        **{
            (f"numpy.{core}.{module}", name): constructor
            for core in ("core", "_core")
            for module, name, constructor in (
                ("multiarray", "_reconstruct", _numpy_array),
                ("multiarray", "scalar", _numpy_scalar),
                ("numeric", "_frombuffer", _numpy_buffer),
            )
        },
    }
)

# Globals that stand for themselves in genuine files: element types, classes that constructors are told.
_KNOWN_VALUES = {*_PLAIN_TENSORS, UNTYPED, ("numpy", "ndarray"), ("builtins", "object")}


def known_global(found: Global) -> bool:
    """Whether a global is one that the reader understands, so that it needs no mention."""
    if found.constructor is not None or (found.module, found.name) in _KNOWN_VALUES:
        return True
    return found.module == "torch" and (found.name in STORAGES or found.name in DTYPES)

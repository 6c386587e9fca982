"""What a typed tree is made of: plain JSON for what JSON has, a node with a tag for everything else.

A tree holds no tensor, only keys of the manifest's tensor table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from optstate.state.tensors import numpy_dtype

if TYPE_CHECKING:
    import numpy as np


class Node(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False, tag_field="t"):
    """What JSON has no form for; the tag says what it is, `v` what it holds."""


class BigInt(Node, frozen=True, tag="int"):
    """An integer beyond ±2^53, in hexadecimal, such as `-0x20000000000001`."""

    v: Annotated[str, Meta(pattern="^-?0x[0-9a-f]+$")]


class OddFloat(Node, frozen=True, tag="float"):
    """NaN with its payload, or an infinity: the 64 bits in hexadecimal."""

    v: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]


class OddText(Node, frozen=True, tag="str"):
    """Text that is not valid Unicode: UTF-8 in which lone surrogates have their three bytes, as base64."""

    v: bytes


class Bytes(Node, frozen=True, tag="bytes"):
    """Bytes, as base64."""

    v: bytes


class Complex(Node, frozen=True, tag="complex"):
    """Real and imaginary part."""

    v: tuple[float | OddFloat, float | OddFloat]


class List(Node, frozen=True, tag="list"):
    """A list."""

    v: list[Tree]


class Tuple(Node, frozen=True, tag="tuple"):
    """A tuple."""

    v: list[Tree]


class Set(Node, frozen=True, tag="set"):
    """A set, in no particular order."""

    v: list[Tree]


class FrozenSet(Node, frozen=True, tag="frozenset"):
    """A frozenset, in no particular order."""

    v: list[Tree]


class Deque(Node, frozen=True, tag="deque"):
    """A `collections.deque` and its limit."""

    v: list[Tree]
    maxlen: int | None = None


class Dict(Node, frozen=True, tag="dict"):
    """A dict as pairs of key and value, in order."""

    v: list[tuple[Tree, Tree]]


class Ordered(Node, frozen=True, tag="OrderedDict"):
    """A `collections.OrderedDict`; `metadata` is the attribute `_metadata` that torch hangs on a module's state."""

    v: list[tuple[Tree, Tree]]
    metadata: Tree = None


class Count(Node, frozen=True, tag="Counter"):
    """A `collections.Counter`."""

    v: list[tuple[Tree, Tree]]


class Default(Node, frozen=True, tag="defaultdict"):
    """A `collections.defaultdict` and the name of its factory."""

    v: list[tuple[Tree, Tree]]
    factory: Literal["bool", "dict", "float", "int", "list", "set", "str", "tuple"] | None = None


class NumpyScalar(Node, frozen=True, tag="numpy"):
    """A numpy scalar: its type by torch's name, and its little-endian bytes. Is its own decoded form."""

    dtype: str
    v: bytes

    def value(self) -> np.generic:
        """The numpy scalar itself."""
        import numpy as np

        scalar: np.generic = np.frombuffer(self.v, numpy_dtype(self.dtype))[0]
        return scalar


class Size(Node, frozen=True, tag="torch.Size"):
    """A `torch.Size`. Is its own decoded form."""

    v: tuple[int, ...]


class Dtype(Node, frozen=True, tag="torch.dtype"):
    """A `torch.dtype` by name, such as `bfloat16`. Is its own decoded form."""

    v: str


class Device(Node, frozen=True, tag="torch.device"):
    """A `torch.device`, such as `cuda:0`. Is its own decoded form."""

    v: Annotated[str, Meta(pattern="^[a-z]+(:[0-9]+)?$")]


class Tensor(Node, frozen=True, tag="tensor"):
    """A tensor, by its key in the tensor table."""

    tensor: str


class Array(Node, frozen=True, tag="ndarray"):
    """A numpy array, by its key in the tensor table."""

    tensor: str


class Sparse(Node, frozen=True, tag="sparse"):
    """A sparse COO tensor: `indices` (int64, one row per sparse dimension) and `values`, by key."""

    indices: str
    values: str
    shape: tuple[int, ...]
    coalesced: bool


class Blockwise(Node, frozen=True, tag="blockwise"):
    """A tensor as small codes, in blocks of `block` elements with a scale each: `codes`, `scale` and, where codes are places
    in a map of values, `qmap`, by key. A value is `qmap[code] * scale`; 4-bit codes are two in a byte, the first in its
    upper half.
    """

    codes: str
    scale: str
    shape: tuple[int, ...]
    block: int
    qmap: str | None = None


Tree: TypeAlias = (
    bool | int | float | str
    | BigInt | OddFloat | OddText | Bytes | Complex
    | List | Tuple | Set | FrozenSet | Deque
    | Dict | Ordered | Count | Default
    | NumpyScalar | Size | Dtype | Device | Tensor | Array | Sparse | Blockwise
    | None
)  # fmt: skip
"""A typed tree."""

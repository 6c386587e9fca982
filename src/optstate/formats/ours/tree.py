"""Objects as typed trees: `encode` refuses what it could not give back exactly, `decode` runs nothing to do so.

Neither needs torch: tensors, arrays and torch's small types are left to a callback on the way in, and come
back as references and nodes.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

from optstate.errors import Unsaveable
from optstate.formats.containers.quantised import Blockwise
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours import nodes
from optstate.formats.ours.nodes import Node, Tree
from optstate.state.tensors import DTYPES, TensorRef
from optstate.text import safe_text

DEPTH = 100
"""Levels that a tree may have; a value that contains itself has more."""

Path: TypeAlias = "tuple[Any, ...]"
"""Where a value is: the object's name, then keys and indices."""

Leaf: TypeAlias = "Callable[[Any, Path], Tree]"
"""Encodes what Python itself does not define; None for what it does not know either."""

_EXACT = 1 << 53
"""Integers beyond this change in JSON readers that know only floats, so they travel as text."""


def encode(value: Any, path: Path, leaf: Leaf) -> Tree:
    """`value` as a typed tree.

    Types count exactly: an `IntEnum` or a named tuple is no `int` or `tuple`, because it would not come back
    as what it was. Raises `Unsaveable`, with the path, for anything that has no place in the format.

    >>> encode({"milestones": (30, 80)}, ("scheduler",), lambda value, path: None)
    Dict(v=[('milestones', Tuple(v=[30, 80]))])
    """
    kind = type(value)
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if len(path) > DEPTH:
        raise Unsaveable(
            f"{path_text(path[:4])}… is nested too deeply, or contains itself",
            expected=f"at most {DEPTH} levels",
            todo="leave it out of the state_dict, or flatten it",
        )
    if kind in _SEQUENCES:
        return _encode_sequence(value, path, leaf)
    if kind in _MAPPINGS:
        return _encode_mapping(value, path, leaf)
    node = leaf(value, path)
    if node is None:
        raise _unsaveable(path, _describe(value))
    return node


def decode(tree: Tree, tensor: Callable[[str], TensorRef], level: int = 0) -> Any:
    """The value that a tree stands for; `tensor` finds a tensor by its key.

    Tensors become what `tensor` gives, numpy arrays `ArrayRef`, sparse tensors `SparseRef`, those in codes `Blockwise`; numpy
    scalars and torch's sizes, dtypes and devices stay the nodes that they are. Raises `ValueError`, `TypeError` or
    `KeyError` for a tree that `encode` cannot have made; `level` counts how deep it is.
    """
    if not isinstance(tree, Node):
        return tree
    if level > DEPTH:
        raise ValueError(f"a tree of more than {DEPTH} levels")
    match tree:
        case nodes.Tensor(tensor=key):
            return tensor(key)
        case nodes.Array(tensor=key):
            return ArrayRef(tensor(key))
        case nodes.Sparse():
            return SparseRef(tensor(tree.indices), tensor(tree.values), tree.shape, tree.coalesced)
        case nodes.Blockwise():
            qmap = None if tree.qmap is None else tensor(tree.qmap)
            return Blockwise(tensor(tree.codes), tensor(tree.scale), qmap, tree.shape, tree.block)
        case nodes.Deque():
            return deque((decode(item, tensor, level + 1) for item in tree.v), tree.maxlen)
        case nodes.List() | nodes.Tuple() | nodes.Set() | nodes.FrozenSet():
            return _PYTHON[type(tree)](decode(item, tensor, level + 1) for item in tree.v)
        case nodes.Dict() | nodes.Ordered() | nodes.Count() | nodes.Default():
            return _decode_mapping(tree, tensor, level + 1)
    return _decode_scalar(tree)


def path_text(path: Path) -> str:
    """A path as one would write it in Python, safe to print.

    >>> path_text(("scheduler", "lr_lambdas", 0))
    'scheduler.lr_lambdas[0]'
    """
    first, *rest = path
    parts = [f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r:.60}]" for key in rest]
    return safe_text(str(first) + "".join(parts))


# --- scalars ------------------------------------------------------------------------------------------------


def _encode_int(value: int) -> Tree:
    return value if -_EXACT <= value <= _EXACT else nodes.BigInt(hex(value))


def _encode_float(value: float) -> float | nodes.OddFloat:
    return value if isfinite(value) else nodes.OddFloat(struct.pack(">d", value).hex())


def _encode_text(value: str) -> Tree:
    try:
        value.encode()
    except UnicodeEncodeError:
        return nodes.OddText(value.encode("utf-8", "surrogatepass"))
    return value


_SCALARS: Mapping[type, Callable[[Any], Tree]] = {
    int: _encode_int,
    float: _encode_float,
    str: _encode_text,
    bytes: nodes.Bytes,
    complex: lambda value: nodes.Complex((_encode_float(value.real), _encode_float(value.imag))),
}


def _decode_scalar(node: Node) -> Any:
    match node:
        case nodes.BigInt(v=text):
            return int(text, 16)
        case nodes.OddFloat(v=text):
            return struct.unpack(">d", bytes.fromhex(text))[0]
        case nodes.OddText(v=raw):
            return raw.decode("utf-8", "surrogatepass")
        case nodes.Bytes(v=raw):
            return raw
        case nodes.Complex(v=parts):
            return complex(*(part if isinstance(part, float) else _decode_scalar(part) for part in parts))
        case nodes.NumpyScalar(dtype=name, v=raw) if len(raw) != DTYPES[name][0]:
            raise ValueError(f"{len(raw)} bytes for one {name}")
        case nodes.Dtype(v=name) if name not in DTYPES:
            raise ValueError(f"{safe_text(name)} is no element type")
    return node


# --- containers ---------------------------------------------------------------------------------------------

_SEQUENCES: Mapping[type, type[Node]] = {
    list: nodes.List,
    tuple: nodes.Tuple,
    set: nodes.Set,
    frozenset: nodes.FrozenSet,
    deque: nodes.Deque,
}
_MAPPINGS: Mapping[type, type[Node]] = {
    dict: nodes.Dict,
    OrderedDict: nodes.Ordered,
    Counter: nodes.Count,
    defaultdict: nodes.Default,
}
_PYTHON: Mapping[type[Node], Callable[[Any], Any]] = {
    node: kind for kind, node in (*_SEQUENCES.items(), *_MAPPINGS.items())
}
_FACTORIES: Mapping[str, type] = {
    kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)
}  # a defaultdict's; a closed list, because a file must not name what is called


def _encode_sequence(value: Any, path: Path, leaf: Leaf) -> Tree:
    items = [encode(item, (*path, index), leaf) for index, item in enumerate(value)]
    if isinstance(value, deque):
        return nodes.Deque(items, value.maxlen)
    if isinstance(value, (set, frozenset)) and not all(map(_hashable, items)):
        raise _unsaveable(path, "a set with members that are equal only to themselves")
    return _SEQUENCES[type(value)](items)  # type: ignore[return-value]


def _encode_mapping(value: Mapping[Any, Any], path: Path, leaf: Leaf) -> Tree:
    pairs = [(_encode_key(key, path, leaf), encode(item, (*path, key), leaf)) for key, item in value.items()]
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    if set(attributes) - ({"_metadata"} if isinstance(value, OrderedDict) else set()):
        raise _unsaveable(path, f"a {type(value).__name__} with attributes of its own")
    if isinstance(value, OrderedDict):
        return nodes.Ordered(pairs, encode(attributes.get("_metadata"), (*path, "_metadata"), leaf))
    if isinstance(value, defaultdict):
        factory = value.default_factory
        if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
            raise _unsaveable((*path, "default_factory"), _describe(factory))
        return nodes.Default(pairs, getattr(factory, "__name__", None))
    return _MAPPINGS[type(value)](pairs)  # type: ignore[return-value]


def _encode_key(key: Any, path: Path, leaf: Leaf) -> Tree:
    node = encode(key, (*path, key), leaf)
    if not _hashable(node):
        raise _unsaveable(path, f"a dict with a key that is {_describe(key)}")
    return node


def _hashable(node: Tree) -> bool:
    """Whether the decoded value can be a key and is equal to itself after a round trip."""
    if isinstance(node, (nodes.Tuple, nodes.FrozenSet)):
        return all(map(_hashable, node.v))
    return not isinstance(node, (nodes.Tensor, nodes.Array, nodes.Sparse, nodes.Blockwise))


def _decode_mapping(
    tree: nodes.Dict | nodes.Ordered | nodes.Count | nodes.Default, tensor: Callable[[str], TensorRef], level: int
) -> Any:
    pairs = ((decode(key, tensor, level), decode(item, tensor, level)) for key, item in tree.v)
    match tree:
        case nodes.Default(factory=factory):
            return defaultdict(_FACTORIES[factory] if factory is not None else None, pairs)
        case nodes.Ordered(metadata=metadata):
            ordered = OrderedDict(pairs)
            if metadata is not None:
                vars(ordered)["_metadata"] = decode(metadata, tensor, level)
            return ordered
        case nodes.Count():
            return Counter(dict(pairs))
    return dict(pairs)


# --- faults -------------------------------------------------------------------------------------------------


def _describe(value: object) -> str:
    kind = type(value)
    if kind.__name__ in ("function", "builtin_function_or_method", "method"):
        return "a function"
    return f"a {safe_text(f'{kind.__module__}.{kind.__qualname__}'.removeprefix('builtins.'))}"


def _unsaveable(path: Path, found: str) -> Unsaveable:
    return Unsaveable(
        f"{path_text(path)}: {found} cannot be saved",
        expected="numbers, text, bytes, None, lists, tuples, dicts, sets, deques, numpy arrays, tensors",
        found=found,
        todo="leave it out of the state_dict and build it anew after a restore, or save its plain content; "
        "nothing is ever pickled",
    )


# --- decoded forms ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """What was a numpy array, so that a restore gives back one: `tensor` holds its values, type and strides."""

    tensor: TensorRef

    def __str__(self) -> str:
        return f"numpy {self.tensor.dtype} {list(self.tensor.shape)}"

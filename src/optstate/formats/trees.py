"""Two plain trees side by side: where they differ, and which tensors of them stand at the same place."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from optstate.formats.containers.pickle_machine import Call, Global
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.containers.unfolding import Elided
from optstate.formats.ours import nodes
from optstate.formats.ours.tree import ArrayRef
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import safe_text


class Absent:
    """What stands in the place of a value that one side does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass(slots=True)
class Walk:
    """What `walk` found, each with its path in the tree.

    `differing` are plain values that are not the same, or that only one side has; `tensors` stand at the same place in
    both; `unknown` are values that no reader can walk.
    """

    differing: list[tuple[str, Any, Any]] = field(default_factory=list)
    tensors: list[tuple[str, TensorRef, TensorRef]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def walk(a: Any, b: Any) -> Walk:
    """Compare two trees of numbers, text, containers, records and references to tensors.

    A list is the same as a tuple of the same elements, None as a key that is not there, an integer as a float of its
    value; NaN is the same as itself, 0.0 is not -0.0, True is not 1. Containers that a tree shares are compared once
    for each pair of places, so work is bounded by what the trees hold and not by what they unfold to.
    """
    found = Walk()
    _walk(found, set(), "", a, b)
    return found


def same_plain(a: Any, b: Any) -> bool:
    """Whether two values that are neither tensors nor containers are the same, to the last bit."""
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    return a is b or bool(a == b)


def _walk(found: Walk, seen: set[tuple[int, int]], path: str, a: Any, b: Any) -> None:
    containers = isinstance(a, _CONTAINERS) and isinstance(b, _CONTAINERS)
    if containers and (id(a), id(b)) in seen:
        return
    if containers:
        seen.add((id(a), id(b)))
    x, y = _plain(a), _plain(b)
    if isinstance(x, Elided) or isinstance(y, Elided):
        found.unknown.append(path)
    elif is_tensor(x) and is_tensor(y):
        found.tensors.append((path, x, y))
    elif isinstance(x, dict) and isinstance(y, dict):
        for key in {**x, **y}:
            _walk(found, seen, f"{path}.{safe_text(key, 80)}", x.get(key, ABSENT), y.get(key, ABSENT))
    elif isinstance(x, list) and isinstance(y, list):
        for index, (one, other) in enumerate(zip_longest(x, y, fillvalue=ABSENT)):
            _walk(found, seen, f"{path}[{index}]", one, other)
    elif not same_plain(x, y):
        found.differing.append((path, x, y))


_CONTAINERS = (Mapping, list, tuple, deque, set, frozenset, Call, SparseRef)


def _plain(value: Any) -> Any:
    """A value as a dict, a list, a reference to a tensor, or a leaf; the inner values are the same objects."""
    if value is None:
        return ABSENT
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple, deque)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    match value:
        case Call():
            return {
                "function": value.function,
                "arguments": value.arguments,
                "state": value.state,
                "items": value.items or None,
            }
        case SparseRef():
            return {"indices": value.indices, "values": value.values, "shape": value.shape}
        case ArrayRef():
            return value.tensor
        case Global() | nodes.Device():
            return str(value.v if isinstance(value, nodes.Device) else value)
        case nodes.Dtype(v=name):
            return f"torch.{name}"
        case nodes.Size(v=sizes):
            return list(sizes)
        case nodes.NumpyScalar():
            return value.value().item()
    return value

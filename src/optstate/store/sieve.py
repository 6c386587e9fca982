"""What of a tree a format can hold: the rest is left out and named, or changed and named; nothing goes missing silently."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from optstate.formats.containers.quantised import Blockwise
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours import nodes
from optstate.formats.ours.tree import ArrayRef, path_text
from optstate.state.tensors import DTYPES, is_tensor
from optstate.store.torch_pickle import PLAIN
from optstate.text import safe_text

Path: TypeAlias = "tuple[Any, ...]"

LEFT_OUT = object()
"""Stands for a value that the format cannot hold."""

Leaf: TypeAlias = "Callable[[Sieve, Any, Path], Any]"
"""What a format makes of a value that is no container: the value, another one, or `LEFT_OUT`."""


class Sieve:
    """Takes values for one format. `left_out` and `changed` say what it could not take as it is, each with its path."""

    def __init__(self, leaf: Leaf) -> None:
        self.left_out: list[str] = []
        self.changed: list[str] = []
        self._leaf = leaf

    def take(self, value: Any, path: Path) -> Any:
        """What the format holds of a value; `LEFT_OUT` for nothing.

        A part that it cannot hold is left out of the dict that it is in; a list that would lose an element is left out
        as a whole, because places in it count.
        """
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, (list, tuple, deque, set, frozenset)):
            return self._sequence(value, path)
        found = self._leaf(self, value, path)
        if found is LEFT_OUT:
            self.left_out.append(f"{path_text(path)}: {_described(value)}")
        return found

    def change(self, path: Path, how: str) -> None:
        """Say that a value becomes another one."""
        self.changed.append(f"{path_text(path)}: {how}")

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> Any:
        pairs = []
        for key, item in value.items():
            if not _is_key(key):
                self.left_out.append(f"{path_text(path)}: what stands under {_described(key)}")
            elif (taken := self.take(item, (*path, key))) is not LEFT_OUT:
                pairs.append((key, taken))
        return self._rebuilt(value, pairs, path)

    def _rebuilt(self, value: Mapping[Any, Any], pairs: list[tuple[Any, Any]], path: Path) -> Any:
        empty = self._leaf(self, _empty(value), path)
        for key, item in pairs:
            empty[key] = item
        return empty

    def _sequence(self, value: Any, path: Path) -> Any:
        items = [self.take(item, (*path, index)) for index, item in enumerate(value)]
        if any(item is LEFT_OUT for item in items):
            return LEFT_OUT
        same: Any = deque(items, value.maxlen) if isinstance(value, deque) else type(value)(items)
        return self._leaf(self, same, path)


def _empty(value: Mapping[Any, Any]) -> Any:
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory)
    return type(value)() if type(value) in (OrderedDict, Counter) else {}


def _is_key(key: Any) -> bool:
    if isinstance(key, (tuple, frozenset)):
        return all(map(_is_key, key))
    return key is None or type(key) in (bool, int, float, complex, str, bytes)


def _described(value: Any) -> str:
    if is_tensor(value):
        return f"a tensor of {safe_text(value.dtype, 60)} {list(value.shape)}"
    return safe_text(value if type(value).__module__.startswith("optstate") else f"a {type(value).__name__}", 120)


# --- formats ----------------------------------------------------------------------------------------------

_NODES = (nodes.NumpyScalar, nodes.Size, nodes.Dtype, nodes.Device)
_OURS = (
    type(None), bool, int, float, complex, str, bytes,
    list, tuple, deque, set, frozenset, dict, OrderedDict, Counter, defaultdict, *_NODES,
)  # fmt: skip


def for_optstate(_: Sieve, value: Any, __: Path) -> Any:
    """Typed trees hold all of Python's plain values, numpy's and torch's small types, arrays, sparse tensors and codes."""
    if isinstance(value, ArrayRef):
        return value if value.tensor.dtype in DTYPES else LEFT_OUT
    if is_tensor(value):
        return value if value.dtype in DTYPES or isinstance(value, Blockwise) else LEFT_OUT
    return value if type(value) in _OURS else LEFT_OUT


def for_torch(sieve: Sieve, value: Any, path: Path) -> Any:
    """What `torch.load(weights_only=True)` knows; the closest plain value for what it does not."""
    match value:
        case ArrayRef() if value.tensor.dtype in DTYPES:
            sieve.change(path, "numpy array → tensor")
            return value.tensor
        case SparseRef() | ArrayRef():
            return LEFT_OUT
        case nodes.NumpyScalar():
            sieve.change(path, f"numpy.{safe_text(value.dtype)} → number")
            return value.value().item()
    if is_tensor(value):
        return value if value.dtype in DTYPES else LEFT_OUT
    for kind, plainer in _PLAINER.items():
        if type(value) is kind:
            sieve.change(path, f"{kind.__name__} → {plainer.__name__}")
            return plainer(value)
    if type(value) is int and value.bit_length() > 2000:
        return LEFT_OUT
    return value if type(value) in PLAIN else LEFT_OUT


_PLAINER: Mapping[type, type] = {deque: list, frozenset: set, defaultdict: dict}


def for_safetensors(sieve: Sieve, value: Any, path: Path) -> Any:
    """As for our own format, for the rest is written in its way; of tensors, the types that safetensors names."""
    odd = is_tensor(value) and (isinstance(value, (SparseRef, Blockwise)) or value.dtype not in _SAFETENSORS)
    return LEFT_OUT if odd or isinstance(value, ArrayRef) else for_optstate(sieve, value, path)


_SAFETENSORS = [name for name in DTYPES if not name.startswith("complex") and not name.endswith("fnuz")]

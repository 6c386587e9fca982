"""The canonical digest: element type, shape, and contiguous little-endian bytes, by xxh3-128."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from xxhash import xxh3_128_hexdigest

from optstate.live.tensors import dtype_name, is_quantised, to_array
from optstate.optimizers.registry import qualified_name
from optstate.proof.moments import Part
from optstate.text import safe_text

_DEEP = 20  # levels of an unknown object that are followed; there are objects that hold themselves


def parts_of(value: Any, name: str, deep: int = _DEEP) -> Iterator[tuple[str, Part]]:
    """Every leaf of a tree by its path: tensors and arrays each, and what else there is.

    Two values have one digest if they are of one type and every bit agrees: NaN is the same as itself, 0.0 is not -0.0.
    Of an object that is no plain value its attributes count; a function counts by its name.
    """
    if isinstance(value, torch.Tensor):
        yield from _tensor(value, name)
    elif isinstance(value, np.ndarray):
        yield name, _array(value, str(value.dtype), value.strides)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from parts_of(item, f"{name}/{key}", deep)
    elif isinstance(value, (list, tuple)) and not all(isinstance(item, _PLAIN) for item in value):
        for number, item in enumerate(value):
            yield from parts_of(item, f"{name}[{number}]", deep)
    elif isinstance(value, (*_PLAIN, list, tuple, set, frozenset, np.generic)):
        yield name, _plain(value)
    elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value) and deep:
        yield from parts_of({"class": qualified_name(type(value)), **vars(value)}, name, deep - 1)
    else:
        known = qualified_name(value) if callable(value) and hasattr(value, "__qualname__") else ""
        yield name, _part(qualified_name(type(value)), known.encode(), known)


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def _tensor(tensor: torch.Tensor, name: str) -> Iterator[tuple[str, Part]]:
    if is_quantised(tensor):
        for key in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]  # the protocol of such classes
            yield from _tensor(getattr(tensor, key), f"{name}.{key}")
        return
    strides = tensor.stride() if tensor.layout == torch.strided else ()
    yield name, _array(to_array(tensor), dtype_name(tensor), strides)


def _array(array: np.ndarray[Any, Any], dtype: str, strides: tuple[int, ...]) -> Part:
    kind = f"{dtype} {list(array.shape)}"
    shown = safe_text(array.item(), 40) if array.size == 1 and array.dtype != object else ""
    return _part(kind, _bytes(array), shown, ",".join(map(str, strides)))


def _bytes(array: np.ndarray[Any, Any]) -> Any:
    """Contiguous and little-endian; no copy where it is that already."""
    if array.dtype == object:
        return repr(array.tolist()).encode()
    flat = np.ascontiguousarray(array).reshape(-1)
    width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    return flat.view(f"u{width}").astype(f"<u{width}", copy=False) if width in (2, 4, 8) else flat.view(np.uint8)


def _plain(value: Any) -> Part:
    """A value that prints whole: floats with every digit, sets in order."""
    if isinstance(value, (set, frozenset)):
        value = sorted(map(repr, value))
    if isinstance(value, np.generic):
        return _array(np.asarray(value), str(value.dtype), ())
    text = repr(value)
    return _part(type(value).__name__, text.encode(errors="surrogateescape"), safe_text(text, 40))


def _part(kind: str, data: Any, shown: str = "", strides: str = "") -> Part:
    if isinstance(data, bytes):
        return Part(xxh3_128_hexdigest(kind.encode() + b"\0" + data), kind, shown, strides)
    # The kind goes in as the digest's seed would: one pass over the values, and no copy of them.
    own = xxh3_128_hexdigest(data)
    return Part(xxh3_128_hexdigest(f"{kind}\0{own}".encode()), kind, shown, strides)

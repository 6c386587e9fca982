"""The header of a safetensors file: how ours are laid out, and what a foreign reader sees in them.

A file is eight bytes of length, that much JSON, then the tensors without gaps. Ours pad the JSON with spaces
so that the tensors begin at a multiple of 64 bytes, and order them by the alignment that their lengths keep,
so that every tensor is aligned to its elements and every large one to 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

ALIGNMENT = 64
METADATA = "__metadata__"
"""The one name that a tensor cannot have."""

LENGTH = 8
"""Bytes before the header that say how long it is."""

# What safetensors calls each element type. It lacks complex128, and older readers know neither complex64 nor
# the `fnuz` floats: a complex number is written as its two parts side by side, an unknown byte as a byte.
_NAMES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "U8",
    "float8_e5m2fnuz": "U8",
    "complex128": "F64",
    "complex64": "F32",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


class Item(NamedTuple):
    """A tensor in a file: its name there, its element type by torch's name, its shape, and its length in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def alignment(nbytes: int) -> int:
    """The largest power of two up to `ALIGNMENT` that divides a length: what comes next stays aligned to it."""
    return ALIGNMENT if nbytes == 0 else min(nbytes & -nbytes, ALIGNMENT)


def encode_header(items: Iterable[Item], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the first tensor, for items that are written in this order."""
    entries: dict[str, object] = {METADATA: dict(metadata)}
    end = 0
    for item in items:
        start, end = end, end + item.nbytes
        shape = [*item.shape, 2] if item.dtype.startswith("complex") else list(item.shape)
        entries[item.name] = {"dtype": _NAMES[item.dtype], "shape": shape, "data_offsets": [start, end]}
    text = msgspec.json.encode(entries)
    text += b" " * (-(LENGTH + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH, "little") + text


def entry_size(item: Item) -> int:
    """Bytes that an item adds to a header, at most."""
    return len(msgspec.json.encode(item.name)) + 22 * len(item.shape) + 100


def header_metadata(raw: bytes) -> Mapping[str, str]:
    """The `__metadata__` of a header; empty where there is none, or no header."""
    try:
        return msgspec.json.decode(raw[LENGTH:], type=_Metadata).entries
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


class _Metadata(msgspec.Struct):
    entries: dict[str, str] = msgspec.field(name=METADATA, default_factory=dict)

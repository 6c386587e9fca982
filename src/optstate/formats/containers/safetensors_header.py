"""The header of a safetensors file: how ours are laid out, and a strict reader of everybody's.

A file is eight bytes of length, that much JSON, then the tensors without gaps. Ours pad the JSON with spaces
so that the tensors begin at a multiple of 64 bytes, and order them by the alignment that their lengths keep,
so that every tensor is aligned to its elements and every large one to 64 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import msgspec

from optstate.errors import Damaged, Refused
from optstate.formats.containers.folder import parsed_json
from optstate.formats.containers.stored_tensor import MAX_RANK
from optstate.text import safe_text

ALIGNMENT = 64
METADATA = "__metadata__"
"""The one name that a tensor cannot have."""

LENGTH = 8
"""Bytes before the header that say how long it is."""

TENSORS = 250_000
"""Tensors that one file may hold; the largest models have a tenth of that, in hundreds of files."""

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

# Bits that an element takes, and its type by torch's name; None for those of which only the bytes can be told.
_TYPES: Mapping[str, tuple[int, str | None]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
    "C64": (64, "complex64"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
}


class Item(msgspec.Struct, frozen=True, gc=False):
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
    entries: dict[str, Mapping[str, str] | _Described] = {METADATA: metadata}
    end = 0
    for item in items:
        start, end = end, end + item.nbytes
        shape = (*item.shape, 2) if item.dtype.startswith("complex") else item.shape
        entries[item.name] = _Described(_NAMES[item.dtype], shape, (start, end))
    text = msgspec.json.encode(entries)
    text += b" " * (-(LENGTH + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH, "little") + text


class _Described(msgspec.Struct, frozen=True, gc=False):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_JSON = msgspec.json.Encoder()


def entry_size(item: Item) -> int:
    """Bytes that an item adds to a header, at most."""
    return len(_JSON.encode(item.name)) + 22 * len(item.shape) + 100


def header_metadata(raw: bytes) -> Mapping[str, str]:
    """The `__metadata__` of a header; empty where there is none, or no header."""
    try:
        return msgspec.json.decode(raw[LENGTH:], type=_Metadata).entries
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


class _Metadata(msgspec.Struct):
    entries: dict[str, str] = msgspec.field(name=METADATA, default_factory=dict)


# --- reading ----------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A tensor as a header describes it; sorts by its place in the file, which is counted from the header's end.

    `kind` is the element type as it is written there, `dtype` by torch's name: None where values cannot be read.
    """

    start: int
    end: int
    name: str
    kind: str
    dtype: str | None
    shape: tuple[int, ...]


def decode_header(raw: bytes, data: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """The tensors in the order in which they lie in the file, and the `__metadata__`.

    `raw` is the JSON, `data` the number of bytes behind it, `where` the file, safe to print. Everything that the
    header claims is held against `data`. Raises `Damaged` for what is no header, or whose tensors do not fill the
    file without gaps, `Refused` for more tensors than a file has.
    """
    if raw.count(b"{") > TENSORS:  # counted before it is parsed, which takes fifty times its size in memory
        raise Refused(f"{where} has more tensors than a file of weights", expected=f"at most {TENSORS:,}")
    try:
        header = parsed_json(raw.decode(), f"the header of {where}")
    except UnicodeDecodeError as error:
        raise Damaged(f"the header of {where} is no text", found=f"byte {LENGTH + error.start}") from None
    if type(header) is not dict:
        raise _odd(where, "an object", f"a {type(header).__name__}")
    metadata = header.pop(METADATA, {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise _odd(f"{where}, {METADATA}", "text for each key", "something else")
    _check_text((*header, *metadata, *metadata.values()), where)
    entries = sorted(_entry(name, entry, where) for name, entry in header.items())
    _check_tiling(entries, data, where)
    return entries, metadata


_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = (1 << 63) - 1


def _entry(name: str, entry: Any, where: str) -> Entry:
    if type(entry) is not dict or entry.keys() != _FIELDS:
        raise _odd(_place(where, name), "dtype, shape and data_offsets", safe_text(entry, 60))
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in _TYPES:
        raise _odd(_place(where, name), "an element type of safetensors", safe_text(kind, 40))
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise _odd(_place(where, name), f"at most {MAX_RANK} sizes", safe_text(shape, 60))
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _odd(_place(where, name), "where it begins and ends", safe_text(offsets, 60))
    (start, end), (bits, dtype) = offsets, _TYPES[kind]
    if prod(shape) * bits != (end - start) * 8:
        raise _odd(_place(where, name), f"the bytes of {kind} {safe_text(shape, 60)}", f"{end - start:,} bytes")
    return Entry(start, end, name, kind, dtype, tuple(shape))


def _are_sizes(node: object) -> bool:
    if type(node) is not list or not {*map(type, node)} <= {int}:
        return False
    return not node or (min(node) >= 0 and max(node) <= _LARGEST)


def _check_text(texts: Iterable[str], where: str) -> None:
    """JSON can spell half a character, which nothing could print."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _odd(where, "text", safe_text(text, 60)) from None


def _check_tiling(entries: Iterable[Entry], data: int, where: str) -> None:
    """Each tensor begins where the one before it ends, and the last one ends with the file."""
    end = 0
    for entry in entries:
        if entry.start != end:
            between = "a gap" if entry.start > end else "an overlap"
            raise _odd(
                _place(where, entry.name), f"a begin at byte {end:,}", f"{between}: it begins at {entry.start:,}"
            )
        end = entry.end
    if end > data:
        raise Damaged(
            f"{where} ends too early",
            expected=f"{end:,} bytes of tensors",
            found=f"{data:,}",
            todo="the copy is incomplete: fetch or copy it again",
        )
    if end < data:
        raise _odd(where, f"{end:,} bytes of tensors", f"{data - end:,} more behind the last one")


def _place(where: str, name: str) -> str:
    return f"{where}, {safe_text(name) or 'the tensor without a name'}"


def _odd(where: str, expected: str, found: str) -> Damaged:
    what = "the header of a safetensors file contradicts the format"
    return Damaged(what, where=where, expected=expected, found=found)

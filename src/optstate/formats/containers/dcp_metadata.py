"""The `.metadata` of `torch.distributed.checkpoint`: a bare pickle of torch's own classes, read into plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optstate.errors import Refused
from optstate.formats.containers.pickle_file import read_pickle
from optstate.formats.containers.pickle_machine import Call, Global, Node
from optstate.formats.containers.pickle_opcodes import OPCODES
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.stored_tensor import MAX_RANK
from optstate.formats.containers.unfolding import DEPTH
from optstate.text import safe_text

KeyPath = tuple[str | int, ...]
"""What led to a value in the nested dict that was saved: keys of dicts as text, indices of lists as numbers."""


class Place(NamedTuple):
    """Where an item is: a run of bytes in a shard file, and what was done to them (such as `stream.zstd`)."""

    file: str
    offset: int
    length: int
    coding: tuple[str, ...]


class Chunk(NamedTuple):
    """A box of a tensor, and where its values are; None where no shard has them."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    place: Place | None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor, in one chunk or several."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """Anything else, pickled; None where no shard has it."""

    place: Place | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What was saved under which key, and where it lies.

    paths
        What led to each key; empty where the writer did not tell, as Megatron-core does not.
    """

    entries: Mapping[str, TensorEntry | ObjectEntry]
    paths: Mapping[str, KeyPath]
    notes: list[str] = field(default_factory=list)


def read_metadata(source: ByteSource) -> Metadata:
    """The content of one `.metadata` file. Raises `Refused`, with the key, for what torch's writer does not make."""
    pickled = read_pickle(source, _known, max(OPCODES, source.size // _BYTES_PER_OPCODE))
    try:
        root = pickled.root.state if type(pickled.root) is Call else None
        fields = _of(root, dict)
        entries = _of(fields.get("state_dict_metadata"), dict)
        places = _places(_of(fields.get("storage_data"), dict))
        read = {key: _entry(key, node, places.get(key, {})) for key, node in entries.items()}
        return Metadata(read, _paths(fields.get("planner_data"), read), pickled.notes)
    except ValueError as error:
        raise Refused(
            f"{source.name} is not as torch.distributed.checkpoint writes it",
            found=safe_text(error),
            todo="use another checkpoint: what this one says of its tensors cannot be relied on",
        ) from None


def merged(ranks: Iterable[Metadata]) -> Metadata:
    """What the ranks wrote that did not talk to each other (`__<rank>.metadata`), as one.

    The chunks of all ranks make up a tensor; a chunk, and any other value, that several ranks have is taken from the
    first. Raises `ValueError` where two ranks disagree about a tensor.
    """
    entries: dict[str, TensorEntry | ObjectEntry] = {}
    paths: dict[str, KeyPath] = {}
    notes: dict[str, None] = {}
    for rank in ranks:
        for key, entry in rank.entries.items():
            entries[key] = _combined(key, entries[key], entry) if key in entries else entry
        paths |= rank.paths
        notes |= dict.fromkeys(rank.notes)
    return Metadata(entries, paths, list(notes))


def _combined(key: str, one: TensorEntry | ObjectEntry, other: TensorEntry | ObjectEntry) -> TensorEntry | ObjectEntry:
    if type(one) is ObjectEntry and type(other) is ObjectEntry:
        return one
    if type(one) is TensorEntry and type(other) is TensorEntry and (one.dtype, one.shape) == (other.dtype, other.shape):
        chunks = {str(chunk[:2]): chunk for chunk in (*other.chunks, *one.chunks)}
        return TensorEntry(one.dtype, one.shape, tuple(chunks.values()))
    raise ValueError(f"two ranks disagree about {safe_text(key)}")


# --- from the inert tree ----------------------------------------------------------------------------------


def _known(found: Global) -> bool:
    """Whether a class is one of those that torch writes, which need no mention."""
    return (found.module, found.name) in _ENUMS or found.module.startswith(_MODULES)


# Each chunk of each tensor takes 65 opcodes of three bytes or so, and a thousand ranks have millions of chunks.
_BYTES_PER_OPCODE = 2
_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
_ENUMS = {("torch.serialization", "_get_layout")}


def _of(node: Node, kind: type) -> Any:
    if type(node) is not kind:
        raise ValueError(f"{type(node).__name__} where {kind.__name__} is due")
    return node


def _fields(node: Node, name: str) -> Mapping[str, Any]:
    """What an object of one of torch's classes holds."""
    if type(node) is not Call or type(node.function) is not Global or node.function.name != name:
        raise ValueError(f"{safe_text(node, 60)} where {name} is due")
    return {} if node.state is None else _of(node.state, dict)


def _sizes(node: Node) -> tuple[int, ...]:
    if type(node) is not tuple or len(node) > MAX_RANK:
        raise ValueError("sizes that are none")
    for each in node:
        _natural(each)
    return node


def _natural(node: Node) -> int:
    if type(node) is not int or not 0 <= node < 1 << 63:
        raise ValueError(f"the size or offset {safe_text(node, 40)}")
    return node


def _places(storage: Mapping[Node, Node]) -> dict[str, dict[str, Place]]:
    """Where the items of each key are, by the text of their offsets: of numbers the writer could choose the hashes."""
    places: dict[str, dict[str, Place]] = {}
    for index, info in storage.items():
        fields = _fields(index, "MetadataIndex")
        key, offset = _of(fields.get("fqn"), str), fields.get("offset")
        at = str(None if offset is None else _sizes(offset))
        found = places.setdefault(key, {})
        if at in found:
            raise ValueError(f"two places for one chunk of {safe_text(key)}")
        found[at] = _place(_fields(info, "_StorageInfo"))
    return places


def _place(fields: Mapping[str, Any]) -> Place:
    coding = fields.get("transform_descriptors") or []
    if type(coding) not in (list, tuple) or any(type(each) is not str for each in coding):
        raise ValueError("a coding that is none")
    file = _of(fields.get("relative_path"), str)
    return Place(file, _natural(fields.get("offset")), _natural(fields.get("length")), tuple(coding))


def _entry(key: Node, node: Node, places: Mapping[str, Place]) -> TensorEntry | ObjectEntry:
    _of(key, str)
    if type(node) is Call and str(node.function).endswith(".BytesStorageMetadata"):
        return ObjectEntry(places.get("None"))
    try:
        fields = _fields(node, "TensorStorageMetadata")
        return TensorEntry(_dtype(fields.get("properties")), _sizes(fields.get("size")), tuple(_chunks(fields, places)))
    except ValueError as error:
        raise ValueError(f"{error}, for {safe_text(key)}") from None


def _dtype(node: Node) -> str:
    """The element type, which is the first of a tensor's properties."""
    properties = node.state if type(node) is Call else None
    if type(properties) is not tuple or not properties or type(properties[0]) is not Global:
        raise ValueError("an element type that is none")
    found = properties[0]
    return found.name if found.module == "torch" else str(found)


def _chunks(fields: Mapping[str, Any], places: Mapping[str, Place]) -> Iterator[Chunk]:
    chunks = _of(fields.get("chunks"), list)
    if len(chunks) > len(places) + 1:  # a list costs nothing to repeat; places cannot be
        raise ValueError(f"{len(chunks):,} chunks, of which {len(places):,} are stored")
    for each in chunks:
        chunk = _fields(each, "ChunkStorageMetadata")
        start, shape = _sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))
        yield Chunk(start, shape, places.get(str(start)))


def _paths(node: Node, entries: Mapping[str, object]) -> dict[str, KeyPath]:
    """The planner's paths, in the order of what was saved; other planners keep other things there."""
    if type(node) is not dict:
        return {}
    return {key: path for key, path in node.items() if type(key) is str and key in entries and _is_path(path)}


def _is_path(node: Node) -> bool:
    return (
        type(node) is tuple
        and 0 < len(node) <= DEPTH
        and all(type(part) is str or (type(part) is int and 0 <= part < 1 << 31) for part in node)
    )

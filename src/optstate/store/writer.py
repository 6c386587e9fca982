"""Laying tensors out in safetensors files, and writing them while their digests are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash
from msgspec import Struct

from optstate.formats.containers.safetensors_header import Item, alignment, encode_header, entry_size
from optstate.formats.ours.manifest import (
    FORMAT,
    MANIFEST,
    Body,
    Chunk,
    FileEntry,
    TensorEntry,
    digest_of,
    encode_manifest,
)
from optstate.state.collection import without_collection
from optstate.state.tensors import DTYPES
from optstate.store.commit import new_directory
from optstate.store.files import Buffer, Files
from optstate.store.pipeline import Output, Pipeline

HEADER_LIMIT = 50_000_000
"""Bytes of a safetensors header; readers refuse more than twice that."""

GATHER = 1 << 20
"""Pieces below this many bytes are gathered, so that ten thousand small tensors are not ten thousand writes."""

PIECE = 1 << 24
"""Bytes that are handed over at once: enough to keep the disk busy, little enough to be held in memory."""


class Payload(Struct, frozen=True, gc=False):
    """A tensor to be written.

    key
        `<family>/<name in the file>`, see `optstate.formats.ours.manifest`.
    dtype, shape, stride, device
        As in the manifest: by torch's names; `stride` None for row-major.
    pieces
        Gives its bytes in row-major order, at most `PIECE` at a time.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Buffer]]
    stride: tuple[int, ...] | None = None
    device: str = "cpu"


class _File(NamedTuple):
    """A file to be written: its name, and each payload with what its header calls it."""

    name: str
    places: Sequence[tuple[Payload, Item]]
    header: bytes
    nbytes: int


def write_checkpoint(
    path: Path,
    body: Body,
    payloads: Sequence[Payload],
    files: Files,
    *,
    replace: bool = False,
    header_limit: int = HEADER_LIMIT,
    pipeline: Pipeline | None = None,
    copied: Callable[[Mapping[str, TensorEntry]], None] | None = None,
) -> None:
    """Write a checkpoint: `body` without its tensors and files, and the tensors.

    header_limit
        Where a family of tensors is split into several files.
    pipeline
        One that has not begun yet, for a caller who wants to widen it meanwhile.
    copied
        Is told all tensors by key, with the digests of what is written, once the last was copied; they are not needed
        any more. There is no manifest yet, and what it raises leaves none.

    Raises `WriteFailed` and `TargetExists`; then nothing is left of it, and whatever was at `path` still is.
    """
    with without_collection():
        plan = list(_layout(payloads, body.save_id, header_limit))
    with new_directory(path, files, replace=replace, nbytes=sum(file.nbytes for file in plan)) as directory:
        tensors: dict[str, TensorEntry] = {}
        entries = {file.name: FileEntry(file.nbytes, len(file.header), digest_of(file.header)) for file in plan}
        with pipeline or Pipeline(files) as writing:
            # All are made before one is written, so that a full disk says so at once.
            for opened in [writing.file(directory / file.name, file.nbytes) for file in plan]:
                with opened as output:
                    tensors.update(_write_file(output, plan.pop(0)))
            if copied is not None:
                copied(tensors)
            with writing.file(directory / MANIFEST) as output:
                for piece in encode_manifest(msgspec.structs.replace(body, tensors=tensors, files=entries)):
                    output.write(piece)


def _layout(payloads: Iterable[Payload], save_id: str, header_limit: int) -> Iterator[_File]:
    families: dict[str, list[tuple[Payload, Item]]] = {}
    for payload in payloads:
        family, _, name = payload.key.partition("/")
        nbytes = prod(payload.shape) * DTYPES[payload.dtype][0]
        families.setdefault(family, []).append((payload, Item(name, payload.dtype, payload.shape, nbytes)))
    for family, members in families.items():
        parts = list(_parts(members, header_limit))
        for number, part in enumerate(parts, 1):
            name = (
                f"{family}.safetensors" if len(parts) == 1 else f"{family}-{number:05}-of-{len(parts):05}.safetensors"
            )
            part.sort(key=lambda place: -alignment(place[1].nbytes))
            header = encode_header((item for _, item in part), {"format": FORMAT, "save_id": save_id})
            yield _File(name, part, header, len(header) + sum(item.nbytes for _, item in part))


def _parts(places: Iterable[tuple[Payload, Item]], header_limit: int) -> Iterator[list[tuple[Payload, Item]]]:
    """Places in the order given, in runs whose headers stay below the limit."""
    part: list[tuple[Payload, Item]] = []
    header = 0
    for place in places:
        entry = entry_size(place[1])
        if part and header + entry > header_limit:
            yield part
            part, header = [], 0
        part.append(place)
        header += entry
    if part:
        yield part


def _write_file(output: Output, file: _File) -> dict[str, TensorEntry]:
    entries = {}
    output.write(file.header)
    for payload, item in file.places:
        offset, digest = output.position, xxhash.xxh3_128()
        for piece in payload.pieces():
            output.write(piece, digest)
        digested = f"xxh3-128:{digest.hexdigest()}"
        chunk = Chunk(file.name, offset, item.nbytes, _origin(len(item.shape)), item.shape, digested)
        entries[payload.key] = TensorEntry(item.dtype, item.shape, payload.device, (chunk,), payload.stride)
    return entries


@cache
def _origin(rank: int) -> tuple[int, ...]:
    """The first index of a tensor: one object for all, of which there may be a million."""
    return (0,) * rank

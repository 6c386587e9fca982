"""One safetensors file: its tensors as references into it. The format has no checksum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optstate.errors import Damaged, Refused
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.safetensors_header import LENGTH, Entry, decode_header
from optstate.formats.containers.span import Span
from optstate.formats.containers.stored_tensor import StoredTensor, row_major
from optstate.text import size

HEADER_LIMIT = 100_000_000
"""Bytes of the longest header, as in the library itself."""

UNCHECKED = "safetensors has no checksums: damage to values would not show"


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """The tensors of a file by name, in the order in which they lie there, and its `__metadata__`."""

    source: ByteSource
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def read_safetensors(source: ByteSource) -> SafetensorsFile:
    """Read the header of a safetensors file, and none of its values.

    Raises `Damaged` for a file that is cut short or whose header contradicts itself, `Refused` for a header that is
    longer than the format allows or has more tensors than a file has.
    """
    length = int.from_bytes(source.read(0, LENGTH), "little")
    if length > HEADER_LIMIT:
        raise Refused(
            f"the header of {source.name} is too long", expected=f"at most {size(HEADER_LIMIT)}", found=size(length)
        )
    data = LENGTH + length
    if data > source.size:
        raise Damaged(
            f"{source.name} ends within its header",
            expected=f"{size(length)} of header",
            found=f"a file of {size(source.size)}",
            todo="the copy is incomplete: fetch or copy it again",
        )
    entries, metadata = decode_header(source.read(LENGTH, length), source.size - data, source.name)
    return SafetensorsFile(source, {entry.name: _tensor(source, data, entry) for entry in entries}, metadata)


def _tensor(source: ByteSource, data: int, entry: Entry) -> StoredTensor:
    span = Span(source, data + entry.start, entry.end - entry.start)
    if entry.dtype is not None:
        return StoredTensor(span, entry.dtype, 0, entry.shape, row_major(entry.shape))
    # Six bits an element, say: shown as what it is, and no values are made of it.
    opaque = StoredTensor(span, "uint8", 0, (span.nbytes,), (1,))
    opaque.dtype, opaque.shape, opaque.stride = entry.kind, entry.shape, row_major(entry.shape)
    return opaque

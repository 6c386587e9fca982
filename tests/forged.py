"""Files that nobody's program writes: a pickle assembler and a zip writer with every field in the test's hands."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias
from zlib import crc32

from optstate.errors import ReadError

Content: TypeAlias = bytes | dict[str, bytes]
"""A file, or a folder of files by name."""

Cases: TypeAlias = dict[str, tuple[Content, type[ReadError] | str]]
"""What opening gives for some content: an error of this class, or a checkpoint, with this text in what is said of it."""

Built: TypeAlias = dict[str, tuple[bytes, type[ReadError] | str]]
"""The same for part of a file."""

PROTOCOL_2 = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return b"c" + f"{module}\n{attribute}\n".encode()


def items(*nodes: bytes) -> bytes:
    return b"(" + b"".join(nodes) + b"t"


def numbers(*values: int) -> bytes:
    return items(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b"R"


def entries(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def pickled(node: bytes) -> bytes:
    """A whole pickle: `{"x": node}`."""
    return PROTOCOL_2 + entries(x=node) + STOP


def storage(key: str = "0", kind: str = "FloatStorage", elements: int = 6, where: str = "cpu") -> bytes:
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    return items(text("storage"), name(module, kind), text(key), text(where), number(elements)) + b"Q"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
REBUILD_TYPED = name("torch._utils", "_rebuild_tensor_v3")
NO_HOOKS = name("collections", "OrderedDict") + b")R"


def tensor(
    source: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    *more: bytes,
) -> bytes:
    parts = (source or storage(), number(offset), numbers(*shape), numbers(*stride), b"\x89", NO_HOOKS, *more)
    return call(REBUILD, *parts)


def typed_tensor(dtype: str, source: bytes, shape: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1)) -> bytes:
    return call(
        REBUILD_TYPED, source, number(0), numbers(*shape), numbers(*stride), b"\x89", NO_HOOKS, name("torch", dtype)
    )


@dataclass
class Member:
    """A member of a zip archive; what is None is as torch writes it."""

    name: str
    data: bytes
    local_name: str | None = None
    flags: int = 0x0808
    local_flags: int | None = None
    method: int = 0
    crc: int | None = None
    local: tuple[int, int, int] = (0, 0, 0)  # CRC and both sizes in the member's own header
    size: int | None = None
    stored_size: int | None = None
    attributes: int = 0
    extra: bytes = b""
    offset: int | None = None
    descriptor: bytes | None = None


def archive(
    members: list[Member],
    *,
    front: bytes = b"",
    behind: bytes = b"",
    comment: bytes = b"",
    wide: bool = True,
    count: int | None = None,
) -> bytes:
    """A zip archive laid out as torch lays it out: data descriptors, 64-byte alignment, a zip64 end record."""
    body, directory = bytearray(front), bytearray()
    for each in members:
        start = len(body)
        crc = crc32(each.data) if each.crc is None else each.crc
        size = len(each.data) if each.size is None else each.size
        stored = size if each.stored_size is None else each.stored_size
        local_name = (each.name if each.local_name is None else each.local_name).encode()
        local_flags = each.flags if each.local_flags is None else each.local_flags
        padding = -(start + 30 + len(local_name) + 4) % 64
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 0, local_flags, each.method, 0, 0, *each.local, len(local_name), padding + 4
        )  # fmt: skip
        body += local_name + b"FB" + struct.pack("<H", padding) + b"Z" * padding + each.data
        if each.flags & 8:
            descriptor = struct.pack("<4sLLL", b"PK\7\10", crc, size & 0xFFFFFFFF, size & 0xFFFFFFFF)
            body += descriptor if each.descriptor is None else each.descriptor
        encoded = each.name.encode()
        offset = start if each.offset is None else each.offset
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0, 0, each.flags, each.method, 0, 0, crc, stored, size, len(encoded),
            len(each.extra), 0, 0, 0, each.attributes, offset,
        )  # fmt: skip
        directory += encoded + each.extra
    return bytes(
        body
        + directory
        + end(len(members) if count is None else count, len(directory), len(body), comment=comment, wide=wide)
        + behind
    )


def end(count: int, length: int, offset: int, *, comment: bytes = b"", wide: bool = True) -> bytes:
    """The records behind the directory."""
    plain = (
        struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), length, offset, len(comment))
        + comment
    )
    if not wide:
        return plain
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, count, count, length, offset)
    return end64 + struct.pack("<4sLQL", b"PK\6\7", 0, offset + length, 1) + plain


FLOATS = struct.pack("<6f", *range(6))


def members(pickle: bytes, storages: dict[str, bytes] | None = None, root: str = "archive") -> list[Member]:
    """The members that torch writes for one pickle; one storage of six floats unless told otherwise."""
    kept = {"0": FLOATS} if storages is None else storages
    return [
        Member(f"{root}/data.pkl", pickle),
        Member(f"{root}/.format_version", b"1"),
        Member(f"{root}/byteorder", b"little"),
        *(Member(f"{root}/data/{key}", raw) for key, raw in kept.items()),
        Member(f"{root}/version", b"3\n"),
    ]


def torch_file(pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A whole file around one pickle."""
    return archive(members(pickle, storages))


# --- the older stream of torch ----------------------------------------------------------------------------

MAGIC = PROTOCOL_2 + number(0x1950A86A20F9469CFC6C) + STOP
VERSION = PROTOCOL_2 + b"M\xe9\x03" + STOP
MACHINE = PROTOCOL_2 + entries(protocol_version=number(1001), little_endian=b"\x88", type_sizes=b"}") + STOP


def stream_storage(key: str = "0", kind: str = "FloatStorage", elements: int = 6, view: bytes = b"N") -> bytes:
    """A persistent id as it stands in a stream; `view` is (key, offset, length)."""
    return items(text("storage"), name("torch", kind), text(key), text("cpu"), number(elements), view) + b"Q"


def stream(
    pickle: bytes,
    storages: dict[str, tuple[int, bytes]] | None = None,
    *,
    front: bytes = MAGIC + VERSION + MACHINE,
    keys: bytes | None = None,
) -> bytes:
    """A file as torch wrote it before 1.6, around one pickle; a storage is the number of its elements, and bytes."""
    kept = {"0": (6, FLOATS)} if storages is None else storages
    listed = PROTOCOL_2 + b"](" + b"".join(map(text, kept)) + b"e" + STOP if keys is None else keys
    return front + pickle + listed + b"".join(struct.pack("<q", elements) + raw for elements, raw in kept.values())


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file whose header is this text."""
    return struct.pack("<Q", len(header)) + header + data

"""The directory of a zip archive, and what the members' own headers say: read strictly, and held against each other."""

from __future__ import annotations

import unicodedata
from struct import Struct
from typing import NamedTuple

from optstate.errors import Damaged, ReadError, Refused
from optstate.formats.containers.regular import ByteSource
from optstate.text import count, safe_text, size

MAGIC = b"PK\x03\x04"

MEMBERS = 500_000
"""Members that an archive may have: twenty times those of a model with 10,000 parameters and AdamW."""

_END = Struct("<4s4H2LH")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR = Struct("<4sLQL")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_DESCRIPTORS = {each.size: each for each in (Struct("<4sLLL"), Struct("<4sLQQ"))}
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF

_SIZES_FOLLOW = 0x0008  # CRC and sizes stand in a descriptor behind the data
_UTF8 = 0x0800
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_WINDOW = 1024  # a small member and its header fit into one read
_SPECIAL_FILES = {0o020000, 0o060000, 0o010000, 0o120000, 0o140000}  # Unix modes of devices, pipes, links, sockets


class Member(NamedTuple):
    """Where a member is: its header starts at `start`, the next one at `stop`; `crc` 0 means not computed."""

    start: int
    stop: int
    size: int
    crc: int
    flags: int


def read_directory(source: ByteSource) -> dict[str, Member]:
    """The members by name, in the order of their headers. Raises `Damaged`, `Refused`."""
    return _members(source, *_central_directory(source))


def _fault(source: ByteSource, what: str, *, found: str | None = None) -> Damaged:
    return Damaged(
        f"{source.name} is damaged: {what}",
        found=found,
        todo="the copy is incomplete or changed: fetch or copy it again",
    )


def _central_directory(source: ByteSource) -> tuple[list[tuple[str, int, int, int, int]], int]:
    """The entries (name, header offset, size, CRC, flags) in the order of their headers, and where they end."""
    number, length, offset = _end_record(source)
    if number > MEMBERS or length > MEMBERS * 128:
        raise Refused(f"{source.name} has {number:,} members", expected=f"at most {MEMBERS:,}")
    if length < number * _CENTRAL.size:
        raise _fault(
            source, "its directory is shorter than its members need", found=f"{number} members in {length} bytes"
        )
    raw = source.read(offset, length)
    entries, position = [], 0
    for _ in range(number):
        if position + _CENTRAL.size > length:
            raise _fault(source, "its directory breaks off")
        entry, position = _entry(source, raw, position)
        entries.append(entry)
    if position != length:
        raise _fault(source, "its directory holds more than its members")
    entries.sort(key=lambda entry: entry[1])
    return entries, offset


def _end_record(source: ByteSource) -> tuple[int, int, int]:
    """Number of members, length and offset of the directory; the plain and the zip64 record must agree."""
    longest = _END64.size + _LOCATOR.size + _END.size
    start = max(0, source.size - longest)
    tail = source.read(start, source.size - start)
    end_at = len(tail) - _END.size
    if end_at < 0 or tail[end_at : end_at + 4] != b"PK\x05\x06":
        raise _fault(
            source, "a zip archive ends with its directory, this file does not", found=f"{size(source.size)} in all"
        )
    _, disk, first_disk, here, number, length, offset, comment = _END.unpack_from(tail, end_at)
    if disk or first_disk or here != number or comment:
        raise _fault(source, "its end record is that of an archive in several parts, or has a comment")
    locator_at = end_at - _LOCATOR.size
    if locator_at < 0 or tail[locator_at : locator_at + 4] != b"PK\x06\x07":
        if offset + length != start + end_at:
            raise _fault(source, "bytes are missing or were added around its directory")
        return number, length, offset
    wide = _end64_record(source, tail, locator_at, start)
    for plain, full, exact in zip((number, length, offset), (_FULL16, _FULL32, _FULL32), wide, strict=True):
        if plain not in (exact, full):
            raise _fault(source, "its two end records contradict each other", found=f"{plain} and {exact}")
    return wide


def _end64_record(source: ByteSource, tail: bytes, locator_at: int, start: int) -> tuple[int, int, int]:
    _, first_disk, where, disks = _LOCATOR.unpack_from(tail, locator_at)
    end64_at = locator_at - _END64.size
    if end64_at < 0 or first_disk or disks != 1 or where != start + end64_at:
        raise _fault(source, "its zip64 end record is not where it should be")
    magic, rest, _, _, disk, directory_disk, here, number, length, offset = _END64.unpack_from(tail, end64_at)
    if magic != b"PK\x06\x06" or rest != _END64.size - 12 or disk or directory_disk or here != number:
        raise _fault(source, "its zip64 end record is not one")
    if offset + length != where:
        raise _fault(source, "bytes are missing or were added around its directory")
    return number, length, offset


def _entry(source: ByteSource, raw: bytes, position: int) -> tuple[tuple[str, int, int, int, int], int]:
    """One entry of the directory, and where the next one starts."""
    (
        magic, _, _, flags, method, _, _, crc, packed, full,
        name_length, extra_length, comment_length, disk, _, attributes, offset,
    ) = _CENTRAL.unpack_from(raw, position)  # fmt: skip
    name_at = position + _CENTRAL.size
    extra_at = name_at + name_length
    stop = extra_at + extra_length
    if magic != b"PK\x01\x02" or stop > len(raw) or disk or comment_length:
        raise _fault(source, "an entry of its directory is not one", found=f"byte {position} of the directory")
    name = _name(source, raw[name_at:extra_at], flags)
    if _FULL32 in (full, packed, offset) or extra_length:
        full, packed, offset = _wide(source, name, (full, packed, offset), raw[extra_at:stop])
    if flags & _ENCRYPTED:
        raise Refused(f"{source.name} is encrypted", where=safe_text(name), todo="decrypt it first")
    if method != 0 or packed != full:
        raise Refused(
            f"{source.name} is compressed",
            where=safe_text(name),
            expected="members stored as they are, as torch.save writes",
            todo="unpack the archive, and zip it again without compression (zip -0)",
        )
    if flags & ~(_SIZES_FOLLOW | _UTF8):
        raise Refused(f"{source.name} uses a feature of zip that torch does not", where=safe_text(name))
    if attributes >> 16 & 0o170000 in _SPECIAL_FILES:
        raise Refused(f"{source.name} holds a link or a device", where=safe_text(name))
    return (name, offset, full, crc, flags), stop


def _name(source: ByteSource, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise _fault(source, "the name of a member is no text", found=safe_text(raw)) from None
    path = f"/{name.removesuffix('/')}/"
    if "//" in path or "/../" in path or "/./" in path or "\\" in path or ":" in path or "\0" in path:
        raise Refused(f"{source.name} holds a member whose name leads elsewhere", found=safe_text(name))
    return name


def _wide(source: ByteSource, name: str, fields: tuple[int, int, int], extra: bytes) -> tuple[int, ...]:
    """Size, stored size and offset, where they need more than 32 bits taken from the zip64 extra field."""
    position, wide = 0, None
    while position + 4 <= len(extra):
        tag, length = extra[position] | extra[position + 1] << 8, extra[position + 2] | extra[position + 3] << 8
        if tag == 1 and wide is None:
            wide = extra[position + 4 : position + 4 + length]
        elif tag == 1:
            raise _fault(source, "a member has two zip64 fields", found=safe_text(name))
        position += 4 + length
    needed = fields.count(_FULL32)
    if position != len(extra) or len(wide or b"") != 8 * needed:
        raise _fault(source, "the sizes of a member contradict each other", found=safe_text(name))
    values = iter(Struct(f"<{needed}Q").unpack(wide or b""))
    return tuple(next(values) if field == _FULL32 else field for field in fields)


def _members(source: ByteSource, entries: list[tuple[str, int, int, int, int]], end: int) -> dict[str, Member]:
    """The members by name. Their headers start at byte 0, follow each other, and have room for their content."""
    members: dict[str, Member] = {}
    starts = [offset for _, offset, _, _, _ in entries]
    if starts[:1] != [0]:
        raise Refused(
            f"{source.name} does not start with the first member of its archive",
            found=f"{count(starts[0], 'byte')} in front" if starts else "no member at all",
            todo="the save did not finish, or something was put in front of the archive",
        )
    for (name, start, length, crc, flags), stop in zip(entries, [*starts[1:], end], strict=True):
        if start + _LOCAL.size + len(name) + length > stop:
            raise Refused(f"members of {source.name} overlap", found=safe_text(name))
        members[name] = Member(start, stop, length, crc, flags)
    alike = {(name if name.isascii() else unicodedata.normalize("NFC", name)).casefold() for name in members}
    if len(alike) != len(entries):
        raise Refused(f"{source.name} holds two members of one name: two readers would see two files")
    return members


def find_content(source: ByteSource, name: str, member: Member) -> tuple[int, bytes]:
    """Where the content starts, and the member's first bytes, which were read for that.

    The member's own header and its descriptor are compared with the directory.
    """
    start, stop, length, crc, flags = member
    head = source.read(start, min(stop - start, _WINDOW))
    magic, _, own_flags, method, _, _, own_crc, packed, full, name_length, extra_length = _LOCAL.unpack_from(head)
    extra_at = _LOCAL.size + name_length
    data: int = start + extra_at + extra_length
    own_name = head[_LOCAL.size : extra_at]
    if magic != MAGIC or own_flags != flags or method != 0 or own_name != name.encode():
        raise _mismatch(source, name, "name, flags or method")
    gap = stop - data - length
    if flags & _SIZES_FOLLOW:
        # torch leaves zeros in the header, and beyond 4 GiB a mark that the value does not fit.
        fits = own_crc in (0, _FULL32, crc) and packed in (0, _FULL32, length) and full in (0, _FULL32, length)
        fits = fits and gap in _DESCRIPTORS
        if fits:
            tail = head[data + length - start :] if stop - start <= len(head) else source.read(stop - gap, gap)
            fits = tail == _DESCRIPTORS[gap].pack(b"PK\x07\x08", crc, length, length)
    else:
        if _FULL32 in (packed, full):
            # Python writes the wide form of a member whose size it did not know when it began, as a precaution.
            full, packed, _ = _wide(source, name, (full, packed, 0), head[extra_at : extra_at + extra_length])
        fits = gap == 0 and own_crc == crc and packed == full == length
    if not fits:
        raise _mismatch(source, name, "size or checksum")
    return data, head


def _mismatch(source: ByteSource, name: str, what: str) -> ReadError:
    return Damaged(
        "a member of the archive contradicts the directory of the archive",
        where=f"{source.name}: {safe_text(name)}",
        found=f"another {what} in its own header",
        todo="the file is damaged or made to deceive: fetch or copy it again",
    )

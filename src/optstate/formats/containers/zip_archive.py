"""A strict reader of zip archives that store their members as they are, as torch writes them.

One reader lists, checks and reads, so that no two of them can see two different files. Opening reads the
directory at the end and nothing else; a member's own header is compared with it when the member is read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from optstate.errors import Damaged, ReadError, Refused
from optstate.formats.containers.regular import ByteSource
from optstate.text import count, listing, safe_text, size

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"PK\x03\x04"

MEMBERS = 500_000
"""Members that an archive may have: twenty times those of a model with 10,000 parameters and AdamW."""

PIECE = 1 << 20
"""Bytes read at once when a member is streamed."""

_END = Struct("<4s4H2LH")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR = Struct("<4sLQL")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
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


class ZipArchive:
    """The members of an archive by name.

    Raises `Damaged` for an archive that is cut short or contradicts itself, `Refused` for one that is
    compressed, encrypted or made to deceive.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        entries, directory_start = _central_directory(source)
        self.members: Mapping[str, Member] = MappingProxyType(_members(source, entries, directory_start))

    @property
    def unchecked(self) -> int:
        """Members with content and without a checksum."""
        return sum(member.size > 0 and member.crc == 0 for member in self.members.values())

    def root(self) -> str:
        """The one folder that holds everything. Raises `Refused` when there are several, or files beside it."""
        roots = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        if len(roots) == 1 and "" not in roots:
            return roots.pop()
        raise Refused(
            f"{self.source.name} is a zip archive with no single folder at its top",
            expected="one folder that holds data.pkl, as torch.save writes",
            found=listing(self.members),
            todo="if it is a bundle with a checkpoint inside, unpack it and open that",
        )

    def record(self, name: str) -> ZipRecord:
        """One member. Raises `KeyError` when there is none of this name."""
        return ZipRecord(self.source, name, self.members[name])


class ZipRecord:
    """The content of one member; `owner` is the name of what it holds, for messages, "" where not known."""

    __slots__ = ("_data", "_member", "_source", "_verified", "name", "nbytes", "owner")

    def __init__(self, source: ByteSource, name: str, member: Member) -> None:
        self._source = source
        self._member = member
        self._data: int | None = None
        self._verified = member.crc == 0
        self.name = name
        self.nbytes = member.size
        self.owner = ""

    @property
    def where(self) -> str:
        """The file and the member, safe to print."""
        return f"{self._source.name}: {safe_text(self.name)}"

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; checked against the CRC-32 when that is all of them. Raises `Damaged`."""
        if offset < 0 or length < 0 or offset + length > self.nbytes:
            raise Damaged(f"{self.where} ends before byte {offset + length}", found=size(self.nbytes))
        raw = self._source.read(self._start() + offset, length)
        if length == self.nbytes and not self._verified:
            self._check(crc32(raw))
        return raw

    def load(self) -> np.ndarray[Any, Any]:
        """The whole content as an array of bytes in memory of its own. Raises `Damaged` when the CRC-32 does not fit."""
        crc = 0

        def update(piece: memoryview) -> None:
            nonlocal crc
            crc = crc32(piece, crc)

        raw = self._source.load(self._start(), self.nbytes, (lambda _: None) if self._verified else update)
        if not self._verified:
            self._check(crc)
        return raw

    def pieces(self, piece: int = PIECE) -> Iterator[bytes]:
        """The whole content, `piece` bytes at a time; raises `Damaged` at its end when the CRC-32 does not fit."""
        start, crc = self._start(), 0
        for offset in range(0, self.nbytes, piece):
            raw = self._source.read(start + offset, min(piece, self.nbytes - offset))
            if not self._verified:
                crc = crc32(raw, crc)
            yield raw
        if not self._verified:
            self._check(crc)

    def verify(self) -> None:
        """Read everything once, in bounded memory, and check the CRC-32. Raises `Damaged`."""
        if not self._verified:
            for _ in self.pieces():
                pass

    def _check(self, crc: int) -> None:
        if crc != self._member.crc:
            raise Damaged(
                f"{self.owner or safe_text(self.name)} is damaged: its bytes are not those that were saved",
                where=self.where,
                expected=f"CRC-32 {self._member.crc:08x}",
                found=f"{crc:08x}",
                todo="fetch or copy the file again, or use an earlier checkpoint",
            )
        self._verified = True

    def _start(self) -> int:
        if self._data is None:
            self._data = _data_offset(self._source, self.name, self._member, self.where)
        return self._data


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


def _data_offset(source: ByteSource, name: str, member: Member, where: str) -> int:
    """Where the content starts, after comparing the member's own header and descriptor with the directory."""
    start, stop, length, crc, flags = member
    head = source.read(start, min(stop - start, _WINDOW))
    magic, _, own_flags, method, _, _, own_crc, packed, full, name_length, extra_length = _LOCAL.unpack_from(head)
    data: int = start + _LOCAL.size + name_length + extra_length
    own_name = head[_LOCAL.size : _LOCAL.size + name_length]
    if magic != MAGIC or own_flags != flags or method != 0 or own_name != name.encode():
        raise _mismatch(where, "name, flags or method")
    gap = stop - data - length
    if flags & _SIZES_FOLLOW:
        # torch leaves zeros in the header, and beyond 4 GiB a mark that the value does not fit.
        fits = all(own in (0, _FULL32, true) for own, true in ((own_crc, crc), (packed, length), (full, length)))
        fits = fits and gap in (16, 24)
        if fits:
            tail = head[data + length - start :] if stop - start <= len(head) else source.read(stop - gap, gap)
            fits = tail == Struct("<4sLLL" if gap == 16 else "<4sLQQ").pack(b"PK\x07\x08", crc, length, length)
    else:
        fits = gap == 0 and own_crc == crc and packed == full == length
    if not fits:
        raise _mismatch(where, "size or checksum")
    return data


def _mismatch(where: str, what: str) -> ReadError:
    return Damaged(
        "a member of the archive contradicts the directory of the archive",
        where=where,
        found=f"another {what} in its own header",
        todo="the file is damaged or made to deceive: fetch or copy it again",
    )

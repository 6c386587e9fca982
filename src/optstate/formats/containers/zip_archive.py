"""A strict reader of zip archives that store their members as they are, as torch writes them.

One reader lists, checks and reads, so that no two of them can see two different files. Opening reads the
directory at the end and nothing else; a member's own header is compared with it when the member is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from zlib_ng.zlib_ng import crc32

from optstate.errors import Damaged, Refused
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.zip_directory import Member, find_content, read_directory
from optstate.text import listing, safe_text, size

PIECE = 1 << 20
"""Bytes read at once when a member is streamed."""


class ZipArchive:
    """The members of an archive by name.

    Raises `Damaged` for an archive that is cut short or contradicts itself, `Refused` for one that is
    compressed, encrypted or made to deceive.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.members: Mapping[str, Member] = MappingProxyType(read_directory(source))

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

    def source_of(self, name: str) -> ByteSource:
        """One member as a source of its own, for a file inside the archive.

        Reading all of it at once checks the CRC-32. Raises `KeyError`, `Damaged`.
        """
        return self.record(name).window()


class ZipRecord:
    """The content of one member; `owner` is the name of what it holds, for messages, "" where not known."""

    __slots__ = ("_member", "_source", "_start", "_verified", "name", "nbytes", "owner")

    def __init__(self, source: ByteSource, name: str, member: Member) -> None:
        self._source = source
        self._member = member
        self._start: int | None = None
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
        start, head = self._start, b""
        if start is None:
            start, head = self._find()
        at = start - self._member.start + offset
        raw = head[at : at + length] if at + length <= len(head) else self._source.read(start + offset, length)
        if length == self.nbytes and not self._verified:
            self._check(crc32(raw))
        return raw

    def into(self, memory: memoryview) -> None:
        """The whole content into memory of its length. Raises `Damaged` when the CRC-32 does not fit."""
        if self._verified:
            self._source.into(self.start, memory, lambda _: None)
            return
        crc = 0

        def take(piece: memoryview) -> None:
            nonlocal crc
            crc = crc32(piece, crc)

        self._source.into(self.start, memory, take)
        self._check(crc)

    def pieces(self, piece: int = PIECE) -> Iterator[bytes]:
        """The whole content, `piece` bytes at a time; raises `Damaged` at its end when the CRC-32 does not fit."""
        start, crc, check = self.start, 0, not self._verified
        for offset in range(0, self.nbytes, piece):
            raw = self._source.read(start + offset, min(piece, self.nbytes - offset))
            if check:
                crc = crc32(raw, crc)
            yield raw
        if check:
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

    @property
    def start(self) -> int:
        """Where the content starts in the file of the archive. Raises `Damaged` for a member that is not one."""
        return self._find()[0] if self._start is None else self._start

    def window(self) -> ByteSource:
        """The content as a source of its own; all of it, read at once, is checked against the CRC-32."""
        check = None if self._verified else lambda raw: self._check(crc32(raw))
        return self._source.window(self.start, self.nbytes, self.name, check)

    def _find(self) -> tuple[int, bytes]:
        """Where the content starts, and what was read to find that: the beginning of the member, or all of it."""
        self._start, head = find_content(self._source, self.name, self._member)
        return self._start, head

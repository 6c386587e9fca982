"""Bytes of a file that have no checksum."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.formats.containers.regular import ByteSource


class Span:
    """A run of bytes in a file that has no checksum; satisfies `optstate.formats.containers.stored_tensor.Record`."""

    __slots__ = ("_source", "_start", "nbytes", "owner")

    def __init__(self, source: ByteSource, start: int, nbytes: int) -> None:
        self._source = source
        self._start = start
        self.nbytes = nbytes
        self.owner = ""

    @property
    def where(self) -> str:
        return f"{self._source.name}, byte {self._start:,}"

    def read(self, offset: int, length: int) -> bytes:
        return self._source.read(self._start + offset, length)

    def into(self, memory: memoryview) -> None:
        self._source.into(self._start, memory, lambda _: None)

    def pieces(self, piece: int) -> Iterator[bytes]:
        for start in range(0, self.nbytes, piece):
            yield self.read(start, min(piece, self.nbytes - start))

    def verify(self) -> None:
        """There is nothing to hold it against."""

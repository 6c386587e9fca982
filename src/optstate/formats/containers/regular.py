"""Opening a file that a user names: regular files only, read by position, never mapped, never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches
from errno import ENXIO
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISREG
from typing import TypeAlias, TypeVar
from weakref import finalize

from optstate.errors import Damaged, NotACheckpoint, ReadError
from optstate.text import listing, safe_text, size

_PIECE = 1 << 20  # bytes: stays in a processor's cache from reading to hashing

Bytes = TypeVar("Bytes", bytes, memoryview)

Tell: TypeAlias = Callable[[memoryview], object]
"""What is told all bytes that pass, such as a digest's `update`."""


class ByteSource:
    """The bytes of a regular file, or of a run of them, read by position; the file stays open while it is in use.

    `size` is the number of bytes when the file was opened. A file that changes after that is `Damaged`: what
    was read before and after would not belong together. Reading is safe from several threads. `name` is the path,
    with the part of the file that a window shows, safe to print.
    """

    def __init__(
        self, file: _OpenFile, start: int, size: int, name: str, check: Callable[[bytes], None] | None = None
    ) -> None:
        self.path = file.path
        self.size = size
        self.name = name
        self._file = file
        self._start = start
        self._check = check

    def window(self, start: int, length: int, label: str, check: Callable[[bytes], None] | None = None) -> ByteSource:
        """`length` bytes from `start` as a source of their own, such as a file stored inside an archive.

        `check` sees them whenever all are read at once, and may raise. Raises `Damaged` when they are not all there.
        """
        self._check_range(start, length)
        return ByteSource(self._file, self._start + start, length, f"{self.name}, {safe_text(label)}", check)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises `Damaged` when they are not all there or the file has changed, before anything is allocated for
        bytes that the file does not have; `ReadError` when the system cannot read them.
        """
        self._check_range(offset, length)
        raw = self._file.read(self._start + offset, length)
        if self._check is not None and length == self.size:
            self._check(raw)
        return raw

    def into(self, offset: int, memory: memoryview, tell: Tell) -> None:
        """As `read`, into `memory` until that is full; `tell` sees all of it in pieces, while they are in cache."""
        self._check_range(offset, len(memory))
        for start in range(0, len(memory), _PIECE):
            piece = memory[start : start + _PIECE]
            self._file.fill(piece, self._start + offset + start)
            tell(piece)

    def scan(self, offset: int, length: int, tell: Tell) -> None:
        """Have `tell` see `length` bytes from `offset`, of which only a piece is in memory at once. Raises as `read` does."""
        self._check_range(offset, length)
        memory = memoryview(bytearray(min(length, _PIECE)))
        for start in range(0, length, _PIECE):
            self.into(offset + start, memory[: length - start], tell)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Damaged(
                f"{self.name} ends too early",
                expected=f"{size(length)} at byte {offset}",
                found=f"a file of {size(self.size)}",
                todo="the copy is incomplete: fetch or copy it again",
            )


class _OpenFile:
    """A descriptor that is closed when nobody uses it any more, and how the file was when it was opened."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        finalize(self, os.close, descriptor)
        self.status = os.fstat(descriptor)
        self._stamp = _stamp(self.status)

    def read(self, offset: int, length: int) -> bytes:
        return self._unchanged(partial(self._pread, offset, length), offset, length)

    def fill(self, piece: memoryview, offset: int) -> None:
        self._unchanged(partial(self._fill, piece, offset), offset, len(piece))

    def _unchanged(self, read: Callable[[], Bytes], offset: int, length: int) -> Bytes:
        try:
            raw = read()
            changed = len(raw) != length or _stamp(os.fstat(self._descriptor)) != self._stamp
        except OSError as error:
            name = safe_text(self.path)
            raise ReadError(f"the system cannot read {name}: {error.strerror}", found=f"byte {offset}") from error
        if changed:
            raise Damaged(
                f"{safe_text(self.path)} changed while it was read",
                todo="wait until whatever writes it has finished, then open it again",
            )
        return raw

    def _fill(self, piece: memoryview, offset: int) -> memoryview:
        """Read into `piece`; returns the part of it that was there to read."""
        done = 0
        while done < len(piece) and (got := os.preadv(self._descriptor, [piece[done:]], offset + done)):
            done += got
        return piece[:done]

    def _pread(self, offset: int, length: int) -> bytes:
        raw = os.pread(self._descriptor, length, offset)
        if len(raw) == length:
            return raw
        # The system reads at most 2 GiB at once, so a large tensor takes a few turns.
        parts = [raw]
        while parts[-1] and (missing := length - sum(map(len, parts))):
            parts.append(os.pread(self._descriptor, missing, offset + length - missing))
        return b"".join(parts)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def open_regular(path: Path, *, typed: bool = False) -> ByteSource:
    """The file at `path`, which may be a symbolic link, open for reading by position.

    Where a person typed the path, a missing file is reported with the names beside it that are close. Raises `NotACheckpoint` for anything but a regular file, at once also for a pipe that nobody writes to, and
    for a missing or empty file; `ReadError` when the system refuses.
    """
    try:
        # Without O_NONBLOCK opening a pipe waits for a writer, maybe for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path, typed=typed) from None
    except ValueError:
        raise NotACheckpoint(f"{safe_text(path)!r} is no path", todo="a path holds no NUL character") from None
    except OSError as error:
        raise cannot_open(path, error) from None
    file = _OpenFile(path, descriptor)
    if not S_ISREG(file.status.st_mode):
        raise _irregular(path, _kind(file.status.st_mode))
    source = ByteSource(file, 0, file.status.st_size, safe_text(path))
    if source.size == 0:
        raise NotACheckpoint(
            f"{source.name} is empty",
            expected="a checkpoint",
            found="a file of 0 bytes",
            todo="the save or the download did not finish: use an earlier checkpoint, or fetch it again",
        )
    return source


def cannot_open(path: Path, error: OSError) -> ReadError:
    """The error for a path that the system does not open."""
    if error.errno == ENXIO:  # which opening gives for a socket only
        return _irregular(path, "a socket")
    return ReadError(
        f"the system cannot open {safe_text(path)}: {error.strerror}",
        todo="check the owner and the mode of the file and of the folders above it",
    )


_KINDS = (
    (S_ISDIR, "a directory"),
    (S_ISFIFO, "a pipe"),
    (S_ISCHR, "a device"),
    (S_ISBLK, "a device"),
)


def _kind(mode: int) -> str:
    return next((kind for test, kind in _KINDS if test(mode)), "a special file")


def _irregular(path: Path, kind: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{safe_text(path)} is {kind}, not a file",
        expected="a regular file",
        found=kind,
        todo="save what comes out of it to a file, and open that" if kind == "a pipe" else "name the checkpoint itself",
    )


def missing(path: Path, *, typed: bool = False) -> NotACheckpoint:
    """The error for a file that is not there; `typed` as for `open_regular`."""
    what = f"there is no file {safe_text(path)}"
    if path.is_symlink():
        gone = "a symbolic link to something that is not there"
        return NotACheckpoint(what, found=gone, todo="bring back what the link leads to, or name the checkpoint itself")
    if not typed:
        return NotACheckpoint(what, todo="it was not copied, or never written: look where the checkpoint came from")
    return NotACheckpoint(
        what, found=_neighbours(path), todo="check the path; a relative one starts at the current directory"
    )


def _neighbours(path: Path) -> str | None:
    """Names beside a missing file that are close, out of at most a thousand."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, 1000)]
    except OSError:
        return f"no directory {safe_text(path.parent)} either"
    near = get_close_matches(path.name, names, n=3)
    return f"beside it: {listing(near)}" if near else None

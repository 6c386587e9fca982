"""The one seam to the file system for everything that writes.

Each method is one step that can fail, or after which the machine can stop. Tests put a twin in its place that
records every step, fails at a chosen one, or replays what a disk would hold after a power cut.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EEXIST, EINVAL, ENOSYS, EOPNOTSUPP
from functools import cache
from pathlib import Path
from stat import S_ISDIR
from typing import Literal, Protocol, TypeAlias

Buffer: TypeAlias = "bytes | bytearray | memoryview"

UNKNOWN_BOOT = "00000000"


class Files(Protocol):
    """The operations that a save is made of. Each raises `OSError` as the system does."""

    boot: str
    """Eight hexadecimal digits that are the same for all processes of this run of this machine's kernel."""

    writers: int
    """How many threads may write at a time; 0: none but the one that asks for it."""

    buffer: int
    """Bytes that are best handed over at once; a multiple of what writing past the page cache asks for."""

    def make_directory(self, path: Path) -> None:
        """A new directory; `FileExistsError` when anything is there."""

    def create(self, path: Path) -> int:
        """A new file, open for writing; `FileExistsError` when anything is there, a dangling link included."""

    def reserve(self, handle: int, nbytes: int) -> None:
        """Make a file so long, all of it on space that is its own; nothing where the file system has no way."""

    def set_direct(self, handle: int, *, on: bool) -> bool:
        """Write past the page cache, or through it again; returns whether the former is on."""

    def write(self, handle: int, data: Buffer, offset: int) -> int:
        """Write some of `data` at a place in the file, at least one byte; returns how many."""

    def sync(self, handle: int) -> None:
        """Wait until the file's content is on the disk."""

    def close(self, handle: int) -> None:
        """Close a file, or give back a lock."""

    def sync_directory(self, path: Path) -> None:
        """Wait until the directory's entries are on the disk."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a directory or file; fails when anything is at `target`."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over the file at `target`, in one step."""

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails where anything has it, or the file system knows no such thing."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and what is in it; links in it are removed, not followed."""

    def names(self, path: Path) -> Sequence[str]:
        """The names in a directory."""

    def kind(self, path: Path) -> Literal["directory", "other"] | None:
        """What is at a path, links not followed; None for nothing."""

    def lock(self, path: Path) -> int | None:
        """A lock on a directory until it is closed or its process ends; None while another process has it."""

    def hold(self, path: Path, owner: bytes) -> int:
        """A lock on a file, which is made where there is none and then says `owner`, until it is closed or its process ends.

        `BlockingIOError` while another one has it.
        """

    def idle(self, path: Path) -> float:
        """Seconds since anything in a directory was last written to."""

    def free_bytes(self, path: Path) -> int:
        """Bytes that can still be written to the file system of a directory."""


class RealFiles:
    """The operating system's own files; satisfies `Files`."""

    writers = 2
    buffer = 1 << 22  # several fit into the cache of a processor that others use too; more is not faster

    def __init__(self) -> None:
        self.boot = _boot()
        self._locked: dict[int, int] = {}  # handle → process

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def reserve(self, handle: int, nbytes: int) -> None:
        # The call that Python has writes to every block where the file system cannot do better.
        allocate = _system("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if allocate is not None and allocate(handle, 0, 0, nbytes) != 0:
            error = ctypes.get_errno()
            if error not in (EOPNOTSUPP, ENOSYS, EINVAL):
                raise OSError(error, os.strerror(error))

    def set_direct(self, handle: int, *, on: bool) -> bool:
        if not hasattr(os, "O_DIRECT") or (on and not _pays_direct(handle)):
            return False
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        try:
            fcntl.fcntl(handle, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            return False
        return on

    def write(self, handle: int, data: Buffer, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def sync(self, handle: int) -> None:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, whose fsync leaves bytes in the drive's own cache
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fsync(handle)

    def close(self, handle: int) -> None:
        if self._locked.pop(handle, None) == os.getpid():
            # A process that was forked off has the same lock, and would keep it; nor may it give back that of its parent.
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)

    def sync_directory(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        # The system itself refuses to rename a directory over a file or a directory that is not empty; looking
        # first refuses an empty one too. One that appears in between is replaced, and nothing is lost by that.
        if os.path.lexists(target):
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(target))
        source.rename(target)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def names(self, path: Path) -> Sequence[str]:
        return os.listdir(path)  # noqa: PTH208 - names, not paths

    def kind(self, path: Path) -> Literal["directory", "other"] | None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return None
        return "directory" if S_ISDIR(mode) else "other"

    def lock(self, path: Path) -> int | None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by another process, or a file system without locks
            os.close(handle)
            return None
        self._locked[handle] = os.getpid()
        return handle

    def hold(self, path: Path, owner: bytes) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(handle)
            raise
        with suppress(OSError):  # a full disk: whoever is refused then learns less, and that is all
            os.ftruncate(handle, 0)
            os.pwrite(handle, owner, 0)
        self._locked[handle] = os.getpid()
        return handle

    def idle(self, path: Path) -> float:
        newest = max(item.lstat().st_mtime for item in (path, *path.iterdir()))
        return time.time() - newest

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free


# What statfs calls file systems that write past the page cache without a detour, to a disk of their own; an overlay hands
# on to what is beneath. On others (over a network, in a program, in memory) it is emulated, or each write is waited for on its
# way there and back: there the page cache, which writes behind, is the faster way or the same.
_DIRECT = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x794C7630: "overlay",
}


def _pays_direct(handle: int) -> bool:
    """Whether a file is on a file system to which writing past the page cache is the faster way."""
    statfs = _system("fstatfs64", ctypes.c_int, ctypes.c_void_p)
    found = (ctypes.c_long * 64)()  # more than the structure takes; it begins with the type
    return statfs is not None and statfs(handle, found) == 0 and found[0] & 0xFFFFFFFF in _DIRECT


@cache
def _system(name: str, *arguments: type) -> Callable[..., int] | None:
    """A call of the system that Python has no name for; None where the system has none either."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = arguments
    return function


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    except OSError:
        return UNKNOWN_BOOT

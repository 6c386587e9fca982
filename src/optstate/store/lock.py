"""One process at a time in a folder of checkpoints."""

from __future__ import annotations

import os
import socket
import warnings
from contextlib import suppress
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path
from weakref import WeakSet, finalize

from optstate.errors import InUse, WriteFailed
from optstate.store.files import Files
from optstate.text import safe_text

LOCK = ".lock"
"""The file in the folder; it stays, and means something only while a process holds it."""


class Lock:
    """A folder as this process's own, until `free` is called or the process ends, however it ends.

    A child process does not share it. Raises `InUse`, naming process and host, while another has it; where the file system
    has no locks, a warning says so and nothing is locked. Raises `OSError` where the folder cannot be written to.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        path = directory / LOCK
        self._held: finalize[[Files, int], Lock] | None = None
        try:
            handle = files.hold(path, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            raise _in_use(directory, path) from None
        except OSError as error:
            if error.errno not in (ENOLCK, ENOSYS, EOPNOTSUPP):
                raise
            warnings.warn(
                f"the file system of {safe_text(directory)} has no locks: let no two processes save into it",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        self._held = finalize(self, _close, files, handle)
        _LOCKS.add(self)

    def free(self) -> None:
        """Give the folder back; nothing where that was done."""
        if self._held is not None:
            self._held()


_LOCKS: WeakSet[Lock] = WeakSet()


def _close(files: Files, handle: int) -> None:
    with suppress(OSError):
        files.close(handle)


def _in_child() -> None:
    # A lock lasts until the last copy of its descriptor is closed, and a worker may outlive the run that started it.
    for lock in list(_LOCKS):
        lock.free()


os.register_at_fork(after_in_child=_in_child)


def _in_use(directory: Path, path: Path) -> InUse:
    try:
        owner = safe_text(path.read_text("utf-8", "replace")[:200]) or "not known"
    except OSError:
        owner = "not known"
    return InUse(
        f"{safe_text(directory)} is in use",
        expected="one process that saves into it",
        found=f"{owner}{', which is this one' if _is_me(owner) else ''}",
        todo="close() the other Checkpointer" if _is_me(owner) else "end that process first, or use another folder",
    )


def unusable(directory: Path, error: OSError) -> WriteFailed:
    """The error for a folder in which the system refuses something."""
    failed = WriteFailed(
        f"{safe_text(directory)} cannot be used: {error.strerror}",
        expected="a folder that this process may write to",
        todo="name another folder, or change its owner or mode",
    )
    failed.errno, failed.strerror, failed.filename = error.errno, error.strerror, str(directory)
    return failed


def _is_me(owner: str) -> bool:
    return owner == f"process {os.getpid()} on {socket.gethostname()}"

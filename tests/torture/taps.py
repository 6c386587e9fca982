"""Real files, where something may happen before each operation: the process is killed, the system refuses, or a write is cut short."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from optstate.store.files import Buffer, RealFiles
from tests.disk import cut

OPERATIONS = (
    "make_directory", "create", "reserve", "set_direct", "write", "sync", "close", "sync_directory", "rename", "replace", "link",
    "names", "kind", "lock", "hold", "idle",
)  # fmt: skip
"""All but `remove_tree`, which is taken apart: each name that goes is an `unlink`."""

CHANGES = frozenset(OPERATIONS) - {"names", "kind", "idle", "close", "set_direct", "lock"} | {"unlink"}
"""What leaves a trace: killed before anything else is as killed before the next of these."""

Tap = Callable[[int, str], "OSError | float | None"]
"""Is told number and name of each operation; what it returns is raised, or says what of a write passes: see `tests.disk.cut`."""


class Tapped(RealFiles):
    """The operating system's own files behind a tap."""

    writers = 0
    buffer = 8192

    def __init__(self, tap: Tap, *, threads: int = 0) -> None:
        super().__init__()
        self.writers = threads
        self._tap = tap
        self._numbers = count()

    def seen(self, what: str) -> float | None:
        """Have the tap look at an operation."""
        answer = self._tap(next(self._numbers), what)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def write(self, handle: int, data: Buffer, offset: int) -> int:
        return super().write(handle, cut(data, self.seen("write")), offset)

    def close(self, handle: int) -> None:
        try:
            self.seen("close")
        finally:
            super().close(handle)  # a system that reports an error has closed it all the same

    def remove_tree(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for name in sorted(os.listdir(path)):
                self.remove_tree(path / name)
        self.seen("unlink")
        (Path.rmdir if path.is_dir() and not path.is_symlink() else Path.unlink)(path)


def _tapped(what: str) -> Callable[..., Any]:
    def operation(self: Tapped, *arguments: Any, **options: Any) -> Any:
        self.seen(what)
        return getattr(RealFiles, what)(self, *arguments, **options)

    return operation


for _what in set(OPERATIONS) - {"write", "close"}:
    setattr(Tapped, _what, _tapped(_what))


def killing(at: int) -> Tap:
    """Kills this process before the change of that number."""
    left = count()

    def tap(number: int, what: str) -> None:
        if what in CHANGES and next(left) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return tap

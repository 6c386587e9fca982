"""Reading files from start to end, which is the limit of whatever looks at all of their values."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

BLOCK = 1 << 20  # bytes


def read(path: str, share: float = 1.0) -> None:
    """Read a share of a file into one buffer, over and over."""
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plainest read there is
        left = int(file.seek(0, 2) * share)
        file.seek(0)
        while left > 0:
            left -= file.readinto(buffer) or left


def uncached(paths: Iterable[str]) -> None:
    """Let the system forget the content of files that it keeps in memory."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    """`python -m bench.reading FILE ...`: all of each."""
    for path in sys.argv[1:]:
        read(path)


if __name__ == "__main__":
    main()

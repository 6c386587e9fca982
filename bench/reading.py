"""Reading files from start to end, which is the limit of whatever looks at all of their values."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

BLOCK = 1 << 20  # bytes
PART = 1 << 23  # bytes that are read at once past the page cache
_OWN = threading.local()


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


def direct(paths: Iterable[str | os.PathLike[str]], most: int | None = None) -> None:
    """Read files, `most` bytes of each, past the page cache and into a few buffers, with four threads."""
    with ThreadPoolExecutor(4) as readers:
        for path in paths:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                length = min(os.fstat(handle).st_size, most or sys.maxsize)
                list(readers.map(partial(_part, handle), range(0, length, PART)))
            finally:
                os.close(handle)


def _part(handle: int, offset: int) -> None:
    if not hasattr(_OWN, "buffer"):
        _OWN.buffer = mmap.mmap(-1, PART)  # as aligned as `O_DIRECT` wants it
    os.preadv(handle, [_OWN.buffer], offset)


def main() -> None:
    """`python -m bench.reading FILE ...`: all of each."""
    for path in sys.argv[1:]:
        read(path)


if __name__ == "__main__":
    main()

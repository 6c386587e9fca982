"""What writing to a disk costs: durable contenders, the limit that they are held against, and the memory that they take."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

CHUNK = 1 << 24  # bytes
SECTOR = 4096  # bytes


def durable(write: Callable[[Path], object], path: Path) -> Callable[[], float]:
    """`write`, until which nothing else waits to be written, as a contender; leaves nothing behind."""

    def run() -> float:
        os.sync()
        began = perf_counter()
        write(path)
        seconds = perf_counter() - began
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return seconds

    return run


def raw_writer(nbytes: int) -> Callable[[Path], None]:
    """Writes so many bytes past the page cache, two pieces at a time, to space set aside before, and syncs once.

    They come from one aligned buffer that is not zero. No copy, no digest, no name: nothing that stores the same bytes can
    be much faster.
    """
    buffer = memoryview(mmap.mmap(-1, CHUNK))
    buffer[:] = os.urandom(CHUNK)
    whole = -(-nbytes // SECTOR) * SECTOR

    def write(path: Path) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_DIRECT", 0))

        def piece(start: int) -> None:
            wanted = min(CHUNK, whole - start)
            if os.pwrite(handle, buffer[:wanted], start) != wanted:
                raise OSError("a short write")

        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, whole)
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(piece, range(0, whole, CHUNK)))
            os.fsync(handle)
        finally:
            os.close(handle)

    return write


def extra_mb(work: Callable[[], object]) -> float:
    """MB of memory that `work` takes at its peak beyond what was in use before; not a number where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    except OSError:
        return float("nan")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def synced(path: Path) -> None:
    """Wait until a file, or every file in a directory and its entries, is on the disk."""
    for each in (*path.iterdir(), path) if path.is_dir() else (path,):
        handle = os.open(each, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

"""The same work on many tensors: large ones in threads, for reading, checksums and numpy let go of the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

LARGE = 1 << 18
"""Bytes from which a thread of its own pays; below, threads only wait for the interpreter's lock."""

THREADS = min(4, os.cpu_count() or 1)
"""Two or three streams saturate a disk; each holds a few blocks in memory."""


def in_threads(work: Callable[[T], R], items: Sequence[T], weigh: Callable[[T], int]) -> Iterator[R]:
    """`work(item)` for each item, in the order given; `weigh` says how many bytes it is about.

    What `work` raises is raised here, at its turn; nothing further is begun then.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        begun = [pool.submit(work, item) if weigh(item) >= LARGE else None for item in items]
        for item, future in zip(items, begun, strict=True):
            yield work(item) if future is None else future.result()
    finally:
        pool.shutdown(cancel_futures=True)

"""From tensors to files at the speed of the disk: bytes are copied into aligned buffers, which threads write out.

Writing past the page cache takes a fraction of the time of writing through it, and leaves the cache to the program. It asks
for memory, offsets and lengths that are multiples of a sector, which tensors do not have, so everything is copied once, into a
few buffers that are used again and again; digests are taken on the way, while a piece is in the processor's cache.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from errno import EINVAL, EIO
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, Self

from optstate.store.files import Buffer, Files

BUFFERS = 4
"""How many buffers there are: one is filled, the others are on their way."""

ALIGNMENT = 4096
"""Bytes; what a file system may ask of memory, offsets and lengths that go past the page cache."""

_CACHED = 1 << 18
"""Bytes that stay in a processor's cache between digest and copy."""


class Digest(Protocol):
    """What is told all bytes that pass."""

    def update(self, data: Buffer, /) -> None:
        """Take more bytes."""


class Pipeline:
    """A few buffers, and the threads that write them out, for all files that are written as one.

    At the end of the block every file is written, synced and closed; what failed first is raised there, or as soon as a
    buffer is wanted. After a failure nothing more is written or synced. Where `files.writers` is 0 everything happens at
    once, in the order in which it is asked for.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._made = 0
        self._threads = ThreadPoolExecutor(files.writers) if files.writers else None
        self._jobs: list[Future[None]] = []
        self._failed: BaseException | None = None
        self._sinks: list[Sink] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._failed = self._failed or error
            if self._threads is not None:
                self._threads.shutdown()
        finally:
            for sink in self._sinks:
                sink.close()
        if error is None and self._failed is not None:
            raise self._failed

    def file(self, path: Path, nbytes: int = 0) -> Output:
        """A new file, of so many bytes where that is known, to be written from start to end."""
        sink = Sink(path, self._files)
        self._sinks.append(sink)
        sink.reserve(nbytes)
        return Output(self, sink)

    def buffer(self) -> memoryview:
        """A buffer that nobody uses. Raises what went wrong meanwhile."""
        if self._free.empty() and self._made < BUFFERS:
            self._made += 1
            return memoryview(mmap.mmap(-1, self._files.buffer))
        free = self._free.get()
        if self._failed is not None:
            raise self._failed
        return free

    def send(self, buffer: memoryview, job: Callable[[], None], *, last: bool = False) -> None:
        """Have a buffer written and used again; with `last`, after all that was sent before."""
        self._jobs = [each for each in self._jobs if not each.done()]
        earlier = tuple(self._jobs) if last else ()

        def work() -> None:
            wait(earlier)  # they were started before, so none of them waits for this one
            try:
                if self._failed is None:
                    job()
            except BaseException as error:  # noqa: BLE001  # whoever waits for it raises it
                self._failed = self._failed or error
            finally:
                self._free.put(buffer)

        if self._threads is not None:
            self._jobs.append(self._threads.submit(work))
            return
        work()
        if self._failed is not None:
            raise self._failed


class Sink:
    """A new file as the writing threads see it: bytes at offsets, past the page cache where that is possible."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._direct = False
        self._handle = files.create(path)
        self._open = True

    def reserve(self, nbytes: int) -> None:
        """Have the disk set so many bytes aside, so that one that is full says so before anything is written."""
        if nbytes >= self._files.buffer:
            with self._named():
                self._files.reserve(self._handle, nbytes)

    def go_direct(self) -> None:
        """Write past the page cache from now on, if the file system has a way."""
        with self._named():
            self._direct = self._files.set_direct(self._handle, on=True)

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            try:
                with self._named():
                    written = self._files.write(self._handle, view, offset)
            except OSError as error:
                if error.errno != EINVAL or not self._direct:
                    raise
                self._go_buffered()  # this file system asks for more than was thought
                continue
            if written < 1:
                raise OSError(EIO, "the system wrote nothing and gave no reason", str(self._path))
            view, offset = view[written:], offset + written

    def finish(self, data: memoryview, offset: int) -> None:
        """Write the last bytes, wait until all are on the disk, and close."""
        if self._direct:
            whole = len(data) - len(data) % ALIGNMENT
            self.write(data[:whole], offset)
            self._go_buffered()
            data, offset = data[whole:], offset + whole
        self.write(data, offset)
        with self._named():
            self._files.sync(self._handle)
        self.close()

    def close(self) -> None:
        """Close the file if it is open."""
        if self._open:
            self._open = False
            self._files.close(self._handle)

    def _go_buffered(self) -> None:
        self._direct = False
        with self._named():
            self._files.set_direct(self._handle, on=False)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the system that say which file they are about."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise


class Output:
    """A file that is written from start to end; at the end of the block its last bytes are on their way.

    `position` is the number of bytes so far.
    """

    def __init__(self, pipeline: Pipeline, sink: Sink) -> None:
        self.position = 0
        self._pipeline = pipeline
        self._sink = sink
        self._buffer = pipeline.buffer()
        self._filled = 0
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._pipeline.send(
                self._buffer, partial(self._sink.finish, self._buffer[: self._filled], self._sent), last=True
            )

    def write(self, data: Buffer, digest: Digest | None = None) -> None:
        """Append bytes; `digest` takes them as well."""
        view = memoryview(data)
        self.position += len(view)
        while view:
            room = min(len(self._buffer) - self._filled, _CACHED if digest is not None else len(view))
            piece = view[:room]
            if digest is not None:
                digest.update(piece)
            end = self._filled + len(piece)
            self._buffer[self._filled : end] = piece
            self._filled, view = end, view[room:]
            if end == len(self._buffer):
                self._turn()

    def _turn(self) -> None:
        """Send a full buffer, and take the next."""
        if self._sent == 0:
            self._sink.go_direct()  # a file of a buffer or less is not worth it
        self._pipeline.send(self._buffer, partial(self._sink.write, self._buffer, self._sent))
        self._sent += self._filled
        self._buffer, self._filled = self._pipeline.buffer(), 0

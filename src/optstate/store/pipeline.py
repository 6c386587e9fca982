"""From tensors to files at the speed of the disk: bytes are copied into aligned buffers, which threads write out.

Writing past the page cache takes a fraction of the time of writing through it, and leaves the cache to the program. It asks
for memory, offsets and lengths that are multiples of a sector, which tensors do not have, so everything is copied once, into a
few buffers that are used again and again. A digest is taken of the copy, the very bytes that go to the disk, while they are
in the processor's cache; whatever becomes of their source meanwhile, a file is what its digests say.

Both let other threads of Python run, so a program that trains beside a save is not held up by it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL, EIO
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Protocol, Self, TypeAlias

import numpy as np

from optstate.store.files import Buffer, Files

BUFFERS = 4
"""How many buffers there are, unless a pipeline is widened: one is filled, the others are on their way."""

ALIGNMENT = 4096
"""Bytes; what a file system may ask of memory, offsets and lengths that go past the page cache."""

_PIECE = 1 << 20
"""Bytes that stay in a processor's cache between copy and digest, and are worth letting other threads run meanwhile."""

_SMALL = 1 << 15
"""Bytes below which a copy is over before another thread could have made use of it."""


class Digest(Protocol):
    """What is told all bytes that pass."""

    def update(self, data: Buffer, /) -> None:
        """Take more bytes."""


_Job: TypeAlias = "Callable[[], None]"


class Pipeline:
    """A few buffers, and the threads that write them out, for all files that are written as one.

    At the end of the block every file is written, synced and closed; what failed first is raised there, or as soon as a
    buffer is wanted. After a failure nothing more is written or synced. Where `files.writers` is 0, or the system has no
    more threads to give, everything happens at once, in the order in which it is asked for.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._free: list[memoryview] = []
        self._made = 0
        self._most = BUFFERS
        self._changed = Condition()  # of what is above and below, and of how much sinks wait for
        self._failed: BaseException | None = None
        self._sinks: list[Sink] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[Thread] = []

    def __enter__(self) -> Self:
        # Not an executor: those take no work any more while the interpreter exits, when a save may still be under way.
        try:
            for number in range(self._files.writers):
                self._threads.append(Thread(target=self._work, name=f"optstate writer {number}"))
                self._threads[-1].start()
        except RuntimeError:
            self._threads.pop()  # those that did start are enough, and so is none
        except BaseException as error:  # an interrupt: the program would wait for them when it ends
            self._end(error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._end(error)
        for sink in self._sinks:
            sink.close()
        if error is None and self._failed is not None:
            raise self._failed

    def file(self, path: Path, nbytes: int = 0) -> Output:
        """A new file, of so many bytes where that is known, to be written from start to end.

        A disk without room for it says so at once. Several may be made before one is written.
        """
        sink = Sink(path, self._files)
        self._sinks.append(sink)
        sink.reserve(nbytes)
        return Output(self, sink)

    def widen(self, nbytes: int) -> None:
        """Let the buffers take so many bytes from now on, if that is more than they may; whoever waits for one goes on."""
        with self._changed:
            self._most = max(self._most, nbytes // self._files.buffer)
            self._changed.notify_all()

    def buffer(self) -> memoryview:
        """A buffer that nobody uses. Raises what went wrong meanwhile."""
        with self._changed:
            while not self._free and self._made >= self._most and self._failed is None:
                self._changed.wait()
            if self._failed is not None:
                raise self._failed
            if self._free:
                return self._free.pop()
            self._made += 1
        return memoryview(mmap.mmap(-1, self._files.buffer))

    def send(self, sink: Sink, buffer: memoryview, job: _Job, *, last: bool = False) -> None:
        """Have a buffer written to a sink and used again; with `last`, after all that was sent to it before."""
        with self._changed:
            sink.waiting += 1

        def work() -> None:
            if last:
                # Jobs begin in the order in which they were sent, so none of them waits for this one.
                with self._changed:
                    self._changed.wait_for(lambda: sink.waiting == 1)
            try:
                if self._failed is None:
                    job()
            except BaseException as error:  # noqa: BLE001  # whoever waits for it raises it
                self._fail(error)
            finally:
                with self._changed:
                    sink.waiting -= 1
                    self._free.append(buffer)
                    self._changed.notify_all()

        if self._threads:
            self._jobs.put(work)
            return
        work()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _fail(self, error: BaseException | None) -> None:
        with self._changed:
            self._failed = self._failed or error
            self._changed.notify_all()

    def _end(self, error: BaseException | None) -> None:
        """Wait for all threads, even if interrupted: what they write to must not be closed, and then be another file."""
        for _ in self._threads:
            self._jobs.put(None)
        self._fail(error)
        for thread in self._threads:
            while thread.is_alive():
                try:
                    thread.join()
                except BaseException as interrupt:  # noqa: BLE001  # raised once all have ended
                    self._fail(interrupt)


class Sink:
    """A new file as the writing threads see it: bytes at offsets, past the page cache where that is possible."""

    waiting = 0
    """How many buffers were sent to it that are not written yet."""

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
        self._buffer = memoryview(b"")
        self._filled = 0
        self._sent = 0

    def __enter__(self) -> Self:
        self._buffer = self._pipeline.buffer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            finish = partial(self._sink.finish, self._buffer[: self._filled], self._sent)
            self._pipeline.send(self._sink, self._buffer, finish, last=True)

    def write(self, data: Buffer, digest: Digest | None = None) -> None:
        """Append bytes; `digest` takes them as they are written."""
        if len(data) < min(_SMALL, len(self._buffer) - self._filled):  # nearly all there are, where there are very many
            self._append(data, digest)
            return
        view = memoryview(data)
        while view:
            taken = min(len(view), _PIECE, len(self._buffer) - self._filled)
            self._append(view[:taken], digest)
            view = view[taken:]
            if self._filled == len(self._buffer):
                self._turn()

    def _append(self, data: Buffer, digest: Digest | None) -> None:
        end = self._filled + len(data)
        copy = self._buffer[self._filled : end]
        if len(data) < _SMALL:
            copy[:] = data
        else:
            np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(data, np.uint8))
        if digest is not None:
            digest.update(copy)
        self.position += len(data)
        self._filled = end

    def _turn(self) -> None:
        """Send a full buffer, and take the next."""
        if self._sent == 0:
            self._sink.go_direct()  # a file of a buffer or less is not worth it
        self._pipeline.send(self._sink, self._buffer, partial(self._sink.write, self._buffer, self._sent))
        self._sent += self._filled
        self._buffer, self._filled = self._pipeline.buffer(), 0

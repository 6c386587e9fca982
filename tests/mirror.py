"""Real files, and a `tests.disk.Disk` that is told the same.

Code that reads what it wrote runs for real, while every step is recorded, can fail, and can be cut short by a power cut.
"""

from __future__ import annotations

from pathlib import Path

from optstate.store.files import RealFiles
from tests.disk import Disk


class Mirror:
    """Satisfies `optstate.store.files.Files` for paths below a folder, which is the root of the disk."""

    writers = 0
    buffer = 8192

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk or Disk()
        self.real = RealFiles()
        self.boot = self.real.boot
        self._handles: dict[int, int] = {}

    def make_directory(self, path):
        self.disk.make_directory(self._on_disk(path))
        self.real.make_directory(path)

    def create(self, path):
        number = self.disk.create(self._on_disk(path))
        handle = self.real.create(path)
        self._handles[handle] = number
        return handle

    def reserve(self, handle, nbytes):
        self.disk.reserve(self._handles[handle], nbytes)
        self.real.reserve(handle, nbytes)

    def set_direct(self, handle, *, on):
        self.disk.set_direct(self._handles[handle], on=on)
        done = self.real.set_direct(handle, on=on)
        self.disk.direct[self._handles[handle]] = done
        return done

    def write(self, handle, data, offset):
        written = self.disk.write(self._handles[handle], data, offset)
        piece = memoryview(data)[:written]
        assert self.real.write(handle, piece, offset) == written
        return written

    def sync(self, handle):
        self.disk.sync(self._handles[handle])

    def close(self, handle):
        try:
            self.disk.close(self._handles.get(handle, handle))
        finally:
            self.real.close(handle)  # a system that reports an error has closed it all the same

    def sync_directory(self, path):
        self.disk.sync_directory(self._on_disk(path))

    def rename(self, source, target):
        self.disk.rename(self._on_disk(source), self._on_disk(target))
        self.real.rename(source, target)

    def replace(self, source, target):
        self.disk.replace(self._on_disk(source), self._on_disk(target))
        self.real.replace(source, target)

    def link(self, source, target):
        self.disk.link(self._on_disk(source), self._on_disk(target))
        self.real.link(source, target)

    def remove_tree(self, path):
        self.disk.remove_tree(self._on_disk(path))
        self.real.remove_tree(path)

    def names(self, path):
        self.disk.names(self._on_disk(path))
        return sorted(self.real.names(path))

    def kind(self, path):
        self.disk.kind(self._on_disk(path))
        return self.real.kind(path)

    def lock(self, path):
        self.disk.lock(self._on_disk(path))
        return self.real.lock(path)

    def hold(self, path, owner):
        self.disk.hold(self._on_disk(path), owner)
        return self.real.hold(path, owner)

    def idle(self, path):
        self.disk.idle(self._on_disk(path))
        return self.real.idle(path)

    def free_bytes(self, path):
        return self.disk.free_bytes(path)

    def _on_disk(self, path: Path) -> Path:
        return path.relative_to(self.root)

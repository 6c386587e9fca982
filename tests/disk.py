"""A disk in memory that satisfies `optstate.store.files.Files`: it records each step, fails at a chosen one, and
says what a power cut could leave.

What a step changes is volatile until it is synced: writes and lengths by a sync of the file, names by a sync of
the directory. After a power cut any part of what is volatile may be there, in any combination.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from errno import EEXIST, EINVAL, ENOENT, ENOTEMPTY
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from optstate.store.files import Buffer, RealFiles


class Step(NamedTuple):
    """A change or a sync. `target` is the inode that it is about: a file, or the directory that holds `name`.

    A rename that leaves its directory has that one as `origin`, and `target` is where it goes.
    """

    what: str  # link, unlink, rename, write, sync, sync directory
    target: int
    name: str = ""
    new_name: str = ""
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    origin: int = -1


class Disk:
    """A file system in memory.

    calls
        What was called, in order, with its path: `("write", Path("…"))`.
    log
        The changes and syncs, as `crashes` takes them.
    fault
        Called before each call with its number and name; what it returns is raised. For a write it may return
        a number: only so many bytes are then written, or such a part of them.
    """

    ROOT = 0
    writers = 0
    buffer = 8192

    def __init__(self, fault: Callable[[int, str], OSError | float | None] = lambda number, what: None) -> None:
        self.boot = RealFiles().boot  # so that a real save after a simulated crash knows whose leftovers they are
        self.directories: dict[int, dict[str, int]] = {self.ROOT: {}}
        self.contents: dict[int, bytearray] = {}
        self.handles: dict[int, int] = {}
        self.direct: dict[int, bool] = {}
        self.calls: list[tuple[str, Path]] = []
        self.log: list[Step] = []
        self.fault = fault

    # --- Files ----------------------------------------------------------------------------------------

    def make_directory(self, path):
        self._call("make_directory", path)
        self._link(path, directory=True)

    def create(self, path):
        self._call("create", path)
        handle = 100 + len(self.handles)
        self.handles[handle] = self._link(path, directory=False)
        return handle

    def reserve(self, handle, nbytes):
        inode = self.handles[handle]
        self._call("reserve", inode)
        self._put(inode, 0, bytes(nbytes))

    def set_direct(self, handle, *, on):
        self._call("set_direct", self.handles[handle])
        self.direct[handle] = on
        return on

    def write(self, handle: int, data: Buffer, offset):
        inode = self.handles[handle]
        limit = self._call("write", inode)
        if self.direct.get(handle) and (len(data) % SECTOR or offset % SECTOR):
            raise OSError(EINVAL, os.strerror(EINVAL))
        piece = bytes(cut(data, limit))
        self._put(inode, offset, piece)
        return len(piece)

    def _put(self, inode, offset, data):
        self.log.append(Step("write", inode, offset=offset, data=data))
        self.contents[inode][offset : offset + len(data)] = data

    def sync(self, handle):
        self._call("sync", self.handles[handle])
        self.log.append(Step("sync", self.handles[handle]))

    def close(self, handle):
        self._call("close", handle)

    def sync_directory(self, path):
        self._call("sync_directory", path)
        self.log.append(Step("sync directory", self._find(path)))

    def rename(self, source, target):
        self._call("rename", target)
        if target.name in self._parent(target)[1]:
            raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY), str(target))
        self._move(source, target)

    def replace(self, source, target):
        self._call("replace", target)
        self._move(source, target)

    def link(self, source, target):
        self._call("link", target)
        inode = self._find(source)
        parent, entries = self._parent(target)
        if target.name in entries:
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(target))
        entries[target.name] = inode
        self.log.append(Step("link", parent, target.name, inode=inode))

    def remove_tree(self, path):
        for name in sorted(self.directories.get(self._find(path), ())):
            self.remove_tree(path / name)
        self._call("unlink", path)
        parent, entries = self._parent(path)
        del entries[path.name]
        self.log.append(Step("unlink", parent, path.name))

    def names(self, path):
        self._call("names", path)
        return list(self.directories[self._find(path)])

    def kind(self, path):
        self._call("kind", path)
        try:
            return "directory" if self._find(path) in self.directories else "other"
        except FileNotFoundError:
            return None

    def lock(self, path):
        self._call("lock", path)
        self._find(path)
        return 1

    def hold(self, path, owner):
        self._call("hold", path)
        self._find(path.parent)
        return 1

    def idle(self, path):
        self._call("idle", path)
        return 0.0

    def free_bytes(self, path):
        return 12_345_678

    # --- beneath --------------------------------------------------------------------------------------

    def _call(self, what, path):
        number = len(self.calls)
        self.calls.append((what, path))
        fault = self.fault(number, what)
        if isinstance(fault, OSError):
            raise fault
        return fault

    def _find(self, path: Path) -> int:
        inode = self.ROOT
        for part in path.parts:
            if part not in self.directories.get(inode, {}):
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path))
            inode = self.directories[inode][part]
        return inode

    def _parent(self, path: Path) -> tuple[int, dict[str, int]]:
        parent = self._find(path.parent)
        return parent, self.directories[parent]

    def _move(self, source: Path, target: Path) -> None:
        origin, entries = self._parent(source)
        parent, homes = self._parent(target)
        inode = homes[target.name] = entries.pop(source.name)
        self.log.append(Step("rename", parent, source.name, target.name, inode, origin=origin))

    def _link(self, path: Path, *, directory: bool) -> int:
        parent, entries = self._parent(path)
        if path.name in entries:
            raise FileExistsError(EEXIST, os.strerror(EEXIST), str(path))
        inode = entries[path.name] = 1 + len(self.directories) + len(self.contents)
        if directory:
            self.directories[inode] = {}
        else:
            self.contents[inode] = bytearray()
        self.log.append(Step("link", parent, path.name, inode=inode, data=b"d" if directory else b"f"))
        return inode

    def tree(self) -> dict[str, bytes]:
        """Every file by its path, and every directory by its path and a slash."""
        return snapshot(self.directories, self.contents)


def failing(number: int, code: int) -> Callable[[int, str], OSError | None]:
    """A fault at one call."""
    return lambda call, what: OSError(code, os.strerror(code)) if call == number else None


def cut(data: Buffer, limit: float | None) -> Buffer:
    """What of a write passes: all, so many bytes, or such a part of them, which is at least one byte."""
    if limit is None:
        return data
    return memoryview(data)[: limit if isinstance(limit, int) else max(1, int(limit * len(data)))]


Tree = dict[str, bytes]


def snapshot(directories: dict[int, dict[str, int]], contents: dict[int, bytearray]) -> Tree:
    """What is reachable from the root."""
    tree: Tree = {}

    def walk(inode: int, prefix: str) -> None:
        for name, child in directories[inode].items():
            if child in directories:
                tree[f"{prefix}{name}/"] = b""
                walk(child, f"{prefix}{name}/")
            else:
                tree[prefix + name] = bytes(contents.get(child, b""))

    walk(Disk.ROOT, "")
    return tree


# --- power cuts ---------------------------------------------------------------------------------------------

SECTOR, PAGE = 512, 4096


def crashes(log: Sequence[Step], end: int, most: int, *, stride: int = 1) -> Iterator[Tree]:
    """What a power cut after the first `end` steps may leave; every `stride`-th of these trees.

    Of the volatile changes all are kept, all are lost, every single one, two, … up to `most` are lost, and
    every single one alone is kept; each write also is torn at any sector, has zeros or garbage in any sector or
    page, and is kept in length alone.
    """
    # What is not asked for is not made: that takes most of the time.
    for steps, lost in islice(_cuts(log[:end], most), 0, None, stride):
        yield replay(steps, lost)


def _cuts(done: Sequence[Step], most: int) -> Iterator[tuple[Sequence[Step], set[int]]]:
    volatile = [number for number, step in enumerate(done) if not _is_sync(step) and not _synced(done, number)]
    for lost in range(min(most, len(volatile)) + 1):
        for chosen in combinations(volatile, lost):
            yield done, set(chosen)
    yield done, set(volatile)
    for number in volatile:
        yield done, set(volatile) - {number}
        if done[number].what == "write":
            for torn in _torn(done[number]):
                yield [*done[:number], torn, *done[number + 1 :]], set()


def _is_sync(step: Step) -> bool:
    return step.what.startswith("sync")


def _synced(done: Sequence[Step], number: int) -> bool:
    step = done[number]
    kind = "sync" if step.what == "write" else "sync directory"
    return any(later.what == kind and later.target == step.target for later in done[number + 1 :])


def _torn(step: Step) -> Iterator[Step]:
    data = step.data
    yield step._replace(data=bytes(len(data)))
    for start in range(0, len(data), SECTOR):
        yield step._replace(data=data[:start])
    for block in (SECTOR, PAGE):
        for start in range(0, len(data), block):
            lost = data[start : start + block]
            for found in (bytes(len(lost)), bytes(byte ^ 0x5A for byte in lost)):
                yield step._replace(data=data[:start] + found + data[start + block :])


def replay(steps: Sequence[Step], lost: set[int]) -> Tree:
    """The tree after all steps but the lost ones."""
    directories: dict[int, dict[str, int]] = {Disk.ROOT: {}}
    contents: dict[int, bytearray] = {}
    # An inode exists from its creation on, whether or not a name leads to it.
    directories |= {step.inode: {} for step in steps if step.what == "link" and step.data == b"d"}
    for number, step in enumerate(steps):
        if number in lost or _is_sync(step):
            continue
        if step.what == "write":
            content = contents.setdefault(step.target, bytearray())
            content.extend(bytes(max(0, step.offset - len(content))))  # a hole where an earlier write was lost
            content[step.offset : step.offset + len(step.data)] = step.data
            continue
        entries = directories[step.target]
        if step.what == "link":
            entries[step.name] = step.inode
        elif step.what == "unlink":
            entries.pop(step.name, None)
        else:
            directories[step.origin].pop(step.name, None)
            entries[step.new_name] = step.inode
    return snapshot(directories, contents)


def plant(tree: Tree, root: Path) -> None:
    """Make a tree real."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in tree.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

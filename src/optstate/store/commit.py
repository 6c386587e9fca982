"""A directory that appears whole and durable, or not at all.

1. A temporary sibling, `.<name>.tmp-<boot>-<random>`, is made and locked; everything is written into it, each
   file synced when it is complete.
2. The temporary directory is synced, renamed to its final name, and the parent is synced. Only then is it saved.
3. Where it replaces another, that one is first renamed to `.<name>.old-<boot>-<random>`, and removed last. Killed
   in between, `optstate.formats.ours.directory.settled` finds the old one, and the next save puts it back.

What a killed save leaves is removed by the next save to the same name, once it is certain that nobody writes
it any more: its lock is free, and this is still the same run of the same machine, so that a lock means
something; or nothing in it changed for a day. A process id would prove nothing, since others reuse it.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EEXIST, EINVAL, ENAMETOOLONG, ENOSPC, ENOTEMPTY, ENOTSUP
from pathlib import Path

from optstate.errors import OptstateError, TargetExists, WriteFailed
from optstate.store.files import UNKNOWN_BOOT, Files
from optstate.text import safe_text, size

DAY = 86_400.0


@contextmanager
def new_directory(path: Path, files: Files, *, replace: bool, nbytes: int) -> Iterator[Path]:
    """A temporary directory to write into, which becomes `path` at the end of the block.

    Everything in it must be synced by then; `nbytes` is what it will hold, for the message about a full disk.
    On any failure, an interrupt included, the temporary directory is removed and what was at `path` is there
    again. Raises `WriteFailed` in place of an `OSError`, and `TargetExists` when `path` is there and is not to
    be replaced.
    """
    temporary = path.with_name(f".{path.name}.tmp-{token(files)}")
    lock = None
    try:
        make_parents(path.parent, files)
        tidy(path, files)
        files.make_directory(temporary)
        lock = files.lock(temporary)
        yield temporary
        sync_directory(temporary, files)
        _move(temporary, path, files, replace=replace)
    except BaseException as error:
        with suppress(OSError):
            # It may have had the final name for a moment: a power cut must not find it empty there.
            sync_directory(path.parent, files)
            files.remove_tree(temporary)
        if isinstance(error, OSError) and not isinstance(error, OptstateError):
            raise _explained(error, path, files, nbytes) from error
        raise
    finally:
        if lock is not None:
            with suppress(OSError):
                files.close(lock)


@contextmanager
def new_file(path: Path, files: Files, *, replace: bool, nbytes: int) -> Iterator[Path]:
    """A path to write a file at, which becomes `path` at the end of the block: at once, and whole.

    It is written within a temporary directory, so what a killed program leaves is found and removed as that of a save
    is. Synced, replaced, cleaned up and raised is as by `new_directory`; only a file is ever replaced. Where the file
    system has no second names for files, one that was replaced is not put back when the last sync fails.
    """
    temporary = path.with_name(f".{path.name}.tmp-{token(files)}")
    lock = None
    try:
        make_parents(path.parent, files)
        tidy(path, files)
        files.make_directory(temporary)
        lock = files.lock(temporary)
        yield temporary / _NEW
        _move_file(temporary, path, files, replace=replace)
    except BaseException as error:
        if isinstance(error, OSError) and not isinstance(error, OptstateError):
            raise _explained(error, path, files, nbytes) from error
        raise
    finally:
        with suppress(OSError):
            files.remove_tree(temporary)
        if lock is not None:
            with suppress(OSError):
                files.close(lock)


def token(files: Files) -> str:
    """The end of a temporary name: in which run of the machine it was given, and what no other has."""
    return f"{files.boot}-{secrets.token_hex(4)}"


def make_parents(path: Path, files: Files) -> None:
    """A directory and those above it, where they are missing; they survive a power cut. Raises `OSError`."""
    if files.kind(path) is None and path != path.parent:
        make_parents(path.parent, files)
        with suppress(FileExistsError):  # another process was faster
            files.make_directory(path)
        sync_directory(path.parent, files)


def _move(temporary: Path, path: Path, files: Files, *, replace: bool) -> None:
    aside = path.with_name(f".{path.name}.old-{token(files)}") if replace and files.kind(path) is not None else None
    try:
        if aside is not None:
            files.rename(path, aside)
        files.rename(temporary, path)
        sync_directory(path.parent, files)
    except BaseException:
        with suppress(OSError):
            if files.kind(temporary) is None:
                # A power cut may keep any of the renames that are not synced: not those alone that take them back.
                sync_directory(path.parent, files)
                files.rename(path, temporary)
            if aside is not None and files.kind(path) is None:
                files.rename(aside, path)
        raise
    if aside is not None:
        with suppress(OSError):  # the new one is safe; the next save removes what is left of the old one
            files.remove_tree(aside)


_NEW, _OLD = "new", "old"


def _move_file(temporary: Path, path: Path, files: Files, *, replace: bool) -> None:
    replaced = replace and files.kind(path) is not None
    if replaced:
        with suppress(OSError):
            files.link(path, temporary / _OLD)
        files.replace(temporary / _NEW, path)
    else:
        files.rename(temporary / _NEW, path)
    try:
        sync_directory(path.parent, files)
    except BaseException:
        with suppress(OSError):
            if replaced:
                files.replace(temporary / _OLD, path)
            else:
                files.rename(path, temporary / _NEW)
        raise


def sync_directory(path: Path, files: Files) -> None:
    """Wait until a directory's entries are on the disk; a file system that cannot do so is tolerated, once told."""
    try:
        files.sync_directory(path)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):
            raise
        warnings.warn(
            "this file system cannot sync directories: after a power cut the newest checkpoint may be missing",
            RuntimeWarning,
            stacklevel=2,
        )


# --- what killed saves left ---------------------------------------------------------------------------------


def tidy(path: Path, files: Files) -> None:
    """Finish or remove what earlier saves to the same name could not."""
    found = [_leftover(path, name) for name in files.names(path.parent)]
    leftovers = [item for item in found if item is not None and files.kind(item[0]) == "directory"]
    aside = [item for item, what, _ in leftovers if what == "old"]
    if aside and files.kind(path) is None:
        files.rename(aside.pop(), path)
    dead = [item for item, what, boot in leftovers if what == "tmp" and _abandoned(item, boot, files)]
    if aside or dead:
        # The renames that made them superfluous may not be on the disk yet.
        sync_directory(path.parent, files)
    for item in (*aside, *dead):
        with suppress(OSError):
            files.remove_tree(item)


def _leftover(path: Path, name: str) -> tuple[Path, str, str] | None:
    match = re.fullmatch(rf"\.{re.escape(path.name)}\.(tmp|old)-([0-9a-f]{{8}})-[0-9a-f]{{8}}", name)
    return (path.with_name(name), match[1], match[2]) if match else None


def _abandoned(temporary: Path, boot: str, files: Files) -> bool:
    """Whether it is certain that nobody writes a temporary directory any more."""
    with suppress(OSError):
        if boot == files.boot != UNKNOWN_BOOT:
            lock = files.lock(temporary)
            if lock is not None:
                files.close(lock)
                return True
        return files.idle(temporary) > DAY
    return False


# --- faults -------------------------------------------------------------------------------------------------


def _explained(error: OSError, path: Path, files: Files, nbytes: int) -> OptstateError:
    if error.errno in (EEXIST, ENOTEMPTY):
        return target_exists(path)
    full = error.errno in (ENOSPC, EDQUOT)
    free = None
    if full:
        with suppress(OSError):
            free = files.free_bytes(path.parent)
    failed = WriteFailed(
        f"{safe_text(path)} was not saved: {error.strerror or error}",
        where=safe_text(error.filename) if error.filename else None,
        expected=f"{size(nbytes)} of free space" if full else _NAME_ROOM if error.errno == ENAMETOOLONG else None,
        found=f"{size(free)} free" if free is not None else None,
        todo="free some space, then save again; earlier checkpoints are untouched"
        if full
        else "earlier checkpoints are untouched",
    )
    failed.errno, failed.strerror, failed.filename = error.errno, error.strerror, error.filename or str(path)
    return failed


_NAME_ROOM = "a name of at most 232 bytes, so that a temporary one has room beside it"


def target_exists(path: Path) -> TargetExists:
    """The error for a save to a path where something is."""
    return TargetExists(
        f"{safe_text(path)} exists already",
        expected="a new path",
        todo="save to another path, or pass replace=True to replace this checkpoint",
    )

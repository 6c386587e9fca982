"""Which checkpoints of a run stay, and how the others go: never so that a power cut could leave half of one.

What goes is renamed first, the rename is made durable, and only then is anything removed. What a killed program left in
the middle of it is finished by the next.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from optstate.store.commit import sync_directory, tidy, token
from optstate.store.files import Files
from optstate.store.folder import NAME
from optstate.store.pipeline import Pipeline

WHY = "damaged.txt"
"""The file in a damaged checkpoint that says what is wrong with it."""

_CUT_SHORT = re.compile(rf"\.(?P<name>{NAME.pattern}(\.weights)?)\.(tmp|old)-[0-9a-f]{{8}}-[0-9a-f]{{8}}")
_GOING = re.compile(r"\..+\.del-[0-9a-f]{8}-[0-9a-f]{8}", re.DOTALL)


def superfluous(steps: Collection[int], keep: int, every: int | None = None) -> set[int]:
    """Which steps go: all but the newest `keep`, and those that `every` divides.

    >>> from optstate.store.keep import superfluous
    >>> sorted(superfluous([100, 200, 300, 400, 500], keep=2, every=200))
    [100, 300]
    """
    older = sorted(steps, reverse=True)[keep:]
    return {step for step in older if every is None or step % every}


def remove(path: Path, files: Files) -> None:
    """Remove a checkpoint, a directory or a file; cut short at any moment it is there whole, or nothing takes it for one.

    A link in its place stays, and what it leads to. Raises `OSError`.
    """
    kind = files.kind(path)
    if kind is None:
        return
    going = path.with_name(f".{path.name}.del-{token(files)}")
    if kind == "directory":
        files.rename(path, going)
    else:
        files.make_directory(going)
        files.rename(path, going / path.name)
    sync_directory(path.parent, files)
    files.remove_tree(going)


def put_aside(path: Path, reason: str, files: Files) -> Path:
    """Rename a damaged checkpoint so that nobody resumes from it, with a file in it that says why; returns the new path.

    Raises `OSError`.
    """
    with suppress(FileExistsError), Pipeline(files) as pipeline, pipeline.file(path / WHY) as output:
        output.write(reason.encode())
    with suppress(OSError):  # it is a note
        sync_directory(path, files)
    names = (f"{path.name}.damaged{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    target = next(each for name in names if files.kind(each := path.with_name(name)) is None)
    files.rename(path, target)
    sync_directory(path.parent, files)
    return target


def sweep(directory: Path, files: Files) -> None:
    """Finish what killed programs began in a folder that is ours alone: unfinished saves, replacements and removals.

    Raises `OSError`.
    """
    names = {match["name"] for name in files.names(directory) if (match := _CUT_SHORT.fullmatch(name))}
    for name in sorted(names):
        tidy(directory / name, files)
    sweep_removed(directory, files)


def sweep_removed(directory: Path, files: Files) -> None:
    """Finish the removals that killed programs began in a folder. Raises `OSError`."""
    going = [directory / name for name in files.names(directory) if _GOING.fullmatch(name)]
    going = [path for path in going if files.kind(path) == "directory"]
    if going:
        # The rename may not be on the disk yet, and what is half removed must never have its old name back.
        sync_directory(directory, files)
    for path in going:
        files.remove_tree(path)

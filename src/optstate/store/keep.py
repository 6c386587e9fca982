"""Which checkpoints of a run stay, and how the others go: never so that a power cut could leave half of one.

What goes is renamed first, the rename is made durable, and only then is anything removed. What a killed program left in
the middle of it is finished by the next.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from optstate.store.commit import sync_directory, tidy, token
from optstate.store.files import Files
from optstate.store.folder import NAME
from optstate.store.pipeline import Pipeline
from optstate.text import safe_text

WHY = "damaged.txt"
"""The file in a damaged checkpoint that says what is wrong with it."""

_CUT_SHORT = re.compile(r"\.(?P<name>.+)\.(tmp|old)-[0-9a-f]{8}-[0-9a-f]{8}", re.DOTALL)
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

    A link in its place stays, and what it leads to. Raises `OSError`; then it is still there.
    """
    kind = files.kind(path)
    if kind is None:
        return
    going = path.with_name(f".{path.name}.del-{token(files)}")
    aside = going if kind == "directory" else going / path.name
    if aside != going:
        files.make_directory(going)
    try:
        files.rename(path, aside)
        if aside != going:
            sync_directory(going, files)
        sync_directory(path.parent, files)
    except BaseException:
        with suppress(OSError):
            files.rename(aside, path)
        raise
    _clear(going, files)


def _clear(going: Path, files: Files) -> None:
    """Remove what nothing takes for a checkpoint any more; where that fails, the next sweep tries again."""
    try:
        files.remove_tree(going)
    except OSError as error:
        reason = error.strerror or safe_text(error)
        warnings.warn(f"{safe_text(going)} is of no use and cannot be removed: {reason}", RuntimeWarning, stacklevel=3)


def put_aside(path: Path, reason: str, files: Files) -> Path:
    """Rename a damaged checkpoint so that nobody resumes from it, with a file in it that says why; returns the new path.

    Should a power cut undo it, it is found to be damaged again. Raises `OSError`.
    """
    with suppress(FileExistsError), Pipeline(files) as pipeline, pipeline.file(path / WHY) as output:
        output.write(reason.encode())
    with suppress(OSError):  # it is a note
        sync_directory(path, files)
    names = (f"{path.name}.damaged{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    target = next(each for name in names if files.kind(each := path.with_name(name)) is None)
    files.rename(path, target)
    with suppress(OSError):
        sync_directory(path.parent, files)
    return target


OURS = re.compile(rf"{NAME.pattern}(\.weights)?")
"""The names that a checkpointer gives."""


def sweep(directory: Path, files: Files, given: re.Pattern[str] = OURS) -> None:
    """Finish what killed programs began in a folder: removals, and saves and replacements of the names that we give.

    Raises `OSError`.
    """
    cut_short = filter(None, map(_CUT_SHORT.fullmatch, files.names(directory)))
    for name in sorted({match["name"] for match in cut_short if given.fullmatch(match["name"])}):
        tidy(directory / name, files)
    _sweep_removed(directory, files)


def _sweep_removed(directory: Path, files: Files) -> None:
    going = [directory / name for name in files.names(directory) if _GOING.fullmatch(name)]
    going = [path for path in going if files.kind(path) == "directory"]
    if going:
        # The rename may not be on the disk yet, and what is half removed must never have its old name back.
        sync_directory(directory, files)
    for path in going:
        _clear(path, files)

"""What lies in a folder of checkpoints: which of them are intact, what they say they are, and which is the newest.

Only manifests are believed: no pointer, no time of a file, no number in a name. Reads, and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optstate.errors import Damaged, NotACheckpoint, OptstateError, ReadError
from optstate.formats.containers.folder import open_within
from optstate.formats.ours.directory import ASIDE, check_file, read_brief, settled
from optstate.formats.ours.manifest import MANIFEST, Brief, LineageEntry
from optstate.formats.ours.verify import verify
from optstate.text import safe_text, size

NAME = re.compile(r"step-(0|[1-9][0-9]*)")
"""What a checkpointer calls its checkpoints."""

OUT_OF_USE = re.compile(rf"(?P<name>{NAME.pattern})\.(damaged(-[0-9]+)?|weights)")
"""What it calls those that nobody resumes from: damaged ones, and copies without the optimizer."""


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint of ours in a folder.

    path
        Where it is.
    fault
        What is wrong with it; None for one whose manifest, lengths and headers are as they were written.
    brief
        What its manifest says; None where that cannot be read.
    judged
        False where nobody can tell whether it is good.
    """

    path: Path
    fault: str | None = None
    brief: Brief | None = None
    judged: bool = True

    @property
    def step(self) -> int | None:
        """The step in its manifest."""
        return self.brief.step if self.brief else None

    @property
    def age(self) -> tuple[int, str, str]:
        """What orders checkpoints: the step, then when they were made."""
        step = -1 if self.step is None else self.step
        return step, self.brief.created if self.brief else "", self.path.name

    @property
    def entry(self) -> LineageEntry | None:
        """How a run that goes on from it remembers it."""
        return LineageEntry(self.brief.save_id, self.brief.step, self.brief.environment) if self.brief else None

    def __str__(self) -> str:
        """One line: its name, and whether it is good."""
        if self.fault is not None:
            return f"{safe_text(self.path.name)}: {'damaged' if self.judged else 'not read'}: {self.fault}"
        brief = self.brief
        nbytes = sum(file.nbytes for file in brief.files.values()) if brief else 0
        without = "" if brief and brief.optimizers else ", without optimizer"
        step = "no step" if self.step is None else f"step {self.step:,}"
        return f"{safe_text(self.path.name)}: intact, {step}, {size(nbytes)}{without}"


def contents(directory: Path, *, strict: bool = True) -> list[Found]:
    """Every checkpoint of ours in a folder, the newest first; damaged ones whose step is not known last.

    Links are not followed. Raises `ReadError` for a checkpoint that cannot be judged, because the system does not let it
    be read or a newer optstate wrote it: passing it over would lose what was trained since the one before. Unless
    `strict`, it is among them.
    """
    found = (look(path, strict=strict) for path in _places(directory))
    return sorted(filter(None, found), key=lambda each: each.age, reverse=True)


def _places(directory: Path) -> Iterator[Path]:
    """Where checkpoints may be: every folder that is not hidden, and what a killed save had set aside."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptstateError(f"{safe_text(directory)} cannot be listed: {error.strerror}") from error
    known = set(names)
    aside = {match["name"] for name in names if (match := ASIDE.fullmatch(name))} - known
    for name in (*names, *sorted(aside)):
        path = directory / name
        if name in aside or not (name.startswith(".") or OUT_OF_USE.fullmatch(name) or _is_no_folder(path)):
            yield path


def _is_no_folder(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def look(path: Path, *, strict: bool = True) -> Found | None:
    """The checkpoint at a path: its manifest read, lengths and headers of its files compared; None where there is none.

    `strict` as for `contents`.
    """
    directory, named = settled(path), NAME.fullmatch(path.name) is not None
    if directory.is_symlink() or not os.path.lexists(directory / MANIFEST):
        return None
    try:
        brief = read_brief(directory)
    except NotACheckpoint as error:  # empty, or another program's
        return Found(path, error.what) if named else None
    except Damaged as error:
        return Found(path, told(error))
    except ReadError as error:
        if named and strict:
            raise
        return Found(path, told(error), judged=False) if named else None
    return Found(path, _fault(directory, brief), brief)


def _fault(directory: Path, brief: Brief) -> str | None:
    for name, entry in brief.files.items():
        try:
            check_file(open_within(directory, name), entry, brief.save_id)
        except NotACheckpoint:
            return f"{safe_text(name)} is missing or empty"
        except Damaged as error:
            return told(error)
    return None


def read_back(path: Path, save_id: str, *, full: bool = False) -> Found:
    """A checkpoint that was just saved, as it is on the disk: manifest, lengths and headers; with `full` every byte.

    Raises `Damaged` where it is not what was written.
    """
    found = look(path)
    fault = found.fault if found else "it is not there"
    if found and found.brief and found.brief.save_id != save_id:
        fault = "it is another one"
    if fault is None and full:
        fault = damage(path)
    if found is None or fault is not None:
        raise Damaged(
            f"{safe_text(path)} was saved, and reads back as something else",
            found=fault,
            todo="no earlier checkpoint was removed; check the disk",
        )
    return found


def damage(path: Path) -> str | None:
    """Everything in a checkpoint that is not as it was written, each byte compared; None where all of it is."""
    report = verify(path)
    return None if report.ok else str(report)


def told(error: OptstateError) -> str:
    """An error in one line."""
    return f"{error.what} ({error.found})" if error.found else error.what


def out_of_use(directory: Path) -> list[str]:
    """The names of damaged checkpoints that were put aside and of copies without the optimizer."""
    try:
        return sorted(filter(OUT_OF_USE.fullmatch, os.listdir(directory)))  # noqa: PTH208 - names, not paths
    except FileNotFoundError:
        return []

"""What can be opened in a folder that is no checkpoint itself, told by first bytes and names alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from heapq import nlargest
from itertools import islice
from pathlib import Path

from optstate.errors import NotACheckpoint, ReadError
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.sniff import HEAD, container_of
from optstate.formats.layouts.catalogue import folders
from optstate.formats.ours.directory import is_checkpoint
from optstate.formats.ours.manifest import MANIFEST
from optstate.text import count, listing, safe_text

SHOWN = 20
"""Candidates that are listed."""

LOOKS = 1_000
"""Files and folders that are looked into for candidates, at most."""


def nothing_fits(folder: Folder) -> NotACheckpoint:
    """The error for a folder that no layout fits: it lists what can be opened in it and one level below."""
    found = list(islice(_candidates(folder), SHOWN + 1))
    if not found:
        names = list(folder.entries)
        return NotACheckpoint(
            f"{folder.name} is a directory, and no checkpoint that optstate knows",
            expected=f"a {MANIFEST} in it, which is written last, or the files of another program",
            found=listing(names) if names else "nothing in it",
            todo="name the checkpoint itself: one directory, or one file",
        )
    commands = [f"optstate show {_word(path)}" for path in found[:SHOWN]]
    more = ", and more" if len(found) > SHOWN else ""
    return NotACheckpoint(
        f"{folder.name} is a directory, and no checkpoint itself",
        found=f"{count(len(commands), 'candidate')} in it{more}",
        todo="\n            ".join(["name one of them", *commands]),
    )


def _word(path: Path) -> str:
    return shlex.quote(safe_text(path, 4096))


def _candidates(folder: Folder) -> Iterator[Path]:
    return (path for path, fits in islice(_looks(folder), LOOKS) if fits)


def _looks(folder: Folder) -> Iterator[tuple[Path, bool]]:
    """Each place in a folder and in the folders in it, the highest step first, and whether it looks like a checkpoint."""
    for name in _latest_first(folder):
        inner = _inner(folder, name) if folder.entries[name] else None
        fits = _is_container(folder, name) if inner is None else _is_checkpoint(inner)
        yield folder.path / name, fits
        if inner is not None and not fits:
            files = (each for each in _latest_first(inner) if not inner.entries[each])
            yield from ((inner.path / each, _is_container(inner, each)) for each in files)


def _latest_first(folder: Folder) -> list[str]:
    """The names in a folder that are not hidden: by the numbers in them, then by when they were changed last."""
    try:
        names = nlargest(LOOKS, (name for name in folder.entries if not name.startswith(".")), key=_numbers)
    except ReadError:
        return []
    return sorted(names, key=lambda name: (_numbers(name), _changed(folder.path / name)), reverse=True)


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _inner(folder: Folder, name: str) -> Folder | None:
    try:
        return folder.folder(name)
    except ReadError:
        return None


def _is_container(folder: Folder, name: str) -> bool:
    try:
        source = folder.open(name)
        return container_of(source.read(0, min(HEAD, source.size))) is not None
    except ReadError:
        return False


def _is_checkpoint(folder: Folder) -> bool:
    try:
        return is_checkpoint(folder.path) or any(layout.fits(folder) for layout in folders())
    except ReadError:
        return False

"""A folder of files as a container: plain names only, nothing outside it, no more entries than a folder has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from optstate.errors import Damaged, Refused
from optstate.formats.containers.regular import ByteSource, cannot_open, missing, open_regular
from optstate.text import safe_text, size

ENTRIES = 200_000
"""Entries that a folder may have: a sharded save of ten thousand ranks has several for each."""

JSON_LIMIT = 1 << 28
"""Bytes of the longest JSON text that is read; an index of a million tensors has fewer."""


class Folder:
    """What is in a folder, by plain name; nothing is opened before it is asked for.

    Raises `NotACheckpoint` where there is no folder, `Refused` for one with more than `ENTRIES` entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The path, safe to print."""
        return safe_text(self.path)

    @cached_property
    def entries(self) -> Mapping[str, bool]:
        """Every entry in order of its name, and whether it is a folder. A link counts as what it leads to."""
        try:
            with os.scandir(self.path) as found:
                entries = {entry.name: _is_folder(entry) for entry in islice(found, ENTRIES + 1)}
        except OSError as error:
            raise cannot_open(self.path, error) from None
        if len(entries) > ENTRIES:
            raise Refused(f"{self.name} has more entries than a checkpoint", expected=f"at most {ENTRIES:,}")
        return dict(sorted(entries.items()))

    @property
    def files(self) -> list[str]:
        """The names of all entries that are no folders."""
        return [name for name, folder in self.entries.items() if not folder]

    @property
    def folders(self) -> list[str]:
        """The names of all folders in it."""
        return [name for name, folder in self.entries.items() if folder]

    def matching(self, pattern: str) -> list[str]:
        """The files whose names match a glob."""
        return [name for name in self.files if fnmatchcase(name, pattern)]

    def holds(self, *names: str) -> bool:
        """Whether there is a file or folder of each name."""
        return all(name in self.entries for name in names)

    def open(self, name: str) -> ByteSource:
        """A file in it. Raises as `open_within` does."""
        _check_plain(self.path, name)
        if name not in self.entries:  # an index may name a million that are not there
            raise missing(self.path / name)
        return open_within(self.path, name)

    def size(self, name: str) -> int | None:
        """The bytes of a file in it, which stays closed; None where there is none. Raises `Refused` as `open` does."""
        _check_plain(self.path, name)
        _check_home(self.path, name)
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def folder(self, name: str) -> Folder:
        """A folder in it. Raises `Refused` where it is a link that leaves this one."""
        _check_plain(self.path, name)
        _check_home(self.path, name)
        return Folder(self.path / name)

    def text(self, name: str, limit: int = 1 << 20) -> str:
        """The text of a small file. Raises `Refused` for a longer one, `Damaged` for what is no UTF-8."""
        source = self.open(name)
        if source.size > limit:
            raise Refused(f"{source.name} is too long", expected=f"at most {size(limit)}", found=size(source.size))
        try:
            return source.read(0, source.size).decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"{source.name} is no text", found=f"byte {error.start}") from None

    def json(self, name: str, limit: int = JSON_LIMIT) -> Any:
        """The content of a JSON file. Raises as `text` does, and `Damaged` for what is no JSON."""
        return parsed_json(self.text(name, limit), safe_text(self.path / name))


def parsed_json(text: str | bytes, where: str) -> Any:
    """A JSON text that others wrote: no non-finite numbers, no key twice. Raises `Damaged`."""
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else safe_text(error)
        raise Damaged(f"{where} is no JSON", found=why) from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def open_within(directory: Path, name: str) -> ByteSource:
    """The file of a plain name in a directory.

    It may be a link within the directory, or into the `blobs` of a model hub's cache. Raises `Refused` for a name
    or a link that leads elsewhere, and what `open_regular` raises.
    """
    _check_plain(directory, name)
    _check_home(directory, name)
    return open_regular(directory / name)


def _check_plain(directory: Path, name: str) -> None:
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise Refused(
            f"{safe_text(directory)} names a file that leads elsewhere",
            expected="the plain name of a file beside it",
            found=safe_text(name),
        )


def _check_home(directory: Path, name: str) -> None:
    path = directory / name
    if path.is_symlink() and not _stays_home(path, directory):
        raise Refused(
            f"{safe_text(path)} is a symbolic link that leaves the checkpoint",
            found=safe_text(path.resolve()),
            todo="copy the file itself into the directory, where you trust it",
        )


def _stays_home(link: Path, directory: Path) -> bool:
    """Whether a link ends inside the checkpoint, or where a model hub's cache keeps the files of its snapshots."""
    home, target = directory.resolve(), link.resolve()
    return target.is_relative_to(home) or (target.parent.name == "blobs" and target.parent.parent in home.parents)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False

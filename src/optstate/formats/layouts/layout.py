"""How a layout is described: what tells it, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.parts import Parts


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A layout of what one pickle holds, whichever container it lies in.

    `fits` looks at the top of the tree and at nothing else; `read` may raise `ReadError`.
    """

    format: str
    fits: Callable[[Pickled], bool]
    read: Callable[[Pickled], Parts]


@dataclass(frozen=True, slots=True)
class ZipLayout:
    """A layout of a zip archive that is no torch file itself. `fits` looks at the names of its members."""

    format: str
    fits: Callable[[ZipArchive], bool]
    read: Callable[[ZipArchive], Parts]


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """A layout of a folder. `fits` looks at the names in it, and into small files where the names do not tell."""

    format: str
    fits: Callable[[Folder], bool]
    read: Callable[[Folder], Parts]

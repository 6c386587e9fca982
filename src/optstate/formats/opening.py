"""Opening a checkpoint, whatever wrote it: the one door to all readers. Content decides, never a suffix."""

from __future__ import annotations

import os
from pathlib import Path

from optstate.errors import NotACheckpoint
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.regular import ByteSource, cannot_open, open_regular
from optstate.formats.containers.sniff import HEAD, wrong_kind
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import MAGIC, ZipArchive
from optstate.formats.layouts.catalogue import FILES, FOLDERS, ZIPS
from optstate.formats.parts import Parts, assemble
from optstate.text import listing, safe_text

MANIFEST = "manifest.json"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a directory that optstate wrote, or a file that `torch.save` wrote.

    Reads headers only; values are read when they are asked for, from the same open file. Nothing in it is
    executed or imported, and torch is not needed.

    Raises `NotACheckpoint` where there is something else or nothing, `Damaged` for what is cut short or changed,
    `NewerFormat`, `Refused` for what a safe reader does not do; all of them are `ReadError`.

    >>> opened = optstate.open(checkpoint)
    >>> opened.state["0.weight"].momentum.array().shape
    (8, 4)
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_directory(path)
    except OSError as error:
        raise cannot_open(path, error) from None
    if not os.path.lexists(path):
        from optstate.formats.ours.directory import open_directory, settled

        # A save that was killed while it replaced a checkpoint has the old one still, under another name.
        if settled(path) != path:
            return open_directory(path)
    return _open_file(open_regular(path))


def _open_file(source: ByteSource) -> Checkpoint:
    head = source.read(0, min(HEAD, source.size))
    if head.startswith(MAGIC):
        return assemble(_read_zip(ZipArchive(source)), source.path)
    raise wrong_kind(source.name, head)


def _read_zip(archive: ZipArchive) -> Parts:
    for layout in ZIPS:
        if layout.fits(archive):
            return layout.read(archive)
    return read_pickle(read_torch_zip(archive))


def read_pickle(pickled: Pickled) -> Parts:
    """What a pickle holds, by the first layout that fits; one does for any."""
    return next(layout.read(pickled) for layout in FILES if layout.fits(pickled))


def _open_directory(path: Path) -> Checkpoint:
    if (path / MANIFEST).is_file():
        from optstate.formats.ours.directory import open_directory

        return open_directory(path)
    folder = Folder(path)
    for layout in FOLDERS:
        if layout.fits(folder):
            return assemble(layout.read(folder), path)
    names = list(folder.entries)
    raise NotACheckpoint(
        f"{safe_text(path)} is a directory, and no checkpoint of optstate",
        expected=f"a {MANIFEST} in it, which is written last: without one a save did not finish",
        found=listing(names) if names else "nothing in it",
        todo="name the checkpoint itself: one directory with a manifest, or one file",
    )

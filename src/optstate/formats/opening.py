"""Opening a checkpoint, whatever wrote it: the one door to all readers. Content decides, never a suffix."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from optstate.errors import NotACheckpoint
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.regular import cannot_open, open_regular
from optstate.formats.containers.sniff import HEAD, wrong_kind
from optstate.formats.containers.zip_archive import MAGIC
from optstate.formats.layouts.torch_save import open_torch_save
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
    source = open_regular(path)
    head = source.read(0, min(HEAD, source.size))
    if head.startswith(MAGIC):
        return open_torch_save(source)
    raise wrong_kind(source.name, head)


def _open_directory(path: Path) -> Checkpoint:
    if (path / MANIFEST).is_file():
        from optstate.formats.ours.directory import open_directory

        return open_directory(path)
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in islice(entries, 100))
    raise NotACheckpoint(
        f"{safe_text(path)} is a directory, and no checkpoint of optstate",
        expected=f"a {MANIFEST} in it, which is written last: without one a save did not finish",
        found=listing(names) if names else "nothing in it",
        todo="name the checkpoint itself: one directory with a manifest, or one file",
    )

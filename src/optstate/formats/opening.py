"""Opening a checkpoint, whatever wrote it: the one door to all readers. Content decides, never a suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_file import read_pickle
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.regular import ByteSource, cannot_open, open_regular
from optstate.formats.containers.sniff import (
    HEAD,
    PICKLE,
    SAFETENSORS,
    STREAM,
    ZIP,
    container_of,
    note_on_suffix,
    wrong_kind,
)
from optstate.formats.containers.torch_stream import read_torch_stream
from optstate.formats.containers.torch_zip import is_torch_zip, read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.layouts.catalogue import FILES, folders, zips
from optstate.formats.parts import Parts, assemble
from optstate.state.collection import without_collection

MANIFEST = "manifest.json"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a file or a directory, of optstate or of any program whose layout is known.

    Reads headers only; values are read when they are asked for, from the same open file. Nothing in it is
    executed or imported, and torch is not needed.

    Raises `NotACheckpoint` where there is something else or nothing, `Damaged` for what is cut short or changed,
    `NewerFormat`, `Refused` for what a safe reader does not do; all of them are `ReadError`.

    >>> opened = optstate.open(checkpoint)
    >>> opened.state["0.weight"].momentum.array().shape
    (8, 4)
    """
    path = Path(path)
    with without_collection():
        return _with_journal(_open(path))


def _with_journal(checkpoint: Checkpoint) -> Checkpoint:
    if "journal" not in checkpoint.objects:
        return checkpoint
    from optstate.formats.ours.journal import from_object

    return from_object(checkpoint)


def _open(path: Path) -> Checkpoint:
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
    return _open_file(open_regular(path, typed=True))


def _open_file(source: ByteSource) -> Checkpoint:
    head = source.read(0, min(HEAD, source.size))
    container = container_of(head)
    if container is None:
        return assemble(_read_index(source, head), source.path)
    parts = _READERS[container](source)
    parts.notes = [*note_on_suffix(source.path, container), *parts.notes]
    return assemble(parts, source.path)


def _read_index(source: ByteSource, head: bytes) -> Parts:
    from optstate.formats.layouts import safetensors

    if safetensors.is_index(source):
        return safetensors.read_index_file(source)
    raise wrong_kind(source.name, head)


def _read_safetensors(source: ByteSource) -> Parts:
    from optstate.formats.layouts import safetensors

    return safetensors.read(source)


def _read_zip(source: ByteSource) -> Parts:
    archive = ZipArchive(source)
    if not is_torch_zip(archive):
        for layout in zips():
            if layout.fits(archive):
                return layout.read(archive)
    return read_pickled(read_torch_zip(archive))


def read_pickled(pickled: Pickled) -> Parts:
    """What a pickle holds, by the first layout that fits; one does for any."""
    parts = next(layout.read(pickled) for layout in FILES if layout.fits(pickled))
    parts.clues = [*pickled.clues, *parts.clues]
    return parts


_READERS: Mapping[str, Callable[[ByteSource], Parts]] = {
    ZIP: _read_zip,
    STREAM: lambda source: read_pickled(read_torch_stream(source)),
    PICKLE: lambda source: read_pickled(read_pickle(source)),
    SAFETENSORS: _read_safetensors,
}


def _open_directory(path: Path) -> Checkpoint:
    if (path / MANIFEST).is_file():
        from optstate.formats.ours.directory import open_directory

        return open_directory(path)
    folder = Folder(path)
    for layout in folders():
        if layout.fits(folder):
            return assemble(layout.read(folder), path)
    from optstate.formats.candidates import nothing_fits

    raise nothing_fits(folder)

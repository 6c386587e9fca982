"""Replacing a checkpoint by a copy of it without the optimizer: written beside it, read back, and only then is it removed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as copy
from pathlib import Path
from typing import Literal, TypeAlias

import xxhash

from optstate.errors import Damaged
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.regular import open_regular
from optstate.formats.opening import open_checkpoint
from optstate.optimizers.spec import number
from optstate.state.frozen import FrozenSource
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import TensorRef, is_tensor, nbytes
from optstate.store.commit import new_directory, sync_directory, tidy
from optstate.store.convert import converted
from optstate.store.files import Files
from optstate.store.folder import damage
from optstate.store.keep import remove
from optstate.store.own_body import own_body
from optstate.store.pipeline import Pipeline
from optstate.store.runs import row_major_pieces
from optstate.store.writer import write_checkpoint
from optstate.text import safe_text

Kind: TypeAlias = Literal["optstate", "torch", "apart", "folder"]
"""A directory of ours · a file of `torch.save` · a folder that has the optimizer in files of its own, as those of the Hugging
Face Trainer and of Accelerate, which is copied without them · any other folder, whose copy is a directory of ours."""

OPTIMIZER = re.compile(r"optimizer(_[0-9]+)?(\.pt|\.bin)?")
"""Files, and folders, of the Trainer and of Accelerate that hold nothing but an optimizer."""

SUFFIX = ".weights"
"""In the name of a copy, so that no program resumes from it: `step-4.weights`, `epoch=4.weights.ckpt`."""

COPIES = re.compile(rf".+{re.escape(SUFFIX)}(\.[^.]+)?", re.DOTALL)
"""The names of copies."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that may be stripped."""

    path: Path
    kind: Kind
    checkpoint: Checkpoint = field(repr=False)

    @property
    def slots(self) -> list[TensorRef]:
        """The tensors of its optimizers."""
        values = [slot.value for each in self.checkpoint.state.values() for slot in each.slots.values()]
        return list(filter(is_tensor, values))

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(map(nbytes, self.slots))

    @property
    def step(self) -> int | None:
        """The step that it states, else how many steps its optimizer counted; None where nothing in it tells."""
        if self.checkpoint.step is not None:
            return self.checkpoint.step
        counts = [slot for info in self.checkpoint.state.values() if (slot := info.find("step")) is not None]
        return max((int(number(slot.value) or 0) for slot in counts), default=None)

    @property
    def target(self) -> Path:
        """Where its copy goes."""
        suffix = self.path.suffix if self.kind == "torch" else ""
        return self.path.with_name(f"{self.path.name.removesuffix(suffix)}{SUFFIX}{suffix}")


def strip_one(path: Path, files: Files) -> Path:
    """Replace a checkpoint of ours by its copy; as `replace_by_copy`."""
    return replace_by_copy(Source(path, "optstate", open_checkpoint(path)), files)


def replace_by_copy(source: Source, files: Files) -> Path:
    """Write a copy without the optimizer, read it back, remove the checkpoint; returns the copy's path.

    Raises `OptstateError` or `OSError`, and `Damaged` where the copy is not what it should be; the checkpoint is then as
    it was.
    """
    target = source.target
    tidy(target, files)
    if not os.path.lexists(target):
        _WRITERS[source.kind](source, target, files)
    fault = _fault(source, target)  # also where a killed program had written it, and no more
    if fault is not None:
        raise Damaged(f"it was not stripped: {fault}", where=safe_text(target), todo="look at the copy, and remove it")
    remove(source.path, files)
    return target


def digest(ref: TensorRef) -> bytes:
    """The digest of a tensor's values."""
    found = xxhash.xxh3_128()
    for piece in row_major_pieces(ref):
        found.update(piece)
    return found.digest()


# --- writing ----------------------------------------------------------------------------------------------


def _without_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    return copy(checkpoint, state=OptimizerState(FrozenSource([], {})), unplaced={})


def _write_own(source: Source, target: Path, files: Files) -> None:
    write_checkpoint(target, *own_body(_without_optimizer(source.checkpoint)), files)


def _write_torch(source: Source, target: Path, files: Files) -> None:
    converted(_without_optimizer(source.checkpoint), target, files, to="torch")


def _write_apart(source: Source, target: Path, files: Files) -> None:
    """Copy a folder without what is the optimizer's, byte by byte."""
    inside = dict(_files(Folder(source.path)))
    folders = sorted({folder for name in inside for folder in Path(name).parents} - {Path()})
    total = sum(path.stat().st_size for path in inside.values())
    with new_directory(target, files, replace=False, nbytes=total) as directory:
        for folder in folders:
            files.make_directory(directory / folder)
        with Pipeline(files) as pipeline:
            for name, path in inside.items():
                _copy_file(path, directory / name, pipeline)
        for folder in reversed(folders):
            sync_directory(directory / folder, files)


def _write_folder(source: Source, target: Path, files: Files) -> None:
    """All tensors in whole, wherever their pieces lie, and every object, in our own format."""
    converted(_without_optimizer(source.checkpoint), target, files, to="optstate")


_WRITERS: Mapping[Kind, Callable[[Source, Path, Files], None]] = {
    "optstate": _write_own,
    "torch": _write_torch,
    "apart": _write_apart,
    "folder": _write_folder,
}


def _files(folder: Folder, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Each file in a folder and below, but for the optimizer's, by its path in the folder."""
    for name, is_folder in folder.entries.items():
        if not prefix and OPTIMIZER.fullmatch(name):
            continue
        if is_folder:
            yield from _files(folder.folder(name), f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", folder.path / name


def _copy_file(path: Path, target: Path, pipeline: Pipeline) -> None:
    with pipeline.file(target, path.stat().st_size) as output:
        for piece in _pieces(path):
            output.write(piece)


def _pieces(path: Path) -> Iterator[bytes]:
    nbytes = path.stat().st_size
    if nbytes:  # an empty file is none that a reader opens
        content = open_regular(path)
        yield from (content.read(start, min(_PIECE, nbytes - start)) for start in range(0, nbytes, _PIECE))


_PIECE = 1 << 24


# --- reading back -----------------------------------------------------------------------------------------


def _fault(source: Source, target: Path) -> str | None:
    """What of a copy is not as in the checkpoint, every byte of both read; None where all of it is."""
    fault = damage(target) if source.kind in ("optstate", "folder") else None
    if fault is None and source.kind == "apart":
        fault = _other_file(source.path, target)
    return fault or _other_tensor(source.checkpoint, open_checkpoint(target))


def _other_file(source: Path, target: Path) -> str | None:
    mine, theirs = (dict(_files(Folder(path))) for path in (source, target))
    differing = (name for name, path in mine.items() if name not in theirs or _content(path) != _content(theirs[name]))
    return next((f"{safe_text(name)} is another one in the copy" for name in differing), None)


def _content(path: Path) -> bytes:
    found = xxhash.xxh3_128()
    for piece in _pieces(path):
        found.update(piece)
    return found.digest()


def _other_tensor(source: Checkpoint, target: Checkpoint) -> str | None:
    if len(target.state) or target.unplaced:
        return "its optimizer is in files that hold other things too"
    for name, ref in source.weights.items():
        other = target.weights.get(name)
        known = other is not None or any(name in aliases for aliases in target.aliases.values())
        if not known:
            return f"{safe_text(name)} is missing in the copy"
        if other is not None and (ref.dtype, ref.shape, digest(ref)) != (other.dtype, other.shape, digest(other)):
            return f"{safe_text(name)} is another one in the copy"
    return None

"""Stripping: of checkpoints that nobody will resume from, all but the optimizer stays. Needs no torch.

Which of them these are is decided for each run; `strip_copy` does the rest. What cannot be stripped is left alone, and why.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optstate.errors import Damaged, OptstateError, ReadError
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.sniff import HEAD, PICKLE, STREAM, ZIP, container_of
from optstate.formats.layouts import accelerate, hf_trainer
from optstate.formats.layouts.catalogue import folders
from optstate.formats.layouts.deepspeed import LATEST, holds_tags
from optstate.formats.layouts.deepspeed_universal import universal_below
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.directory import is_checkpoint
from optstate.store.files import Files, RealFiles
from optstate.store.folder import damage, told
from optstate.store.keep import sweep
from optstate.store.lock import LOCK, Lock, unusable
from optstate.store.strip_copy import COPIES, OPTIMIZER, SUFFIX, Kind, Source, digest, replace_by_copy
from optstate.text import count, safe_text, size

Fate = Literal["kept", "stripped", "left"]


@dataclass(frozen=True, slots=True)
class Stripped:
    """A checkpoint, and what became of it, or would.

    path, step
        Where it is or was; the step that it states.
    fate
        `kept`, because it can be resumed from; `stripped`; `left`, which should have been stripped and was not.
    nbytes
        What its optimizer takes.
    copy
        The copy without the optimizer, of one that was stripped.
    why
        The reason why it was kept or left.
    """

    path: Path
    step: int | None
    fate: Fate
    nbytes: int = 0
    copy: Path | None = None
    why: str = ""

    def __str__(self) -> str:
        name = safe_text(self.path)
        if self.copy is not None:
            return f"stripped  {name} → {safe_text(self.copy.name)}, {size(self.nbytes)} of optimizer"
        return f"{self.fate:<8}  {name}: {self.why}"


@dataclass(frozen=True, slots=True)
class StripReport:
    """What `strip` did, or would do: one `Stripped` for each checkpoint that has an optimizer."""

    directory: Path
    dry_run: bool
    items: tuple[Stripped, ...] = ()

    @property
    def nbytes(self) -> int:
        """What the optimizers of those that were stripped took."""
        return sum(item.nbytes for item in self.items if item.fate == "stripped")

    @property
    def left(self) -> tuple[Stripped, ...]:
        """Those that should have been stripped and were not."""
        return tuple(item for item in self.items if item.fate == "left")

    def __str__(self) -> str:
        stripped = sum(item.fate == "stripped" for item in self.items)
        verb = "would be stripped" if self.dry_run else "stripped"
        total = f"{count(stripped, 'checkpoint')} {verb}, {size(self.nbytes)}"
        left = f"; {count(len(self.left), 'checkpoint')} left alone" if self.left else ""
        return "\n".join([f"{safe_text(self.directory)}: {total}{left}", *(f"  {item}" for item in self.items)])


def strip(
    directory: str | os.PathLike[str], *, keep_last: int = 2, dry_run: bool = False, files: Files | None = None
) -> StripReport:
    """Strip the optimizer from checkpoints in a folder and below it, all but the `keep_last` newest of each run.

    Checkpoints whose names in a folder differ by their digits alone are a run: `step-100` and `step-200`, `epoch=1.ckpt`
    and `epoch=2.ckpt`. The newest are told by the step that they state, and are read whole first; a damaged one does not
    count. Where none is stated, the steps that its optimizer counted tell. A link is not followed, and what a link beside
    it, or DeepSpeed's `latest`, leads to is kept.

    A copy has all but the optimizer: `step-100.weights`. It is written and read back, each weight compared bit by bit,
    before the checkpoint goes. That of a file of `torch.save` is one, that of a folder of the Hugging Face Trainer or of
    Accelerate is the folder without its optimizer files; that of any other folder, such as those of DCP, FSDP and DeepSpeed,
    is a directory of optstate.

    `dry_run` changes nothing. Raises `OptstateError` for fewer than one to keep or a folder that is none, `InUse` where a
    checkpointer saves into one of the folders.
    """
    top = Path(directory)
    if keep_last < 1:
        raise OptstateError("nothing to resume from would be left", expected="1 or more to keep", found=str(keep_last))
    if not top.is_dir():
        raise OptstateError(
            f"{safe_text(top)} is {'a file' if top.is_file() else 'not there'}",
            expected="a folder with checkpoints in it, or below it",
            todo="name the folder of a run, or the one that all runs are in",
        )
    if _kind(top) is not None:
        raise OptstateError(
            f"{safe_text(top)} is a checkpoint itself",
            expected="the folder that it is in",
            todo=f"name {safe_text(top.resolve().parent)}",
        )
    effects = None if dry_run else files or RealFiles()
    try:
        items = [item for folder in list(_folders(top)) for item in _strip_folder(folder, keep_last, effects)]
    except OSError as error:
        raise error if isinstance(error, OptstateError) else unusable(Path(error.filename or top), error) from error
    return StripReport(top, dry_run, tuple(items))


# --- what there is ----------------------------------------------------------------------------------------


def _folders(top: Path) -> Iterator[Path]:
    """The folder and all below it that are no checkpoints themselves."""
    yield top
    for name in sorted(os.listdir(top)):  # noqa: PTH208 - names, not paths
        path = top / name
        if path.is_dir() and not path.is_symlink() and not name.startswith(".") and _kind(path) is None:
            yield from _folders(path)


def _kind(path: Path) -> Kind | None:
    """Of which kind a checkpoint at a path is; None for anything else."""
    try:
        if path.is_dir():
            return "optstate" if is_checkpoint(path) else _kind_of_folder(Folder(path))
        source = open_regular(path)
        head = source.read(0, min(HEAD, source.size))
        return "torch" if container_of(head) in (ZIP, STREAM, PICKLE) else None
    except ReadError:
        return None


def _kind_of_folder(folder: Folder) -> Kind | None:
    if hf_trainer.fits(folder) or accelerate.fits(folder):
        return "apart" if any(map(OPTIMIZER.fullmatch, folder.entries)) else "folder"
    is_one = any(layout.fits(folder) for layout in folders()) and not (holds_tags(folder) or universal_below(folder))
    return "folder" if is_one else None


def _strip_folder(folder: Path, keep_last: int, files: Files | None) -> Iterator[Stripped]:
    """Strip what is in a folder itself; without `files`, only say what would be."""
    lock = Lock(folder, files) if files is not None and (folder / LOCK).exists() else None
    try:
        if files is not None:
            sweep(folder, files, COPIES)
        windows, links = _windows(folder)
        for (_, kind), paths in windows.items():
            found = list(_told_apart([_source(path, kind) for path in paths]))
            yield from (each for each in found if isinstance(each, Stripped))
            yield from _strip_window([each for each in found if isinstance(each, Source)], links, keep_last, files)
    finally:
        if lock is not None:
            lock.free()


def _windows(folder: Path) -> tuple[dict[tuple[str, Kind], list[Path]], set[Path]]:
    """The checkpoints in a folder by run, and what links in it lead to."""
    paths = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]  # noqa: PTH208 - names
    windows: dict[tuple[str, Kind], list[Path]] = {}
    for path in paths:
        kind = None if path.is_symlink() or SUFFIX in path.suffixes else _kind(path)
        if kind is not None:
            windows.setdefault((re.sub("[0-9]+", "0", path.name), kind), []).append(path)
    return windows, {path.resolve() for path in paths if path.is_symlink()} | _named(folder)


def _named(folder: Path) -> set[Path]:
    """What DeepSpeed's file says is the latest: loading there goes by it."""
    try:
        return {(folder / Folder(folder).text(LATEST, 4096).strip()).resolve()}
    except (ReadError, ValueError):
        return set()


def _source(path: Path, kind: Kind) -> Source | Stripped | None:
    """A checkpoint with an optimizer, or why it is left alone; None where there is nothing to strip."""
    try:
        checkpoint = open_checkpoint(path)
    except Damaged as error:
        return Stripped(path, None, "left", why=f"it cannot be read: {error.what}")
    except ReadError:
        return None  # no checkpoint at all
    if not len(checkpoint.state) and not checkpoint.unplaced:
        return None
    source = Source(path, kind, checkpoint)
    if source.step is None:
        return Stripped(path, None, "left", why="it states no step, so nobody can tell whether it is the newest")
    return source


def _told_apart(found: Iterable[Source | Stripped | None]) -> Iterator[Source | Stripped | None]:
    """Those of one run, without the ones that state no step and counted as many as another."""
    found = list(found)
    steps = Counter(each.step for each in found if isinstance(each, Source))
    for each in found:
        tied = isinstance(each, Source) and each.checkpoint.step is None and steps[each.step] > 1
        yield Stripped(each.path, None, "left", why=_TIED) if isinstance(each, Source) and tied else each


_TIED = (
    "it states no step, and its optimizer counted as many as another one's, so nobody can tell whether it is the newest"
)


def _strip_window(sources: list[Source], links: set[Path], keep_last: int, files: Files | None) -> Iterator[Stripped]:
    """Strip all but the newest of one run, once those are known to be whole."""
    newest_first = sorted(sources, key=lambda each: (each.step or 0, each.path.name), reverse=True)
    if len(newest_first) <= keep_last:
        yield from (_item(each, "kept", "among the newest") for each in newest_first)
        return
    best, kept = _best(newest_first[0]), 0
    for each in newest_first:
        if kept < keep_last:
            fault = _fault(each)
            kept += fault is None
            yield _item(each, "left", fault) if fault else _item(each, "kept", "among the newest")
        elif each.path.resolve() in links or each.path.name == best:
            yield _item(each, "kept", "the Trainer's best" if each.path.name == best else "a link leads to it")
        else:
            yield _tried(each, files)


def _best(newest: Source) -> str | None:
    """The name of the checkpoint that the Trainer holds to be the best, and loads at the end."""
    state = newest.checkpoint.objects.get("trainer_state")
    best = state.get("best_model_checkpoint") if isinstance(state, Mapping) else None
    return Path(best).name if isinstance(best, str) else None


def _fault(source: Source) -> str | None:
    """Why a checkpoint cannot be resumed from, every byte of it read; None where it can."""
    try:
        if source.kind == "optstate":
            return damage(source.path)
        for ref in (*source.checkpoint.weights.values(), *source.slots):
            digest(ref)
    except (ReadError, OSError) as error:
        return f"it cannot be read: {error.what if isinstance(error, ReadError) else safe_text(error)}"
    return None


def _tried(source: Source, files: Files | None) -> Stripped:
    if files is None:
        return _item(source, "stripped", target=source.target)
    try:
        return _item(source, "stripped", target=replace_by_copy(source, files))
    except (OptstateError, OSError) as error:
        return _item(source, "left", told(error) if isinstance(error, OptstateError) else safe_text(error))


def _item(source: Source, fate: Fate, why: str = "", target: Path | None = None) -> Stripped:
    return Stripped(source.path, source.step, fate, source.nbytes, target, why)

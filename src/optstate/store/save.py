"""`save`: a model, its optimizer and whatever belongs to them, as one durable checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from torch import nn

from optstate.errors import SaveError, TargetExists
from optstate.formats.ours.directory import is_checkpoint, settled
from optstate.formats.ours.manifest import Body
from optstate.state.collection import without_collection
from optstate.store.background import STAGING, Saving, begin
from optstate.store.collect import Collected, Optimizers, What
from optstate.store.commit import target_exists
from optstate.store.files import Files, RealFiles
from optstate.store.streaming import Mode, Streaming
from optstate.store.tensors import TensorTable
from optstate.store.writer import write_checkpoint
from optstate.text import safe_text


@overload
def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizers | None = None,
    step: int | None = None,
    rng: bool = False,
    replace: bool = False,
    block: Literal[True] = True,
    mode: Mode = "stream",
    staging: int = STAGING,
    **objects: Any,
) -> Path: ...


@overload
def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizers | None = None,
    step: int | None = None,
    rng: bool = False,
    replace: bool = False,
    block: Literal[False],
    mode: Mode = "stream",
    staging: int = STAGING,
    **objects: Any,
) -> Saving: ...


def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizers | None = None,
    step: int | None = None,
    rng: bool = False,
    replace: bool = False,
    block: bool = True,
    mode: Mode = "stream",
    staging: int = STAGING,
    **objects: Any,
) -> Path | Saving:
    """Write a checkpoint, a directory named `path`; when this returns it survives a power cut. Returns its path.

    model, optimizer
        What to save. Names come from the model, so an optimizer, or a mapping of names to several, needs it.
    step
        The training step, which orders checkpoints and is shown with them.
    rng
        Whether to save the random state of python, numpy and torch.
    replace
        Whether a checkpoint that is there may be replaced; it stays whole until the new one is.
    block
        False: return at once and write in the background. What is returned has `wait()`, `done`, `error` and `path`.
    mode
        In the background: `"stream"` reads weights and slots from where they are, and the next step waits until they are
        read; `"copy"` copies everything first, into as much memory again.
    staging
        In the background: how many bytes of memory may be used once a step waits, so that it waits less.
    objects
        Anything with `state_dict` and `load_state_dict`, by the name to restore it by: `scheduler=scheduler`.

    Live objects stay bit-identical: nothing steps, no entry of `optimizer.state` appears, no random number is
    drawn. Folders above `path` are made where they are missing.

    In the background the checkpoint becomes, to the last bit, what was there when `save` was called, or there is none.
    Buffers, objects, random state, hyperparameters and tensors below 64 kB are copied at the call. Of the other weights and
    slots a digest is taken then, and must be that of what was written. A step of any optimizer that has one of these
    parameters waits until they are read, and so do edits, schedules and restores of this package. Nothing else can be made
    to wait: what writes to a tensor before it is read (`.data`, numpy, `load_state_dict`, a captured graph, an optimizer that
    is none of torch's) voids the save, and the error names the tensor.

    Raises `TargetExists`; `Unsaveable` for a value without a place in the format, naming it; `BindError` when
    an argument is not what it should be; `WriteFailed` when the system refuses. In all cases nothing is left
    of the new checkpoint, and what was at `path` still is. What fails in the background is raised by the next step, save or
    `wait()`; see `Saving`. One save of a parameter waits for the one before.

    >>> optstate.save("runs/step-4", model=model, optimizer=optimizer, step=4)
    PosixPath('runs/step-4')
    >>> saving = optstate.save("runs/step-5", model=model, optimizer=optimizer, step=5, block=False)
    >>> saving.wait()
    PosixPath('runs/step-5')
    """
    path = Path(path)
    what = What(model=model, optimizer=optimizer, step=step, rng=rng, replace=replace, objects=objects)
    if block:
        save_live(path, RealFiles(), **what)
        return path
    return save_beside(path, RealFiles(), mode=mode, staging=staging, **what)


def save_live(path: Path, files: Files, **what: Unpack[What]) -> Body:
    """As `save`, by way of `files`; returns the manifest without its tensors and files."""
    _refuse_existing(path, replace=what.get("replace", False))
    collected = Collected(TensorTable(), **what)
    with without_collection():
        write_checkpoint(path, collected.body, collected.payloads, files, replace=what.get("replace", False))
    return collected.body


def save_beside(
    path: Path,
    files: Files,
    *,
    mode: Mode = "stream",
    staging: int = STAGING,
    then: Callable[[Body], None] | None = None,
    tell: Callable[[BaseException], None] | None = None,
    **what: Unpack[What],
) -> Saving:
    """As `save` with `block=False`, by way of `files`; `then` and `tell` as for `optstate.store.background.begin`."""
    _refuse_existing(path, replace=what.get("replace", False))
    streaming = Streaming(_checked_mode(mode))
    collected = Collected(TensorTable(streaming), **what)
    return begin(
        path,
        collected.body,
        collected.payloads,
        streaming,
        files,
        replace=what.get("replace", False),
        staging=staging,
        parameters=collected.parameters,
        then=None if then is None else partial(then, collected.body),
        tell=tell,
    )


def _refuse_existing(path: Path, *, replace: bool) -> None:
    existing = settled(path)
    if not os.path.lexists(existing):
        return
    if not replace or path.name in ("", ".."):
        raise target_exists(path)
    if existing.is_symlink() or not is_checkpoint(existing):
        raise TargetExists(
            f"{safe_text(path)} exists and is no checkpoint of optstate, so it is not replaced",
            expected="a checkpoint directory, or nothing",
            found="a symbolic link" if existing.is_symlink() else None,
            todo="save to another path, or remove it yourself",
        )


def _checked_mode(mode: Mode) -> Mode:
    if mode not in ("stream", "copy"):
        raise SaveError("mode is not known", expected="'stream' or 'copy'", found=safe_text(mode))
    return mode

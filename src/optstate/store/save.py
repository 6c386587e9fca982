"""`save`: a model, its optimizer and whatever belongs to them, as one durable checkpoint."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError, TargetExists, Unsaveable
from optstate.formats.ours.directory import is_checkpoint, settled
from optstate.formats.ours.journal import written
from optstate.formats.ours.manifest import (
    Body,
    Environment,
    GroupEntry,
    LineageEntry,
    OptimizerEntry,
    ParameterEntry,
    SlotEntry,
    WeightEntry,
)
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.tree import Leaf, encode
from optstate.live.journals import journal_of
from optstate.live.source import LiveSource
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import live_weights
from optstate.optimizers.interpret import interpret
from optstate.optimizers.registry import by_class, qualified_name
from optstate.state.journal import utc_now
from optstate.state.slot import Slot
from optstate.store.commit import target_exists
from optstate.store.files import Files, RealFiles
from optstate.store.objects import RNG, RandomState, encode_extra_state, encode_objects
from optstate.store.tensors import TensorTable, fingerprint
from optstate.store.writer import write_checkpoint
from optstate.text import listing, safe_text


def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None = None,
    step: int | None = None,
    rng: bool = False,
    replace: bool = False,
    **objects: Any,
) -> Path:
    """Write a checkpoint, a directory named `path`; when this returns it survives a power cut. Returns its path.

    model, optimizer
        What to save. Names come from the model, so an optimizer, or a mapping of names to several, needs it.
    step
        The training step, which orders checkpoints and is shown with them.
    rng
        Whether to save the random state of python, numpy and torch.
    replace
        Whether a checkpoint that is there may be replaced; it stays whole until the new one is.
    objects
        Anything with `state_dict` and `load_state_dict`, by the name to restore it by: `scheduler=scheduler`.

    Live objects stay bit-identical: nothing steps, no entry of `optimizer.state` appears, no random number is
    drawn. Folders above `path` are made where they are missing.

    Raises `TargetExists`; `Unsaveable` for a value without a place in the format, naming it; `BindError` when
    an argument is not what it should be; `WriteFailed` when the system refuses. In all cases nothing is left
    of the new checkpoint, and what was at `path` still is.

    >>> optstate.save("runs/step-4", model=model, optimizer=optimizer, step=4)
    PosixPath('runs/step-4')
    """
    path = Path(path)
    save_live(path, RealFiles(), model=model, optimizer=optimizer, step=step, rng=rng, replace=replace, objects=objects)
    return path


def save_live(
    path: Path,
    files: Files,
    *,
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None,
    step: int | None,
    rng: bool,
    replace: bool,
    objects: Mapping[str, Any],
    run: str | None = None,
    lineage: tuple[LineageEntry, ...] = (),
) -> Body:
    """As `save`, by way of `files`, for a run with its lineage; returns the manifest without its tensors and files."""
    _refuse_existing(path, replace=replace)
    if model is None and (optimizer is not None or not (objects or rng)):
        raise _without_model(optimizer)
    module = None if model is None else checked_model(model)
    table = TensorTable()
    weights = () if module is None else tuple(_weights(module, table))
    source = None if module is None or optimizer is None else LiveSource(optimizers_by_name(optimizer), module)
    body = Body(
        save_id=secrets.token_hex(16),
        created=utc_now(),
        environment=_environment(),
        step=_checked_step(step),
        optimizers=() if source is None else tuple(_optimizers(source, table)),
        parameters=() if source is None else tuple(_parameters(source, table)),
        weights=weights,
        objects={
            **({} if module is None else encode_extra_state(module, table)),
            **encode_objects({**objects, **({RNG: RandomState()} if rng else {})}, table),
        },
        left_out={}
        if source is None
        else {reason: tuple(names) for reason, names in source.left_out().items() if names},
        journal=() if source is None else written(journal_of(source.live_optimizers)),
        run=run,
        lineage=lineage,
    )
    write_checkpoint(path, body, list(table.payloads.values()), files, replace=replace)
    return body


# --- what is there ------------------------------------------------------------------------------------------


def _weights(model: nn.Module, table: TensorTable) -> Iterator[WeightEntry]:
    for weight in live_weights(model).values():
        name = _text(weight.name)
        yield WeightEntry(
            name=name,
            kind=weight.kind,
            trainable=weight.tensor.requires_grad,
            tensor=table.add(weight.tensor, "weights", (name,), (name,)),
            fingerprint=fingerprint(weight.tensor),
            aliases=tuple(map(_text, weight.aliases)),
        )


def _optimizers(source: LiveSource, table: TensorTable) -> Iterator[OptimizerEntry]:
    for name, info in source.optimizers().items():
        optimizer = source.live_optimizers[name]
        _refuse_stray_state(optimizer)
        groups = [
            GroupEntry(_hyperparameters(name, index, live, table), group.parameters)
            for index, (live, group) in enumerate(zip(optimizer.param_groups, info.groups, strict=True))
        ]
        yield OptimizerEntry(_text(name), str(info.class_name), info.known, tuple(groups))


def _hyperparameters(optimizer: str, index: int, group: Mapping[str, Any], table: TensorTable) -> dict[str, Tree]:
    label = f"{optimizer or 'optimizer'}.param_groups[{index}]"
    # No parameter has an empty name, so names that start with one never meet those of slots.
    leaf = table.leaf("optimizer", prefix=("", optimizer, index), skip=1)
    return {
        _text(key): encode(value, (label, key), leaf)
        for key, value in group.items()
        if key not in ("params", "param_names")
    }


def _parameters(source: LiveSource, table: TensorTable) -> Iterator[ParameterEntry]:
    leaf = table.leaf("optimizer")
    for name in source.names():
        facts, tensor = source.facts(name), source.bound(name).tensor
        optimizer = source.live_optimizers[facts.optimizer]
        # The live entry itself: its containers keep their types, and keys whose value is None are there.
        entry = optimizer.state.get(tensor) or {}
        meanings = interpret(by_class(type(optimizer)), name, entry)
        yield ParameterEntry(
            name=_text(name),
            certainty=facts.certainty,
            optimizer=facts.optimizer,
            group=facts.group,
            shape=facts.shape,
            dtype=facts.dtype,
            trainable=facts.trainable,
            aliases=tuple(map(_text, facts.aliases)),
            slots=tuple(_slot(name, key, value, meanings.get(key), leaf) for key, value in entry.items()),
            absences=dict(source.absences(name)),
        )


def _slot(parameter: str, key: Any, value: Any, meaning: Slot | None, leaf: Leaf) -> SlotEntry:
    tree = encode(value, (parameter, _text(key)), leaf)
    if meaning is None:  # None, which is no slot to anyone; but a restore puts the key back
        return SlotEntry(key, "other", tree, primary=False)
    return SlotEntry(key, meaning.role, tree, meaning.primary, meaning.convention, meaning.of)


def _environment() -> Environment:
    try:
        own = version("optstate")
    except PackageNotFoundError:  # run from a source tree
        own = "unknown"
    return Environment(
        platform.python_version(), str(torch.__version__), own, f"{platform.system()} {platform.machine()}"
    )


# --- what is refused ----------------------------------------------------------------------------------------


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


def _without_model(optimizer: object) -> BindError:
    if optimizer is None:
        return BindError("there is nothing to save", expected="model=..., optimizer=..., objects by name, or rng=True")
    return BindError(
        "an optimizer cannot be saved without its model",
        expected="model=...",
        todo="names come from the model: pass the one whose parameters the optimizer steps",
    )


def _checked_step(step: Any) -> int | None:
    try:
        return None if step is None else index(step)
    except TypeError:
        raise Unsaveable(
            "step is no whole number", expected="an int or None", found=f"a {safe_text(qualified_name(type(step)))}"
        ) from None


def _refuse_stray_state(optimizer: torch.optim.Optimizer) -> None:
    stray = [key for key in optimizer.state if not isinstance(key, torch.Tensor)]
    if stray:
        raise Unsaveable(
            f"optimizer.state has entries that belong to no parameter: {listing(stray)}",
            expected="parameters as keys",
            todo="keep them in an object with state_dict and load_state_dict, and save that by name",
        )


def _text(name: Any) -> str:
    """A name that JSON can hold. Raises `Unsaveable`."""
    try:
        if isinstance(name, str):
            name.encode()
            return name
    except UnicodeEncodeError:
        pass
    raise Unsaveable(
        f"{safe_text(name)!r} cannot be a name in a checkpoint",
        expected="text of valid Unicode",
        found=f"a {type(name).__name__}",
    )

"""Opening our own checkpoints: one small read of the manifest, then values on demand, each checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from optstate.errors import Damaged, NotACheckpoint, ReadError, Refused
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.folder import open_within
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.safetensors_header import header_metadata
from optstate.formats.ours.journal import read
from optstate.formats.ours.manifest import (
    FORMAT,
    MANIFEST,
    Body,
    Brief,
    FileEntry,
    LineageEntry,
    OptimizerEntry,
    ParameterEntry,
    decode_brief,
    decode_manifest,
    digest_of,
    format_version,
)
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.formats.ours.tree import decode
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.slot import Slot
from optstate.text import listing, safe_text, size

MAX_MANIFEST = 1 << 30
"""Bytes of a manifest that are read; one of a million parameters has fewer."""


def open_directory(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint that `optstate.save` wrote.

    Reads the manifest and compares length and header of each file with it; numpy is not imported and no value
    is read. Every tensor is checked against its digest when it is read. Where a save that replaced `path` was
    killed between setting the old checkpoint aside and renaming the new one, this is the old one.

    Raises `NotACheckpoint`, `NewerFormat`, `Damaged`, or `Refused` for one that is intact and contradicts itself.
    """
    path = Path(path)
    directory = settled(path)
    body = read_manifest(directory)
    sources = {name: open_file(directory, name, body) for name in body.files}
    for name, source in sources.items():
        check_file(source, body.files[name], body.save_id)
    notes = () if directory == path else (f"a save that should replace this was cut short; read from {directory.name}",)
    try:
        return _checkpoint(path, body, sources, notes)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{safe_text(path)} is intact, but contradicts itself",
            where=MANIFEST,
            found=f"{type(error).__name__}: {safe_text(error)}",
            todo="the program that wrote it is at fault",
        ) from None


def read_manifest(directory: Path) -> Body:
    """What a checkpoint says of itself, its own digest checked. Errors as for `open_directory`."""
    return decode_manifest(*_manifest(directory))


def read_brief(directory: Path) -> Brief:
    """Which checkpoint it says it is, with the same checks and errors as `read_manifest`."""
    return decode_brief(*_manifest(directory))


def _manifest(directory: Path) -> tuple[bytes, str]:
    """The bytes of the manifest, and its name for messages."""
    if not directory.is_dir():
        raise NotACheckpoint(
            f"{safe_text(directory)} is {'a file' if directory.exists() else 'not there'}",
            expected="a checkpoint directory of optstate, the only kind with a digest for every byte",
            todo="name the directory that optstate.save returned",
        )
    if not (directory / MANIFEST).exists():
        raise NotACheckpoint(
            f"{safe_text(directory)} has no {MANIFEST}",
            expected="a checkpoint directory, whose manifest is written last",
            todo="if this is an unfinished save, use an earlier checkpoint",
        )
    source = open_within(directory, MANIFEST)
    if source.size > MAX_MANIFEST:
        raise Refused(f"{source.name} is too large to be a manifest", found=size(source.size))
    return source.read(0, source.size), source.name


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a manifest of ours, of any version, intact or not."""
    try:
        source = open_within(directory, MANIFEST)
        return format_version(source.read(0, min(source.size, MAX_MANIFEST))) is not None
    except ReadError:
        return False


ASIDE = re.compile(r"\.(?P<name>.+)\.old-[0-9a-f]{8}-[0-9a-f]{8}", re.DOTALL)
"""The name that a checkpoint has for the instant between being set aside and being replaced."""


def settled(path: Path) -> Path:
    """The directory that holds what was last saved as `path`: itself, or what a killed save had set aside."""
    if os.path.lexists(path):
        return path
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return path
    aside = [item for item in beside if (found := ASIDE.fullmatch(item.name)) and found["name"] == path.name]
    return next(filter(is_checkpoint, aside), path)


def open_file(directory: Path, name: str, body: Body) -> ByteSource:
    """A data file of a checkpoint, whatever is in it. Raises `Damaged` when there is none."""
    try:
        return open_within(directory, name)
    except NotACheckpoint as error:
        raise Damaged(
            f"{safe_text(directory / name)} is missing or empty",
            expected=f"{size(body.files[name].nbytes)}: {listing(_held(body, name), 3)}",
            found=error.what,
            todo="use another checkpoint, or copy this one again, whole",
        ) from None


def check_file(source: ByteSource, entry: FileEntry, save_id: str) -> None:
    """Compare a data file's length and header with the manifest. Raises `Damaged` when they differ."""
    header = source.read(0, entry.header_nbytes) if entry.header_nbytes <= source.size else b""
    if source.size == entry.nbytes and digest_of(header) == entry.header_digest:
        return
    owner = header_metadata(header).get("save_id", save_id)
    if owner != save_id:
        raise Damaged(
            f"{source.name} belongs to another save",
            expected=f"save {save_id}",
            found=f"save {safe_text(owner, 60)}",
            todo="two checkpoints were mixed: copy this one again, whole",
        )
    same_length = source.size == entry.nbytes
    raise Damaged(
        f"{source.name} was changed or cut since it was written",
        expected="the header that was written" if same_length else f"{entry.nbytes:,} bytes",
        found="another header" if same_length else f"{source.size:,} bytes",
        todo="use another checkpoint; `optstate verify` names each tensor that is lost",
    )


def _held(body: Body, file: str) -> list[str]:
    """The names of the tensors that a file holds."""
    return [
        key.partition("/")[2]
        for key, entry in body.tensors.items()
        if any(chunk.file == file for chunk in entry.chunks)
    ]


# --- from entries to the vocabulary -------------------------------------------------------------------------

Decode: TypeAlias = "Callable[[Tree], Any]"


def _checkpoint(path: Path, body: Body, sources: Mapping[str, ByteSource], notes: tuple[str, ...]) -> Checkpoint:
    def tensor(key: str) -> OwnTensor:
        return OwnTensor(key.partition("/")[2], body.tensors[key], sources)

    def value(tree: Tree) -> Any:
        return decode(tree, tensor)

    optimizers = {entry.name: _optimizer(entry, value) for entry in body.optimizers}
    parameters = [_parameter(entry, optimizers, value) for entry in body.parameters]
    weights = {entry.name: tensor(entry.tensor) for entry in body.weights}
    for entry in body.weights:
        weights[entry.name].weight = entry
    return Checkpoint(
        path=path,
        format=FORMAT,
        step=body.step,
        state=OptimizerState(FrozenSource(parameters, optimizers, body.left_out)),
        weights=weights,
        aliases={entry.name: entry.aliases for entry in body.weights if entry.aliases},
        objects={name: value(entry.state) for name, entry in body.objects.items()},
        object_classes={name: entry.class_name for name, entry in body.objects.items() if entry.class_name is not None},
        notes=notes,
        journal=read(body.journal),
        lineage=(*body.lineage, LineageEntry(body.save_id, body.step, body.environment)),
    )


def _optimizer(entry: OptimizerEntry, value: Decode) -> OptimizerInfo:
    groups = [
        Group(entry.name, index, {key: value(item) for key, item in group.hyperparameters.items()}, group.parameters)
        for index, group in enumerate(entry.groups)
    ]
    about = entry.inferred, entry.alternatives, entry.ordered
    return OptimizerInfo(entry.name, entry.class_name, tuple(groups), entry.known, *about)


def _parameter(entry: ParameterEntry, optimizers: Mapping[str, OptimizerInfo], value: Decode) -> FrozenParameter:
    if entry.group >= len(optimizers[entry.optimizer].groups):
        raise ValueError(f"{safe_text(entry.name)} is in group {entry.group}, which its optimizer does not have")
    facts = ParameterFacts(
        name=entry.name,
        # The live object was certain then; now the manifest vouches for the name.
        certainty="file" if entry.certainty == "identity" else entry.certainty,
        shape=entry.shape,
        dtype=entry.dtype,
        optimizer=entry.optimizer,
        group=entry.group,
        aliases=entry.aliases,
        trainable=entry.trainable,
        candidates=entry.candidates,
    )
    slots = {
        slot.key: Slot(entry.name, slot.key, slot.role, value(slot.value), slot.convention, slot.of, slot.primary)
        for slot in entry.slots
    }
    return FrozenParameter(facts, slots, entry.absences)

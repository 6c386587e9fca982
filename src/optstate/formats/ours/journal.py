"""The journal in checkpoints: in our manifest as entries, in files of others as an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from optstate.formats.checkpoint import Checkpoint
from optstate.formats.ours.manifest import JournalEntry as WrittenEntry
from optstate.state.journal import SCHEMA, Journal, JournalEntry

OBJECT = "journal"
"""The name of the object that holds the journal's document where a format has no place for one."""


def written(journal: Iterable[JournalEntry]) -> tuple[WrittenEntry, ...]:
    """Entries as the manifest has them."""
    return tuple(msgspec.convert(entry.document(), WrittenEntry) for entry in journal)


def read(entries: Iterable[WrittenEntry]) -> Journal:
    """The journal that a manifest holds."""
    return Journal(JournalEntry.of(msgspec.to_builtins(entry)) for entry in entries)


def as_object(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its journal among the objects, unless it is empty or the name is taken."""
    if not checkpoint.journal or OBJECT in checkpoint.objects:
        return checkpoint
    return replace(checkpoint, objects={**checkpoint.objects, OBJECT: checkpoint.journal.document()}, journal=Journal())


def from_object(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the journal that `as_object` put among its objects; as it is where there is none."""
    document = checkpoint.objects.get(OBJECT)
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        return checkpoint
    try:
        entries = read(msgspec.convert(document["entries"], tuple[WrittenEntry, ...]))
    except (msgspec.ValidationError, KeyError):
        return checkpoint  # whatever it is, it stays an object
    others = {name: value for name, value in checkpoint.objects.items() if name != OBJECT}
    return replace(checkpoint, objects=others, journal=entries)

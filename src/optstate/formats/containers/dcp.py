"""A `torch.distributed.checkpoint` directory: its `.metadata`, and the items in its shard files, each a file of torch.

Every shape, type and place is in `.metadata`. A shard file is opened when a value in it is asked for; what is no
tensor is read at once, as the groups of an optimizer are made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from optstate.errors import Damaged, ReadError, Refused
from optstate.formats.containers.assembled import Absent, Assembled, Piece
from optstate.formats.containers.dcp_items import CODED, ItemTensor, Shards
from optstate.formats.containers.dcp_metadata import (
    KeyPath,
    Metadata,
    ObjectEntry,
    Place,
    TensorEntry,
    merged,
    read_metadata,
)
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.state.tensors import DTYPES, TensorRef
from optstate.text import count, listing, safe_text, size

METADATA = ".metadata"
UNFINISHED = ".metadata.tmp"
"""What `.metadata` is called until it is written; the last thing that a save does is to rename it."""

_OF_A_RANK = re.compile(r"__(\d+)\.metadata")
_QUANTISED = 16  # how many times more bytes a tensor may have than its item: one of 4 bits that stands for float64


@dataclass(slots=True)
class DcpTree:
    """What was saved, as the nested dict that it was, tensors as references; without paths, each key is one string.

    missing
        What should be there and is not, or is damaged: by reason, with the keys.
    unread
        The same, and what is there and cannot be read.
    """

    root: dict[Any, Node]
    missing: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_dcp(folder: Folder) -> bool:
    """Whether a folder is a DCP directory, or a save into one that did not finish."""
    return bool(folder.holds(METADATA) or _rank_files(folder) or folder.matching("__*.distcp"))


def read_tree(folder: Folder) -> DcpTree:
    """Read the structure of a DCP directory.

    Raises `Damaged` for a save that did not finish, `Refused` for metadata that contradict themselves or lead out of
    the directory. A shard that is missing or cut short takes its own tensors only: they are told in `unread`.
    """
    metadata = _metadata(folder)
    shards = Shards(folder)
    lost: dict[str, list[str]] = {}
    values: dict[str, Node] = {}
    for key, entry in metadata.entries.items():
        try:
            values[key] = _value(key, entry, shards)
        except _Lost as loss:
            lost.setdefault(str(loss), []).append(key)
        except ValueError as error:
            raise Refused(
                f"the metadata of {folder.name} contradict themselves: {safe_text(error)}",
                where=safe_text(key),
                todo="use another checkpoint: which values are the true ones cannot be told",
            ) from None
    for key, value in values.items():
        for why in _holes(value):
            lost.setdefault(why, []).append(key)
    told = {why: f"{why}: {listing(keys)}" for why, keys in lost.items()}
    missing = [line for why, line in told.items() if not why.startswith(CODED)]
    root = _nested(values, metadata.paths, folder)
    notes = [*metadata.notes, *shards.notes, *_notes(folder)]
    return DcpTree(root, missing, list(told.values()), notes)


# --- the metadata -----------------------------------------------------------------------------------------


def _rank_files(folder: Folder) -> list[str]:
    """The metadata of ranks that saved without talking to each other, in the order of the ranks."""
    found = [(int(match[1]), name) for name in folder.files if (match := _OF_A_RANK.fullmatch(name))]
    return [name for _, name in sorted(found)]


def _metadata(folder: Folder) -> Metadata:
    if folder.holds(METADATA):
        return read_metadata(folder.open(METADATA))
    ranks = _rank_files(folder)
    if not ranks:
        raise Damaged(
            f"a save into {folder.name} did not finish",
            expected=f"{METADATA}, which torch writes last",
            found=f"{count(len(folder.matching('__*.distcp')), 'shard file')}"
            f"{' and ' + UNFINISHED if folder.holds(UNFINISHED) else ''}",
            todo="use an earlier checkpoint; without that file nobody can tell what is in the shards",
        )
    try:
        return merged(read_metadata(folder.open(name)) for name in ranks)
    except ValueError as error:
        raise Refused(f"the metadata of {folder.name} contradict each other", found=safe_text(error)) from None


def _notes(folder: Folder) -> Iterator[str]:
    ranks = _rank_files(folder)
    if not folder.holds(METADATA):
        yield f"{count(len(ranks), 'rank')} saved without the others: values that each rank has are those of {ranks[0]}"
    elif folder.holds(UNFINISHED):
        yield f"{UNFINISHED} is there too: a later save into this folder did not finish, and may have replaced shards"


# --- values ----------------------------------------------------------------------------------------------


class _Lost(Exception):
    """Why a value cannot be read, in words."""


def _value(key: str, entry: TensorEntry | ObjectEntry, shards: Shards) -> Node:
    """A tensor, or what a pickled item holds. Raises `_Lost`, `ValueError` for chunks that make no tensor."""
    if isinstance(entry, TensorEntry):
        return _tensor(key, entry, shards)
    if entry.place is None:
        raise _Lost("no shard has it")
    why = shards.loss(entry.place)
    if why is not None:
        raise _Lost(why)
    try:
        return shards.plain(entry.place, key)
    except ReadError as error:
        raise _Lost(f"{safe_text(entry.place.file)}: {error.what}") from None


def _tensor(key: str, entry: TensorEntry, shards: Shards) -> TensorRef:
    pieces = []
    for start, shape, place in entry.chunks:
        if place is None:
            continue
        _check_length(entry.dtype, shape, place)
        why = shards.loss(place)
        tensor = (
            ItemTensor(key, entry.dtype, shape, place, shards) if why is None else Absent(key, entry.dtype, shape, why)
        )
        pieces.append(Piece(start, tensor))
    whole = Assembled(key, entry.dtype, entry.shape, pieces)
    only = whole.pieces[0].tensor if len(whole.pieces) == 1 else None
    return whole if only is None or only.shape != entry.shape else only


def _check_length(dtype: str, shape: tuple[int, ...], place: Place) -> None:
    """Raise `ValueError` for a chunk that its item is far too short to hold, before anybody makes room for it."""
    claimed = prod(shape) * DTYPES.get(dtype, (0,))[0]
    if not place.coding and claimed > place.length * _QUANTISED:
        raise ValueError(f"{size(claimed)} of values in an item of {size(place.length)}")


def _holes(value: Node) -> Iterator[str]:
    """Why a tensor is not all there."""
    if isinstance(value, Absent):
        yield value.why
    elif isinstance(value, Assembled):
        yield from dict.fromkeys(piece.tensor.why for piece in value.pieces if isinstance(piece.tensor, Absent))
        if value.missing and prod(value.shape):
            yield "parts that no shard has"


# --- the tree ---------------------------------------------------------------------------------------------


class _Branch(dict[Any, Any]):
    """A level of the tree, not to be taken for a dict that was pickled whole."""


def _nested(values: Mapping[str, Node], paths: Mapping[str, KeyPath], folder: Folder) -> dict[Any, Node]:
    """The values where their paths lead, in the order in which they were saved."""
    root = _Branch()
    for key in (*paths, *(key for key in values if key not in paths)):
        if key not in values:
            continue
        *parts, last = paths.get(key, (key,))
        branch: Any = root
        for part in parts:
            branch = branch.setdefault(part, _Branch())
            if type(branch) is not _Branch:
                break
        if type(branch) is not _Branch or last in branch:
            raise Refused(f"the metadata of {folder.name} have two values in one place", found=safe_text(key))
        branch[last] = values[key]
    return {key: _plain(value) for key, value in root.items()}


def _plain(node: Node) -> Node:
    """A branch as a dict, or as a list where it is one without gaps."""
    if type(node) is not _Branch:
        return node
    if node and all(type(key) is int for key in node) and sorted(node) == [*range(len(node))]:
        return [_plain(node[index]) for index in range(len(node))]
    return {key: _plain(value) for key, value in node.items()}

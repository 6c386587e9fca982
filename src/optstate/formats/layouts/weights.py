"""A model's weights in a folder, as Hugging Face libraries lay them out: one file or shards, safetensors or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optstate.errors import Damaged, ReadError
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.safetensors_file import UNCHECKED, read_safetensors
from optstate.formats.containers.sniff import HEAD, looks_like_safetensors
from optstate.formats.containers.unfolding import prune
from optstate.state.tensors import TensorRef, is_tensor, nbytes
from optstate.text import count, listing, safe_text

INDEX = ".index.json"

Result = TypeVar("Result")


@dataclass(slots=True)
class Tensors:
    """What one file, or several that belong together, hold.

    tensors
        By name; in the order of the model where `ordered` says so: torch keeps it, safetensors does not.
    metadata
        The text that a safetensors file carries.
    objects
        What a torch file holds beside tensors.
    unread, notes
        As `Checkpoint` has them.
    """

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    ordered: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_tensors(source: ByteSource) -> Tensors:
    """The tensors of a safetensors file, or of a dict that `torch.save` wrote. Raises `ReadError`, as their readers do."""
    if looks_like_safetensors(source.read(0, min(HEAD, source.size))):
        file = read_safetensors(source)
        return Tensors(dict(file.tensors), ordered=False, metadata=dict(file.metadata), notes=[UNCHECKED])
    pickled = read_any_pickle(source)
    if type(pickled.root) is not dict:
        raise Damaged(f"{source.name} holds no weights", expected="a dict of tensors", found=_kind(pickled.root))
    tensors = {key: value for key, value in pickled.root.items() if type(key) is str and is_tensor(value)}
    objects = {safe_text(key): value for key, value in pickled.root.items() if key not in tensors}
    return Tensors(tensors, objects=objects, notes=[*pickled.notes, *prune(objects)])


def _kind(node: object) -> str:
    return f"a {type(node).__name__}"


MISSING_SHOWN = 100
"""Files that an index names and that are not there, of which each is reported; an index may name a million."""


def read_index(folder: Folder, name: str) -> Tensors:
    """The tensors of all shards that an index names, one after the other.

    Shards that are missing or damaged, and tensors that no shard holds, are listed in `unread`. Raises `Damaged` for
    an index that is none, or has one tensor in two files, `Refused` for one that names files elsewhere.
    """
    weight_map, stated = _index(folder, name)
    shards: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        shards.setdefault(file, []).append(tensor)
    found, missing, unseen = Tensors(), 0, 0
    for file, names in sorted(shards.items()):
        missing += file not in folder.entries
        if missing > MISSING_SHOWN and file not in folder.entries:
            unseen += len(names)
            continue
        shard = attempt(found.unread, folder, file, read_tensors)
        if shard is None:
            found.unread.append(f"{count(len(names), 'tensor')} of {safe_text(file)}: {listing(names)}")
        else:
            _add(found, shard, names, safe_text(file))
    if unseen:
        more = count(missing - MISSING_SHOWN, "more file")
        found.unread.append(f"{count(unseen, 'tensor')} of {more} that {safe_text(name)} names and that are not there")
    total = sum(map(nbytes, found.tensors.values()))
    if not found.unread and type(stated) is int and stated != total:
        found.notes.append(f"{safe_text(name)} states {stated:,} bytes of tensors, and there are {total:,}")
    return found


def _index(folder: Folder, name: str) -> tuple[Mapping[str, str], object]:
    """The file of each tensor, and the bytes that all of them should take."""
    index = folder.json(name)
    weight_map = index.get("weight_map") if type(index) is dict else None
    if type(weight_map) is not dict or any(type(file) is not str for file in weight_map.values()):
        raise Damaged(
            f"{safe_text(folder.path / name)} is no index of tensors",
            expected="`weight_map`, with the file of each tensor",
            found=_kind(weight_map),
        )
    metadata = index.get("metadata")
    return weight_map, metadata.get("total_size") if type(metadata) is dict else None


def _add(found: Tensors, shard: Tensors, names: list[str], file: str) -> None:
    """Put the tensors of a shard beside those of the others; the index says which it should hold."""
    twice = [name for name in shard.tensors if name in found.tensors]
    if twice:
        raise Damaged(f"tensors that are in two shards: {listing(twice)}", where=file)
    missing = [name for name in names if name not in shard.tensors]
    if missing:
        found.unread.append(f"{file}: it does not hold {listing(missing)}, as the index says")
    stray = len(shard.tensors) + len(missing) - len(names)
    if stray:
        found.notes.append(f"{file} holds {count(stray, 'tensor')} that the index does not name")
    found.tensors |= shard.tensors
    found.ordered &= shard.ordered
    found.metadata |= shard.metadata
    found.objects |= shard.objects
    found.unread += shard.unread
    found.notes += [note for note in shard.notes if note not in found.notes]


def read_weights(folder: Folder, *stems: str) -> tuple[str, Tensors]:
    """The weights that a folder has under the first of these names, and the file that has them; "" where there are none.

    A stem such as `model.safetensors` stands for the file, and for its index where it is in shards. Files that hold
    weights as well and were passed over are listed in `unread`.
    """
    names = [name for stem in stems for name in (stem, stem + INDEX) if name in folder.files]
    if not names:
        return "", Tensors()
    chosen, *others = names
    unread: list[str] = []
    if chosen.endswith(INDEX):
        found = tried(unread, chosen, lambda: read_index(folder, chosen))
    else:
        found = attempt(unread, folder, chosen, read_tensors)
    found = found or Tensors(ordered=False)
    found.unread[:0] = unread
    found.unread += [f"{safe_text(name)}: weights as well; those of {safe_text(chosen)} are shown" for name in others]
    return chosen, found


def attempt(unread: list[str], folder: Folder, name: str, read: Callable[[ByteSource], Result]) -> Result | None:
    """What a reader makes of a file in a folder; None, and a line in `unread`, where it cannot be read."""
    return tried(unread, name, lambda: read(folder.open(name)))


def tried(unread: list[str], name: str, read: Callable[[], Result]) -> Result | None:
    """As `attempt`, for a part of a checkpoint that is more than a file."""
    try:
        return read()
    except ReadError as error:
        more = "; ".join(part for part in (error.where, error.found) if part)
        unread.append(f"{safe_text(name)}: {error.what}{f' ({more})' if more else ''}")
        return None

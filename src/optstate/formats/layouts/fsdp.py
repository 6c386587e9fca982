"""What FSDP programs give to `torch.save` on each rank: parts of tensors, in one file for each rank.

The files of all ranks in one folder make whole tensors again. A sharded tensor says where its part belongs. The raw
`state_dict()` of an optimizer over FSDP1's parameters has flat runs, which follow each other in the order of the ranks.
A file alone shows the part of its rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any

from optstate.errors import ReadError, Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.assembled import Assembled, Piece, joined
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.containers.pickled import Pickled
from optstate.formats.layouts import torch_save
from optstate.formats.layouts.layout import FileLayout, FolderLayout
from optstate.formats.orders import Weight, trained
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import count, listing, safe_text

FORMAT = "FSDP ranks"

_RANK = re.compile(r"(?P<stem>.*?)[._-]?rank[._-]?(?P<rank>\d{1,6})(?P<rest>(?:[._-].*)?)\.(?:pt|pth|bin|ckpt)")
_WORLD = re.compile(r"[._-]?world[._-]?size[._-]?(\d{1,6})")
_FAMILIES = 4  # kinds of files that a program writes for each rank: model, optimizer, extra state
_LEVELS = 6  # levels of dicts in which parts of tensors are looked for
_LOOK = 100  # tensors that are looked at to tell what a file is

Family = dict[int, str]
"""The files of one kind, by rank."""


# --- one file of a rank -----------------------------------------------------------------------------------


def is_part(pickled: Pickled) -> bool:
    """Whether a file holds the parts that one rank has."""
    root = pickled.root
    return _has_parts(root) or (_RANK.fullmatch(pickled.source.path.name) is not None and _is_flat([root]))


def read_part(pickled: Pickled) -> Parts:
    """The part of one rank; the files of other ranks beside it are counted, and not opened."""
    parts = _read(pickled)
    parts.unread = [*parts.unread, *_incomplete(parts)]
    if _is_flat([pickled.root]):
        parts.unread = [*parts.unread, "what other ranks have: this is the flat state of one rank"]
        parts.clues = [*parts.clues, _FLAT]
    path = pickled.source.path
    families = _families(Folder(path.parent)).values() if _RANK.fullmatch(path.name) else ()
    others = [
        name for family in families if path.name in family.values() for name in family.values() if name != path.name
    ]
    if others:
        beside = f"{count(len(others), 'file')} of other ranks beside it ({listing(others, 3)})"
        parts.notes = [*parts.notes, f"{beside}: open the folder that holds them all, and nothing else, to join them"]
    return parts


def _read(pickled: Pickled) -> Parts:
    """The parts of a file that is whole, by the first layout that fits."""
    parts = next(each.read(pickled) for each in (*torch_save.LAYOUTS, torch_save.LAYOUT) if each.fits(pickled))
    parts.format = FORMAT if parts.format == torch_save.LAYOUT.format else f"{parts.format}, {FORMAT}"
    return parts


FILE = FileLayout(FORMAT, is_part, read_part)

_FLAT = Clue(
    "M203",
    "every slot is flat, as the optimizer of one FSDP rank has it: a load takes it for the state of whole parameters",
    "save FSDP.optim_state_dict(model, optimizer) or get_optimizer_state_dict(model, optimizer), not optimizer.state_dict()",
)


# --- a folder of all ranks --------------------------------------------------------------------------------


def is_rank_folder(folder: Folder) -> bool:
    """Whether a folder has a file for each rank with parts of tensors, and no more than one optimizer in parts."""
    families = _families(folder)
    if not 0 < len(families) <= _FAMILIES:
        return False
    try:
        roots = [read_any_pickle(folder.open(min(family.items())[1])).root for family in families.values()]
    except ReadError:
        return False
    optimizers = [root for root in roots if any(_state_dicts(root))]
    return len(optimizers) <= 1 and (any(map(_has_parts, roots)) or _is_flat(roots))


def read_ranks(folder: Folder) -> Parts:
    """The tensors of all ranks, put together. Raises `Refused` where ranks contradict each other.

    A rank whose file is missing takes what only it had, and is named in `unread`.
    """
    pickles = {
        label: [read_any_pickle(folder.open(name)) for name in family.values()]
        for label, family in _families(folder).items()
    }
    absent = {label: _absent(family) for label, family in _families(folder).items()}
    flat = _is_flat([each[0].root for each in pickles.values()])
    runs = flat and not any(absent.values())
    try:
        merged = {label: _merged([each.root for each in ranks], runs=runs) for label, ranks in pickles.items()}
    except ValueError as error:
        raise Refused(f"the ranks in {folder.name} contradict each other", found=safe_text(error)) from None
    every = [each for ranks in pickles.values() for each in ranks]
    notes = dict.fromkeys(note for each in every for note in each.notes)
    root = merged if len(merged) > 1 else next(iter(merged.values()))
    parts = _read(Pickled(root, every[0].source, every[0].container, list(notes)))
    if runs:
        _shape(parts)
        parts.notes = [*parts.notes, *_notes_on_runs(pickles, folder)]
    elif flat:
        parts.clues = [*parts.clues, _FLAT]
    parts.unread = [
        *parts.unread,
        *(f"the file of {label} for rank {listing(ranks)}: missing" for label, ranks in absent.items() if ranks),
        *_incomplete(parts),
    ]
    return parts


FOLDER = FolderLayout(FORMAT, is_rank_folder, read_ranks)


def _notes_on_runs(pickles: Mapping[str, Sequence[Pickled]], folder: Folder) -> Iterator[str]:
    ranks = max(map(len, pickles.values()))
    told = any(_WORLD.search(name) for name in folder.files)
    doubt = "" if told else "; whether there were more ranks the names of the files do not tell"
    yield f"the flat state of {ranks:,} ranks, one behind the other{doubt}"


def _families(folder: Folder) -> dict[str, Family]:
    """The files that differ only in the number of their rank, by what they have in common."""
    families: dict[str, Family] = {}
    for name in folder.files:
        match = _RANK.fullmatch(name)
        if match is not None:
            label = (_WORLD.sub("", match["stem"]) + match["rest"]).strip("._-")
            families.setdefault(label or "ranks", {})[int(match["rank"])] = name
    return {label: dict(sorted(family.items())) for label, family in families.items()}


def _absent(family: Family) -> list[int]:
    """Ranks without a file: up to the number that the names state, else up to the last that is there."""
    stated = [int(match[1]) for name in family.values() if (match := _WORLD.search(name))]
    last = min(max([*stated, max(family) + 1]), 100 * len(family))  # a name can state any number
    return [rank for rank in range(last) if rank not in family]


# --- putting ranks together -------------------------------------------------------------------------------


def _merged(nodes: Sequence[Node], *, runs: bool, level: int = 0) -> Node:
    """What the ranks have together: parts joined, dicts level by level, and of anything else the value of the first.

    With `runs`, optimizers have flat runs. Raises `ValueError` for parts that do not fit each other.
    """
    if runs and all(map(is_state_dict, nodes)):
        return _with_runs(nodes)
    if all(isinstance(node, Assembled) for node in nodes):
        return joined(nodes)
    if level == _LEVELS or not all(type(node) is dict for node in nodes):
        return nodes[0]
    keys = dict.fromkeys(key for node in nodes for key in node)
    return {key: _merged([node[key] for node in nodes if key in node], runs=runs, level=level + 1) for key in keys}


def _with_runs(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One optimizer out of those of all ranks, which each have a run of every flat slot."""
    found: dict[Any, dict[str, list[Node]]] = {}
    for node in nodes:
        for key, entry in node["state"].items():
            for slot, value in entry.items() if type(entry) is dict else ():
                found.setdefault(key, {}).setdefault(slot, []).append(value)
    state = {key: {slot: _run_of(values) for slot, values in entry.items()} for key, entry in found.items()}
    return {**nodes[0], "state": state}


def _run_of(values: Sequence[Node]) -> Node:
    if not all(is_tensor(value) and len(value.shape) == 1 for value in values):
        return values[0]
    pieces, start = [], 0
    for value in values:
        pieces.append(Piece((start,), value))
        start += value.shape[0]
    return Assembled("", values[0].dtype, (start,), pieces)


def _shape(parts: Parts) -> None:
    """Give the slots of joined runs the shapes of the weights, which flat state does not tell."""
    weights = trained(Weight(name, tensor) for name, tensor in parts.weights.items())
    shapes = [weight.tensor.shape for weight in weights]
    for node in parts.optimizers.values():
        keys = [key for group in node["param_groups"] for key in group["params"]]
        entries = [node["state"].get(key, {}) for key in keys]
        for entry, shape in zip(entries, _shapes([_length(entry) for entry in entries], shapes), strict=True):
            for slot, value in entry.items():
                if shape is not None and isinstance(value, Assembled):
                    entry[slot] = Assembled(value.name, value.dtype, shape, value.pieces, flat=True)


def _length(entry: Mapping[str, Any]) -> int | None:
    """How many elements the slots of a parameter have."""
    lengths = {value.shape[0] for value in entry.values() if isinstance(value, Assembled)}
    return lengths.pop() if len(lengths) == 1 else None


def _shapes(lengths: Sequence[int | None], weights: Sequence[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
    """A shape for each length: in the model's order where every length agrees, else where weights of it have one shape."""
    if len(lengths) == len(weights) and all(map(_agree, lengths, weights)):
        return list(weights)
    by_length: dict[int, set[tuple[int, ...]]] = {}
    for shape in weights:
        by_length.setdefault(prod(shape), set()).add(shape)
    options = [by_length.get(length, set()) if length is not None else set() for length in lengths]
    return [next(iter(each)) if len(each) == 1 else None for each in options]


def _agree(length: int | None, shape: tuple[int, ...]) -> bool:
    return length in (None, prod(shape))


# --- what a file is ---------------------------------------------------------------------------------------


def _state_dicts(root: Node, level: int = 0) -> Iterator[Mapping[str, Any]]:
    """The optimizers in a file: it is one, or has them in a dict of its own or one below."""
    if is_state_dict(root):
        yield root
    elif type(root) is dict and level < 2:
        for node in root.values():
            yield from _state_dicts(node, level + 1)


def _slots(root: Node) -> Iterator[TensorRef]:
    for node in _state_dicts(root):
        for entry in node["state"].values():
            yield from filter(is_tensor, entry.values() if type(entry) is dict else ())


def _weights(root: Node) -> Iterator[TensorRef]:
    if type(root) is dict and not is_state_dict(root):
        for node in (root, *root.values()):
            yield from filter(is_tensor, node.values() if type(node) is dict else ())


def _has_parts(root: Node) -> bool:
    """Whether some of the tensors in a file are parts of others."""
    tensors = [*islice(_slots(root), _LOOK), *islice(_weights(root), _LOOK)]
    return any(isinstance(tensor, Assembled) and tensor.missing for tensor in tensors)


def _is_flat(roots: Sequence[Node]) -> bool:
    """Whether the slots in files are all flat, and longer or shorter than any flat weight in them."""
    shapes = {tensor.shape for root in roots for tensor in _slots(root)} - {()}
    weights = {tensor.shape for root in roots for tensor in _weights(root)}
    return bool(shapes) and all(len(shape) == 1 for shape in shapes) and not shapes <= weights


def _incomplete(parts: Parts) -> Iterator[str]:
    """What is not whole."""
    tensors = {name: tensor for name, tensor in parts.weights.items() if isinstance(tensor, Assembled)}
    for label, node in parts.optimizers.items():
        for key, entry in node["state"].items():
            for slot, value in entry.items() if type(entry) is dict else ():
                if isinstance(value, Assembled):
                    tensors[f"{label}{'.' if label else ''}{key}/{slot}"] = value
    holes = {name: tensor.missing for name, tensor in tensors.items() if tensor.missing}
    if holes:
        first = next(iter(holes))
        yield f"parts of {count(len(holes), 'tensor')} ({listing(holes, 3)}): of {safe_text(first)} {holes[first]}"

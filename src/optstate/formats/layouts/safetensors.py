"""safetensors by themselves: a file, an index of shards, a folder of them. Weights, and the slots that a program put there.

The format knows tensors and text, and nothing of optimizers. State is in it where a program gave its slots names of
their own: `<parameter>/<slot>`, `optimizer.state.<parameter>.<slot>` as torch DCP flattens them, or the name of a weight
with the slot behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from optstate.errors import Damaged
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.assembled import Assembled, Piece, joined
from optstate.formats.containers.folder import Folder, parsed_json
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.safetensors_file import UNCHECKED, read_safetensors
from optstate.formats.layouts.flattened import take_flattened
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.weights import INDEX, Tensors, attempt, read_index, read_tensors, read_weights
from optstate.formats.ours.flat import METADATA, read_flat
from optstate.formats.parts import Parts
from optstate.optimizers.registry import by_name, known_names
from optstate.state.tensors import TensorRef
from optstate.text import safe_text

FORMAT = "safetensors"

_SHARDING = "DCP_SHARDING_INFO"
"""In the metadata of a file that torch DCP wrote: where each of its tensors lies in the whole."""


def read(source: ByteSource) -> Parts:
    """The parts of one safetensors file. Raises `Damaged` and `Refused`, as `read_safetensors` does."""
    if match := _SHARD.fullmatch(source.path.name):
        found = Tensors(dict(_pieces(source)), ordered=False, notes=[UNCHECKED])
        return _parts(found, f"this is what rank {int(match[1]) - 1} wrote: open the folder for all of it")
    part = re.search(r"-(\d{5})-of-(\d{5})", source.path.name)
    whole = not part or int(part[2]) == 1
    found = read_tensors(source)
    if METADATA in found.metadata:
        return read_flat(found.metadata[METADATA], found.tensors, source.name, found.notes)
    return _parts(found, "" if whole else f"this is one file of several: open their {INDEX}")


def is_index(source: ByteSource) -> bool:
    """Whether a file is an index of shards, by its name and first byte."""
    return source.path.name.endswith(INDEX) and source.read(0, min(source.size, 64)).lstrip().startswith(b"{")


def read_index_file(source: ByteSource) -> Parts:
    """The parts of all shards that an index names, which lie beside it. Raises as `weights.read_index` does."""
    return _parts(read_index(Folder(source.path.parent), source.path.name))


# --- folders ----------------------------------------------------------------------------------------------

_STEMS = (
    "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
_SHARD = re.compile(r"shard-(\d{5})-model-\d{5}-of-\d{5}\.safetensors")


def _fits(folder: Folder) -> bool:
    return any(folder.holds(name) for stem in _STEMS for name in (stem, stem + INDEX)) or bool(_shards(folder))


def _read_folder(folder: Folder) -> Parts:
    _, found = read_weights(folder, *_STEMS)
    return _parts(found if found.tensors or found.unread else _joined(_shards(folder)))


LAYOUT = FolderLayout(FORMAT, _fits, _read_folder)


def _shards(folder: Folder) -> list[tuple[Folder, str]]:
    """What the ranks wrote through torch DCP, in the folder or in `sharded` within it."""
    homes = [folder, *(folder.folder(name) for name in folder.folders if name == "sharded")]
    return [(home, name) for home in homes for name in home.files if _SHARD.fullmatch(name)]


def _joined(shards: Iterable[tuple[Folder, str]]) -> Tensors:
    """The tensors of all ranks, put together from their pieces."""
    found = Tensors(ordered=False, notes=[UNCHECKED])
    pieces: dict[str, list[Assembled]] = {}
    ranks = set()
    for folder, name in shards:
        if match := _SHARD.fullmatch(name):
            ranks.add(int(match[1]))
        for tensor, piece in (attempt(found.unread, folder, name, _pieces) or {}).items():
            pieces.setdefault(tensor, []).append(piece)
    gaps = sorted({*range(1, max(ranks, default=0))} - ranks)
    found.unread += [f"shard-{rank:05}-…: it is not there, and what it holds is missing" for rank in gaps]
    for tensor, parts in pieces.items():
        try:
            found.tensors[tensor] = joined([_within(part, parts) for part in parts])
        except ValueError as error:
            found.unread.append(f"{safe_text(tensor)}: {error}")
    return found


def _pieces(source: ByteSource) -> dict[str, Assembled]:
    """The tensors of one rank, each at its place; how large the whole is only all ranks together tell."""
    file = read_safetensors(source)
    info = parsed_json(file.metadata.get(_SHARDING, "{}"), f"{_SHARDING} of {source.name}")
    found = {}
    for name, tensor in file.tensors.items():
        told = info.get(name) if type(info) is dict else None
        start = told.get("saved_offsets") if type(told) is dict else [0] * len(tensor.shape)
        if (
            type(start) is not list
            or len(start) != len(tensor.shape)
            or any(type(at) is not int or at < 0 for at in start)
        ):
            raise Damaged(
                f"{safe_text(name)} has no place in the whole tensor",
                where=f"{source.name}, {_SHARDING}",
                expected="`saved_offsets`, one for each dimension",
                found=safe_text(start, 60),
            )
        shape = tuple(at + length for at, length in zip(start, tensor.shape, strict=True))
        found[name] = Assembled(name, tensor.dtype, shape, [Piece(tuple(start), tensor)])
    return found


def _within(part: Assembled, parts: Iterable[Assembled]) -> Assembled:
    """A piece in a tensor that is as large as all of its pieces together say."""
    shapes = [each.shape for each in parts if len(each.shape) == len(part.shape)]
    return Assembled(part.name, part.dtype, tuple(map(max, zip(*shapes, strict=True))), part.pieces)


# --- what is a weight, what a slot ------------------------------------------------------------------------


def _parts(found: Tensors, note: str = "") -> Parts:
    flattened, rest = take_flattened(found.tensors, optimizer=False)
    optimizers = {owner: _numbered(node) for owner, node in flattened.items()}
    slots, weights = _slots(rest)
    if slots:
        optimizers["slots" if flattened else ""] = {"state": slots, "param_groups": [{"params": list(slots)}]}
    if len(optimizers) == 1:
        optimizers = {"": next(iter(optimizers.values()))}
    metadata = {key: text for key, text in found.metadata.items() if key != _SHARDING}
    return Parts(
        format="torch.save" if found.ordered and found.tensors else FORMAT,
        weights=weights,
        optimizers=optimizers,
        objects={**found.objects, **({"metadata": metadata} if metadata else {})},
        unread=found.unread,
        clues=[_STRIPPED] if weights and not optimizers else [],
        notes=[*([note] if note else []), *found.notes],
    )


_STRIPPED = Clue(
    "M103",
    "there are weights and no tensor of an optimizer: safetensors has no place for a state_dict, so that converting a "
    "checkpoint to it, or publishing a model, leaves the momentum behind",
    "resume from the checkpoint that the run itself saved, which has a file or folder for its optimizer",
)


def _numbered(node: dict[str, Any]) -> dict[str, Any]:
    """An optimizer whose parameters are numbers, as text, with numbers."""
    if not all(name.isdecimal() and len(name) < 10 for name in node["state"]):
        return node
    state = {int(name): entry for name, entry in node["state"].items()}
    return {"state": state, "param_groups": [{"params": sorted(state)}]}


def _slots(tensors: Mapping[str, TensorRef]) -> tuple[dict[str, dict[str, TensorRef]], dict[str, TensorRef]]:
    """The slots of each parameter, and the weights: a slot's name ends with a key that some optimizer keeps."""
    keys = {key for name in known_names() if (spec := by_name(name)) is not None for key in spec.slots}
    slots: dict[str, dict[str, TensorRef]] = {}
    weights: dict[str, TensorRef] = {}
    for name, tensor in tensors.items():
        parameter, key = _cut(name, tensors)
        if parameter and key in keys:
            slots.setdefault(parameter, {})[key] = tensor
        else:
            weights[name] = tensor
    return slots, weights


def _cut(name: str, tensors: Mapping[str, TensorRef]) -> tuple[str, str]:
    """A name as that of a parameter and a key; no parameter where it cannot be one."""
    parameter, _, key = name.rpartition("/")
    if not parameter:
        # A dot also stands before a weight's own name: there the rest must be a weight, which the slot belongs to.
        parameter, _, key = name.rpartition(".")
        parameter = parameter if parameter in tensors else ""
    return parameter, key

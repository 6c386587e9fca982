"""DeepSpeed's folders: under ZeRO the flat vectors of each rank, cut back into the parameters that they are made of.

Stage 0 saves an ordinary optimizer. Stages 1 and 2 lay a group's parameters end to end, cut the vector into one
partition for each rank, and write beside each partition what of which parameter it holds. Stage 3 cuts every
parameter into one piece for each rank and lays a rank's pieces end to end; there only the order of the parameters
tells which is which.

Source: `runtime/engine.py`, `runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`, `utils/zero_to_fp32.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from optstate.errors import NotACheckpoint, Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.zero import MASTER, Rank, cut
from optstate.formats.orders import MODEL_ORDER
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import count, listing, safe_text

_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_?optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(?P<dp>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
_APART = re.compile(r"(?:layer_\d+|expp_rank_\d+).*_states\.pt")
"""Files of pipeline layers and of experts, which hold what the others do not."""

LATEST = "latest"
"""The file beside the tags that names one of them."""


@dataclass(slots=True)
class _Files:
    """The files of one tag: the optimizer's and the model's for each model-parallel rank, by data-parallel rank."""

    optimizer: dict[int, dict[int, str]] = field(default_factory=dict)
    model: dict[int, dict[int, str]] = field(default_factory=dict)
    apart: list[str] = field(default_factory=list)


def fits(folder: Folder) -> bool:
    """Whether this is a folder with tags, or one tag."""
    return _is_tag(folder) or (LATEST in folder.files and holds_tags(folder))


def holds_tags(folder: Folder) -> bool:
    """Whether checkpoints lie in this folder, rather than this being one."""
    return not _is_tag(folder) and any(_is_tag(folder.folder(name)) for name in folder.folders)


def _is_tag(folder: Folder) -> bool:
    return any(_OPTIMIZER.fullmatch(name) or _MODEL.fullmatch(name) for name in folder.files)


def read(folder: Folder) -> Parts:
    """The parts of the tag that `latest` names, or of the one that the folder is.

    Raises `NotACheckpoint` where `latest` names nothing, `Damaged` and `Refused` for what contradicts itself. Files of
    ranks that are missing are told in `unread`, and what they would have held is missing from its tensors.
    """
    tag = folder if _is_tag(folder) else _latest(folder)
    files = _sorted(tag)
    parts = Parts("DeepSpeed", added={MASTER: "master_weights"})
    ranks = sorted({*files.optimizer, *files.model})
    for rank in ranks:
        # A model that is itself cut over ranks has one name for several tensors, one in each.
        label = f"mp_rank_{rank:02d}" if len(ranks) > 1 else ""
        _add(parts, label, _read_rank(tag, files.model.get(rank, {}), files.optimizer.get(rank, {})))
    apart = [f"{safe_text(name)}: a layer or an expert that lies apart, which is not read" for name in files.apart]
    parts.unread = [*parts.unread, *apart]
    return parts


LAYOUT = FolderLayout("DeepSpeed", fits, read)


def _latest(folder: Folder) -> Folder:
    tag = folder.text(LATEST, 4096).strip()
    if tag in folder.folders:
        return folder.folder(tag)
    raise NotACheckpoint(
        f"{folder.name} has no checkpoint of the name that is the latest",
        expected=f"a folder {safe_text(tag)}, as the file `{LATEST}` says",
        found=f"folders {listing(folder.folders)}",
        todo="name the folder of one step",
    )


def _sorted(tag: Folder) -> _Files:
    files = _Files()
    for name in tag.files:
        for pattern, found in ((_OPTIMIZER, files.optimizer), (_MODEL, files.model)):
            if match := pattern.fullmatch(name):
                found.setdefault(int(match["mp"]), {})[int(match["dp"] or 0)] = name
        if _APART.fullmatch(name):
            files.apart.append(name)
    return files


def _add(parts: Parts, label: str, rank: Parts) -> None:
    """Put what one model-parallel rank holds beside that of the others."""
    front = f"{label}." if label else ""
    parts.format = rank.format
    parts.weights = {**parts.weights, **{front + name: tensor for name, tensor in rank.weights.items()}}
    parts.optimizers = {**parts.optimizers, **({label: rank.optimizers[""]} if rank.optimizers else {})}
    parts.certainties = {**parts.certainties, **({label: rank.certainties[""]} if rank.certainties else {})}
    parts.orders = rank.orders
    parts.step = parts.step if rank.step is None else rank.step
    parts.objects = {**parts.objects, **{front + name: node for name, node in rank.objects.items()}}
    parts.unplaced = {**parts.unplaced, **{front + path: value for path, value in rank.unplaced.items()}}
    parts.unread = [*parts.unread, *rank.unread]
    parts.clues = [*parts.clues, *rank.clues]
    parts.notes = list(dict.fromkeys([*parts.notes, *rank.notes]))


def _read_rank(tag: Folder, models: Mapping[int, str], optimizers: Mapping[int, str]) -> Parts:
    """What the ranks of one data-parallel group hold together."""
    about, notes = model_states(tag, models)
    parts = Parts("DeepSpeed", step=_number(about.get("global_steps")), notes=notes)
    shapes = shapes_of(about.get("param_shapes"))
    ranks = [_rank(tag, index, name, notes) for index, name in sorted(optimizers.items())]
    stage = max((rank.stage for rank in ranks), default=0)
    parts.format = f"DeepSpeed ZeRO-{stage}" if ranks else "DeepSpeed"
    parts.weights = weights_of(about)
    objects = {
        key: value for key, value in about.items() if key not in (*_READ, "module") and value not in (None, {}, [])
    }
    if ranks:
        _check_ranks(parts, tag, ranks)
        found = cut(ranks, shapes)
        parts.optimizers, parts.unplaced = {"": found.state_dict}, found.unplaced
        parts.certainties = {"": "file" if found.mapped and not found.mismapped else "rule"}
        parts.clues = [*parts.clues, *_clue_on_mapping(list(found.mismapped))]
        if stage == 3:
            there = {name: tensor for name, tensor in parts.weights.items() if prod(tensor.shape)}
            parts.weights = {**found.masters, **there}
            parts.notes = [*notes, "weights are the fp32 masters: under ZeRO-3 a file of the model holds none"]
    elif is_state_dict(_plain(about.get("optimizer"))):
        parts.optimizers, parts.orders = {"": _with_masters(about["optimizer"])}, (MODEL_ORDER,)
    else:
        parts.clues = [_without_optimizer(tag)]
    notes_on_objects = prune(objects)
    parts.objects, parts.notes = objects, [*parts.notes, *notes_on_objects]
    return parts


_READ = (
    "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "global_steps", "buffer_names",
    "shared_params",
)  # fmt: skip


def model_states(tag: Folder, names: Mapping[int, str]) -> tuple[dict[str, Any], list[str]]:
    """What the model's file says; under ZeRO-3 every rank has one, and they differ in the weights of no elements."""
    for _, name in sorted(names.items()):
        pickled = read_any_pickle(tag.open(name))
        if type(pickled.root) is dict:
            return {str(key): value for key, value in pickled.root.items()}, list(pickled.notes)
        raise Refused(f"{safe_text(tag.path / name)} does not hold a dict", found=type(pickled.root).__name__)
    return {}, [f"no file of the model in {tag.name}"]


def model_file(tag: Folder) -> tuple[dict[str, Any], list[str]]:
    """What the first file of the model in a folder says, and what is to be said of reading it."""
    models = _sorted(tag).model
    return model_states(tag, models[min(models)] if models else {})


def weights_of(about: Mapping[str, Any]) -> dict[str, TensorRef]:
    """The tensors of the module in a file of the model."""
    module = about.get("module")
    if type(module) is not dict:
        return {}
    return {name: tensor for name, tensor in module.items() if type(name) is str and is_tensor(tensor)}


def shapes_of(node: object) -> list[dict[str, tuple[int, ...]]]:
    """`param_shapes`: one dict of name and shape for each group, in the order of the flat vector."""
    groups = node if type(node) is list else [node] if type(node) is dict else []
    found = []
    for group in groups:
        if type(group) is not dict or not all(type(name) is str and _is_shape(size) for name, size in group.items()):
            raise Refused("param_shapes is no list of shapes by name", found=safe_text(type(group).__name__))
        found.append(dict(group))
    return found


def _is_shape(node: object) -> bool:
    return type(node) is tuple and all(type(length) is int and length >= 0 for length in node)


def _rank(tag: Folder, index: int, name: str, notes: list[str]) -> Rank:
    source = tag.open(name)
    pickled = read_any_pickle(source)
    notes += [note for note in pickled.notes if note not in notes]
    node = pickled.root.get("optimizer_state_dict") if type(pickled.root) is dict else None
    if type(node) is not dict:
        raise Refused(f"{source.name} holds no optimizer_state_dict")
    return Rank(index, safe_text(name), node)


def _check_ranks(parts: Parts, tag: Folder, ranks: Sequence[Rank]) -> None:
    """Say which ranks have no file here: their part of every flat vector is nowhere else."""
    expected = max(rank.partitions for rank in ranks)
    missing = sorted(set(range(expected)) - {rank.index for rank in ranks})
    if not missing:
        return
    names = [f"rank {index}" for index in missing]
    parts.unread = [
        *parts.unread,
        f"{count(len(missing), 'file')} of {expected} `*_optim_states.pt` are not in {tag.name}: {listing(names)}",
    ]
    parts.clues = [
        *parts.clues,
        Clue(
            "M118",
            f"{len(missing)} of {expected} ranks have no `*_optim_states.pt` here ({listing(names)}); each rank holds "
            "its own part of every moment",
            "copy the files of all nodes into one folder",
        ),
    ]


def _clue_on_mapping(names: Sequence[str]) -> Iterator[Clue]:
    if names:
        yield Clue(
            "M206",
            f"param_slice_mappings has another place than the flat vectors for {listing(names)}: with "
            "round_robin_gradients DeepSpeed shuffles the vectors and not the mapping",
            "do not convert this checkpoint to the universal format, which goes by the mapping; train without "
            "round_robin_gradients, or load it with DeepSpeed on as many ranks as wrote it",
        )


def _without_optimizer(tag: Folder) -> Clue:
    return Clue(
        "M118",
        f"{tag.name} has the model's file and no `*_optim_states.pt`",
        "under ZeRO every rank writes its own file: copy those of all nodes; save_checkpoint must be called on all ranks",
    )


def _plain(node: object) -> object:
    """Stage 0 wraps the optimizer's own dict in one about loss scaling."""
    return node.get("optimizer_state_dict", node) if type(node) is dict else node


def _with_masters(node: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's own dict, with the fp32 copy of each parameter among its slots."""
    inner = node.get("optimizer_state_dict", node)
    groups = node.get("fp32_groups")
    masters = [tensor for group in groups for tensor in group] if type(groups) is list else []
    keys = [key for group in inner["param_groups"] for key in group["params"]]
    if len(masters) != len(keys) or not all(map(is_tensor, masters)):
        return dict(inner)
    state = {
        key: {**_entry(inner["state"].get(key)), MASTER: master} for key, master in zip(keys, masters, strict=True)
    }
    return {**inner, "state": {**inner["state"], **state}}


def _entry(node: object) -> dict[str, Any]:
    return node if type(node) is dict else {}


def _number(node: object) -> int | None:
    return node if type(node) is int else None

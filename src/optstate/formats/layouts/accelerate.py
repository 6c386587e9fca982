"""The folders that Accelerate's `save_state` writes: one file for each model, optimizer, scheduler and object.

Parameters are in the order in which the program gave them to the optimizer. Which that is no file says; most programs
give the order of the model. Of several optimizers each is paired with a model by its shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from optstate.formats.checkpoint import Clue
from optstate.formats.containers.dcp import is_dcp
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts import deepspeed, fsdp
from optstate.formats.layouts.dcp import read_dcp
from optstate.formats.layouts.gathering import Gathering
from optstate.formats.layouts.hf_model import Model, arranged
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.weights import read_weights, tried
from optstate.formats.orders import USUAL
from optstate.formats.parts import Parts
from optstate.state.tensors import TensorRef

FORMAT = "Accelerate"

_MODEL = re.compile(r"(?:model|pytorch_model|pytorch_model_fsdp)(_\d+)?(?:\.safetensors|\.bin)(?:\.index\.json)?")
_OPTIMIZER = re.compile(r"optimizer(?:_\d+)?\.bin")
_OBJECT = re.compile(
    r"(?:scheduler|sampler|dl_state_dict)(?:_\d+)?\.bin|scaler\.pt|(?:random_states|custom_checkpoint)_\d+\.pkl"
)
_OF_A_RANK = re.compile(r"(?:optimizer|pytorch_model_fsdp).*_rank\d+\.bin")
_IN_PARTS = re.compile(r"(?:optimizer|pytorch_model_fsdp)_\d+")


def fits(folder: Folder) -> bool:
    """Whether `save_state` wrote this folder: whatever else, it writes random states."""
    return bool(folder.matching("random_states_*.pkl"))


def read(folder: Folder) -> Parts:
    """The parts of what `save_state` wrote; what FSDP and DeepSpeed wrote in it is read as theirs.

    A file that cannot be read takes only what is in it: it is told in `unread`.
    """
    got = Gathering(folder, FORMAT)
    models = _models(got)
    for name in folder.files:
        if _OPTIMIZER.fullmatch(name):
            got.optimizer(name, name.removesuffix(".bin"))
        elif _OBJECT.fullmatch(name):
            got.object(name)
    models |= _in_parts(got)
    if not got.optimizers and not any(line.startswith("optimizer") for line in got.unread):
        got.clues.append(_NO_OPTIMIZER)
    got.finish()
    return Parts(
        FORMAT,
        weights=_labelled(models),
        optimizers=got.optimizers,
        certainties=got.certainties,
        orders=USUAL if all(model.order for model in models.values()) else (),
        objects=got.objects,
        unplaced=got.unplaced,
        unread=got.unread,
        clues=got.clues,
        notes=[*got.notes, *prune(got.objects)],
    )


LAYOUT = FolderLayout(FORMAT, fits, read)

_NO_OPTIMIZER = Clue(
    "M118",
    "there is no optimizer.bin: save_state writes one for each optimizer that was given to prepare()",
    "model, optimizer = accelerator.prepare(model, optimizer) before save_state",
)


def _models(got: Gathering) -> dict[str, Model]:
    """Each model by the name of its file."""
    numbers = {match[1] or "": None for name in got.folder.files if (match := _MODEL.fullmatch(name))}
    models: dict[str, Model] = {}
    for number in numbers:
        names = [f"{stem}{number}{kind}" for stem, kind in _KINDS]
        name, found = read_weights(got.folder, *names)
        got.weights(found, name)
        ordered = found.ordered and found.tensors
        models[f"model{number}"] = Model(found.tensors, "as saved") if ordered else arranged(found.tensors)
    return models


_KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"), ("pytorch_model_fsdp", ".bin"))


def _in_parts(got: Gathering) -> dict[str, Model]:
    """Models and optimizers in pieces: DCP folders, files of ranks, folders of DeepSpeed."""
    models: dict[str, Model] = {}
    for name in got.folder.folders:
        inner = got.folder.folder(name)
        parts = None
        if _IN_PARTS.fullmatch(name) and is_dcp(inner):
            parts = got.inner(name, read_dcp, name)
        elif deepspeed.fits(inner):
            parts = got.inner(name, deepspeed.read, name)
        if parts is not None and parts.weights:
            models[name] = Model(parts.weights)
    of_ranks = [name for name in got.folder.files if _OF_A_RANK.fullmatch(name)]
    if of_ranks:
        parts = got.add(tried(got.unread, of_ranks[0], lambda: fsdp.read_ranks(got.folder)), *of_ranks)
        if parts is not None and parts.weights:
            models["model"] = Model(parts.weights)
    return models


def _labelled(models: Mapping[str, Model]) -> Mapping[str, TensorRef]:
    """The weights of all models; the names of several have their model in front."""
    if len(models) == 1:
        return next(iter(models.values())).weights
    return {f"{label}.{name}": tensor for label, model in models.items() for name, tensor in model.weights.items()}

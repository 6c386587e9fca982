"""The model in a folder that transformers or PEFT saved: its weights, in its order as far as that can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optstate.formats.containers.dcp import is_dcp
from optstate.formats.containers.folder import Folder
from optstate.formats.layouts.adapters import ADAPTERS, CONFIG, WRAPPER, live_name
from optstate.formats.layouts.dcp import read_dcp
from optstate.formats.layouts.experts import fused
from optstate.formats.layouts.gathering import Gathering
from optstate.formats.layouts.hf_orders import every_kind, in_model_order
from optstate.formats.layouts.weights import Tensors, read_weights, tried
from optstate.formats.orders import Weight, trained
from optstate.state.tensors import TensorRef
from optstate.text import safe_text

MODELS = ("model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")

BUFFERS = (
    "inv_freq", "original_inv_freq", "masked_bias", "final_logits_bias", "e_score_correction_bias", "layer_scalar",
    "empty_weight", "attn_mask_probs", "cluster_size", "cluster_usage", "embed_avg", "embed_sum", "inited", "initialized",
    "latent_mean", "latent_std", "norm_mean", "norm_std", "slope_rate", "query_decay", "key_decay", "diagonal_decay",
    "vera_A", "vera_B",
)  # fmt: skip
"""What models call tensors that they save, or saved once, and that no optimizer trains."""


@dataclass(frozen=True, slots=True)
class Model:
    """The weights of a model under the names that it trains with.

    `order` says whose order they are in, "" where in none; `known` whether that is certain or only what most models do.
    """

    weights: Mapping[str, TensorRef] = field(default_factory=dict)
    order: str = ""
    known: bool = False


def read_model(got: Gathering) -> Model:
    """The weights in a folder: of the whole model, and of adapters that were trained instead of it."""
    kind, version = _kind(got.json("config.json"))
    found = _whole_model(got)
    if found.ordered and found.tensors:
        return Model(found.tensors, "the order of the model", known=True)
    if found.tensors:
        return arranged(found.tensors, kind, version)
    return _adapters(got, kind, version)


def _whole_model(got: Gathering) -> Tensors:
    name, found = read_weights(got.folder, *MODELS)
    got.weights(found, name)
    shards = [
        each for each in got.folder.folders if each.startswith("pytorch_model_fsdp") and is_dcp(got.folder.folder(each))
    ]
    for each in shards:
        parts = got.inner(each, read_dcp)
        if parts is not None:
            found.tensors |= parts.weights
            found.ordered = False
    return found


def _kind(config: Any) -> tuple[str | None, str]:
    """The model type and the version of transformers; None where neither is stated, "" for a model with code of its own."""
    if type(config) is not dict:
        return None, ""
    kind, version = config.get("model_type"), config.get("transformers_version")
    own = "auto_map" in config or type(kind) is not str
    return "" if own else kind, version if type(version) is str else ""


def arranged(tensors: Mapping[str, TensorRef], kind: str | None = None, version: str = "") -> Model:
    """Weights in the order of the model; experts as one parameter where the model trains them so."""
    for each in (tensors, fused(tensors)):
        names = in_model_order(_parameters(each), kind, version)
        if names is not None:
            whose = f"every {safe_text(kind, 40)} has" if kind else "most models with such modules have"
            return Model({**{name: each[name] for name in names}, **each}, f"the order that {whose}", known=bool(kind))
    return Model(tensors)


def _parameters(tensors: Mapping[str, TensorRef]) -> list[str]:
    weights = trained(Weight(name, tensor) for name, tensor in tensors.items())
    return [weight.name for weight in weights if weight.name.rpartition(".")[2] not in BUFFERS]


def _adapters(got: Gathering, kind: str | None, version: str) -> Model:
    """The parameters of PEFT adapters: of the one in the folder itself, and of others in folders of their names."""
    homes = [("default", got.folder), *((name, got.folder.folder(name)) for name in got.folder.folders)]
    models = [
        _adapter(got, home, name, kind, version) for name, home in homes if any(each in home.files for each in ADAPTERS)
    ]
    if len(models) == 1:
        return models[0]
    return Model({name: tensor for model in models for name, tensor in model.weights.items()})


def _adapter(got: Gathering, home: Folder, adapter: str, kind: str | None, version: str) -> Model:
    """One adapter, under the names that its parameters have while the model trains."""
    config = tried(got.unread, CONFIG, lambda: home.json(CONFIG)) if CONFIG in home.files else None
    config = config if type(config) is dict else {}
    file, found = read_weights(home, *ADAPTERS)
    got.weights(found, file if home is got.folder else adapter)
    model = arranged(_without_wrapper(found.tensors), kind or _base(config), version)
    saved = config.get("modules_to_save")
    saved = [each for each in saved if type(each) is str] if type(saved) is list else []
    weights = {
        live_name(name if name in found.tensors else WRAPPER + name, saved, adapter): tensor
        for name, tensor in model.weights.items()
    }
    return Model(weights, model.order, model.known)


def _without_wrapper(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    return {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}


def _base(config: Mapping[str, Any]) -> str | None:
    """The model type of the model that an adapter is for, where the file tells its class."""
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if type(mapping) is dict else None
    parts = library.split(".") if type(library) is str else []
    if parts[:2] != ["transformers", "models"] or len(parts) < 3:
        return None
    return parts[2] if parts[2] in every_kind() else parts[2].replace("_", "-")  # a folder has no hyphens

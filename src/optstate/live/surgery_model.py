"""Where parameters are in a model, and putting others there: every name of one at once, and what a layer says of its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from optstate.errors import EditError
from optstate.live.transaction import Transaction
from optstate.live.unwrap import unwrap_module, walk
from optstate.optimizers.row_map import RowMap, gathered
from optstate.text import safe_text

# Class → parameter → for each of its dimensions the attribute that says its size.
_SIZES: Mapping[type[nn.Module], Mapping[str, tuple[str, ...]]] = {
    nn.Linear: {"weight": ("out_features", "in_features")},
    nn.Bilinear: {"weight": ("out_features", "in1_features", "in2_features")},
    nn.Embedding: {"weight": ("num_embeddings", "embedding_dim")},
    nn.EmbeddingBag: {"weight": ("num_embeddings", "embedding_dim")},
    nn.Conv1d: {"weight": ("out_channels", "in_channels")},
    nn.Conv2d: {"weight": ("out_channels", "in_channels")},
    nn.Conv3d: {"weight": ("out_channels", "in_channels")},
    nn.PReLU: {"weight": ("num_parameters",)},
    nn.LayerNorm: {"weight": ("normalized_shape",)},
    nn.RMSNorm: {"weight": ("normalized_shape",)},
    nn.GroupNorm: {"weight": ("num_channels",)},
    _NormBase: {"weight": ("num_features",)},
}

_STATISTICS = {"running_mean": 0.0, "running_var": 1.0}
"""What normalisations keep for each channel beside their weight, and what they begin with."""


def holders(model: nn.Module, tensor: torch.Tensor) -> list[tuple[nn.Module, str]]:
    """Every module of the model that has this parameter, and as which attribute; each once."""
    found = {
        (id(module), name): (module, name)
        for _, module in walk(model)
        for name, each in module._parameters.items()
        if each is tensor
    }
    return list(found.values())


def put(
    transaction: Transaction, model: nn.Module, old: torch.Tensor, new: torch.Tensor | None, rows: RowMap | None = None
) -> None:
    """Put a parameter, or None, wherever the model has another; statistics of its channels follow the map of its rows."""
    for module, name in holders(model, old):
        put_at(transaction, module, name, new)
        if rows is not None and isinstance(module, _NormBase) and name == "weight":
            _map_statistics(transaction, module, rows)


def _map_statistics(transaction: Transaction, module: nn.Module, rows: RowMap) -> None:
    kept = {name: value for name in _STATISTICS if (value := module._buffers.get(name)) is not None}
    transaction.on_rollback(lambda: module._buffers.update(kept))
    for name, value in kept.items():
        start = value.new_full((len(rows.new),), _STATISTICS[name]) if len(rows.new) else None
        module._buffers[name] = gathered(value, rows, start)


def put_at(transaction: Transaction, module: nn.Module, name: str, new: torch.Tensor | None) -> None:
    """Make it this attribute of a module, at the attribute's place; recurrent layers hold a list of theirs besides."""
    old = module._parameters.get(name)
    sizes = dict(_sizes(module, name, old, new))
    held = {key: getattr(module, key) for key in sizes}
    before = dict(module._parameters)

    def put_back() -> None:
        if name in before:
            setattr(module, name, before[name])  # which recurrent layers hear of
        module._parameters.clear()
        module._parameters.update(before)
        vars(module).update(held)

    transaction.on_rollback(put_back)
    setattr(module, name, new)
    vars(module).update(sizes)


def _sizes(
    module: nn.Module, name: str, old: torch.Tensor | None, new: torch.Tensor | None
) -> Iterator[tuple[str, Any]]:
    """What attributes say of a size that changes: those that say what it was."""
    table = next((table for cls, table in _SIZES.items() if isinstance(module, cls)), {})
    if old is None or new is None or old.dim() != new.dim():
        return
    for attribute, before, after in zip(table.get(name, ()), old.shape, new.shape, strict=False):
        said = getattr(module, attribute, None)
        if before != after and said in (before, (before,)):
            yield attribute, (after,) if isinstance(said, tuple) else after


def rename(transaction: Transaction, model: nn.Module, old: str, new: str) -> None:
    """Give a parameter, or with a trailing dot a submodule, another dotted name; within its module at its place.

    Raises `EditError` where there is no such thing, or something already at the new name.
    """
    whole = old.endswith(".")
    source, name = place(model, old.rstrip("."))
    target, called = place(model, new.rstrip("."))
    here: dict[str, Any] = source._modules if whole else source._parameters
    there: dict[str, Any] = target._modules if whole else target._parameters
    if here.get(name) is None:
        raise EditError(f"there is no {'module' if whole else 'parameter'} {safe_text(old)!r} in the model")
    if hasattr(target, called) and getattr(target, called) is not None:
        raise EditError(f"there is a {safe_text(new)!r} in the model already", todo="remove it, or take another name")
    keep(transaction, here)
    keep(transaction, there)
    if source is target:
        items = {called if key == name else key: value for key, value in here.items() if key != called}
        here.clear()
        here.update(items)
    else:
        there[called] = here.pop(name)


def keep(transaction: Transaction, container: Any) -> None:
    """Keep what is in a list or mapping, in its order."""
    before = container.copy()

    def put_back() -> None:
        container.clear()
        container.extend(before) if isinstance(before, list) else container.update(before)

    transaction.on_rollback(put_back)


def place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a dotted name is in, and the attribute. Raises `EditError` where there is no such module."""
    module = unwrap_module(model)
    *path, last = name.split(".")
    for depth, segment in enumerate(path):
        child = module._modules.get(segment)
        if child is None:
            raise EditError(
                f"there is no module {safe_text('.'.join(path[: depth + 1]))!r} in the model",
                found=f"modules: {', '.join(map(safe_text, module._modules)) or 'none'}",
                where=safe_text(name),
            )
        module = unwrap_module(child)
    return module, last

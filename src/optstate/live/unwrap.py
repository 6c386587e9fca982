"""Seeing through wrappers by their type, never by an attribute's name: a real submodule may be called `module`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError
from optstate.optimizers.registry import qualified_name
from optstate.text import safe_text

# Qualified class → the child that is the module the user wrote. By name, so that none of them is imported.
_MODULE_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
}

# Qualified class → the attribute that holds the optimizer that really steps.
_OPTIMIZER_WRAPPERS = {
    "accelerate.optimizer.AcceleratedOptimizer": "optimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer": "_optimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer": "_optimizer",
    "lightning.fabric.wrappers._FabricOptimizer": "_optimizer",
    "lightning_fabric.wrappers._FabricOptimizer": "_optimizer",
}


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module that the user wrote, beneath any compile, parallel and checkpoint wrappers."""
    while (inner := _wrapped_child(type(module))) is not None:
        module = getattr(module, inner)
    return module


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The `torch.optim.Optimizer` that steps. Raises `BindError` for anything else."""
    while (inner := _lookup(type(optimizer), _OPTIMIZER_WRAPPERS)) is not None:
        optimizer = getattr(optimizer, inner)
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    raise BindError(
        "this is not an optimizer",
        expected="a torch.optim.Optimizer, a known wrapper of one, or a mapping of names to them",
        found=f"a {safe_text(qualified_name(type(optimizer)))}",
        todo="pass the optimizer that your training loop steps, then the model",
    )


_SEEN: dict[type, str | None] = {}  # a model has thousands of modules, but few classes of them


def _wrapped_child(cls: type) -> str | None:
    if cls not in _SEEN:
        _SEEN[cls] = _lookup(cls, _MODULE_WRAPPERS)
    return _SEEN[cls]


def _lookup(cls: type, wrappers: Mapping[str, str]) -> str | None:
    return next((wrappers[name] for name in map(qualified_name, cls.__mro__) if name in wrappers), None)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module beneath `model` with its prefix ("" or ending in a dot), in torch's own order.

    Wrappers leave no trace in the prefix. A module reached by two paths comes twice, under both.
    """
    yield from _walk("", unwrap_module(model), frozenset())


def _walk(prefix: str, module: nn.Module, above: frozenset[int]) -> Iterator[tuple[str, nn.Module]]:
    yield prefix, module
    above = above | {id(module)}
    for name, child in module._modules.items():
        if child is None:
            continue
        if _wrapped_child(type(child)) is not None:
            child = unwrap_module(child)
        if not child._modules:  # most modules are leaves: no generator for those
            yield f"{prefix}{name}.", child
        elif id(child) not in above:  # torch allows a module that contains itself
            yield from _walk(f"{prefix}{name}.", child, above)


def find(model: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter that `name` leads to now, or None."""
    module: nn.Module | None = unwrap_module(model)
    *path, last = name.split(".")
    for segment in path:
        child = module._modules.get(segment) if module is not None else None
        module = unwrap_module(child) if child is not None else None
    return module._parameters.get(last) if module is not None else None

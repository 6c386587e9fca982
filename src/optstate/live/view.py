"""`attach`: a running optimizer as an `OptimizerState` that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError
from optstate.live.source import LiveSource
from optstate.live.state import LiveState
from optstate.live.unwrap import unwrap_optimizer
from optstate.optimizers.registry import qualified_name
from optstate.text import listing, safe_text


def attach(optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer], model: nn.Module) -> LiveState:
    """The state of a running optimizer, by the model's parameter names.

    `optimizer` is one optimizer or a mapping of names to several over the same model. The result is a view:
    nothing is copied, nothing is created in `optimizer.state`, nothing steps, and it follows every later
    step, load and change of groups or modules. Wrappers (torch.compile, DDP, Accelerate, Lightning) are seen
    through. Parameters of the model in no optimizer, and the reverse, are in `left_out`.

    Raises `BindError` when an argument is not what it should be or a parameter is in two optimizers.

    >>> state = optstate.attach(optimizer, model)
    >>> state["0.weight"].momentum.shape
    (8, 4)
    """
    source = LiveSource(optimizers_by_name(optimizer), checked_model(model))
    source.bind()  # now, so that what cannot be bound is said here
    return LiveState(source)


def optimizers_by_name(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """One optimizer, or several by name, without their wrappers. A single one has the name ""."""
    if not isinstance(optimizer, Mapping):
        return {"": unwrap_optimizer(optimizer)}
    if not optimizer:
        raise BindError("the mapping of optimizers is empty", expected='such as {"muon": o1, "adamw": o2}')
    strange = [name for name in optimizer if not isinstance(name, str) or not name]
    if strange:
        raise BindError("optimizers are named by non-empty strings", found=listing(strange))
    return {name: unwrap_optimizer(item) for name, item in optimizer.items()}


def checked_model(model: Any) -> nn.Module:
    """`model`, or a `BindError` when it is not a module."""
    if isinstance(model, nn.Module):
        return model
    raise BindError(
        "this is not a model",
        expected="a torch.nn.Module",
        found=f"a {safe_text(qualified_name(type(model)))}",
        todo="the optimizer comes first, then the model: attach(optimizer, model)",
    )

"""The small programs that specimens are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[[Iterable[Tensor]], Optimizer]


def net(size: int = 4, bias: bool = False) -> nn.Sequential:
    """Two layers of one shape, `0.weight` and `1.weight`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size, bias), nn.Linear(size, size, bias))


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> Optimizer:
    """Ordinary training steps."""
    size = next(model.parameters()).shape[-1]
    for number in range(steps):
        torch.manual_seed(100 + number)
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        model(torch.randn(3, size, dtype=dtype)).pow(2).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def push(optimizer: Optimizer, gradient: float = 1.0, steps: int = 1) -> Optimizer:
    """Steps with one constant gradient for every element."""
    for _ in range(steps):
        for parameter in members(optimizer):
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def members(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def trained(build: Any, steps: int = 3) -> tuple[nn.Sequential, Any]:
    """A model and an optimizer that has stepped over it."""
    model = net()
    return model, train(model, build(model.parameters()), steps)


def taken(optimizer: Optimizer) -> dict[str, Any]:
    """The state dict, copied, as a file would hold it."""
    return copy.deepcopy(optimizer.state_dict())


def saved(model: nn.Module | None = None, optimizer: Any = None, **more: Any) -> Path:
    """A file as most programs write it; `optimizer` is one, or a dict to be saved as it is."""
    path = Path("checkpoint.pt")
    state = optimizer.state_dict() if isinstance(optimizer, Optimizer) else optimizer
    torch.save({"model": model.state_dict()} | {"optimizer": state} | more if model else state, path)
    return path


def moved(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """How far one step with a gradient of one moves a parameter, at most."""
    before = parameter.detach().clone()
    push(optimizer)
    return (parameter.detach() - before).abs().max()


def held(*modules: nn.Module | nn.Parameter) -> nn.Module:
    """A model of loose parts."""
    whole = nn.Module()
    for index, part in enumerate(modules):
        setattr(whole, f"part{index}", part)
    return whole

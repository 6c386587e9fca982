"""Small running programs: a model, and every optimizer of torch over it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer, RMSprop

OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    "SGD": lambda parameters: SGD(parameters, 0.1, 0.9),
    "SGD without momentum": lambda parameters: SGD(parameters, 0.1),
    "RMSprop": lambda parameters: RMSprop(parameters, 0.01, momentum=0.9, centered=True),
    "RMSprop without momentum": lambda parameters: RMSprop(parameters, 0.01),
    "Adam with amsgrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, 0.1, max_iter=3, history_size=3),
    **{
        name: getattr(torch.optim, name)
        for name in (
            "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "Rprop", "ASGD", "Adafactor", "Muon",
            "SparseAdam",
        )
    },
}  # fmt: skip


def matrices(size: int = 4, seed: int = 0) -> nn.Sequential:
    """Two parameters of one shape, which nothing but their names and values tells apart."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False))


def step(optimizer: Optimizer, times: int = 1, seed: int = 1) -> Optimizer:
    """Steps with gradients of its own for each parameter, gone afterwards."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for _ in range(times):
        for each in parameters:
            grad = torch.randn(each.shape, generator=generator).to(each.dtype)
            each.grad = grad.to_sparse() if type(optimizer) is torch.optim.SparseAdam else grad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if type(optimizer) is torch.optim.LBFGS:
                optimizer.step(lambda: sum((each**2).sum() for each in parameters))
            else:
                optimizer.step()
    optimizer.zero_grad()
    return optimizer


def trained(name: str, model: nn.Module | None = None, times: int = 3) -> tuple[nn.Module, Optimizer]:
    """A model and an optimizer that has stepped over it."""
    model = model or matrices()
    return model, step(OPTIMIZERS[name](model.parameters()), times)

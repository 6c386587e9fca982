"""The training state that is measured: blocks of linear layers under AdamW, after one step."""

from __future__ import annotations

import sys

import torch
from torch import nn

BYTES_PER_PARAMETER = 12  # a float32 weight and two moments


def training(megabytes: int, seed: int = 0) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model and its optimizer with about `megabytes` of weights and moments, in about 100 tensors or more."""
    torch.manual_seed(seed)
    per_layer = max(megabytes * 1_000_000 // BYTES_PER_PARAMETER // 50, 64)
    width = int(per_layer**0.5)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(50)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def many(count: int, elements: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model of so many parameters of so many elements, and its optimizer, after one step."""
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(elements) for _ in range(count)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def state_nbytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all weights and slots."""
    slots = [slot for entry in optimizer.state.values() for slot in entry.values()]
    return sum(tensor.nbytes for tensor in [*model.parameters(), *slots])


def main() -> None:
    """`python -m bench.training FILE MEGABYTES ...`: states as most people save them, one file after the other."""
    for path, megabytes in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        model, optimizer = training(int(megabytes))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, path)


if __name__ == "__main__":
    main()

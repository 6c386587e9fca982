"""Making genuine torch files: a small model that has really trained, and the register of faults put into its file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

State = dict[str, Any]


def net(width: int = 4, bias: bool = True) -> nn.Sequential:
    """Two layers of one shape."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width, bias), nn.Linear(width, width, bias))


def trained(
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    steps: int = 3,
    model: nn.Module | None = None,
    named: bool = True,
    **options: Any,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and an optimizer after real steps; the optimizer knows the parameters' names."""
    model = net() if model is None else model
    optimizer = kind(list(model.named_parameters()) if named else list(model.parameters()), **options)
    step(model, optimizer, steps)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    """Train on data that depends on nothing but the number of the step."""
    first = next(model.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(torch.randn(3, first.shape[-1], dtype=first.dtype)).pow(2).mean()
        value.backward()
        return value

    for number in range(steps):
        torch.manual_seed(number)
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


def contents(model: nn.Module, optimizer: torch.optim.Optimizer, at: int | None = 3, **more: Any) -> State:
    """What a program saves, in memory of its own."""
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **({} if at is None else {"step": at})}
    return copy.deepcopy({**saved, **more})


def adamw(at: int | None = 3, **options: Any) -> State:
    """The file of a healthy AdamW."""
    return contents(*trained(**options), at=at)


def entries(saved: State) -> list[State]:
    """The state of each parameter, to be changed."""
    return list(saved["optimizer"]["state"].values())


@dataclass(frozen=True)
class Fault:
    """How the file, or the earlier and the later one, with a fault are made, and what else is found in it."""

    code: str
    make: Callable[[Path], Path | tuple[Path, Path]]
    also: frozenset[str]
    two: bool = False

    @property
    def label(self) -> str:
        return f"{self.code}-{self.make.__name__.strip('_')}"


FAULTS: list[Fault] = []


def fault(code: str, *also: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register what makes a fault: it returns what to save, or a pair of an earlier and a later state to save."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        def write(folder: Path) -> Path | tuple[Path, Path]:
            made = make()
            if isinstance(made, tuple):
                one, other = (
                    save(folder / name, each) for name, each in zip(("earlier.pt", "later.pt"), made, strict=True)
                )
                return one, other
            return save(folder / "file.pt", made)

        write.__name__ = make.__name__
        FAULTS.append(Fault(code, write, frozenset(also), two="tuple" in make.__annotations__["return"]))
        return make

    return register


def folder_fault(code: str, *also: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Register what writes its file or folder itself."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        FAULTS.append(Fault(code, make, frozenset(also)))
        return make

    return register


def save(path: Path, saved: object) -> Path:
    torch.save(saved, path)
    return path


def scheduled(scheduler: Callable[..., Any], optimizer: Any = torch.optim.AdamW, **options: Any) -> State:
    """A run whose scheduler has stepped, saved whole."""
    model, made = trained(optimizer, steps=0, lr=0.1, **options)
    schedule = scheduler(made)
    for _ in range(3):
        step(model, made)
        schedule.step()
    return contents(model, made, scheduler=schedule.state_dict())


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)

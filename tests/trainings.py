"""A small training with everything that a resume can get wrong: dropout, a scheduler, shuffled data, random state."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import torch
from torch import nn

from optstate.resume.checkpointer import Checkpointer

BATCHES = 5
"""Batches in an epoch."""


class Loader:
    """Batches in an order that is drawn anew for each epoch, and that can be gone on with in the middle."""

    def __init__(self) -> None:
        self.data = torch.arange(20.0).reshape(BATCHES, 4) / 20
        self.order: list[int] = []
        self.position = BATCHES

    def next(self) -> torch.Tensor:
        """The next batch, with some noise."""
        if self.position == BATCHES:
            self.order, self.position = torch.randperm(BATCHES).tolist(), 0
        self.position += 1
        return self.data[self.order[self.position - 1]] + torch.rand(4) / 100

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = list(state["order"]), state["position"]


class Training:
    """Model, optimizer, scheduler and loader, always the same at first."""

    def __init__(self, width: int = 8) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.4), nn.Linear(width, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=1000)
        self.loader: Any = Loader()

    def checkpointer(self, directory: Any, **options: Any) -> Checkpointer:
        """A checkpointer of all of it."""
        parts = {"scheduler": self.scheduler, "loader": self.loader, **options}
        return Checkpointer(directory, model=self.model, optimizer=self.optimizer, **parts)

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        batch = torch.stack([self.loader.next(), self.loader.next()])
        self.model(batch).square().sum().backward()
        self.optimizer.step()
        self.scheduler.step()

    def go(self, loop: Generator[int, None, None], also: Callable[[int], object] = lambda step: None) -> None:
        """Train for the steps of a loop; `also` is done in each before the training."""
        with closing(loop):  # which a traceback would keep alive, and the handlers of its signals with it
            for step in loop:
                also(step)
                self.step()

    def digest(self) -> str:
        """All bits that a resume has to bring back, and the next random number."""
        state = self.optimizer.state_dict()["state"]
        tensors = [*self.model.state_dict().values(), *(value for entry in state.values() for value in entry.values())]
        before = torch.get_rng_state()
        drawn = torch.rand(2)
        torch.set_rng_state(before)
        raw = [value.detach().numpy().tobytes().hex() for value in (*tensors, drawn)]
        return repr([raw, sorted(map(repr, self.scheduler.state_dict().items())), self.loader.state_dict()])


def uninterrupted(total: int) -> str:
    """What a training is after so many steps, without any checkpointer."""
    training = Training()
    for _ in range(total):
        training.step()
    return training.digest()

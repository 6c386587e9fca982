"""Runs: trained to the cut, then on from there in each way, on the same batches with the same dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch

from study.arms import Arm, Cut
from study.tasks import Task

STEPS = 300
"""Steps after the cut."""

LOOKS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300)
"""After which of them the held-out loss is measured."""

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.01),
}


class Key(NamedTuple):
    """What a run is: every run with the same key gives the same losses on one machine."""

    task: str
    optimizer: str
    seed: int
    arm: str


def start(task: Task, optimizer: str, seed: int) -> Cut:
    """A model trained to the cut."""
    torch.manual_seed(seed)
    model = task.build()
    made = OPTIMIZERS[optimizer](model.parameters(), lr=task.rates[optimizer])
    cut = Cut(task, model, made, _generator(seed, 2))
    batches = _generator(seed, 0)
    for step in range(task.before):
        _step(cut, batches, seed, step)
    return cut


def go_on(at: Cut, seed: int, arm: Arm, looks: Iterable[int] = LOOKS) -> dict[int, float]:
    """The held-out loss by steps after the cut; `at` is left as it is."""
    model, optimizer = copy.deepcopy((at.model, at.optimizer))  # together: the state is keyed by the parameters
    data = torch.Generator()
    data.set_state(at.data.get_state())
    cut = Cut(at.task, model, optimizer, data)
    torch.manual_seed(seed)  # dropout of a rebuild
    arm.change(cut)
    return dict(_looks(cut, seed, arm.warmup, tuple(looks)))


def _looks(cut: Cut, seed: int, warmup: int, looks: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    batches, rate = _generator(seed, 1), cut.optimizer.param_groups[0]["lr"]
    held_out = cut.task.draw(cut.task.held_out, _generator(seed, 3), True)
    for step in range(max(looks) + 1):
        if step in looks:
            yield step, _held_out(cut, held_out)
        cut.optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / max(warmup, 1))
        _step(cut, batches, seed, cut.task.before + step)


def _held_out(cut: Cut, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    cut.model.eval()
    with torch.no_grad():
        loss = cut.task.loss(cut.model, batch).item()
    cut.model.train()
    return loss


def _step(cut: Cut, batches: torch.Generator, seed: int, step: int) -> None:
    torch.manual_seed(seed * 1_000_003 + step)  # dropout
    cut.optimizer.zero_grad()
    cut.task.loss(cut.model, cut.task.draw(cut.task.batch, batches, False)).backward()
    cut.optimizer.step()


def _generator(seed: int, stream: int) -> torch.Generator:
    """Random numbers of one purpose: training before and after the cut, a rebuild, what is held out."""
    return torch.Generator().manual_seed(seed * 4 + stream)

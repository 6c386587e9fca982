"""What becomes of the optimizer state at the cut: each loss and each cure, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import optstate
from study.rounding import through_bfloat16, through_dynamic_codes, through_linear_codes
from study.tasks import Task


@dataclass(frozen=True, slots=True)
class Cut:
    """A run where its state is lost. `data` draws batches that the run does not see afterwards."""

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: torch.Generator

    def closure(self) -> torch.Tensor:
        """Forward and backward on a new batch."""
        loss = self.task.loss(self.model, self.task.draw(self.task.batch, self.data, False))
        loss.backward()
        return loss


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to go on: what it is in words, what it does to the state, and over how many steps the rate then rises.

    `adam`: it means something only where there are two moments and a count.
    """

    words: str
    change: Callable[[Cut], object]
    warmup: int = 0
    adam: bool = False


def nothing(_: Cut) -> None:
    """The state as it was."""


def dropped(cut: Cut) -> None:
    """An optimizer that never stepped."""
    cut.optimizer.state.clear()


def zeroed(cut: Cut, key: str) -> None:
    """One slot zero, everything beside it as it was."""
    for entry in cut.optimizer.state.values():
        entry[key].zero_()


def counted_anew(cut: Cut) -> None:
    """The step count at zero beside moments that stay."""
    for entry in cut.optimizer.state.values():
        entry["step"].zero_()


def rounded(cut: Cut, rounding: Callable[..., torch.Tensor]) -> None:
    """Every moment through another representation."""
    for entry in cut.optimizer.state.values():
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if key in entry:
                entry[key].copy_(rounding(entry[key], signed=key != "exp_avg_sq"))


def halved(cut: Cut) -> None:
    """Momentum times one half."""
    optstate.attach(cut.optimizer, cut.model).select("*").momentum.scale_(0.5)


def swapped(cut: Cut) -> None:
    """The moments of two layers of one shape exchanged, as loading by position does."""
    one, other = cut.task.alike
    parameters = dict(cut.model.named_parameters())
    state = cut.optimizer.state
    for name in (name for name in parameters if name.startswith(one)):
        pair = parameters[name], parameters[other + name.removeprefix(one)]
        state[pair[0]], state[pair[1]] = state[pair[1]], state[pair[0]]


def rebuilt(cut: Cut, batches: int, **options: Any) -> None:
    """Lost, and estimated anew at the weights of the cut."""
    dropped(cut)
    optstate.rebuild(cut.optimizer, cut.model, cut.closure, batches=batches, **options)


ARMS: Mapping[str, Arm] = {
    "full restore": Arm("nothing is lost", nothing),
    "cold start": Arm("all is lost", dropped),
    "cold start, warm-up": Arm("all is lost, and the learning rate rises over 50 steps", dropped, warmup=50),
    "momentum only": Arm("second moments zero, step count kept", partial(zeroed, key="exp_avg_sq"), adam=True),
    "second moment only": Arm("momentum zero, step count kept", partial(zeroed, key="exp_avg"), adam=True),
    "step reset": Arm("step count zero, both moments kept", counted_anew, adam=True),
    "bf16": Arm("moments rounded through bfloat16", partial(rounded, rounding=through_bfloat16)),
    "8-bit dynamic": Arm("moments through dynamic codes in blocks", partial(rounded, rounding=through_dynamic_codes)),
    "8-bit linear": Arm("moments through even levels of a tensor", partial(rounded, rounding=through_linear_codes)),
    "halved": Arm("momentum times 0.5", halved),
    "swapped": Arm("the moments of two layers exchanged", swapped),
    "rebuild": Arm("`rebuild` as it comes, 30 batches", partial(rebuilt, batches=30)),
    "measured, k=10": Arm(
        "the measured moments as they are, 10 batches", partial(rebuilt, batches=10, momentum=1.0, trust=10)
    ),
    "measured, k=30": Arm("the same, 30 batches", partial(rebuilt, batches=30, momentum=1.0, trust=30)),
    "measured, k=100": Arm("the same, 100 batches", partial(rebuilt, batches=100, momentum=1.0, trust=100)),
}

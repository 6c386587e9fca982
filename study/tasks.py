"""Two real tasks that one core trains in minutes: bytes of Python's standard library, and handwritten digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional

from demo.data import corpus
from demo.model import GPT
from demo.settings import Settings

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model, its data, and for how long it was trained before its optimizer state is lost.

    `draw` takes a batch of so many examples by a generator, from what is trained on or from what is held out; `rates` are the
    learning rates by optimizer, each the best of a few for the loss at the cut; `alike` are two layers of one
    shape; `seeds` is how often the whole is done.
    """

    name: str
    unit: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator, bool], Batch]
    batch: int
    held_out: int
    before: int
    rates: Mapping[str, float]
    alike: tuple[str, str]
    seeds: int

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The mean cross entropy of a batch."""
        inputs, targets = batch
        return functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


# --- language ---------------------------------------------------------------------------------------------------

_GPT = Settings(width=64, layers=1, heads=2, context=32, batch=8, steps=0, warmup=0, save_every=1, kill_at=0)


@cache
def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on, and the last tenth, which is held out."""
    text = corpus()
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def _windows(count: int, generator: torch.Generator, held_out: bool) -> Batch:
    text = _texts()[held_out]
    starts = torch.randint(len(text) - _GPT.context - 1, (count,), generator=generator)
    windows = torch.stack([text[start : start + _GPT.context + 1] for start in starts.tolist()]).long()
    return windows[:, :-1], windows[:, 1:]


# --- digits -----------------------------------------------------------------------------------------------------


@cache
def _digits() -> tuple[Batch, Batch]:
    """1,797 images of 8 × 8: three quarters to train on, the rest held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32)[order] / 16.0
    targets = torch.tensor(labels, dtype=torch.int64)[order]
    cut = len(order) * 3 // 4
    return (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])


def _images(count: int, generator: torch.Generator, held_out: bool) -> Batch:
    inputs, targets = _digits()[held_out]
    chosen = torch.randint(len(targets), (count,), generator=generator)
    return inputs[chosen], targets[chosen]


def _perceptron() -> nn.Module:
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1)]
    layers += [nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


TASKS: Mapping[str, Task] = {
    "language": Task(
        "language",
        "nats per byte",
        lambda: GPT(_GPT),
        _windows,
        batch=_GPT.batch,
        held_out=32,
        before=300,
        rates={"SGD": 0.1, "AdamW": 1e-3},
        alike=("blocks.0.attention.query.", "blocks.0.attention.key."),
        seeds=5,
    ),
    "digits": Task(
        "digits",
        "nats per image",
        _perceptron,
        _images,
        batch=16,
        held_out=450,
        before=60,
        rates={"SGD": 0.05, "AdamW": 2e-3},
        alike=("3.", "5."),
        seeds=12,
    ),
}

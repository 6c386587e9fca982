"""A training run: model, optimizer, scheduler and data, and one step of it. Nothing here knows of checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from demo.data import batch, corpus
from demo.model import GPT, PROJECTIONS
from demo.settings import Settings


@dataclass(frozen=True, slots=True)
class Run:
    """What a training loop holds."""

    settings: Settings
    model: GPT
    optimizer: torch.optim.AdamW
    scheduler: LambdaLR
    text: torch.Tensor


def build(settings: Settings, projections: Sequence[str] = PROJECTIONS) -> Run:
    """A run before its first step."""
    model = GPT(settings, projections)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
    )
    return Run(settings, model, optimizer, LambdaLR(optimizer, _warmup_then_cosine(settings)), corpus())


def _warmup_then_cosine(settings: Settings) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        done = (step - settings.warmup) / (settings.steps - settings.warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    return factor


def seed(settings: Settings) -> None:
    """Start every random generator of the process at the same place, and fix the number of threads."""
    torch.set_num_threads(settings.threads)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)


def train_step(run: Run) -> float:
    """One step on a random batch; returns its loss."""
    tokens, following = batch(run.text, run.settings.batch, run.settings.context)
    logits = run.model(tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), following.flatten())
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.scheduler.step()
    return loss.item()

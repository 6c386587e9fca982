"""Ways to save and restore a training: what is put to the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from optstate.live.view import optimizers_by_name
from optstate.proof.training import Training
from optstate.resume.plan import restore
from optstate.store.save import save


def save_ours(training: Training, path: Path) -> None:
    """`optstate.save` of everything."""
    save(path, model=training.model, optimizer=training.optimizer, rng=True, **training.saved())


def load_ours(training: Training, path: Path) -> None:
    """`optstate.restore` of everything."""
    restore(path, model=training.model, optimizer=training.optimizer, rng=True, **training.saved())


def save_torch(training: Training, path: Path) -> None:
    """`torch.save` of every `state_dict`, as most scripts have it: random states are not among them."""
    torch.save({name: item.state_dict() for name, item in _stateful(training).items()}, path)


def load_torch(training: Training, path: Path) -> None:
    """`load_state_dict` of each."""
    saved = torch.load(path, weights_only=False)  # this very run wrote it
    for name, item in _stateful(training).items():
        item.load_state_dict(saved[name])


def _stateful(training: Training) -> dict[str, Any]:
    optimizers = {f"optimizer {name}".rstrip(): each for name, each in optimizers_by_name(training.optimizer).items()}
    return {"model": training.model, **optimizers, **training.saved()}


BUILT_IN: Mapping[str, tuple[Callable[[Training, Path], None], Callable[[Training, Path], None]]] = {
    "optstate": (save_ours, load_ours),
    "torch": (save_torch, load_torch),
}
"""How to save, and how to restore, by name."""

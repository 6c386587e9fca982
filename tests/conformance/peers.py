"""How others save and restore a training, each as its documentation has it.

The random states are kept by all of them: Accelerate does so itself, beside the others they are put here, as a careful
script would. What differs afterwards is not a forgotten generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optstate.proof.training import Training
from optstate.store.objects import RandomState

RANDOM = "random states"


def optimizers_of(training: Training) -> dict[str, torch.optim.Optimizer]:
    """By name; "optimizer" where there is only one."""
    several = training.optimizer
    return dict(several) if isinstance(several, Mapping) else {"optimizer": several}


def save_torch(training: Training, path: Path) -> None:
    """`torch.save` of every `state_dict`."""
    parts = {"model": training.model, **optimizers_of(training), **training.saved(), RANDOM: RandomState()}
    torch.save({name: each.state_dict() for name, each in parts.items()}, path)


def load_torch(training: Training, path: Path) -> None:
    """`load_state_dict` of each."""
    saved = torch.load(path, weights_only=False)
    parts = {"model": training.model, **optimizers_of(training), **training.saved(), RANDOM: RandomState()}
    for name, each in parts.items():
        each.load_state_dict(saved[name])


def save_dcp(training: Training, path: Path) -> None:
    """`torch.distributed.checkpoint` of what `get_state_dict` gives; the other objects by `torch.save`."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model, optimizers = get_state_dict(training.model, list(optimizers_of(training).values()))
    save({"model": model, "optimizers": optimizers}, checkpoint_id=path / "dcp", no_dist=True)
    rest = {**training.saved(), RANDOM: RandomState()}
    torch.save({name: each.state_dict() for name, each in rest.items()}, path / "rest.pt")


def load_dcp(training: Training, path: Path) -> None:
    """`load` into the state dicts of the new program, and `set_state_dict`."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    optimizers = list(optimizers_of(training).values())
    model, states = get_state_dict(training.model, optimizers)
    target = {"model": model, "optimizers": states}
    load(target, checkpoint_id=path / "dcp", no_dist=True)
    set_state_dict(training.model, optimizers, model_state_dict=target["model"], optim_state_dict=target["optimizers"])
    saved = torch.load(path / "rest.pt", weights_only=False)
    for name, each in {**training.saved(), RANDOM: RandomState()}.items():
        each.load_state_dict(saved[name])


def accelerator(training: Training) -> Any:
    """An `Accelerator` with everything of a training."""
    import accelerate

    made = accelerate.Accelerator(cpu=True)
    schedules = [each for each in training.saved().values() if isinstance(each, LRScheduler)]
    parts = [training.model, *optimizers_of(training).values(), *schedules]
    made.prepare(
        *parts, device_placement=[False] * len(parts)
    )  # a program calls it before the first step, so nothing moves
    made.register_for_checkpointing(*(each for each in training.saved().values() if each not in schedules))
    return made


def save_accelerate(training: Training, path: Path) -> None:
    """`save_state`."""
    accelerator(training).save_state(str(path))


def load_accelerate(training: Training, path: Path) -> None:
    """`load_state` in the new program."""
    accelerator(training).load_state(str(path))


PEERS = {
    "torch": (save_torch, load_torch),
    "DCP": (save_dcp, load_dcp),
    "Accelerate": (save_accelerate, load_accelerate),
}
"""How each saves and restores."""

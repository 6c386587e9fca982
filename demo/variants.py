"""Four usual ways to resume that lose or change optimizer state: `python -m demo.variants NAME ...`.

Each starts from the exact state, so that what it does to the optimizer is the only thing wrong: weights, data,
dropout and learning rate stay right.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import optstate
from demo.run import Run, build, seed
from demo.settings import FULL, QUICK, RUNS, Settings
from demo.train import go_on, newest_intact, step_of


def weights_only(run: Run) -> Run:
    """Only the model was saved, so a new optimizer starts from nothing."""
    saved = _torch_checkpoint(run)
    fresh = build(run.settings)
    fresh.model.load_state_dict(saved["model"])
    fresh.scheduler.load_state_dict(saved["scheduler"])
    for group, lr in zip(fresh.optimizer.param_groups, fresh.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr  # a scheduler loads its count, not the rate that it had set
    return fresh


def module_order(run: Run) -> Run:
    """Everything was saved, and someone has put the projections of `Attention` in another order since.

    The model loads by name; `Optimizer.load_state_dict` goes by position and gives each query the key's moments.
    """
    saved = _torch_checkpoint(run)
    reordered = build(run.settings, projections=("key", "query", "value"))
    reordered.model.load_state_dict(saved["model"])
    reordered.optimizer.load_state_dict(saved["optimizer"])
    reordered.scheduler.load_state_dict(saved["scheduler"])
    return reordered


def bf16_moments(run: Run) -> Run:
    """Both moments passed through bfloat16, to save disk or because the parameters are of that type."""
    for parameter in optstate.attach(run.optimizer, run.model).values():
        for slot in (parameter.momentum, parameter.second_moment):
            slot.tensor.copy_(slot.tensor.bfloat16())
    return run


def half_momentum(run: Run) -> Run:
    """Momentum was scaled by hand."""
    for parameter in optstate.attach(run.optimizer, run.model).values():
        parameter.momentum.tensor.mul_(0.5)
    return run


VARIANTS: Mapping[str, Callable[[Run], Run]] = MappingProxyType(
    {
        "weights-only": weights_only,
        "module-order": module_order,
        "bf16-moments": bf16_moments,
        "half-momentum": half_momentum,
    }
)


def _torch_checkpoint(run: Run) -> dict[str, Any]:
    """What a resumed process finds in the usual file."""
    file = io.BytesIO()
    torch.save({key: getattr(run, key).state_dict() for key in ("model", "optimizer", "scheduler")}, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def resume_as(variant: str, settings: Settings, checkpoint: Path) -> Run:
    """A run restored exactly, then handed to a variant."""
    seed(settings)
    run = build(settings)
    optstate.restore(checkpoint, model=run.model, optimizer=run.optimizer, scheduler=run.scheduler, rng=True)
    with torch.random.fork_rng():  # a second model draws its first weights; data and dropout must not notice
        return VARIANTS[variant](run)


def main() -> None:
    """Resume in one way after the other, each time going on to the last step."""
    parser = argparse.ArgumentParser(prog="python -m demo.variants", description=__doc__)
    parser.add_argument("names", nargs="+", choices=VARIANTS, help="the ways, which are the names of the runs as well")
    parser.add_argument("--quick", action="store_true", help="the small settings")
    parser.add_argument("--resume-from", metavar="NAME", required=True, help="the run whose checkpoints to use")
    options = parser.parse_args()

    checkpoint = newest_intact(RUNS / options.resume_from)
    for name in options.names:
        run = resume_as(name, QUICK if options.quick else FULL, checkpoint)
        for _ in go_on(run, step_of(checkpoint), name):
            pass


if __name__ == "__main__":
    main()

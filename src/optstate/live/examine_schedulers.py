"""Looking at learning rate schedulers: which optimizer they drive, and what they hold for its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from optstate.doctor.evidence import LiveScheduler
from optstate.errors import BindError
from optstate.live.unwrap import unwrap_optimizer
from optstate.optimizers.registry import qualified_name
from optstate.text import safe_text

# What a step of a scheduler looks up in every group, by class; the others need nothing but `lr`.
_READS = {"OneCycleLR": ("initial_lr", "max_lr", "min_lr")}
_READS_CYCLING = {"OneCycleLR": ("base_momentum", "max_momentum")}


def examine_schedulers(scheduler: Any, optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[LiveScheduler, ...]:
    """Each scheduler of one or several, and those inside chains. Raises `BindError` for what is none."""
    names = {id(optimizer): name for name, optimizer in optimizers.items()}
    return tuple(found for each in each_scheduler(scheduler) for found in _examined(each, names, inside=False))


def each_scheduler(scheduler: Any) -> Iterator[Any]:
    """One scheduler, or those in a list or mapping, without what Accelerate and Lightning wrap around them."""
    if isinstance(scheduler, Mapping):
        scheduler = list(scheduler.values())
    for each in scheduler if isinstance(scheduler, (list, tuple)) else () if scheduler is None else (scheduler,):
        while hasattr(each, "scheduler"):
            each = each.scheduler
        if not hasattr(each, "optimizer"):
            raise BindError(
                "this is not a scheduler",
                expected="a torch.optim.lr_scheduler.LRScheduler, or several",
                found=f"a {safe_text(qualified_name(type(each)))}",
            )
        yield each


def _examined(scheduler: Any, names: Mapping[int, str], *, inside: bool) -> Iterator[LiveScheduler]:
    last_lr = None if inside else getattr(scheduler, "_last_lr", None)
    base_lrs = getattr(scheduler, "base_lrs", None)
    cycling = bool(getattr(scheduler, "cycle_momentum", False))
    name = type(scheduler).__name__
    yield LiveScheduler(
        class_name=qualified_name(type(scheduler)),
        drives=names.get(id(unwrap_optimizer(scheduler.optimizer))),
        steps=int(getattr(scheduler, "last_epoch", 0)),
        last_lr=None if last_lr is None else tuple(map(float, last_lr)),
        groups=None if base_lrs is None else len(base_lrs),
        cycles="" if not cycling else "betas[0]" if getattr(scheduler, "use_beta1", False) else "momentum",
        reads=_READS.get(name, ()) + (_READS_CYCLING.get(name, ()) if cycling else ()),
    )
    for child in getattr(scheduler, "_schedulers", ()):
        yield from _examined(child, names, inside=True)

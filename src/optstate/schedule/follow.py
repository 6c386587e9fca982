"""Following the steps that an optimizer really takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from optstate.errors import ScheduleError
from optstate.live.stepping import is_stepping, steps_running
from optstate.optimizers.registry import beneath_hooks


def follow(optimizer: torch.optim.Optimizer, after_step: Callable[[], None]) -> Callable[[], None]:
    """Have `after_step` called after each step that the optimizer takes; returns what ends that.

    A step counts once, however often its class calls its parent's. One whose closure raises, or that a gradient scaler
    skips because gradients are not finite, does not count.
    """
    nests = _nests(type(optimizer))

    def hook(stepped: torch.optim.Optimizer, *_: Any) -> None:
        if not (nests and steps_running(stepped) > 1) and not _skipped(stepped):
            after_step()

    # Compiled, the count would be a constant of the step, which would be compiled anew each time.
    return optimizer.register_step_post_hook(torch.compiler.disable(hook)).remove


def _nests(cls: type) -> bool:
    """Whether a step of this class may call that of a parent, for which torch then calls the hooks as well."""
    steps = {beneath_hooks(vars(each)["step"]) for each in cls.__mro__ if "step" in vars(each)}
    return len(steps - {beneath_hooks(torch.optim.Optimizer.step)}) > 1


def before_next_step(optimizer: torch.optim.Optimizer, once: Callable[[], None]) -> Callable[[], None]:
    """Have `once` called when the optimizer's next step begins; returns what calls that off."""

    def hook(*_: Any) -> None:
        handle.remove()
        once()

    handle = optimizer.register_step_pre_hook(torch.compiler.disable(hook))
    return handle.remove


def refuse_inside(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ScheduleError` where the optimizer is in the middle of a step."""
    if is_stepping(optimizer):
        raise ScheduleError(
            "the optimizer is in the middle of a step, which uses the slots that would change",
            todo="call step() after optimizer.step(), not in its closure; or build the schedule with hook=True",
        )


def refuse_hooked(hooks: Sequence[object]) -> None:
    """Raise `ScheduleError` where a schedule is to be stepped by hand that has hooks."""
    if hooks:
        raise ScheduleError(
            "this schedule follows the optimizer's steps by itself",
            todo="leave out step(), or build the schedule without hook=True",
        )


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this step changed nothing: a fused optimizer is stepped by `GradScaler` in any case, and told so."""
    found = vars(optimizer).get("found_inf")
    return isinstance(found, torch.Tensor) and bool(found.item())

"""Fences: memory that a save still reads is not written to before it was read.

A save that goes on in the background puts one up. Steps of optimizers wait at it, and so do edits, schedules, restores
and whatever else of this package writes to slots or weights.

Steps are seen by one hook that torch calls for every optimizer. It is registered when the first fence is put up, and
stays: a hook of each save's own could not be removed while another thread steps, and would make `torch.compile` compile
the step anew for each save.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Fence(Protocol):
    """What stands between live memory and whoever is about to write to it."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when a step of any optimizer begins; may wait, and may raise in place of the step."""

    def before_write(self) -> None:
        """Wait until live memory is not read any more."""


_STANDING: list[Fence] = []


def put_up(fence: Fence) -> None:
    """Have a fence asked before each step and each write."""
    _watch_steps()
    _STANDING.append(fence)


def take_down(fence: Fence) -> None:
    """Ask it no more; nothing where that was done."""
    if fence in _STANDING:
        _STANDING.remove(fence)


def standing() -> tuple[Fence, ...]:
    """The fences that are up."""
    return tuple(_STANDING)


def cross() -> None:
    """Wait until no save reads live memory; whoever writes to weights or slots calls it first."""
    for fence in standing():
        fence.before_write()


@cache
def _watch_steps() -> None:
    register_optimizer_step_pre_hook(torch.compiler.disable(_before_step))


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for fence in standing():
        fence.before_step(optimizer)


# A process that was forked off has the memory to itself, and none of the threads that would take a fence down.
os.register_at_fork(after_in_child=_STANDING.clear)

"""Whether an optimizer is in the middle of a step: read from the stack, so that no flag can be left behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import torch

# torch wraps `step` of every optimizer class in one and the same function, which calls the hooks.
_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def steps_running(optimizer: torch.optim.Optimizer) -> int:
    """How many calls of `optimizer.step` are under way in this thread.

    More than one where a class's step calls its parent's: a hook that is called with 1 belongs to the outermost.
    """
    return sum(frame.f_locals["args"][0] is optimizer for frame in _frames() if frame.f_code is _STEP)


def is_stepping(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this was called, however deep, from a hook, a closure or the inside of a step of this optimizer."""
    return steps_running(optimizer) > 0


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back

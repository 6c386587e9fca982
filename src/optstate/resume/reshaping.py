"""Tensors that get another shape or another dtype on their way in, as a policy says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from optstate.errors import RestoreError
from optstate.live.quantised import Codes
from optstate.optimizers.resizing import misfit, padded, sliced
from optstate.resume.decisions import Fate
from optstate.resume.policy import Policy, Reshape
from optstate.text import safe_text

Shape: TypeAlias = "tuple[int, ...]"
Merge: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes of a saved weight and the live one the weight to be."""


def between(saved: Shape, live: Shape) -> str:
    """Two shapes that differ, as faults and reasons say it."""
    return f"shape {list(saved)} in the checkpoint, {list(live)} live"


def resized_weight(name: str, saved: Shape, live: Shape, policy: Policy) -> tuple[Fate, Merge] | str:
    """How a weight gets its live shape under `pad`, `slice` or a function; why it cannot."""
    if callable(policy.shape):
        reshape = policy.shape
        return Fate(
            "resized", f"{list(saved)} → {list(live)} by the policy's function"
        ), lambda tensor, like: own_shape(reshape, name, "", tensor, live).to(like.dtype)
    if policy.shape not in ("pad", "slice"):
        return f'{between(saved, live)}; shape="fresh", "pad" or "slice" says what to do'
    why = misfit(saved, live, policy.shape)
    if why is not None:
        return why
    fate = Fate("resized", f"{list(saved)} → {list(live)} by {policy.shape}")
    if policy.shape == "pad":
        return fate, lambda tensor, like: padded(tensor, like.detach())
    return fate, lambda tensor, _: sliced(tensor, live)


def own_shape(reshape: Reshape, name: str, key: str, tensor: torch.Tensor, due: Shape) -> torch.Tensor:
    """What the function of a policy makes of a tensor. Raises `RestoreError` where it fails or makes something else."""
    what = f"{safe_text(name)}/{safe_text(key)}" if key else safe_text(name)
    try:
        made = reshape(name, key, tensor, due)
    except Exception as error:
        raise RestoreError(
            f"the policy's shape function failed on {what}",
            expected=f"a tensor of shape {list(due)} from one of shape {list(tensor.shape)}",
            found=f"{type(error).__name__}: {safe_text(error)}",
            todo="nothing was changed",
        ) from error
    if not isinstance(made, torch.Tensor) or tuple(made.shape) != due:
        raise RestoreError(
            f"the policy's shape function made something else of {what}",
            expected=f"a tensor of shape {list(due)}",
            found=f"shape {list(made.shape)}" if isinstance(made, torch.Tensor) else f"a {type(made).__name__}",
            todo="nothing was changed",
        )
    return made.detach()


def castable(saved: str, live: str) -> bool:
    """Whether a policy may cast between two dtypes, by torch's names: both are real, or both are complex."""
    return all(name.startswith(("float", "bfloat")) for name in (saved, live)) or all(
        name.startswith("complex") for name in (saved, live)
    )


def cast_to(dtype: str) -> Callable[[Any], Any]:
    """What casts a tensor, and leaves anything else."""
    kind = getattr(torch, dtype)
    return lambda value: value.to(kind) if isinstance(value, torch.Tensor) else value


def times(value: Any, factor: float) -> Any:
    """A slot times a factor; of one kept as codes, its scales. What is times 0 is 0, whatever it was."""
    if isinstance(value, Codes):
        return replace(value, scale=times(value.scale, factor))
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value) if factor == 0 else value * factor
    return value * factor

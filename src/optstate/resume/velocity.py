"""Momentum from weights alone: how far they moved in each step between two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf, sqrt
from typing import Any, NamedTuple, TypeAlias

import torch

from optstate.errors import EditError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.live.bind import Bound
from optstate.live.sampling import coupled_decay
from optstate.live.source import LiveSource
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import number
from optstate.resume.materialise import to_tensor
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text

Snapshot: TypeAlias = "str | os.PathLike[str] | Checkpoint | Mapping[str, torch.Tensor]"
"""Weights as they once were: the path of a checkpoint, an opened one, or a state dict."""


class Velocity(NamedTuple):
    """By how much a learning rate of 1 would lower each weight in a step, and the relative error of that.

    `error` is what the rounding of the weights leaves uncertain or, where there are three snapshots or more, how much the
    velocity changed from one interval to the next, whichever is larger.
    """

    direction: torch.Tensor
    error: float


class _Moment(NamedTuple):
    step: int
    weights: Mapping[str, Any]


def velocities(
    source: LiveSource, snapshots: Sequence[Snapshot], steps: Sequence[int] | None
) -> tuple[dict[str, Velocity], int]:
    """The velocity of each parameter that all snapshots have, over the last interval, and how many steps that was.

    `snapshots` come in the order of the run, the newest last: it holds the weights that are live. `steps` are their steps,
    where they do not say so themselves. The learning rate and the weight decay are taken to have been those of the group.

    Source: for SGD over one step b = (p_before - p)/η, exactly; over n steps its mean.

    Raises `EditError` for fewer than two snapshots, steps that are not known or do not rise, and for other live weights.
    """
    moments = _moments(snapshots, steps)
    newest = moments[-1]
    bounds = [bound for bound in source.bind().parameters() if all(bound.name in each.weights for each in moments)]
    others = [bound.name for bound in bounds if not _same(bound.tensor, _read(newest.weights[bound.name], bound))]
    if others or not bounds:
        raise EditError(
            "the newest of these weights are not the live ones, and momentum belongs to its weights",
            where=listing(others, 4) if others else "no parameter is in all of them",
            todo="load the newest weights first, and pass them last",
        )
    return {bound.name: _velocity(source, bound, moments) for bound in bounds}, newest.step - moments[-2].step


def _moments(snapshots: Sequence[Snapshot], steps: Sequence[int] | None) -> list[_Moment]:
    opened = [open_checkpoint(each) if isinstance(each, (str, os.PathLike)) else each for each in snapshots]
    told = [each.step if isinstance(each, Checkpoint) else None for each in opened] if steps is None else list(steps)
    if len(opened) < 2 or len(told) != len(opened):
        raise EditError(
            "a velocity is the difference of two moments",
            expected="weights=[older, newer], and as many steps where steps are given",
            found=f"{len(opened)} snapshots, {len(told)} steps",
        )
    counts = [step for step in told if step is not None]
    if len(counts) < len(told) or sorted(set(counts)) != counts:
        raise EditError(
            "how many steps lie between these weights is not known",
            expected="rising steps, the newest last",
            found=listing(told),
            todo="pass them: steps=[1000, 1010]",
        )
    maps = [each.weights if isinstance(each, Checkpoint) else each for each in opened]
    return [_Moment(step, weights) for step, weights in zip(counts, maps, strict=True)]


def _read(value: Any, bound: Bound) -> torch.Tensor:
    """A weight of a snapshot, on the device of the live one; one of a file is read for it."""
    tensor = to_tensor(value) if is_tensor(value) else value
    if not isinstance(tensor, torch.Tensor) or tensor.shape != bound.tensor.shape:
        raise EditError(
            f"the weights of {safe_text(bound.name)} do not fit",
            expected=f"a tensor of shape {list(bound.tensor.shape)}",
            found=str(list(getattr(tensor, "shape", ()))) + f" in a {safe_text(type(value).__name__)}",
        )
    return tensor.detach().to(bound.tensor.device)


def _same(live: torch.Tensor, saved: torch.Tensor) -> bool:
    return live.dtype == saved.dtype and torch.equal(live.detach(), saved)


def _velocity(source: LiveSource, bound: Bound, moments: Sequence[_Moment]) -> Velocity:
    group = source.live_optimizers[bound.optimizer].param_groups[bound.group]
    rate = number(group.get("lr")) or 0.0
    if rate <= 0:
        raise EditError(
            f"the learning rate of {safe_text(bound.name)} is 0, and its momentum cannot be told from weights",
            todo="set the learning rate that these steps had, then rebuild",
        )
    last = [(each.step, _wide(_read(each.weights[bound.name], bound))) for each in moments[-3:]]
    means = [(old - new) / (later - earlier) for (earlier, old), (later, new) in pairwise(last)]
    size = float(means[-1].norm())
    weights, span = last[-1][1], last[-1][0] - last[-2][0]
    rounding = torch.finfo(bound.tensor.dtype).eps / sqrt(6.0) * float(weights.norm()) / span
    drift = float((means[-1] - means[-2]).norm()) if len(means) > 1 else 0.0
    spec = by_class(type(source.live_optimizers[bound.optimizer]))
    decay = (number(group.get("weight_decay", 0.0)) or 0.0) - coupled_decay(spec, group)
    direction = (means[-1] - rate * decay * weights) / rate
    return Velocity(direction, max(rounding, drift) / size if size else inf)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, complex numbers as pairs: differences of weights lose most of their digits."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.to(torch.float64)

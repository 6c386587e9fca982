"""Where restored slots go: the device that the live program wants, and tensors there that can take new values."""

from __future__ import annotations

import torch

from optstate.live.bind import Bound
from optstate.live.tensors import is_quantised
from optstate.optimizers.registry import by_class


def home(bound: Bound, optimizer: torch.optim.Optimizer, key: str, value: torch.Tensor) -> torch.device:
    """The device on which the live program, with its own flags, wants this slot."""
    spec = by_class(type(optimizer))
    rule = spec.slots.get(key) if spec is not None else None
    group = optimizer.param_groups[bound.group]
    if rule is not None and rule.home == "step" and not (group.get("capturable") or group.get("fused")):
        return torch.device("cpu")
    if rule is None:
        old = optimizer.state.get(bound.tensor, {}).get(key)
        if isinstance(old, torch.Tensor):
            return old.device
        if value.dim() == 0:  # an unknown scalar: torch lets one on the CPU meet tensors anywhere
            return torch.device("cpu")
    return bound.tensor.device


def fits(old: torch.Tensor, new: torch.Tensor, bound: Bound, optimizer: torch.optim.Optimizer, key: str) -> bool:
    """Whether `old` can take the values of `new` and be exactly what a new tensor would have been."""
    return (
        not (is_quantised(old) or is_quantised(new))  # whose parts are codes and scales
        and old.dtype == new.dtype
        and old.shape == new.shape
        and old.layout == new.layout == torch.strided
        and old.stride() == new.stride()
        and old.device == home(bound, optimizer, key, new)
    )

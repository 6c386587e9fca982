"""The shape and the dtype that an optimizer gives a slot, by its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optstate.optimizers.spec import SlotSpec

Shape = tuple[int, ...]


def due_shape(rule: SlotSpec, shape: Shape) -> Shape | None:
    """The shape of a slot for a parameter of `shape`; None where the row does not tell."""
    match rule.shape:
        case "parameter":
            return shape
        case "scalar":
            return ()
        case "row":
            return (*shape[:-1], 1)
        case "column":
            return (*shape[:-2], 1, shape[-1])
        case "squeezed row":
            return shape[:-1]
        case "squeezed column":
            return (*shape[:-2], *shape[-1:])
    return None


def scalar_dtype(group: Mapping[str, Any]) -> torch.dtype:
    """The dtype of counts and of what else is one number for a parameter."""
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.float64 if wide else torch.float32


def stored(value: Any, rule: SlotSpec, parameter: torch.Tensor, group: Mapping[str, Any]) -> Any:
    """A computed value in the type in which the optimizer keeps it for this parameter."""
    if rule.dtype == "python" or isinstance(value, bool):
        return int(value) if rule.role == "step" else value
    if rule.shape == "scalar" or not isinstance(value, torch.Tensor):
        return torch.as_tensor(value, dtype=scalar_dtype(group))
    if parameter.is_complex() and value.dim() and value.shape[-1] == 2 and not value.is_complex():
        value = torch.view_as_complex(value.contiguous())
    return value.to(torch.float32 if rule.dtype == "scalar" else parameter.dtype)

"""How long the next step is beside a fresh start's: of an even sample of elements, or of a whole small matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optstate.live.measuring import real
from optstate.optimizers.spec import OptimizerSpec
from optstate.optimizers.updates import elementwise, fresh_update, next_update

_ELEMENTS = 1 << 12
_WHOLE = 1 << 20
"""Elements of a matrix above which an update that is one of whole matrices is not computed."""


def stride(
    spec: OptimizerSpec,
    entry: Mapping[str, Any],
    group: Mapping[str, Any],
    parameter: torch.Tensor,
    gradient: torch.Tensor,
) -> torch.Tensor | None:
    """The sums of squares of the next update and of a fresh optimizer's first, for this gradient: two numbers.

    `gradient` is real, complex ones are pairs. None where no rule is known, or a slot is not stored plainly.
    """
    whole = not elementwise(spec)
    if spec.update is None or (whole and gradient.numel() > _WHOLE) or not gradient.numel():
        return None
    slots: dict[str, Any] = {}
    for key, slot in spec.slots.items():
        if key not in entry:
            continue
        value = entry[key]
        if slot.shape == "scalar":
            slots[key] = torch.as_tensor(value, dtype=torch.float64).to(gradient.device)
        elif type(value) is torch.Tensor and value.layout is torch.strided:
            slots[key] = _some(value, whole)
        else:
            return None
    options = {key: value for key, value in group.items() if key != "params"}
    sample, weights = _some(gradient, whole), _some(parameter, whole)
    found = (next_update(spec, slots, options, sample, weights), fresh_update(spec, options, sample, weights))
    if found[0] is None or found[1] is None:
        return None
    lengths = torch.stack([(torch.as_tensor(update).double() ** 2).sum() for update in found])
    return lengths * (gradient.numel() / sample.numel())


def _some(tensor: torch.Tensor, whole: bool) -> torch.Tensor:
    tensor = tensor.detach()
    if whole:
        return tensor.to(torch.float64)
    flat = real(tensor.reshape(-1))
    return flat[:: max(flat.numel() // _ELEMENTS, 1)].to(torch.float64)

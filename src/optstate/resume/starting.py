"""Entries of parameters that start fresh: nothing, or what the optimizer relies on from its first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optstate.optimizers.registry import by_class
from optstate.optimizers.resets import Copy, Fill, fresh
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.decisions import Entry, EntryDecision, Fate
from optstate.resume.layout import due_shape, scalar_dtype
from optstate.state.tensors import is_tensor


def started(
    name: str,
    parameter: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    fate: Fate,
    *,
    beside_others: bool,
    source: str | None = None,
) -> EntryDecision:
    """The decision for a parameter that starts fresh.

    Slots that the constructor makes are made here; and `beside_others`, whose state is restored, those that a fused kernel
    wants for all parameters of a group or for none. `group` has the hyperparameters that will be.
    """
    spec = by_class(type(optimizer))
    plain = {key: value.item() if is_tensor(value) and value.shape == () else value for key, value in group.items()}
    keys = tuple(
        key
        for key, rule in (spec.slots.items() if spec is not None else ())
        if rule.exists(plain, parameter.dim())
        and (rule.created == "constructor" or (rule.reset == "delete" and beside_others and bool(plain.get("fused"))))
    )
    if spec is None or not keys:
        return EntryDecision(name, fate, source)
    start = _Start(spec, keys, parameter, plain, optimizer.defaults)
    return EntryDecision(name, fate, source, {}, dict.fromkeys(keys, fate), (start,))


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """What a parameter's entry holds before the first step, as a transform of nothing."""

    spec: OptimizerSpec
    keys: tuple[str, ...]
    parameter: torch.Tensor
    group: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def __call__(self, _: Entry) -> Entry:
        return {key: self._value(key) for key in self.keys}

    def _value(self, key: str) -> Any:
        rule, start = self.spec.slots[key], fresh(self.spec, key, self.group, self.defaults)
        parameter = self.parameter.detach()
        if isinstance(start, Copy):
            return parameter.clone()
        number = start.value if isinstance(start, Fill) else 0.0  # what others have, this one has as zero
        if rule.dtype == "python":
            return int(number) if rule.role == "step" else number
        if rule.shape == "scalar":
            return torch.tensor(number, dtype=scalar_dtype(self.group))
        shape = due_shape(rule, tuple(parameter.shape)) or ()
        return parameter.new_full(shape, complex(number, number) if parameter.is_complex() else number)

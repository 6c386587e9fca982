"""Optimizer state as a plain dict by name, for people who keep their own `torch.save`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optstate.live.tensors import released
from optstate.live.view import attach

NAMED_FORMAT = "optstate.named/1"


def named_state_dict(
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer], model: nn.Module
) -> dict[str, Any]:
    """The optimizer's state and hyperparameters by parameter name, as plain containers of cloned tensors.

    Goes into any `torch.save` and loads with `weights_only=True`; `restore` and `plan` take it back. Keys:
    `format` (`optstate.named/1`), `optimizers` (name → `class`, `groups` of `hyperparameters` and
    `parameters`), `parameters` (name → `shape`, `dtype`, `aliases`, `trainable`), `state` (name → slot key →
    value). Nothing in it aliases live state. Raises `BindError` as `attach` does.

    >>> named = optstate.named_state_dict(optimizer, model)
    >>> named["state"]["0.weight"]["exp_avg"].shape
    torch.Size([8, 4])
    """
    frozen = attach(optimizer, model).snapshot()
    return {
        "format": NAMED_FORMAT,
        "optimizers": {
            name: {
                "class": info.class_name,
                "groups": [
                    {
                        "hyperparameters": released(dict(group.hyperparameters)),
                        "parameters": list(group.parameters),
                    }
                    for group in info.groups
                ],
            }
            for name, info in frozen.optimizers.items()
        },
        "parameters": {
            name: {
                "shape": list(parameter.facts.shape or ()),
                "dtype": parameter.facts.dtype,
                "aliases": list(parameter.facts.aliases),
                "trainable": parameter.facts.trainable,
            }
            for name, parameter in frozen.items()
        },
        "state": {
            name: {key: released(slot.value) for key, slot in parameter.slots.items()}
            for name, parameter in frozen.items()
            if parameter.slots
        },
    }

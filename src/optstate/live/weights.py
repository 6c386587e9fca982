"""A model's tensors by name: parameters and persistent buffers, each once, and what modules keep besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from optstate.live.unwrap import walk


class Weight(NamedTuple):
    """A tensor of the model: the live object, whether an optimizer could step it, and its further names."""

    name: str
    tensor: torch.Tensor
    kind: Literal["parameter", "buffer"]
    aliases: tuple[str, ...]


def live_weights(model: nn.Module) -> dict[str, Weight]:
    """Every parameter and persistent buffer by its first name; tied ones come once, with aliases.

    The tensors are the model's own, found by identity, so hooks on `state_dict` have no part in it.
    """
    found: dict[int, Weight] = {}
    for prefix, module in walk(model):
        kept: list[tuple[str, torch.Tensor | None, Literal["parameter", "buffer"]]] = [
            *((name, tensor, "parameter") for name, tensor in module._parameters.items()),
            *(
                (name, tensor, "buffer")
                for name, tensor in module._buffers.items()
                if name not in module._non_persistent_buffers_set
            ),
        ]
        for attribute, tensor, kind in kept:
            if tensor is None:
                continue
            name = prefix + attribute
            first = found.get(id(tensor))
            if first is None:
                found[id(tensor)] = Weight(name, tensor, kind, ())
            elif name != first.name and name not in first.aliases:
                found[id(tensor)] = first._replace(aliases=(*first.aliases, name))
    return {weight.name: weight for weight in found.values()}


class ExtraState:
    """What the modules of a model keep besides tensors (`get_extra_state`), as one object to save and restore."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = modules_with_extra_state(model)

    def __bool__(self) -> bool:
        return bool(self._modules)

    def state_dict(self) -> dict[str, Any]:
        """Each module's extra state, by the name that it has in the model's state dict."""
        return {name: module.get_extra_state() for name, module in self._modules.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each module its own back. Raises `KeyError` when one is missing."""
        for name, module in self._modules.items():
            module.set_extra_state(state[name])


def modules_with_extra_state(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that define `get_extra_state`, by the name that torch gives that entry of a state dict."""
    return {
        f"{prefix}_extra_state": module
        for prefix, module in walk(model)
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }

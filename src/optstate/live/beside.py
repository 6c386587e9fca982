"""What optimizers keep in their state under other keys than parameters: counts and averages for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optstate.optimizers.registry import qualified_name


class Beside:
    """The entries of `optimizer.state` that belong to no parameter, as one object to save and restore.

    torch gives them back by `load_state_dict`, so optimizers rely on them: MADGRAD of pytorch_optimizer counts its steps
    under `"k"`.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        """For each optimizer that has any, by its name: its class, and the entries."""
        found = {name: _entries(optimizer) for name, optimizer in self._optimizers.items()}
        return {
            name: {"class": qualified_name(type(self._optimizers[name])), "state": entries}
            for name, entries in found.items()
            if entries
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each optimizer exactly its entries; one that is of another class by now keeps its own."""
        for name, optimizer in self._optimizers.items():
            saved = state.get(name, {"class": qualified_name(type(optimizer)), "state": {}})
            if saved["class"] == qualified_name(type(optimizer)):
                for key in _entries(optimizer):
                    del optimizer.state[key]
                optimizer.state.update(saved["state"])


def _entries(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    return {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}

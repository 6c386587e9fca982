"""What optimizers keep besides the state of their parameters: counts for all of them at once, and what wrappers add."""

from __future__ import annotations

from typing import Any

import torch

from optstate.errors import Unsaveable
from optstate.live.source import LiveSource
from optstate.optimizers.registry import qualified_name
from optstate.text import safe_text


class Beside:
    """What a program's optimizers keep that belongs to no parameter, as one object to save and restore.

    torch gives the entries of `optimizer.state` back under whatever key they have, so optimizers rely on them: MADGRAD of
    pytorch_optimizer counts its steps under `"k"`. A class with a `state_dict` of its own, such as one that wraps another
    optimizer, may keep anything anywhere: all that it says is taken, and given back by its `load_state_dict`, which knows
    parameters by their position alone. Its tensors are mostly those of the slots, and are stored once.
    """

    def __init__(self, source: LiveSource) -> None:
        self._optimizers = source.live_optimizers
        self._source = source

    def state_dict(self) -> dict[str, Any]:
        """For each optimizer that keeps anything of the kind, by its name: its class, and `state` or `own` with `names`.

        Raises `Unsaveable` where the optimizer's own `state_dict` raises.
        """
        found = {name: self._kept(name, optimizer) for name, optimizer in self._optimizers.items()}
        return {
            name: {"class": qualified_name(type(self._optimizers[name])), **kept}
            for name, kept in found.items()
            if kept
        }

    def load_state_dict(self, state: Any) -> None:
        """Give each optimizer exactly that; one that is of another class by now keeps its own, and so does one whose
        parameters have other positions than what it said counts by.
        """
        for name, optimizer in self._optimizers.items():
            saved = state.get(name, {"class": qualified_name(type(optimizer))})
            if saved["class"] != qualified_name(type(optimizer)):
                continue
            if self.misplaced(name, saved) is not None:
                continue
            if "own" in saved:
                _load_own(optimizer, saved["own"])
                continue
            for key in _entries(optimizer):
                del optimizer.state[key]
            optimizer.state.update(saved.get("state", {}))

    def misplaced(self, name: str, saved: Any) -> str | None:
        """Why what was saved of an optimizer cannot be given to it: what it counts by position, others are at; else None."""
        if "own" not in saved or saved["names"] == self._names(name):
            return None
        kind = safe_text(saved["class"])
        return f"what {kind} keeps beside its slots: it is by position, and parameters stand in another order than when it was saved"

    def _kept(self, name: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        if type(optimizer).state_dict is not torch.optim.Optimizer.state_dict:
            return {"own": _own(optimizer), "names": self._names(name)}
        entries = _entries(optimizer)
        return {"state": entries} if entries else {}

    def _names(self, name: str) -> list[list[str]]:
        binding, groups = self._source.bind(), self._optimizers[name].param_groups
        return [list(binding.group(name, index)) for index in range(len(groups))]


def _own(optimizer: torch.optim.Optimizer) -> Any:
    try:
        return optimizer.state_dict()
    except Exception as error:
        kind = safe_text(qualified_name(type(optimizer)))
        raise Unsaveable(
            f"{kind} keeps what only its own state_dict() tells, and that raised {type(error).__name__}: {safe_text(error)}",
            todo="do what it asks for, such as consolidating state over ranks, and save again",
        ) from error


def _load_own(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load all but hyperparameters, which are for a policy to decide."""
    decided = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, decided, strict=True):
        group.update(values)


def _entries(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    return {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}

"""What a restore will do, as values: one decision per weight and slot, one per hyperparameter and object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from optstate.state.tensors import Value

Decision = Literal[
    "exact",  # the saved bits, in the saved dtype
    "fresh",  # nothing was saved because nothing was there; a live entry is removed
]


@dataclass(frozen=True, slots=True)
class WeightDecision:
    """What happens to one tensor of the model. `saved` is where its values come from."""

    name: str
    decision: Decision
    saved: Value


@dataclass(frozen=True, slots=True)
class SlotDecision:
    """What happens to one slot of one parameter, and why. A parameter without slots has one with `key` None."""

    parameter: str
    key: str | None
    decision: Decision
    reason: str
    saved: Value = None


@dataclass(frozen=True, slots=True)
class HyperparameterDecision:
    """Which value of one hyperparameter of one live group wins.

    `live` is the value before; `saved` the checkpoint's. `missing` stands for a key that a side does not have.
    """

    optimizer: str
    group: int
    key: str
    live: Any
    saved: Any
    winner: Literal["live", "saved"]
    same: bool

    @property
    def changes(self) -> bool:
        """Whether the live value will be another one afterwards."""
        return self.winner == "saved" and not self.same


@dataclass(frozen=True, slots=True)
class ObjectDecision:
    """An object that will be loaded. `reversible` says whether it can be put back if a later one fails."""

    name: str
    class_name: str
    saved: Value
    reversible: bool


class Missing:
    """The value of a hyperparameter that is not there."""

    def __repr__(self) -> str:
        return "nothing"


missing = Missing()

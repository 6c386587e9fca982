"""A plan's content: all decisions, and what is wrong, doubtful or left over. What prints and applies reads this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from optstate.live.transaction import Transaction
from optstate.resume.decisions import (
    EXACT,
    EntryDecision,
    HyperparameterDecision,
    ObjectDecision,
    SlotDecision,
    WeightDecision,
)


@dataclass(kw_only=True)
class Decided:
    """What planning has found so far; a finished plan is one that is not changed any more.

    `faults` are the reasons why it cannot be applied, all of them; `warnings` want a look; `left_out` is what the
    checkpoint has and nobody takes. `notes` say what will be, such as the learning rates of the next steps. `last` is
    done after all objects are loaded.
    """

    source: str
    step: int | None
    weights: list[WeightDecision] = field(default_factory=list)
    entries: list[EntryDecision] = field(default_factory=list)
    hyperparameters: list[HyperparameterDecision] = field(default_factory=list)
    objects: list[ObjectDecision] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last: list[Callable[[Transaction], None]] = field(default_factory=list)

    @cached_property
    def slots(self) -> tuple[SlotDecision, ...]:
        """One decision for each slot of each parameter."""
        return tuple(slot for entry in self.entries for slot in entry.slots())

    @property
    def exact(self) -> bool:
        """Whether everything saved comes back bit for bit and nothing is left out or overruled."""
        return (
            not (self.faults or self.left_out or self.last)
            and all(item.decision in EXACT for item in self.weights)
            and all(entry.exact for entry in self.entries)
            and all(item.winner != "given" and (item.winner == "saved" or item.same) for item in self.hyperparameters)
        )

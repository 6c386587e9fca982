"""What a restore will do, as values: a decision per weight, slot, hyperparameter and object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from optstate.state.tensors import TensorRef, Value

Decision = Literal[
    "exact",  # the saved bits, in the saved dtype
    "renamed",  # the saved bits, from under another name
    "cast",  # the saved values in another dtype or another coding
    "scaled",  # the saved values times a factor
    "resized",  # cut, or with new entries, for a parameter of another shape
    "converted",  # what the state of another optimizer amounts to in this one
    "fresh",  # as in an optimizer that starts now; a weight keeps what it has
    "left out",  # the live value stays
]

EXACT: tuple[Decision, ...] = ("exact", "renamed")
"""Decisions by which the saved bits come back."""

Entry: TypeAlias = "dict[str, Any]"
"""The slots of one parameter as an optimizer holds them: torch tensors, numbers, lists."""

Transform: TypeAlias = Callable[[Entry], Entry]
"""A step from what was saved to what will be held. It may use the tensors that it gets up."""


class Fate(NamedTuple):
    """What becomes of a slot, and why."""

    decision: Decision
    reason: str


@dataclass(frozen=True, slots=True)
class WeightDecision:
    """What happens to one tensor of the model.

    `source` is its name in the checkpoint, `saved` where its values come from; both None where the live value stays.
    `transform` makes of the saved tensor and the live one the tensor to be written; None: the saved one.
    """

    name: str
    decision: Decision
    reason: str = ""
    source: str | None = None
    saved: TensorRef | None = None
    transform: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class SlotDecision:
    """What happens to one slot of one parameter, and why. A parameter without slots has one with `key` None.

    `source` is the parameter's name in the checkpoint, None where nothing is taken from there.
    """

    parameter: str
    key: str | None
    decision: Decision
    reason: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class EntryDecision:
    """What happens to all slots of one parameter.

    `fates` has the slots that the optimizer will hold, empty for none: then `fate` says why. `saved` is what is read for
    them, and `transforms`, one after the other, make of it what will be held. Where the decision is "left out", the live
    entry stays as it is. Mappings are shared between parameters alike: do not change them.
    """

    parameter: str
    fate: Fate
    source: str | None = None
    saved: Mapping[str, Value] = field(default_factory=dict)
    fates: Mapping[str, Fate] = field(default_factory=dict)
    transforms: tuple[Transform, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether the live entry is not touched."""
        return not self.fates and self.fate.decision == "left out"

    @property
    def exact(self) -> bool:
        """Whether all that was saved comes back bit for bit; where nothing was saved, whether nothing will be."""
        if self.fates:
            return all(fate.decision in EXACT for fate in self.fates.values())
        return self.fate.decision == "fresh" and self.source is not None

    def slots(self) -> Iterator[SlotDecision]:
        """One decision for each slot; one with `key` None where there is none."""
        if not self.fates:
            yield SlotDecision(self.parameter, None, *self.fate, self.source)
        for key, fate in self.fates.items():
            yield SlotDecision(self.parameter, key, *fate, self.source)


@dataclass(frozen=True, slots=True)
class HyperparameterDecision:
    """Which value of one hyperparameter of one live group wins.

    `live` is the value before, `saved` the checkpoint's, `value` what it will be: `missing` stands for a key that a side
    does not have. `winner` is whose value that is; `given` is the policy's own. Of a rate that holds through a restored
    scheduler, it is what the schedule gives from the winner's base rate. `same` says whether live and saved agree.
    """

    optimizer: str
    group: int
    key: str
    live: Any
    saved: Any
    value: Any
    winner: Literal["live", "saved", "given"]
    same: bool
    reason: str = ""

    @property
    def changes(self) -> bool:
        """Whether something is written to the live group."""
        return not self.same if self.winner == "saved" else self.value is not self.live


@dataclass(frozen=True, slots=True)
class ObjectDecision:
    """An object that will be loaded.

    `reversible` says whether it can be put back if a later one fails. `transform` makes of the saved state the one to load.
    """

    name: str
    class_name: str
    saved: Value
    reversible: bool
    transform: Callable[[Any], Any] | None = None


class Missing:
    """The value of a hyperparameter that is not there."""

    def __repr__(self) -> str:
        return "nothing"


missing = Missing()

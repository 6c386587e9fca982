"""One parameter of an optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from optstate.errors import MissingSlot
from optstate.state.absence import Absence
from optstate.state.roles import Certainty, Role
from optstate.state.slot import Slot
from optstate.text import listing, safe_text


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """What is known of a parameter besides its slots.

    `shape` and `dtype` are None where a file tells neither. `aliases` are further names of the same tensor
    (tied weights). `group` is the index of its param group within `optimizer`. `trainable` is `requires_grad`,
    None where a file does not say. `candidates` are the names that a parameter could have of which a file tells
    nothing but the position. `position` is the number under which a file keeps its state, None where it keeps it by
    name.
    """

    name: str
    certainty: Certainty
    shape: tuple[int, ...] | None
    dtype: str | None
    optimizer: str
    group: int
    aliases: tuple[str, ...] = ()
    trainable: bool | None = None
    candidates: tuple[str, ...] = ()
    position: int | None = None


class SlotReader(Protocol):
    """Where a parameter's slots are read from, each time they are asked for."""

    def slots(self, name: str) -> Mapping[str, Slot]:
        """The slots of one parameter by key, empty when it has none."""

    def absences(self, name: str) -> Mapping[Role, Absence]:
        """For each role that has no slot although one could be expected: why."""


class ParamState:
    """One parameter with its slots: a view that reads anew at each access and never holds a tensor.

    `p["exp_avg"]` is a slot by its key; `p.momentum`, `p.second_moment` and `p.step` are slots by role.

    >>> p = state["0.weight"]
    >>> p.step.item(), p.momentum.key, p["exp_avg_sq"].role
    (3.0, 'exp_avg', 'second_moment')
    """

    __slots__ = ("_reader", "facts")

    def __init__(self, facts: ParameterFacts, reader: SlotReader) -> None:
        self.facts = facts
        self._reader = reader

    @property
    def name(self) -> str:
        """The parameter's name; `facts.certainty` says how sure it is."""
        return self.facts.name

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Every slot by key, as it is now."""
        return self._reader.slots(self.name)

    @property
    def absences(self) -> Mapping[Role, Absence]:
        """Each role that has no slot although one could be expected, with the reason."""
        return self._reader.absences(self.name)

    @property
    def momentum(self) -> Slot:
        """The slot that carries the direction of the update. Raises `MissingSlot`, which says why there is none."""
        return self.role("momentum")

    @property
    def second_moment(self) -> Slot:
        """The average of squared gradients. Raises `MissingSlot`, which says why there is none."""
        return self.role("second_moment")

    @property
    def step(self) -> Slot:
        """The count of updates of this parameter. Raises `MissingSlot`, which says why there is none."""
        return self.role("step")

    def role(self, role: Role) -> Slot:
        """The primary slot of `role`. Raises `MissingSlot`, whose message is the reason of the absence."""
        slot = self.find(role)
        if slot is not None:
            return slot
        reason = self.absences.get(role, Absence.NOT_KEPT)
        raise MissingSlot(
            f"{safe_text(self.name)} has no {role.replace('_', ' ')}: {reason.sentence}",
            found=f"slots: {listing(self.slots)}" if self.slots else "no slots at all",
            todo=reason.todo,
        )

    def find(self, role: Role) -> Slot | None:
        """The primary slot of `role`, or None."""
        return next((slot for slot in self.slots.values() if slot.role == role and slot.primary), None)

    def __getitem__(self, key: str) -> Slot:
        slots = self.slots
        if key in slots:
            return slots[key]
        raise MissingSlot(
            f"{safe_text(self.name)} has no slot {safe_text(key)!r}",
            found=f"slots: {listing(slots)}" if slots else "no slots at all",
            todo="ask for one of these, or by role: .momentum, .second_moment, .step",
        )

    def __str__(self) -> str:
        facts = self.facts
        shape = "shape unknown" if facts.shape is None else f"{facts.dtype or '?'} {list(facts.shape)}"
        lines = [f"{safe_text(self.name)}  {shape}  group {facts.group}  name by {facts.certainty}"]
        lines += [f"  {str(slot).partition('/')[2]}" for slot in self.slots.values()]
        lines += [f"  no {role}: {absence.sentence}" for role, absence in self.absences.items()]
        return "\n".join(lines)

    __repr__ = __str__

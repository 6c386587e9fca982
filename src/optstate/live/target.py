"""What verbs are called on: some parameters, one slot of them, some rows of that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, overload

from optstate.errors import NothingSelected
from optstate.live import verbs
from optstate.live.blending import Other, lerp
from optstate.live.resetting import reset
from optstate.live.rows import RowIndex, Rows
from optstate.live.verbs import ALL, Choice, Verb
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts, ParamState, SlotReader
from optstate.state.roles import Role
from optstate.state.selection import Predicates, Selection
from optstate.state.slot import Slot
from optstate.text import safe_text


class Owner(Protocol):
    """What carries a verb out: an open edit, or a state, which makes an edit of it."""

    def __getitem__(self, name: str, /) -> ParamState: ...
    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...

    def act(self, target: Target, verb: Verb) -> None:
        """Do it, or raise `EditError` and leave everything as it was."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which parameters, which slots of them and which rows a verb acts on; `owner` carries it out."""

    owner: Owner
    names: tuple[str, ...]
    description: str
    choice: Choice = ALL
    rows: Rows | None = None

    def __str__(self) -> str:
        rows = f" rows {self.rows}" if self.rows is not None else ""
        return f"{self.description}{' ' if str(self.choice) else ''}{self.choice}{rows}"


class Verbs:
    """The verbs, which change slots in place: the tensors and their memory stay the same.

    Inside `with state.edit()` they act at once and belong to that edit; elsewhere each is an edit of its own. All raise
    `EditError` for what does not fit and `EditRefused` where the outcome would be wrong, and then nothing has changed.
    """

    __slots__ = ()

    @abstractmethod
    def _target(self) -> Target:
        """What they act on."""

    def scale_(self, factor: float) -> None:
        """Multiply by a finite number. A negative one turns a momentum round; it is refused for what is never negative.

        >>> state.select("*.weight").momentum.scale_(0.5)
        """
        self._act(verbs.scale(factor))

    def zero_(self) -> None:
        """Make zero. For "as if the optimizer had not stepped", see `reset_`."""
        self._act(verbs.zero())

    def reset_(self, keep: str | Sequence[str] = ()) -> None:
        """Make as if fresh, together with all slots that mean something only with these: the step count, maxima, products.

        `keep` names slots, by role or key, that stay as they are: `reset_(keep="step")` starts the moments anew and
        keeps the count, which makes the next updates of Adam several times as large and is then refused.
        Of rows, the step count stays, for all rows share it; their second moment becomes the mean of the other rows', so
        that no update is larger than a fresh start's. SGD's buffer becomes zero, which is the same as fresh without
        dampening, and is removed with it. Refused for an optimizer that the registry does not know.

        >>> state.select("2.*").reset_()
        >>> state["2.bias"].step.item()
        0.0
        """
        self._act(reset(keep))

    def set_(self, value: Any) -> None:
        """Replace the values: by a number, a tensor or array of the same shape, one of these by parameter name, or by
        what a callable makes of the old value (a copy, which it may change).

        >>> state["0.bias"].momentum.set_(lambda old: old.clamp(min=0))
        """
        self._act(verbs.set_to(value))

    def clip_norm_(self, max_norm: float, *, per_parameter: bool = False) -> None:
        """Scale down so that the L2 norm of all that is selected, or of each parameter, is at most `max_norm`."""
        self._act(verbs.clip_norm(max_norm, per_parameter))

    def clamp_(self, min: float | None = None, max: float | None = None) -> None:
        """Limit every element to a range."""
        self._act(verbs.clamp(min, max))

    def lerp_(self, other: Other, weight: float) -> None:
        """Move towards the same slots of another state: live, a snapshot, an opened checkpoint or its path.

        `weight` goes from 0, nothing, to 1, theirs. Slots are matched by parameter name, key and meaning. An average that
        is divided by 1-β^t where it is used is brought to this optimizer's β and t first.

        >>> state.select("*").momentum.lerp_(checkpoint, 0.5)
        """
        self._act(lerp(other, weight))

    def _act(self, verb: Verb) -> None:
        target = self._target()
        target.owner.act(target, verb)


class _WithSlots(Verbs):
    """Parameters of which a slot is still to be chosen."""

    __slots__ = ()

    @property
    def momentum(self) -> Chosen:
        """The slots that carry the direction of the update."""
        return self.role("momentum")

    @property
    def second_moment(self) -> Chosen:
        """The averages of squared gradients."""
        return self.role("second_moment")

    @property
    def step(self) -> Chosen:
        """The counts of updates."""
        return self.role("step")

    def role(self, role: Role) -> Chosen:
        """The primary slots of a role, of those parameters that have one."""
        return Chosen(replace(self._target(), choice=Choice(role=role)))

    def slot(self, key: str) -> Chosen:
        """The slots of a key, of those parameters that have one."""
        return Chosen(replace(self._target(), choice=Choice(key=key)))


class Chosen(Verbs):
    """One slot of some parameters, or some rows of it."""

    __slots__ = ("_chosen",)

    def __init__(self, target: Target) -> None:
        self._chosen = target

    def rows(self, rows: RowIndex) -> Chosen:
        """Some rows: an index, a list or tensor of them, a slice, or a mask of booleans, along the first dimension."""
        return Chosen(replace(self._chosen, rows=Rows(rows)))

    def _target(self) -> Target:
        return self._chosen

    def __str__(self) -> str:
        return str(self._chosen)

    __repr__ = __str__


class ChosenRows(_WithSlots):
    """Some rows of some parameters."""

    __slots__ = ("_chosen",)

    def __init__(self, target: Target) -> None:
        self._chosen = target

    def __getitem__(self, key: str) -> Chosen:
        return self.slot(key)

    def _target(self) -> Target:
        return self._chosen

    def __str__(self) -> str:
        return str(self._chosen)

    __repr__ = __str__


class LiveSelection(Selection, _WithSlots):
    """Some parameters of a running optimizer. Never empty.

    >>> state.select("*.bias").momentum.scale_(0.5)
    >>> state.select("0.weight").rows([0, 3]).reset_()
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: Owner, names: Sequence[str], description: str) -> None:
        super().__init__(cast("Mapping[str, ParamState]", owner), names, description)
        self._owner = owner

    @overload
    def __getitem__(self, index: int) -> LiveParam: ...
    @overload
    def __getitem__(self, index: slice) -> LiveSelection: ...
    @overload
    def __getitem__(self, index: str) -> Chosen: ...
    def __getitem__(self, index: int | slice | str) -> ParamState | Selection | Chosen:
        if isinstance(index, str):
            return self.slot(index)
        if isinstance(index, slice):
            return LiveSelection(self._owner, self.names[index], self.description)
        return self._owner[self.names[index]]

    def rows(self, rows: RowIndex) -> ChosenRows:
        """Some rows of each: an index, a list or tensor of them, a slice, or a mask of booleans."""
        return ChosenRows(replace(self._target(), rows=Rows(rows)))

    def _target(self) -> Target:
        return Target(self._owner, self.names, self.description)


@dataclass(frozen=True, slots=True, repr=False)
class LiveSlot(Slot, Verbs):
    """A slot of a running optimizer, with the verbs.

    >>> state["0.weight"].momentum.scale_(0.5)
    """

    owner: Owner | None = field(default=None, compare=False)

    def rows(self, rows: RowIndex) -> Chosen:
        """Some rows: an index, a list or tensor of them, a slice, or a mask of booleans, along the first dimension."""
        return Chosen(replace(self._target(), rows=Rows(rows)))

    def _target(self) -> Target:
        return Target(cast("Owner", self.owner), (self.parameter,), safe_text(self.parameter), Choice(key=self.key))


class LiveParam(ParamState, Verbs):
    """One parameter of a running optimizer: its slots have the verbs, it has `reset_`, and `rows` has both.

    >>> state["0.weight"].rows([0, 1]).momentum.zero_()
    """

    __slots__ = ("_owner",)

    def __init__(self, facts: ParameterFacts, reader: SlotReader, owner: Owner) -> None:
        super().__init__(facts, reader)
        self._owner = owner

    @property
    def slots(self) -> Mapping[str, LiveSlot]:
        """Every slot by key, as it is now."""
        return {key: _live(slot, self._owner) for key, slot in super().slots.items()}

    @property
    def momentum(self) -> LiveSlot:
        """The slot that carries the direction of the update. Raises `MissingSlot`, which says why there is none."""
        return self.role("momentum")

    @property
    def second_moment(self) -> LiveSlot:
        """The average of squared gradients. Raises `MissingSlot`, which says why there is none."""
        return self.role("second_moment")

    @property
    def step(self) -> LiveSlot:
        """The count of updates of this parameter. Raises `MissingSlot`, which says why there is none."""
        return self.role("step")

    def role(self, role: Role) -> LiveSlot:
        """The primary slot of `role`. Raises `MissingSlot`, whose message is the reason of the absence."""
        return cast("LiveSlot", super().role(role))

    def __getitem__(self, key: str) -> LiveSlot:
        return cast("LiveSlot", super().__getitem__(key))

    def rows(self, rows: RowIndex) -> ChosenRows:
        """Some rows: an index, a list or tensor of them, a slice, or a mask of booleans, along the first dimension."""
        return ChosenRows(replace(self._target(), rows=Rows(rows)))

    def _target(self) -> Target:
        return Target(self._owner, (self.name,), safe_text(self.name))


def _live(slot: Slot, owner: Owner) -> LiveSlot:
    return LiveSlot(slot.parameter, slot.key, slot.role, slot.value, slot.convention, slot.of, slot.primary, owner)


def chosen(state: OptimizerState, pattern: str, predicates: Predicates) -> Selection:
    """What a pattern means; for the very name of a parameter that no optimizer has, `NoSuchParameter` says so."""
    try:
        return state.select(pattern, **predicates)
    except NothingSelected:
        if any(pattern in names for names in state.left_out.values()):
            state[pattern]
        raise

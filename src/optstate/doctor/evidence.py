"""What a running program shows of itself to a diagnosis: plain values, collected by `optstate.live`, no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optstate.state.optimizer_state import OptimizerState


@dataclass(frozen=True, slots=True)
class LiveParameter:
    """A parameter as an optimizer holds it, and whether the model still has it.

    `name` is that of the state; a tensor that is not in the model is called by its position. `memory` is where its
    values begin, 0 where that cannot be told.
    """

    name: str
    optimizer: str
    group: int
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    memory: int
    trainable: bool
    in_model: bool
    has_gradient: bool


@dataclass(frozen=True, slots=True)
class LiveSlot:
    """A tensor that an optimizer keeps for a parameter. `memory` is where its values begin, 0 where that cannot be told."""

    parameter: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    memory: int

    @property
    def place(self) -> tuple[str, str]:
        """What tells it from every other slot."""
        return self.parameter, self.key


@dataclass(frozen=True, slots=True)
class Stranger:
    """A key of `optimizer.state` that is no parameter of any group.

    A whole number has `number`, a tensor is `shown` by its name in the model where it has one. `slots` are the keys
    of what lies under it.
    """

    kind: Literal["number", "tensor", "other"]
    shown: str
    slots: tuple[str, ...]
    number: int = -1


@dataclass(frozen=True, slots=True)
class LiveGroup:
    """What a param group has besides what the state tells: torch's `param_names`, None without; and which dict it is."""

    recorded: tuple[str, ...] | None
    identity: int


@dataclass(frozen=True, slots=True)
class LiveOptimizer:
    """One optimizer.

    described_as
        The class whose description in the registry holds for it; None where none does.
    container
        The qualified class of `optimizer.state`; `creates_entries` says whether a look-up creates an entry, as torch
        needs it.
    defaults, chosen
        What the constructor was given or assumed for every group; `chosen` are the keys that were given another value than
        the constructor assumes.
    twice
        Parameters that a group holds more than once.
    step_hooks
        How many hooks run after a step.
    scales_gradients
        Whether a `GradScaler` leaves the gradients to it, as fused optimizers announce when they are built.
    loads_as_torch
        Whether `load_state_dict` is torch's own, and no hook changes what it is given or has done.
    """

    name: str
    class_name: str
    described_as: str | None
    container: str
    creates_entries: bool
    strangers: tuple[Stranger, ...]
    groups: tuple[LiveGroup, ...]
    defaults: Mapping[str, Any]
    chosen: frozenset[str]
    twice: tuple[str, ...]
    step_hooks: int
    scales_gradients: bool
    loads_as_torch: bool


@dataclass(frozen=True, slots=True)
class LiveScheduler:
    """A learning rate scheduler, or one inside a chain of them.

    drives
        The name of the optimizer whose groups it writes to; None where that is none of those diagnosed.
    steps
        How often it has stepped.
    last_lr
        The learning rates that it wrote last, group by group; None inside a chain, where only the chain can tell.
    groups
        For how many groups it holds base values; None where it holds none.
    cycles
        The coefficient that it moves besides the learning rate, such as `betas[0]`; "" for none.
    reads
        The keys that each of its steps looks up in every group.
    """

    class_name: str
    drives: str | None
    steps: int
    last_lr: tuple[float, ...] | None
    groups: int | None
    cycles: str
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OtherOptimizer:
    """An optimizer that is alive in this process and not diagnosed: the addresses of its group dicts and its slots."""

    class_name: str
    groups: frozenset[int]
    memory: frozenset[int]


@dataclass(frozen=True, slots=True)
class Unowned:
    """A parameter of the model that no optimizer holds."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    trainable: bool


@dataclass(frozen=True, slots=True)
class LiveEvidence:
    """A model, its optimizers and its schedulers, looked at once.

    state
        The optimizer state by name, in the structure that it had then; its values are the live ones.
    parameters, slots
        What each parameter, by its name, and each slot is physically, in the optimizers' order.
    unowned
        Parameters of the model that no optimizer holds.
    others
        Optimizers elsewhere in the process that share a group or the memory of a slot with these.
    scaled
        Whether a `GradScaler` is in use.
    """

    state: OptimizerState
    optimizers: Mapping[str, LiveOptimizer]
    parameters: Mapping[str, LiveParameter]
    slots: tuple[LiveSlot, ...]
    unowned: tuple[Unowned, ...] = ()
    schedulers: tuple[LiveScheduler, ...] = ()
    others: tuple[OtherOptimizer, ...] = ()
    scaled: bool = False

"""What an optimizer keeps, as data: one `SlotSpec` per slot, one `OptimizerSpec` per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, get_args

from optstate.errors import RegistryError
from optstate.state.roles import CONVENTIONS, OFS, ROLES, Convention, Of, Role
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text

Shape = Literal[
    "parameter",  # the parameter's shape
    "scalar",  # ()
    "row",  # the parameter's shape with the last dimension 1
    "column",  # the parameter's shape with the next-to-last dimension 1
    "squeezed row",  # the parameter's shape without its last dimension
    "squeezed column",  # the parameter's shape without its next-to-last dimension
    "flat",  # one vector over all parameters of the group, in their order
    "list",  # several values, or a tensor in a shape of its own; order and length are the optimizer's
]
Dtype = Literal[
    "parameter",  # the parameter's dtype
    "gradient",  # the gradient's dtype, which is the parameter's unless set otherwise
    "scalar",  # float32; float64 where that is torch's default dtype and the kernel is not fused
    "python",  # a Python number or list, no tensor
]
Created = Literal[
    "constructor",
    "first gradient",  # in the first step in which the parameter has a gradient
    "after first step",  # when that step has ended, or in a later one
]
Age = Literal[
    "debiased",  # the optimizer divides it by 1-β^t where it uses it
    "weighted",  # new data enter with a weight that falls with t
    "stored",  # corrected by another slot, which sums the weights that were given: no change of β asks anything of it
]
Home = Literal["parameter", "step"]
"""Where a slot lives. `parameter`: on the parameter's device. `step`: on the CPU unless the group is
capturable or fused, then on the parameter's device."""


# Made once: hundreds of slots are described whenever a checkpoint is opened.
_WORDS: Mapping[str, tuple[str | None, ...]] = {
    "role": ROLES,
    "convention": (None, *CONVENTIONS),
    "of": (None, *OFS),
    "shape": get_args(Shape),
    "dtype": get_args(Dtype),
    "created": get_args(Created),
    "age": (None, *get_args(Age)),
    "home": get_args(Home),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSpec:
    """One slot of an optimizer.

    role, convention, of
        What the slot means; see `optstate.state.roles`. `primary` marks the slot that the role's accessor
        returns where an optimizer keeps several of one role.
    shape, dtype, created, home
        The rules by which the optimizer creates it.
    when
        The hyperparameter that must be true or non-zero for the slot to exist; `matrix` and `vector` mean
        parameters of at least two, of fewer than two dimensions; `sometimes` means a condition that neither tells, so
        that it is never missed. None: always.
    coefficient
        The hyperparameter that drives it, such as `betas[0]`; None where there is none.
    reset
        Its value in a fresh state: a number, the name of a hyperparameter (`lr`), `parameter` (a copy of the
        weights), or `delete` (a fresh state has no such key).
    age
        How the number of steps t enters where the optimizer uses the slot; None where it does not. A momentum's
        convention says already whether it is debiased by t, so for one only `stored` is said here.
    averages
        Of a momentum with the learning rate in it: what enters is weighted by 1-β, so that it tends to η·g.
    companions
        The slots that must be reset or transplanted together with it, those of them that exist.
    gradient_degree, lr_degree
        By which power of k the slot scales when all gradients (the learning rate) scale by k; None where it
        is no power.

    Source of each row: the class's own code in torch; the registry's tests hold every row against `probe`.
    Raises `RegistryError` for a word that is not in its list.

    >>> slot = optstate.SlotSpec(role="momentum", convention="accumulate", of="gradient", when="momentum",
    ...                          coefficient="momentum", reset="delete", gradient_degree=1)
    >>> slot.exists({"momentum": 0.9}, ndim=2), slot.exists({"momentum": 0.0}, ndim=2)
    (True, False)
    """

    role: Role
    convention: Convention | None = None
    of: Of | None = None
    primary: bool = True
    shape: Shape = "parameter"
    dtype: Dtype = "parameter"
    created: Created = "first gradient"
    home: Home = "parameter"
    when: str | None = None
    coefficient: str | None = None
    reset: float | str = 0.0
    age: Age | None = None
    averages: bool = False
    companions: tuple[str, ...] = ()
    gradient_degree: int | None = 0
    lr_degree: int | None = 0

    def __post_init__(self) -> None:
        for label, allowed in _WORDS.items():
            if getattr(self, label) not in allowed:
                raise RegistryError(
                    f"a slot's {label} cannot be {safe_text(getattr(self, label))!r}",
                    expected=f"one of {', '.join(map(str, allowed))}",
                )
        _, bracket, index = (self.coefficient or "").partition("[")
        if bracket and not index.removesuffix("]").isdecimal():
            raise RegistryError(
                "a slot's coefficient is a hyperparameter or one element of it",
                expected="such as momentum or betas[0]",
                found=safe_text(self.coefficient),
            )
        if (self.convention is None) != (self.of is None):
            raise RegistryError(
                "a slot has a convention and what it is of, or neither",
                found=f"convention={self.convention!r}, of={self.of!r}",
            )

    def exists(self, hyperparameters: Mapping[str, Any], ndim: int | None) -> bool:
        """Whether the optimizer must keep this slot under these hyperparameters for a parameter of `ndim` dimensions.

        An unknown `ndim` (None) or an absent hyperparameter counts as yes.
        """
        if self.when is None:
            return True
        if self.when in ("matrix", "vector"):
            return ndim is None or (ndim >= 2) == (self.when == "matrix")
        if self.when == "sometimes":
            return False
        return bool(hyperparameters.get(self.when, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """One optimizer class: what it is called, what it keeps, and the param-group keys that it always has.

    `hyperparameters` are keys that every version of the class writes; they recognise the class in a file that
    does not name it; `fixed` are keys that it writes with one value only, if at all, and `nonzero` those that are
    never zero (both may name an element, `betas[1]`). `closed` says that `hyperparameters` and `optional` are all that
    it writes, besides what schedulers and programs add: few keys are evidence only if there are no others. `stored_as` is
    how its slots are quantised, such as `8-bit`, where that tells it from another class. `aliases` are further classes
    that keep and write the very same. `group_step` is the group key that counts steps for all its parameters,
    `group_state` are further group keys that stepping changes, whose fresh value is that of `optimizer.defaults`.
    `order_matters` marks state that is laid out over all parameters in their order and kept under the first of them.
    `update` names the rule in `optstate.optimizers.updates` that says how large the next update will be; None where none
    is known. `decoupled` says whether weight decay shrinks the weights by lr·λ beside the gradient (True, or the group flag
    that makes it so) rather than through it.

    Raises `RegistryError` when the description contradicts itself.

    >>> average = optstate.SlotSpec(role="momentum", convention="ema", of="gradient", gradient_degree=1)
    >>> spec = optstate.OptimizerSpec(name="lion_pytorch.Lion", slots={"exp_avg": average})
    >>> optstate.probe(torch.optim.Muon).differences(spec)
    ['exp_avg: described, but not kept', 'momentum_buffer: kept, but not described']
    """

    name: str
    slots: Mapping[str, SlotSpec]
    hyperparameters: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    nonzero: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    closed: bool = False
    stored_as: str | None = None
    aliases: tuple[str, ...] = ()
    group_step: str | None = None
    group_state: tuple[str, ...] = ()
    order_matters: bool = False
    update: str | None = None
    decoupled: bool | str = False

    def __post_init__(self) -> None:
        name = safe_text(self.name)
        for key, slot in self.slots.items():
            if not isinstance(slot, SlotSpec):
                raise RegistryError(
                    f"{name}: slot {safe_text(key)!r} is not described by a SlotSpec",
                    found=f"a {type(slot).__name__}",
                    todo="SlotSpec(role=...) says what it is",
                )
            strangers = set(slot.companions) - set(self.slots)
            if strangers:
                raise RegistryError(
                    f"{name}: slot {safe_text(key)!r} has companions that the optimizer does not keep",
                    found=listing(sorted(strangers)),
                    expected=f"some of {listing(self.slots)}",
                )
        primary = [slot.role for slot in self.slots.values() if slot.primary and slot.role not in _SHARED_ROLES]
        twice = sorted({role for role in primary if primary.count(role) > 1})
        if twice:
            raise RegistryError(f"{name}: two primary slots of role {', '.join(twice)}", todo="mark one primary=False")


_SHARED_ROLES = frozenset({"other", "counter", "preconditioner"})
"""Roles that no accessor asks for, so that several slots may have them as equals."""


IMPLEMENTATION_FLAGS = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Group keys that choose a kernel and not a result: they belong to the live program."""

ALGORITHM_FLAGS = frozenset({"amsgrad", "nesterov", "maximize", "centered", "decoupled_weight_decay"})
"""Group keys that change what the slots mean: a checkpoint and a program that differ in one do not fit."""

ADDED_KEYS = frozenset(
    {
        "params", "param_names", "name", "group_name", "param_group", "initial_lr", "min_lr", "max_lr", "initial_momentum",
        "base_momentum", "max_momentum", "swa_lr", "lr_scale", "lr_mult", "decay_mult", "layer_names",
    }
)  # fmt: skip
"""Group keys that torch itself, schedulers and programs add to those of any class."""


def coefficient_value(coefficient: str, hyperparameters: Mapping[str, Any]) -> Any:
    """The value that a coefficient such as `betas[0]` has in a group; None where the group lacks it."""
    key, _, index = coefficient.partition("[")
    value = hyperparameters.get(key)
    if not index or value is None:
        return value
    position = int(index.removesuffix("]"))
    return value[position] if isinstance(value, (tuple, list)) and len(value) > position else None


def steady_gain(slot: SlotSpec, hyperparameters: Mapping[str, Any]) -> float | None:
    """Value of a momentum slot under a constant input of 1 after infinitely many steps; None where unknown.

    v = βv + (1-d)g tends to g(1-d)/(1-β), and grows without end for β ≥ 1; an average tends to g.

    >>> steady_gain(SlotSpec(role="momentum", convention="accumulate", of="gradient", coefficient="momentum"),
    ...             {"momentum": 0.75})
    4.0
    """
    if slot.convention in ("ema", "ema_debiased"):
        return 1.0
    if slot.convention in ("accumulate", "accumulate_debiased") and slot.coefficient is not None:
        beta = number(coefficient_value(slot.coefficient, hyperparameters))
        dampening = number(hyperparameters.get("dampening", 0.0))
        if beta is None or dampening is None:
            return None
        return (1.0 - dampening) / (1.0 - beta) if beta < 1.0 else inf
    return None


def number(value: Any) -> float | None:
    """A hyperparameter as a float, also where it is a scalar tensor or a reference to one; None for any other."""
    try:
        plain: Any = value.item() if is_tensor(value) else value
        return float(plain)
    except (TypeError, ValueError):
        return None

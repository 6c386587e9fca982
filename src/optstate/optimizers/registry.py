"""Finding the description of an optimizer: by class on a live one, by contents in a file that names none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from inspect import unwrap
from typing import Any

from optstate.errors import RegistryError
from optstate.optimizers.spec import (
    ADDED_KEYS,
    ALGORITHM_FLAGS,
    IMPLEMENTATION_FLAGS,
    OptimizerSpec,
    SlotSpec,
    coefficient_value,
    number,
)
from optstate.optimizers.third_party import THIRD_PARTY
from optstate.optimizers.torch_optim import TORCH_OPTIM
from optstate.optimizers.updates import UPDATES
from optstate.text import listing, safe_text

_SPECS: dict[str, OptimizerSpec] = {spec.name: spec for spec in (*TORCH_OPTIM, *THIRD_PARTY)}
_ALIASES = {alias: spec.name for spec in _SPECS.values() for alias in spec.aliases}


def qualified_name(cls: type) -> str:
    """`module.qualname` of a class, the key of the registry."""
    return f"{cls.__module__}.{cls.__qualname__}"


def known_names() -> tuple[str, ...]:
    """The qualified names of all described classes."""
    return tuple(_SPECS)


def by_name(name: str | None) -> OptimizerSpec | None:
    """The description of the class with this qualified name, or None."""
    return _SPECS.get(_ALIASES.get(name, name)) if name is not None else None


def by_class(cls: type) -> OptimizerSpec | None:
    """The description of `cls`, or of the nearest described ancestor whose way of stepping it inherits unchanged.

    A subclass with a `step` or `_init_group` of its own may keep anything, so its ancestor's description does not
    hold for it.
    """
    for ancestor in cls.__mro__:
        spec = by_name(qualified_name(ancestor))
        if spec is not None:
            return spec if ancestor is cls or _steps_alike(cls, ancestor) else None
    return None


def _steps_alike(cls: type, ancestor: type) -> bool:
    return all(_method(cls, name) is _method(ancestor, name) for name in ("step", "_init_group"))


def _method(cls: type, name: str) -> object:
    return beneath_hooks(getattr(cls, name, None))


def beneath_hooks(step: Any) -> Any:
    """`step` as the class defines it: torch wraps it on the class when the first instance is made."""
    return unwrap(step, stop=lambda function: not getattr(function, "hooked", False)) if callable(step) else step


def by_contents(
    group: Mapping[str, Any], keys: Collection[str], dtypes: Collection[str] = ()
) -> tuple[OptimizerSpec, ...]:
    """The described classes that fit a param group's keys and the slot keys seen, the best first; maybe none.

    `dtypes` are the element types of the slots, where they are known. Two classes that differ in nothing a file shows
    (Adam and AdamW before they wrote `decoupled_weight_decay`) are both returned. A slot that no class keeps, as a
    program may add one, hides none that fits in everything else.
    """
    evidence = {spec.name: _evidence(spec, group, set(keys), dtypes) for spec in _SPECS.values()}
    most = max((found for found in evidence.values() if found is not None), default=None)
    return tuple(spec for spec in _SPECS.values() if evidence[spec.name] == most is not None)


def _evidence(
    spec: OptimizerSpec, group: Mapping[str, Any], keys: set[str], dtypes: Collection[str]
) -> tuple[int, int, int] | None:
    """Minus the slots that it does not keep, how many group keys speak for it, minus the slots that it always has and
    that are not there; None for a class that is out.
    """
    fixed = [
        coefficient_value(key, group) == value for key, value in spec.fixed.items() if key.partition("[")[0] in group
    ]
    nonzero = [number(coefficient_value(key, group)) for key in spec.nonzero]
    strangers = len(keys - set(spec.slots))
    if not (set(spec.hyperparameters) <= set(group) and all(fixed) and all(nonzero)):
        return None
    if (spec.closed or strangers) and not _explains(spec, group):
        return None
    essential = _essential(spec, group)
    missing = len(essential - keys) if keys else 0
    if strangers and (missing or not _telling(spec, essential)):
        return None
    stored = spec.stored_as is None or any(dtype.startswith(spec.stored_as) for dtype in dtypes)
    # Flags that every class has may be required of a group, but they speak for none.
    speaking = len(set(spec.hyperparameters) - IMPLEMENTATION_FLAGS) + len(fixed) + (spec.stored_as is not None)
    return (-strangers, speaking, -missing) if stored and speaking else None


def _explains(spec: OptimizerSpec, group: Mapping[str, Any]) -> bool:
    """Whether the class, or what surrounds any class, writes every key of the group."""
    own = {*spec.hyperparameters, *spec.optional, *(key.partition("[")[0] for key in spec.fixed)}
    own |= {spec.group_step} if spec.group_step else set()
    flags = set() if spec.closed else IMPLEMENTATION_FLAGS | ALGORITHM_FLAGS
    return set(group) <= own | flags | ADDED_KEYS


def _essential(spec: OptimizerSpec, group: Mapping[str, Any]) -> set[str]:
    """The slots that any parameter must have under the hyperparameters of a group."""
    return {
        key
        for key, slot in spec.slots.items()
        if slot.when not in ("matrix", "vector") and slot.created != "after first step" and slot.exists(group, None)
    }


def _telling(spec: OptimizerSpec, keys: set[str]) -> bool:
    """Whether slots tell a class at all: several of them, or a momentum."""
    return len(keys) > 1 or "momentum" in {spec.slots[key].role for key in keys}


def register(
    optimizer: type | str,
    slots: Mapping[str, SlotSpec],
    *,
    hyperparameters: tuple[str, ...] = (),
    order_matters: bool = False,
    update: str | None = None,
) -> OptimizerSpec:
    """Describe an optimizer that the registry does not know, for this process.

    `optimizer` is the class or its qualified name; `slots` maps each key of `optimizer.state[p]` to what it
    means; `hyperparameters` are group keys that recognise it in files; `order_matters` says that its state is laid
    out over all parameters in their order; `update` names the rule by which it makes its next update (`adam`, `sgd`,
    `lion`, ...), so that edits of its state can be checked by what they would do. Describing a class again in the same
    words does nothing.
    `optstate.probe` measures what a class keeps: its report checks a description and suggests one.

    Raises `RegistryError` when the description contradicts itself or an existing one.

    >>> spec = optstate.register("lion_pytorch.Lion", {
    ...     "exp_avg": optstate.SlotSpec(role="momentum", convention="ema", of="gradient", coefficient="betas[1]",
    ...                                  gradient_degree=1),
    ... }, update="lion")
    """
    if not isinstance(optimizer, (type, str)) or not isinstance(slots, Mapping):
        raise RegistryError(
            "an optimizer is described by its class and a mapping of its slots",
            expected="a class or its qualified name, and {key: SlotSpec(role=...)}",
            found=f"a {type(optimizer).__name__} and a {type(slots).__name__}",
            todo="register(type(optimizer), {...}) for an optimizer at hand",
        )
    name = optimizer if isinstance(optimizer, str) else qualified_name(optimizer)
    if update is not None and update not in UPDATES:
        raise RegistryError(
            f"{safe_text(name)}: no rule for updates is called {safe_text(update)!r}",
            expected=f"one of {', '.join(sorted(UPDATES))}",
            todo="leave it out where none fits: the size of its next update is then unknown",
        )
    spec = OptimizerSpec(
        name=name, slots=dict(slots), hyperparameters=hyperparameters, order_matters=order_matters, update=update
    )
    known = _SPECS.setdefault(name, spec)
    if known != spec:
        old, new = _contrast(known, spec)
        raise RegistryError(
            f"{safe_text(name)} is described already, in other words",
            expected=old,
            found=new,
            todo="describe it once; a subclass with a step of its own may be described differently",
        )
    return known


def _contrast(known: OptimizerSpec, spec: OptimizerSpec) -> tuple[str, str]:
    """The first thing in which two descriptions differ, as each says it."""
    if known.slots.keys() != spec.slots.keys():
        return f"slots {listing(known.slots)}", f"slots {listing(spec.slots)}"
    pairs: list[tuple[str, OptimizerSpec | SlotSpec, OptimizerSpec | SlotSpec]] = [
        *((f"{safe_text(key)}: ", known.slots[key], spec.slots[key]) for key in known.slots),
        ("", known, spec),
    ]
    return next(
        (f"{where}{field.name}={safe_text(old)}", f"{where}{field.name}={safe_text(new)}")
        for where, one, other in pairs
        for field in fields(one)
        if (old := getattr(one, field.name)) != (new := getattr(other, field.name))
    )

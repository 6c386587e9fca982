"""Hyperparameters that a param group is given: by their names, of the kind that they are, in a range that works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from math import isfinite
from typing import Any

import torch

from optstate.errors import CoefficientError, SelectionError
from optstate.live.tensors import held
from optstate.optimizers.ranges import check
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import IMPLEMENTATION_FLAGS, number
from optstate.state.table import format_value
from optstate.text import listing, safe_text

NAMES = ("params", "param_names")
"""Keys of a group that are no hyperparameters."""

_BUILT_IN = IMPLEMENTATION_FLAGS - {"foreach"}
"""Flags that decide where slots live and which kernels an optimizer checked for when it was built."""


def new_values(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The group's keys that change, each with its whole value: `betas[0]` gives `betas`.

    Raises `SelectionError` for a name that the group does not have and `CoefficientError` for a value that is of
    another kind than the one there, not finite, or refused by the optimizer's own constructor.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        key, bracket, index = str(name).partition("[")
        if key not in group or key in NAMES or key in _BUILT_IN:
            raise _no_such(optimizer, group, str(name))
        old = values.get(key, group[key])
        values[key] = _with_item(name, old, index, value) if bracket else _of_kind(name, old, value)
        check(by_class(type(optimizer)), key, held(values[key]))
    _refuse_what_the_class_does(optimizer, {**group, **values})
    return values


def refuse_missing_slots(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    values: Mapping[str, Any],
    parameters: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Raise `CoefficientError` where the next step would look up a slot that these values ask for and nobody made."""
    spec = by_class(type(optimizer))
    asked = {} if spec is None else {
        key: slot
        for key, slot in spec.slots.items()
        if slot.when in values and slot.reset != "delete" and not slot.exists(group, None) and slot.exists(values, None)
    }  # fmt: skip
    for name, parameter in parameters:
        entry = optimizer.state.get(parameter)
        lacking = [key for key in asked if entry and key not in entry]
        if lacking:
            when = asked[lacking[0]].when or ""
            raise CoefficientError(
                f"{safe_text(when)} cannot become {format_value(values[when])}: the next step would look for a slot that is not there",
                where=safe_text(name),
                expected=listing(lacking),
                found=listing(entry or ()),
                todo="build the optimizer with it, then restore the state into that one",
            )


def _no_such(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], name: str) -> SelectionError:
    names = [key for key in group if key not in NAMES and key not in _BUILT_IN]
    names += [f"{key}[{place}]" for key in names for place, _ in enumerate(_items(group[key]))]
    near = get_close_matches(name, names, n=1) or _driving(optimizer, name)
    fixed = name in _BUILT_IN
    return SelectionError(
        f"{safe_text(name)!r} is chosen when an optimizer is built" if fixed
        else f"{safe_text(qualified_name(type(optimizer)))} has no hyperparameter {safe_text(name)!r}",
        expected=f"one of {listing(names, 20)}",
        todo=f"did you mean {near[0]!r}?" if near and not fixed else None,
    )  # fmt: skip


def _driving(optimizer: torch.optim.Optimizer, role: str) -> list[str]:
    """The coefficient that drives the slot of a role, for those who call it by that."""
    spec = by_class(type(optimizer))
    slots = spec.slots.values() if spec is not None else ()
    return [slot.coefficient for slot in slots if slot.role == role and slot.primary and slot.coefficient]


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else ()


def _with_item(name: str, old: Any, index: str, value: Any) -> Any:
    items = list(_items(old))
    place = int(index[:-1]) if index.endswith("]") and index[:-1].isdecimal() else len(items)
    if place >= len(items):
        raise SelectionError(
            f"there is no item {safe_text(name)!r}",
            expected=f"one of {len(items)} items" if items else "a hyperparameter that has items",
            found=format_value(held(old)),
        )
    items[place] = _of_kind(name, items[place], value)
    return type(old)(items)


def _of_kind(name: str, old: Any, value: Any) -> Any:
    """`value`, where it is of the kind of the one there; where that is None or nothing we know, any is."""
    if isinstance(old, (tuple, list)):
        fits = isinstance(value, (tuple, list)) and len(value) == len(old)
        value = type(old)(_of_kind(name, *pair) for pair in zip(old, value, strict=True)) if fits else value
    elif isinstance(old, (bool, str)):
        fits = isinstance(value, type(old))
    elif isinstance(old, (int, float, torch.Tensor)):
        plain = None if isinstance(value, (bool, str)) else number(held(value))
        fits = plain is not None and isfinite(plain)
    else:
        fits = True
    if not fits:
        raise CoefficientError(
            f"{safe_text(name)} cannot become {format_value(held(value))}",
            expected="a finite number"
            if isinstance(old, (float, torch.Tensor))
            else f"such as {format_value(held(old))}",
            found=f"a {type(value).__name__}",
        )
    return value


def _refuse_what_the_class_does(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Ask torch's own constructor, with a parameter of its own: an edited group is never checked again."""
    classes = [cls for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.optim.")]
    cls = classes[0]
    if cls is torch.optim.Optimizer:
        return
    known = set(signature(cls).parameters) - IMPLEMENTATION_FLAGS - {"params"}
    given = {
        key: number(held(value)) if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key in known
    }
    try:
        cls([torch.zeros(1, 1, device="cpu")], **given)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise CoefficientError(
            f"{cls.__name__} refuses these hyperparameters: {safe_text(error)}",
            found=", ".join(f"{safe_text(key, 32)} {format_value(value)}" for key, value in given.items()),
        ) from None

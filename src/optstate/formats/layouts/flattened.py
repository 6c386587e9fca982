"""Optimizer state with one key for each value, `state.<parameter>.<slot>`: put back into the layout of a `state_dict`.

torch flattens so for models in pieces (`flatten_optimizer_state_dict`); Megatron-core writes the slot before the name.
Names and slots may both have dots, so that a key alone does not tell where one ends; the keys together do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from optstate.errors import ReadError
from optstate.formats.containers.pickle_machine import Node
from optstate.optimizers.registry import by_name, known_names
from optstate.state.tensors import is_tensor

_KEY = re.compile(r"(?:(?P<owner>.+?)\.)??(?P<part>state|param_groups)\.(?P<rest>.+)", re.DOTALL)
_NUMBERED = re.compile(r"\d+\.params")


def take_flattened(
    entries: Mapping[Any, Node], *, optimizer: bool
) -> tuple[dict[str, dict[str, Any]], dict[Any, Node]]:
    """The optimizers among entries, each as a `state_dict`, by what stands in front of their keys; and what is left.

    `optimizer` says that the entries are known to be those of an optimizer. Otherwise keys belong to one where a word
    in front of them says so, or where there are groups: a layer of a model may also be called `state`.
    """
    owned: dict[str, dict[str, Node]] = {}
    for key, value in entries.items():
        match = _KEY.fullmatch(key) if type(key) is str else None
        if match is not None:
            owned.setdefault(match["owner"] or "", {})[f"{match['part']}.{match['rest']}"] = value
    found = {
        owner: keys
        for owner, keys in owned.items()
        if "optim" in owner.lower()
        or (not owner and (optimizer or any(key.startswith("param_groups.") for key in keys)))
    }
    taken = {f"{owner}.{key}" if owner else key for owner, keys in found.items() for key in keys}
    rest = {key: value for key, value in entries.items() if key not in taken}
    return {owner: _state_dict(keys) for owner, keys in found.items()}, rest


def _state_dict(entries: Mapping[str, Node]) -> dict[str, Any]:
    values = _part(entries, "state.")
    options = _part(entries, "param_groups.")
    numbered = any(_NUMBERED.fullmatch(key) for key in options)
    groups = _numbered_groups(options) if numbered else _groups(options)
    members = {str(name) for group in groups for name in group["params"]}
    state = _state(values, members)
    homeless = [name for name in state if name not in members]
    return {"state": state, "param_groups": [*groups, *([{"params": homeless}] if homeless else [])]}


def _part(entries: Mapping[str, Node], prefix: str) -> dict[str, Node]:
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


# --- groups -----------------------------------------------------------------------------------------------


def _numbered_groups(options: Mapping[str, Node]) -> list[dict[str, Any]]:
    """Groups that were flattened as a list: `<number>.<option>`."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        number, _, option = key.partition(".")
        groups.setdefault(number, {})[option] = value
    return [group for group in groups.values() if type(group.get("params")) is list]


def _groups(options: Mapping[str, Node]) -> list[dict[str, Any]]:
    """Parameters with equal options as groups, in the order of the first of each."""
    by_parameter: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        name, _, option = key.rpartition(".")
        by_parameter.setdefault(name, {})[option] = value
    groups: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for name, own in by_parameter.items():
        alike = tuple((option, _text(value)) for option, value in own.items())
        groups.setdefault(alike, {**own, "params": []})["params"].append(name)
    return list(groups.values())


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def _text(value: Node) -> str:
    """Something that is equal for equal values."""
    if type(value) in _PLAIN or (type(value) in (tuple, list) and all(type(item) in _PLAIN for item in value)):
        return repr(value)
    if is_tensor(value) and prod(value.shape) == 1:
        try:
            return f"{value.dtype} {value.item()!r}"
        except ReadError:
            return repr(value)
    return str(id(value))


# --- state ------------------------------------------------------------------------------------------------


def _state(values: Mapping[str, Node], names: set[str]) -> dict[str, dict[str, Any]]:
    known = {key: name for key in values if (name := _known_name(key, names)) is not None}
    slot_first = _slot_first(key for key in values if key not in known)
    state: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key in known:
            name, slot = known[key], key[len(known[key]) + 1 :]
        elif slot_first:
            slot, _, name = key.partition(".")
        else:
            name, _, slot = key.rpartition(".")
        _put(state.setdefault(name, {}), slot, value)
    return state


def _known_name(key: str, names: set[str]) -> str | None:
    """The longest of the names that a key starts with."""
    end = key.rfind(".")
    while end >= 0 and key[:end] not in names:
        end = key.rfind(".", 0, end)
    return key[:end] if end >= 0 else None


def _slot_first(keys: Iterable[str]) -> bool:
    """Whether keys have a slot that some optimizer keeps in front, and not at their end."""
    slots = {slot for name in known_names() if (spec := by_name(name)) is not None for slot in spec.slots}
    ends = Counter((key.partition(".")[0] in slots, key.rpartition(".")[2] in slots) for key in keys)
    return ends[True, False] > ends[False, True]


def _put(entry: dict[str, Any], slot: str, value: Node) -> None:
    """A slot that is a dict of further ones has dots in its key."""
    *outer, last = slot.split(".")
    inner = entry
    for part in outer:
        found = inner.setdefault(part, {})
        if type(found) is not dict:
            entry[slot] = value
            return
        inner = found
    inner[last] = value

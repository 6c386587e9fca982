"""Optimizer `state_dict`s, as torch makes them, as a named state: whatever file they were found in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from optstate.errors import Refused
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.naming import Named, Order, Position, Weight, name_positions, not_updated, notes_on_names
from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_contents, by_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text


@dataclass(slots=True)
class Optimizer:
    """One state dict, read: its positions in order, and what it has besides."""

    name: str
    class_name: str | None
    specs: tuple[OptimizerSpec, ...]
    hyperparameters: Sequence[Mapping[str, Any]]
    positions: list[Position] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    @property
    def spec(self) -> OptimizerSpec | None:
        return self.specs[0] if self.specs else None


def is_state_dict(node: object) -> bool:
    """Whether a node has the layout that every `torch.optim.Optimizer.state_dict()` has."""
    if type(node) is not dict or type(node.get("state")) is not dict:
        return False
    groups = node.get("param_groups")
    return type(groups) is list and all(type(group) is dict and "params" in group for group in groups)


def read_state_dicts(
    state_dicts: Mapping[str, Mapping[str, Any]],
    weights: Sequence[Weight],
    file: str,
    *,
    orders: Sequence[Order] = (),
    classes: Mapping[str, str] = MappingProxyType({}),
) -> tuple[OptimizerState, list[str]]:
    """The state of one or more optimizers by name, and what is to be said about it.

    `state_dicts` maps the optimizer's name ("" for a single one) to a node for which `is_state_dict` holds;
    `weights` are the model's tensors, each once, where the file has any; `file` is its name, for messages; `orders`
    how the writer lays out parameters; `classes` the class of an optimizer where the writer says it. Raises `Refused`,
    with the place, for groups that contradict each other.
    """
    optimizers = [_read(name, node, file, classes.get(name)) for name, node in state_dicts.items()]
    positions = [position for optimizer in optimizers for position in optimizer.positions]
    names = name_positions(positions, weights, file, orders)
    notes = [*notes_on_names(positions, names), *_notes_on_values(optimizers)]

    parameters: list[FrozenParameter] = []
    infos: dict[str, OptimizerInfo] = {}
    for optimizer in optimizers:
        named = names[len(parameters) : len(parameters) + len(optimizer.positions)]
        parameters += _parameters(optimizer, named)
        infos[optimizer.name] = _info(optimizer, named)
        notes += _notes_on_absence(optimizer, parameters[len(parameters) - len(named) :])
    left_out = {
        "state of no parameter in any group": [each for optimizer in optimizers for each in optimizer.strangers],
        "weights that no optimizer updates": not_updated(names, weights),
    }
    return OptimizerState(FrozenSource(parameters, infos, {key: each for key, each in left_out.items() if each})), notes


# --- reading one ------------------------------------------------------------------------------------------


def _read(name: str, node: Mapping[str, Any], file: str, class_name: str | None) -> Optimizer:
    groups, state = node["param_groups"], node["state"]
    hyperparameters = [
        {key: value for key, value in group.items() if type(key) is str and key not in ("params", "param_names")}
        for group in groups
    ]
    keys = {key for entry in state.values() for key, value in entry_of(entry).items() if value is not None}
    stated = by_name(class_name)
    specs = (stated,) if stated else by_contents(hyperparameters[0], keys) if hyperparameters else ()
    optimizer = Optimizer(name, class_name, specs, hyperparameters)
    mirrors = _mirrors(optimizer.spec)
    seen: dict[int | str, int] = {}
    for index, group in enumerate(groups):
        where = f"{file}: {safe_text(name, 40) + ': ' if name else ''}param_groups[{index}]"
        for key, recorded in zip(_keys(group, where), _recorded(group), strict=True):
            home = seen.get(key)
            if home == index:
                continue  # torch accepts a parameter that is twice in one group, and counts it once
            if home is not None:
                raise Refused(
                    f"parameter {safe_text(key)} is in two groups of the optimizer",
                    where=where,
                    found=f"also in group {home}",
                )
            seen[key] = index
            entry = entry_of(state.get(key))
            shape, dtype = _mirrored(entry, mirrors)
            optimizer.positions.append(Position(name, index, key, recorded, entry, shape, dtype))
    optimizer.strangers += [f"{name}#{key!r}" for key in state if key not in seen]
    return optimizer


def entry_of(node: object) -> Mapping[str, Any]:
    """The slots of a parameter; what is no dict, and keys that are no text, are no slots."""
    if type(node) is not dict:
        return {}
    return node if all(type(key) is str for key in node) else {key: node[key] for key in node if type(key) is str}


def _keys(group: Mapping[str, Any], where: str) -> list[int | str]:
    keys = group["params"]
    odd = [keys] if type(keys) is not list else [key for key in keys if type(key) not in (int, str)]
    if odd:
        raise Refused(
            "an optimizer lists its parameters by number or by name",
            where=f"{where}.params",
            found=f"a {type(odd[0]).__name__}",
        )
    return list(keys)


def _recorded(group: Mapping[str, Any]) -> list[str | None]:
    """torch's `param_names`, which it keeps parallel to the parameters."""
    names = group.get("param_names")
    number = len(group["params"])
    if type(names) is list and len(names) == number and all(type(name) is str for name in names):
        return list(names)
    return [None] * number


def _mirrors(spec: OptimizerSpec | None) -> list[tuple[str, bool]]:
    """Slots that have the parameter's shape, and whether its element type too."""
    if spec is None:
        return []
    return [
        (key, slot.dtype in ("parameter", "gradient")) for key, slot in spec.slots.items() if slot.shape == "parameter"
    ]


def _mirrored(entry: Mapping[str, Any], mirrors: list[tuple[str, bool]]) -> tuple[tuple[int, ...] | None, str | None]:
    """Shape and element type of a parameter, as its slots tell; None where they do not, or contradict each other."""
    found = [(entry[key], same_dtype) for key, same_dtype in mirrors if is_tensor(entry.get(key))]
    shapes = {tensor.shape for tensor, _ in found}
    dtypes = {tensor.dtype for tensor, same_dtype in found if same_dtype}
    return shapes.pop() if len(shapes) == 1 else None, dtypes.pop() if len(dtypes) == 1 else None


# --- building the state -----------------------------------------------------------------------------------


def _parameters(optimizer: Optimizer, names: Sequence[Named]) -> list[FrozenParameter]:
    stepped = any(value is not None for position in optimizer.positions for value in position.entry.values())
    return [
        _parameter(optimizer, position, named, stepped)
        for position, named in zip(optimizer.positions, names, strict=True)
    ]


def _parameter(optimizer: Optimizer, position: Position, named: Named, stepped: bool) -> FrozenParameter:
    weight = named.weight
    shape, dtype = (position.shape, position.dtype) if weight is None else (weight.tensor.shape, weight.tensor.dtype)
    slots = interpret(optimizer.spec, named.name, position.entry)
    shown = safe_text(named.name)
    for slot in slots.values():
        own(slot.value, f"{shown}/{safe_text(slot.key)}")
    otherwise = Absence.DROPPED if slots else Absence.NO_GRADIENT if stepped else Absence.NOT_SAVED
    facts = ParameterFacts(
        name=named.name,
        certainty=named.certainty,
        shape=shape,
        dtype=dtype,
        optimizer=position.optimizer,
        group=position.group,
        aliases=tuple(name for name in (weight.name, *weight.aliases) if name != named.name) if weight else (),
        candidates=named.candidates,
    )
    hyperparameters = optimizer.hyperparameters[position.group]
    ndim = None if shape is None else len(shape)
    return FrozenParameter(facts, slots, explain_absences(optimizer.spec, slots, hyperparameters, ndim, otherwise))


def own(value: object, name: str) -> None:
    """Tell a stored tensor, or those in a list, what they hold, so that damage is reported by that name."""
    if isinstance(value, StoredTensor):
        value.record.owner = value.record.owner or name
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if isinstance(item, StoredTensor):
                own(item, f"{name}[{index}]")


def _info(optimizer: Optimizer, names: Sequence[Named]) -> OptimizerInfo:
    members: list[list[str]] = [[] for _ in optimizer.hyperparameters]
    for position, named in zip(optimizer.positions, names, strict=True):
        members[position.group].append(named.name)
    groups = tuple(
        Group(optimizer.name, index, hyperparameters, tuple(members[index]))
        for index, hyperparameters in enumerate(optimizer.hyperparameters)
    )
    fitting = tuple(spec.name for spec in optimizer.specs)
    known, stated = bool(fitting), optimizer.class_name
    return OptimizerInfo(
        optimizer.name,
        stated or (fitting[0] if known else None),
        groups,
        known=known,
        inferred=known and stated is None,
        alternatives=() if stated else fitting[1:],
    )


# --- what is to be said -----------------------------------------------------------------------------------


def _notes_on_values(optimizers: Sequence[Optimizer]) -> list[str]:
    odd = [
        f"{optimizer.name + ' ' if optimizer.name else ''}group {index} {key}"
        for optimizer in optimizers
        for index, hyperparameters in enumerate(optimizer.hyperparameters)
        for key, value in hyperparameters.items()
        if any(_not_finite(item) for item in (value if type(value) in (tuple, list) else (value,)))
    ]
    return [f"hyperparameters that are not finite: {listing(odd)}"] if odd else []


def _not_finite(value: object) -> bool:
    return type(value) is float and not abs(value) < float("inf")


def _notes_on_absence(optimizer: Optimizer, parameters: Sequence[FrozenParameter]) -> list[str]:
    if any(Absence.NOT_SAVED in parameter.absences.values() for parameter in parameters):
        label = f"the optimizer {safe_text(optimizer.name)}" if optimizer.name else "the optimizer"
        why = "it was saved before its first step, or its state was dropped; the file does not say which"
        return [f"{label} has groups and no state: {why}"]
    return []

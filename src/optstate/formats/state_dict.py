"""Optimizer `state_dict`s, as torch makes them, as a named state: whatever file they were found in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

from optstate.errors import Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.assembled import Assembled
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.entries import entry_of
from optstate.formats.fitting import Position
from optstate.formats.naming import Named, name_positions, not_updated
from optstate.formats.orders import Order, Weight
from optstate.optimizers.interpret import explain_absences, interpret, is_slot
from optstate.optimizers.registry import by_contents, by_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.roles import Certainty, Role
from optstate.state.tensors import DTYPES, Value, is_tensor
from optstate.text import count, listing, safe_text


@dataclass(slots=True)
class Optimizer:
    """One state dict, read: its positions in order, and what it has besides."""

    name: str
    class_name: str | None
    specs: tuple[OptimizerSpec, ...]
    hyperparameters: Sequence[Mapping[str, Any]]
    added: Mapping[str, Role]
    positions: list[Position] = field(default_factory=list)
    unplaced: dict[str, Value] = field(default_factory=dict)
    clues: list[Clue] = field(default_factory=list)

    @property
    def spec(self) -> OptimizerSpec | None:
        return self.specs[0] if self.specs else None


def is_state_dict(node: object) -> bool:
    """Whether a node has the layout that every `torch.optim.Optimizer.state_dict()` has."""
    if type(node) is not dict or type(node.get("state")) is not dict:
        return False
    groups = node.get("param_groups")
    return type(groups) is list and all(type(group) is dict and "params" in group for group in groups)


@dataclass(slots=True)
class Read:
    """What state dicts hold: the state by name, what belongs to no parameter, what is to be said, the step they state."""

    state: OptimizerState
    unplaced: dict[str, Value]
    clues: list[Clue]
    notes: list[str]
    step: int | None = None


def read_state_dicts(
    state_dicts: Mapping[str, Mapping[str, Any]],
    weights: Sequence[Weight],
    file: str,
    *,
    buffers: Collection[str] = (),
    orders: Sequence[Order] = (),
    classes: Mapping[str, str] = MappingProxyType({}),
    certainties: Mapping[str, Certainty] = MappingProxyType({}),
    added: Mapping[str, Role] = MappingProxyType({}),
    paths: Mapping[str, str] = MappingProxyType({}),
) -> Read:
    """The state of one or more optimizers by name.

    `state_dicts` maps the optimizer's name ("" for a single one) to a node for which `is_state_dict` holds;
    `weights` are the model's tensors, each once, where the file has any; `file` is its name, for messages; `buffers`
    which of the weights are known to be no parameters; `orders` how the writer lays out parameters; `classes` the
    class of an optimizer where the writer says it; `certainties` how sure names are that stand as keys, where that is
    less than `file`; `added` slots that something around the optimizers adds; `paths` where each lies in the file.
    Raises `Refused`, with the place, for groups that contradict each other.
    """
    optimizers = [
        _read(name, node, file, classes.get(name), paths.get(name, name or "optimizer"), added)
        for name, node in state_dicts.items()
    ]
    positions = [position for optimizer in optimizers for position in optimizer.positions]
    naming = name_positions(
        positions, [weight for weight in weights if weight.name not in buffers], file, orders, certainties
    )
    notes = [*naming.notes, *_notes_on_values(optimizers)]

    parameters: list[FrozenParameter] = []
    infos: dict[str, OptimizerInfo] = {}
    for optimizer in optimizers:
        named = naming.names[len(parameters) : len(parameters) + len(optimizer.positions)]
        parameters += _parameters(optimizer, named)
        infos[optimizer.name] = _info(optimizer, named)
        notes += _notes_on_absence(optimizer, parameters[len(parameters) - len(named) :])
    frozen = not_updated(naming.names, weights)
    left_out = {"weights that no optimizer updates": frozen} if frozen else {}
    unplaced = {path: value for optimizer in optimizers for path, value in optimizer.unplaced.items()}
    for path, value in unplaced.items():
        own(value, safe_text(path))
    return Read(
        OptimizerState(FrozenSource(parameters, infos, left_out)),
        unplaced,
        [*(clue for optimizer in optimizers for clue in optimizer.clues), *naming.clues],
        notes,
    )


# --- reading one ------------------------------------------------------------------------------------------


def _read(
    name: str, node: Mapping[str, Any], file: str, class_name: str | None, path: str, added: Mapping[str, Role]
) -> Optimizer:
    groups, state = node["param_groups"], node["state"]
    hyperparameters = [
        {key: value for key, value in group.items() if type(key) is str and key not in ("params", "param_names")}
        for group in groups
    ]
    slots = [slot for entry in state.values() for slot in entry_of(entry).items() if is_slot(slot[1])]
    keys, dtypes = {key for key, _ in slots} - added.keys(), {value.dtype for _, value in slots if is_tensor(value)}
    stated = by_name(class_name)
    specs = (stated,) if stated else by_contents(hyperparameters[0], keys, dtypes) if hyperparameters else ()
    optimizer = Optimizer(name, class_name, specs, hyperparameters, added)
    seen = _groups_of_keys(groups, f"{file}: {safe_text(name, 40) + ': ' if name else ''}")
    spelt = _as_text(state, seen)
    mirroring = [*mirrors(optimizer.spec), *((key, False) for key, role in added.items() if role == "master_weights")]
    for key, (index, recorded) in seen.items():
        entry = entry_of(state.get(spelt.get(key, key)))
        shape, dtype = mirrored(entry, mirroring)
        guess = _common_shape(entry) if optimizer.spec is None else None
        optimizer.positions.append(
            Position(name, index, key, recorded, entry, shape or guess, dtype, guessed=guess is not None)
        )
    _leave_over(optimizer, state, {spelt.get(key, key) for key in seen}, path)
    if spelt:
        optimizer.clues.append(_clue_on_text(len(spelt), path))
    return optimizer


def _groups_of_keys(groups: Sequence[Mapping[str, Any]], label: str) -> dict[int | str, tuple[int, str | None]]:
    """The group of each parameter, and its recorded name. Raises `Refused` for one in two groups."""
    seen: dict[int | str, tuple[int, str | None]] = {}
    for index, group in enumerate(groups):
        where = f"{label}param_groups[{index}]"
        for key, recorded in zip(_keys(group, where), _recorded(group), strict=True):
            home, _ = seen.setdefault(key, (index, recorded))
            if home != index:  # twice in one group is what torch accepts, and counts once
                raise Refused(
                    f"parameter {safe_text(key)} is in two groups of the optimizer",
                    where=where,
                    found=f"also in group {home}",
                )
    return seen


def _as_text(state: Mapping[Any, Any], keys: Iterable[int | str]) -> dict[int | str, str]:
    """Numbers whose state is kept under their text, as a conversion through JSON or DCP leaves it."""
    return {key: str(key) for key in keys if type(key) is int and key not in state and str(key) in state}


def _clue_on_text(number: int, path: str) -> Clue:
    return Clue(
        "M219",
        f"{safe_text(path)}.state has text for keys ('0') where its groups have numbers (0), for "
        f"{count(number, 'parameter')}: torch loads it without a word and starts every momentum from zero",
        f"before load_state_dict: s = {safe_text(path)}; s['state'] = {{int(k): v for k, v in s['state'].items()}}",
    )


def _leave_over(optimizer: Optimizer, state: Mapping[Any, Any], used: Collection[int | str], path: str) -> None:
    """Put what belongs to no parameter under its raw path, and say so."""
    strangers = []
    for key, entry in state.items():
        where = f"{path}.state[{key if type(key) in (int, str) else safe_text(key)!r}]"
        if key not in used:
            strangers.append(key)
            optimizer.unplaced |= leaves(where, entry)
        elif type(entry) is not dict:
            optimizer.unplaced |= {} if entry is None else {where: entry}
        else:
            optimizer.unplaced |= {
                f"{where}[{safe_text(slot)!r}]": entry[slot] for slot in entry if type(slot) is not str
            }
    if strangers:
        optimizer.clues.append(clue_on_strangers(strangers, path))


def clue_on_strangers(keys: Sequence[object], path: str) -> Clue:
    """State of no parameter in the optimizer that lies at `path`."""
    return Clue(
        "M219",
        f"{safe_text(path)}.state has {count(len(keys), 'key')} of no parameter in any group: {listing(map(repr, keys))}",
    )


def leaves(where: str, entry: object) -> dict[str, Any]:
    """The slots of an entry by their raw path; what is no dict of slots as a whole."""
    return {f"{where}.{key}": value for key, value in entry_of(entry).items()} or {where: entry}


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


def mirrors(spec: OptimizerSpec | None) -> list[tuple[str, bool]]:
    """Slots that have the parameter's shape, and whether its element type too."""
    if spec is None:
        return []
    return [
        (key, slot.dtype in ("parameter", "gradient")) for key, slot in spec.slots.items() if slot.shape == "parameter"
    ]


def mirrored(
    entry: Mapping[str, Any], mirrors: Sequence[tuple[str, bool]]
) -> tuple[tuple[int, ...] | None, str | None]:
    """Shape and element type of a parameter, as its slots tell; None where they do not, or contradict each other."""
    found = [(entry[key], same_dtype) for key, same_dtype in mirrors if is_tensor(entry.get(key))]
    shapes = {tensor.shape for tensor, _ in found}
    dtypes = {tensor.dtype for tensor, same_dtype in found if same_dtype and tensor.dtype in DTYPES}
    return shapes.pop() if len(shapes) == 1 else None, dtypes.pop() if len(dtypes) == 1 else None


def _common_shape(entry: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape that all slots with more than one element have."""
    shapes = {value.shape for value in entry.values() if is_tensor(value) and prod(value.shape) > 1}
    return shapes.pop() if len(shapes) == 1 else None


# --- building the state -----------------------------------------------------------------------------------


def _parameters(optimizer: Optimizer, names: Sequence[Named]) -> list[FrozenParameter]:
    stepped = any(value is not None for position in optimizer.positions for value in position.entry.values())
    return [
        _parameter(optimizer, position, named, stepped)
        for position, named in zip(optimizer.positions, names, strict=True)
    ]


def _parameter(optimizer: Optimizer, position: Position, named: Named, stepped: bool) -> FrozenParameter:
    weight = named.weight
    told = None if position.guessed else position.shape
    shape, dtype = (told, position.dtype) if weight is None else (weight.tensor.shape, weight.tensor.dtype)
    slots = interpret(optimizer.spec, named.name, position.entry, optimizer.added)
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
        position=position.key if isinstance(position.key, int) else None,
    )
    hyperparameters = optimizer.hyperparameters[position.group]
    ndim = None if shape is None else len(shape)
    return FrozenParameter(facts, slots, explain_absences(optimizer.spec, slots, hyperparameters, ndim, otherwise))


def own(value: object, name: str) -> None:
    """Tell a stored tensor, or those in a list, what they hold, so that damage is reported by that name."""
    if isinstance(value, StoredTensor):
        value.record.owner = value.record.owner or name
    elif isinstance(value, Assembled):
        value.name = value.name or name
        for piece in value.pieces:
            own(piece.tensor, name)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if isinstance(item, StoredTensor):
                own(item, f"{name}[{index}]")
    else:
        for part in getattr(value, "parts", ()):
            own(part, name)


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
        ordered=all(type(position.key) is int for position in optimizer.positions),
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

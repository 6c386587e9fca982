"""`named_state_dict` as it lies in a file: names, classes and groups written beside the state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optstate.errors import NewerFormat, Refused
from optstate.formats.entries import entry_of
from optstate.formats.state_dict import Read, clue_on_strangers, leaves, own
from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.text import safe_text

FORMAT = "optstate.named/1"
_FAMILY = "optstate.named/"


def is_named(node: object) -> bool:
    """Whether a node says that it is a by-name dict, of any version."""
    return type(node) is dict and type(node.get("format")) is str and node["format"].startswith(_FAMILY)


def read_named(node: Mapping[str, Any], file: str, path: str) -> Read:
    """The state in a by-name dict, what belongs to no parameter in it, and the step it states.

    `path` leads to the dict in the file. Raises `NewerFormat`, and `Refused` with the place where it is not as
    `named_state_dict` makes it.
    """
    where = f"{file}: {safe_text(path)}"
    if node["format"] != FORMAT:
        raise NewerFormat(
            "the by-name dict was written by a newer optstate",
            where=where,
            expected=FORMAT,
            found=safe_text(node["format"]),
            todo="upgrade optstate",
        )
    entries = _get(node, "state", dict, where)
    about = _get(node, "parameters", dict, where, {})
    optimizers = _get(node, "optimizers", dict, where)
    _check_names(optimizers, f"{where}.optimizers")
    infos = {name: _info(name, info, f"{where}.optimizers.{safe_text(name, 40)}") for name, info in optimizers.items()}
    parameters = [
        _parameter(name, group, by_name(info.class_name), entries, _get(about, name, dict, f"{where}.parameters", {}))
        for info in infos.values()
        for group in info.groups
        for name in group.parameters
    ]
    names = {parameter.facts.name for parameter in parameters}
    if len(names) < len(parameters):
        raise Refused("the by-name dict has a parameter in two groups", where=where)
    strangers = [name for name in entries if name not in names]
    unplaced = {
        raw: value
        for name in strangers
        for raw, value in leaves(f"{path}.state[{safe_text(name)!r}]", entries[name]).items()
    }
    step = node.get("step")
    return Read(
        OptimizerState(FrozenSource(parameters, infos)),
        unplaced,
        [clue_on_strangers(strangers, path)] if strangers else [],
        [],
        step if type(step) is int else None,
    )


_REQUIRED = object()


def _get(node: Mapping[str, Any], key: str, kind: type, where: str, default: Any = _REQUIRED) -> Any:
    """A part of the dict that has the right type. Raises `Refused`."""
    value = node.get(key, default)
    if type(value) is kind:
        return value
    raise Refused(
        "the by-name dict is not as named_state_dict makes it",
        where=f"{where}.{safe_text(key, 40)}",
        expected=f"a {kind.__name__}",
        found="nothing" if value is _REQUIRED else f"a {type(value).__name__}",
        todo="save it unchanged",
    )


def _info(name: str, node: Any, where: str) -> OptimizerInfo:
    class_name = _get({"optimizer": node}, "optimizer", dict, where).get("class")
    groups = tuple(
        _group(name, index, group, f"{where}.groups[{index}]")
        for index, group in enumerate(_get(node, "groups", list, where))
    )
    known = type(class_name) is str and by_name(class_name) is not None
    ordered = node.get("ordered") is not False  # which a converted file says where its source did not know
    return OptimizerInfo(name, class_name if type(class_name) is str else None, groups, known, ordered=ordered)


def _group(optimizer: str, index: int, node: Any, where: str) -> Group:
    inner = _get({"group": node}, "group", dict, where)
    names = _get(inner, "parameters", list, where)
    _check_names(names, f"{where}.parameters")
    return Group(optimizer, index, _get(inner, "hyperparameters", dict, where), tuple(names))


def _check_names(names: Iterable[object], where: str) -> None:
    odd = next((name for name in names if type(name) is not str), None)
    if odd is not None:
        raise Refused("the by-name dict has a name that is no text", where=where, found=f"a {type(odd).__name__}")


def _parameter(
    name: str, group: Group, spec: OptimizerSpec | None, entries: Mapping[str, Any], about: Mapping[str, Any]
) -> FrozenParameter:
    slots = interpret(spec, name, entry_of(entries.get(name)))
    for slot in slots.values():
        own(slot.value, slot.path)
    dtype, trainable = about.get("dtype"), about.get("trainable")
    facts = ParameterFacts(
        name=name,
        certainty="file",
        shape=_tuple_of(int, about.get("shape")),
        dtype=dtype if type(dtype) is str else None,
        optimizer=group.optimizer,
        group=group.index,
        aliases=_tuple_of(str, about.get("aliases")) or (),
        trainable=trainable if type(trainable) is bool else None,
    )
    ndim = None if facts.shape is None else len(facts.shape)
    why = _why_absent(bool(slots), stepped=bool(entries), trainable=facts.trainable)
    return FrozenParameter(facts, slots, explain_absences(spec, slots, group.hyperparameters, ndim, why))


def _tuple_of(kind: type, node: Any) -> tuple[Any, ...] | None:
    return tuple(node) if type(node) in (list, tuple) and all(type(item) is kind for item in node) else None


def _why_absent(has_slots: bool, *, stepped: bool, trainable: bool | None) -> Absence:
    if has_slots:
        return Absence.DROPPED
    if not stepped:
        return Absence.NEVER_STEPPED
    return Absence.FROZEN if trainable is False else Absence.NO_GRADIENT

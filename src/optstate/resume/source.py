"""What a restore can start from: a path, an opened checkpoint, a by-name dict, a live or frozen state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optstate.errors import RestoreError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.manifest import FORMAT
from optstate.live.named import NAMED_FORMAT
from optstate.live.tensors import held
from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_name
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.journal import Journal
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.tensors import TensorRef, Value
from optstate.text import safe_text

Restorable: TypeAlias = "str | os.PathLike[str] | Checkpoint | OptimizerState | Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Saved:
    """The saved side of a plan. `weights` and `journal` are None where the source has no notion of them."""

    label: str
    step: int | None
    state: OptimizerState
    weights: Mapping[str, TensorRef] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objects: Mapping[str, Value] = field(default_factory=dict)
    object_classes: Mapping[str, str] = field(default_factory=dict)
    journal: Journal | None = None
    unplaced: Mapping[str, Value] = field(default_factory=dict)


def saved_side(source: Restorable) -> Saved:
    """Open whatever was given. Raises `ReadError` for a path, `RestoreError` for anything that is no source."""
    if isinstance(source, (str, os.PathLike)):
        source = open_checkpoint(source)
    if isinstance(source, Checkpoint):
        return Saved(
            safe_text(source.path),
            source.step,
            source.state,
            source.weights,
            source.aliases,
            source.objects,
            source.object_classes,
            source.journal if source.journal or source.format == FORMAT else None,
            source.unplaced,
        )
    if isinstance(source, OptimizerState):
        return Saved("a state in memory", None, source.snapshot())
    if isinstance(source, Mapping) and source.get("format") == NAMED_FORMAT:
        return Saved("a by-name dict", None, _from_named(source))
    raise RestoreError(
        "this is nothing to restore from",
        expected="a path, optstate.open(path), optstate.named_state_dict(...), or a state",
        found=f"a dict with keys {', '.join(map(safe_text, list(source)[:6]))}"
        if isinstance(source, Mapping)
        else f"a {type(source).__name__}",
        todo="pass the path of the file that the dict was saved to; its names and layout are recognised there",
    )


def _from_named(named: Mapping[str, Any]) -> OptimizerState:
    """A by-name dict as a frozen state; its tensors are shared, and only ever read."""
    try:
        optimizers = {
            name: OptimizerInfo(
                name,
                info["class"],
                tuple(
                    Group(name, index, held(group["hyperparameters"]), tuple(group["parameters"]))
                    for index, group in enumerate(info["groups"])
                ),
                known=by_name(info["class"]) is not None,
            )
            for name, info in named["optimizers"].items()
        }
        parameters = [
            _parameter(named, name, info, group)
            for info in optimizers.values()
            for group in info.groups
            for name in group.parameters
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise RestoreError(
            "the by-name dict is not as named_state_dict made it",
            found=f"{type(error).__name__}: {safe_text(error)}",
            todo="pass it unchanged",
        ) from error
    return OptimizerState(FrozenSource(parameters, optimizers))


def _parameter(named: Mapping[str, Any], name: str, info: OptimizerInfo, group: Group) -> FrozenParameter:
    entry = {key: held(value) for key, value in named["state"].get(name, {}).items()}
    about = named["parameters"][name]
    spec = by_name(info.class_name)
    slots = interpret(spec, name, entry)
    why = Absence.DROPPED if entry else Absence.NO_GRADIENT if named["state"] else Absence.NEVER_STEPPED
    facts = ParameterFacts(
        name=name,
        certainty="file",
        shape=tuple(about["shape"]),
        dtype=about["dtype"],
        optimizer=info.name,
        group=group.index,
        aliases=tuple(about["aliases"]),
        trainable=about["trainable"],
    )
    return FrozenParameter(facts, slots, explain_absences(spec, slots, group.hyperparameters, len(about["shape"]), why))

"""Comparing a saved side with the live side: decisions where they fit, faults where they do not.

Nothing here touches a live value. All faults are collected, so that one look at the plan shows every one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optstate.live.bind import Bound
from optstate.live.source import LiveSource, hyperparameters, load_hooks
from optstate.live.tensors import dtype_name
from optstate.live.weights import live_weights
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS, OptimizerSpec
from optstate.resume.decisions import HyperparameterDecision, SlotDecision, WeightDecision, missing
from optstate.resume.pairing import pair
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.absence import Absence
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.parameter import ParamState
from optstate.state.table import format_value
from optstate.state.tensors import TensorRef
from optstate.text import count, listing, safe_text


@dataclass(slots=True)
class Comparison:
    """What comparing has found so far."""

    weights: list[WeightDecision] = field(default_factory=list)
    slots: list[SlotDecision] = field(default_factory=list)
    hyperparameters: list[HyperparameterDecision] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    misfits: set[str] = field(default_factory=set)
    """Weights that the model has in another shape or dtype."""
    regrouped: set[str] = field(default_factory=set)
    """Live optimizers whose groups are not the saved ones in the saved order."""


def compare_weights(found: Comparison, saved: Saved, model: nn.Module) -> None:
    """Every tensor of the model must be in the checkpoint under one of its names, with its shape and dtype."""
    weights, live = saved.weights or {}, live_weights(model)
    names = pair(
        {name: weight.aliases for name, weight in live.items()},
        {name: saved.aliases.get(name, ()) for name in weights},
    )
    if names.lost:
        found.faults.append(
            f"{count(len(names.lost), 'tensor')} of the model that the checkpoint lacks: {listing(names.lost)}"
        )
    if names.strangers:
        found.faults.append(
            f"{count(len(names.strangers), 'weight')} in the checkpoint that the model lacks: {listing(names.strangers)}"
        )
    found.faults.extend(names.untied)
    for hits in names.tied.values():
        if not all(same(weights[hits[0]], weights[hit]) for hit in hits[1:]):
            found.faults.append(f"{listing(hits)} are one tensor live and differ in the checkpoint")
    for name, saved_name in names.pairs.items():
        fault = _mismatch(live[name].tensor, weights[saved_name])
        if fault:
            found.misfits.add(name)
            found.faults.append(f"{safe_text(name)}: {fault}")
        else:
            found.weights.append(WeightDecision(name, "exact", weights[saved_name]))


def _mismatch(live: torch.Tensor, saved: TensorRef) -> str | None:
    if tuple(live.shape) != saved.shape:
        return f"shape {list(saved.shape)} in the checkpoint, {list(live.shape)} in the model"
    if dtype_name(live) != saved.dtype:
        return f"{saved.dtype} in the checkpoint, {dtype_name(live)} in the model"
    return None


def compare_optimizers(found: Comparison, saved: Saved, live: LiveSource) -> None:
    """Every parameter of every live optimizer must be in the saved state, and the reverse."""
    optimizers = _pair_optimizers(found, saved, live)
    hopeless = _nothing_to_match(saved)
    if hopeless is not None:
        found.faults.append(hopeless)
    if optimizers is None or hopeless is not None:
        return
    names = pair(
        {name: live.bound(name).aliases for name in live.names()},
        {name: parameter.facts.aliases for name, parameter in saved.state.items()},
    )
    if names.lost:
        found.faults.append(
            f"no state in the checkpoint for {count(len(names.lost), 'parameter')}: {listing(names.lost)}"
        )
    if names.strangers:
        found.faults.append(
            f"state in the checkpoint for {count(len(names.strangers), 'parameter')} that no live optimizer steps: "
            f"{listing(names.strangers)}"
        )
    found.faults.extend(names.untied)
    found.faults.extend(
        f"{listing(hits)} have one state live and several in the checkpoint" for hits in names.tied.values()
    )
    for name, saved_name in names.pairs.items():
        _compare_parameter(found, optimizers, saved.state[saved_name], live.bound(name), live)
    _mention_certainty(found, saved)
    for live_name, saved_name in optimizers.items():
        _compare_groups(found, saved, live, live_name, names.pairs)
        _compare_order(found, saved.state.optimizers[saved_name], live, live_name, names.pairs)
        _mention_hooks(found, live.live_optimizers[live_name])


def _nothing_to_match(saved: Saved) -> str | None:
    """What makes every single parameter a fault, said once: no state at all, or no names for it."""
    facts = [parameter.facts for parameter in saved.state.values()]
    number = count(len(facts), "parameter")
    if not facts:
        return "the checkpoint holds no optimizer state at all: every momentum would start from nothing"
    if all(Absence.NOT_SAVED in parameter.absences.values() for parameter in saved.state.values()):
        return (
            f"the optimizer state in the checkpoint is empty for all {number}: every momentum would start from nothing"
        )
    if all(item.certainty == "position" for item in facts):
        return (
            f"the checkpoint keys its optimizer state by position, and nothing in it says which of {number} is which; "
            "load it with torch in the order of the program that saved it, then save it by name"
        )
    return None


def _pair_optimizers(found: Comparison, saved: Saved, live: LiveSource) -> dict[str, str] | None:
    """Which saved optimizer goes into which live one: by name, or the only one into the only one."""
    saved_optimizers, live_optimizers = saved.state.optimizers, live.live_optimizers
    if not saved_optimizers:
        return None
    if len(saved_optimizers) == len(live_optimizers) == 1:
        pairs = {next(iter(live_optimizers)): next(iter(saved_optimizers))}
    elif set(saved_optimizers) == set(live_optimizers):
        pairs = {name: name for name in live_optimizers}
    else:
        found.faults.append(
            f"{_optimizers(saved_optimizers)} in the checkpoint, {_optimizers(live_optimizers)} live; "
            "several are restored as they were saved, by their names"
        )
        return None
    for live_name, saved_name in pairs.items():
        _compare_class(found, saved_optimizers[saved_name], live_optimizers[live_name])
    return pairs


def _optimizers(names: Iterable[str]) -> str:
    named = sorted(name for name in names if name)
    return f"optimizers {listing(named)}" if named else "one optimizer without a name"


def _compare_class(found: Comparison, saved: OptimizerInfo, live: torch.optim.Optimizer) -> None:
    name = qualified_name(type(live))
    if name == saved.class_name:
        return
    label = f"optimizer {safe_text(saved.name)}: " if saved.name else ""
    if saved.inferred and name in saved.alternatives:
        return
    found.faults.append(f"{label}state of {safe_text(saved.short_name)} in the checkpoint, {type(live).__name__} live")


def _compare_parameter(
    found: Comparison, pairs: Mapping[str, str], saved: ParamState, bound: Bound, live: LiveSource
) -> None:
    facts, name = saved.facts, safe_text(bound.name)
    optimizer = live.live_optimizers[bound.optimizer]
    spec = by_class(type(optimizer))
    if pairs[bound.optimizer] != facts.optimizer:
        found.faults.append(
            f"{name}: stepped by optimizer {safe_text(facts.optimizer)!r} in the checkpoint, {bound.optimizer!r} live"
        )
        return
    shape, dtype = tuple(bound.tensor.shape), dtype_name(bound.tensor)
    if bound.name in found.misfits:
        return  # said of its weight already
    if facts.shape is not None and facts.shape != shape:
        found.faults.append(f"{name}: shape {list(facts.shape)} in the checkpoint, {list(shape)} live")
        return
    if facts.dtype is not None and facts.dtype != dtype:
        found.faults.append(f"{name}: {facts.dtype} in the checkpoint, {dtype} live")
        return
    faults = [*_absence_faults(saved, optimizer), *_shape_faults(saved, spec, shape)]
    if faults:
        found.faults.extend(f"{name}: {fault}" for fault in faults)
    elif saved.slots:
        reason = "as saved" if saved.name == bound.name else f"as saved under its other name, {safe_text(saved.name)}"
        found.slots.extend(
            SlotDecision(bound.name, slot.key, "exact", reason, slot.value) for slot in saved.slots.values()
        )
    else:
        found.slots.append(SlotDecision(bound.name, None, "fresh", _why_fresh(saved)))


def _why_fresh(saved: ParamState) -> str:
    """Why nothing was there to save: what an optimizer would never keep matters least."""
    reasons = sorted(saved.absences.values(), key=lambda absence: absence is Absence.NOT_KEPT)
    return reasons[0].sentence if reasons else "nothing was saved because nothing was there"


_NOT_RESTORABLE = (Absence.NOT_SAVED, Absence.DROPPED)


def _absence_faults(saved: ParamState, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """A slot that was lost on the way is a fault; one that never existed is not."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return  # its whole state hangs on the first parameter
    for role, absence in saved.absences.items():
        if absence in _NOT_RESTORABLE:
            yield f"no {role.replace('_', ' ')}: {absence.sentence}"


def _shape_faults(saved: ParamState, spec: OptimizerSpec | None, shape: tuple[int, ...]) -> Iterator[str]:
    for slot in saved.slots.values():
        rule = spec.slots.get(slot.key) if spec is not None else None
        expected = _expected_shape(rule.shape, shape) if rule is not None else None
        if expected is not None and slot.shape is not None and slot.shape != expected:
            yield f"{safe_text(slot.key)} has shape {list(slot.shape)} in the checkpoint, {list(expected)} is due"


def _expected_shape(rule: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if rule == "parameter":
        return shape
    if rule == "scalar":
        return ()
    if rule == "row":
        return (*shape[:-1], 1)
    if rule == "column":
        return (*shape[:-2], 1, shape[-1])
    if rule == "squeezed row":
        return shape[:-1]
    return (*shape[:-2], shape[-1]) if rule == "squeezed column" else None


def _mention_certainty(found: Comparison, saved: Saved) -> None:
    for certainty, meaning in (
        ("recorded", "come from torch's param_names, which lie after a load in another order"),
        ("shapes", "are the only assignment that the shapes allow, not written in the file"),
    ):
        unsure = [name for name, parameter in saved.state.items() if parameter.facts.certainty == certainty]
        if unsure:
            found.warnings.append(f"{count(len(unsure), 'name')} ({listing(unsure, 3)}) {meaning}")


def _compare_groups(
    found: Comparison, saved: Saved, live: LiveSource, live_name: str, pairs: Mapping[str, str]
) -> None:
    """Give each live group the hyperparameters of the saved group or groups that its parameters come from."""
    home = {name: group for group in saved.state.groups for name in group.parameters}
    info = live.optimizers()[live_name]
    for index, group in enumerate(live.live_optimizers[live_name].param_groups):
        members = [home[pairs[name]] for name in info.groups[index].parameters if name in pairs]
        sources = list({id(source): source for source in members}.values())
        if sources:
            if [source.index for source in sources] != [index]:
                found.regrouped.add(live_name)
            _compare_hyperparameters(found, live_name, index, hyperparameters(group), sources)


def _compare_hyperparameters(
    found: Comparison, optimizer: str, index: int, live: Mapping[str, Any], sources: list[Group]
) -> None:
    label = f"group {optimizer}:{index}" if optimizer else f"group {index}"
    for key in dict.fromkeys((*live, *(key for source in sources for key in source.hyperparameters))):
        values = [source.hyperparameters.get(key, missing) for source in sources]
        mine, theirs = live.get(key, missing), values[0]
        if key in IMPLEMENTATION_FLAGS:
            if not same(mine, theirs):
                found.hyperparameters.append(
                    HyperparameterDecision(optimizer, index, key, mine, theirs, "live", same=False)
                )
            continue
        if not all(same(value, theirs) for value in values[1:]):
            shown = " and ".join(dict.fromkeys(format_value(value) for value in values))
            found.faults.append(
                f"{label}: its parameters come from {count(len(sources), 'saved group')} that differ in "
                f"{safe_text(key)} ({shown})"
            )
            continue
        if key in ALGORITHM_FLAGS and missing not in (mine, theirs) and not same(mine, theirs):
            found.faults.append(
                f"{label}: {key} is {format_value(theirs)} in the checkpoint and {format_value(mine)} live, "
                "which changes what the slots mean"
            )
            continue
        winner = "live" if theirs is missing else "saved"
        found.hyperparameters.append(
            HyperparameterDecision(optimizer, index, key, mine, theirs, winner, same=same(mine, theirs))  # type: ignore[arg-type]
        )


def _compare_order(
    found: Comparison, saved: OptimizerInfo, live: LiveSource, live_name: str, pairs: Mapping[str, str]
) -> None:
    """State laid out over all parameters (LBFGS) means nothing in another order."""
    spec = by_class(type(live.live_optimizers[live_name]))
    if spec is None or not spec.order_matters:
        return
    theirs = [name for group in saved.groups for name in group.parameters]
    mine = [pairs.get(name, name) for group in live.optimizers()[live_name].groups for name in group.parameters]
    if theirs != mine:
        found.faults.append(
            f"{spec.name.rpartition('.')[2]} keeps one history over all parameters in their order, and the order "
            f"differs: {listing(theirs, 3)} in the checkpoint, {listing(mine, 3)} live"
        )


def _mention_hooks(found: Comparison, optimizer: torch.optim.Optimizer) -> None:
    hooks = load_hooks(optimizer)
    if hooks:
        found.warnings.append(
            f"{type(optimizer).__name__} has {count(hooks, 'load hook')}; a restore writes by name and does not call them"
        )

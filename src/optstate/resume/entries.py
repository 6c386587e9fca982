"""Entries: a decision for the slots of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from optstate.live.bind import Bound
from optstate.live.source import LiveSource, load_hooks
from optstate.live.tensors import dtype_name
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.decided import Decided
from optstate.resume.decisions import EntryDecision, Fate
from optstate.resume.groups import Grouping
from optstate.resume.names import Matched, match
from optstate.resume.policy import Policy
from optstate.resume.source import Saved
from optstate.state.absence import Absence
from optstate.state.groups import OptimizerInfo
from optstate.state.parameter import ParamState
from optstate.text import count, listing, safe_text


def match_parameters(found: Decided, saved: Saved, live: LiveSource, policy: Policy) -> Matched | None:
    """How the parameters of the live optimizers go together with the saved ones; None where that means nothing."""
    hopeless = _nothing_to_match(saved)
    if hopeless is not None:
        found.faults.append(hopeless)
        return None
    names = match(
        {name: live.bound(name).aliases for name in live.names()},
        {name: parameter.facts.aliases for name, parameter in saved.state.items()},
        policy,
    )
    found.faults.extend(_name_faults(names))
    return names


def _name_faults(names: Matched) -> Iterator[str]:
    if names.missing:
        yield f"no state in the checkpoint for {count(len(names.missing), 'parameter')}: {listing(names.missing)}"
    if names.unexpected:
        yield (
            f"state in the checkpoint for {count(len(names.unexpected), 'parameter')} that no live optimizer steps: "
            f"{listing(names.unexpected)}"
        )
    yield from names.faults
    for hits in names.tied.values():
        yield f"{listing(hits)} have one state live and several in the checkpoint"


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


def pair_optimizers(found: Decided, saved: Saved, live: LiveSource, policy: Policy) -> dict[str, str] | None:
    """Which saved optimizer goes into which live one: by name, or the only one into the only one."""
    del policy  # what a change of class means
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


def _compare_class(found: Decided, saved: OptimizerInfo, live: torch.optim.Optimizer) -> None:
    name = qualified_name(type(live))
    if name == saved.class_name or (saved.inferred and name in saved.alternatives):
        return
    label = f"optimizer {safe_text(saved.name)}: " if saved.name else ""
    found.faults.append(f"{label}state of {safe_text(saved.short_name)} in the checkpoint, {type(live).__name__} live")


def decide_entries(
    found: Decided,
    saved: Saved,
    live: LiveSource,
    optimizers: Mapping[str, str],
    names: Matched,
    grouping: Grouping,
    policy: Policy,
) -> None:
    """Decide for the slots of every parameter of every live optimizer."""
    del grouping, policy  # conversions and reshaping
    misfits = {name for name in names.pairs if any(fault.startswith(f"{safe_text(name)}: ") for fault in found.faults)}
    for name, saved_name in names.pairs.items():
        if name not in misfits:  # else said of its weight already
            _decide(found, optimizers, saved.state[saved_name], live.bound(name), live, names.fate(name))
    _mention_certainty(found, saved)
    for live_name, saved_optimizer in optimizers.items():
        _compare_order(found, saved.state.optimizers[saved_optimizer], live, live_name, names.pairs)
        _mention_hooks(found, live.live_optimizers[live_name])


def _decide(
    found: Decided, optimizers: Mapping[str, str], saved: ParamState, bound: Bound, live: LiveSource, fate: Fate
) -> None:
    facts, name = saved.facts, safe_text(bound.name)
    optimizer = live.live_optimizers[bound.optimizer]
    if optimizers[bound.optimizer] != facts.optimizer:
        found.faults.append(
            f"{name}: stepped by optimizer {safe_text(facts.optimizer)!r} in the checkpoint, {bound.optimizer!r} live"
        )
        return
    shape, dtype = tuple(bound.tensor.shape), dtype_name(bound.tensor)
    if facts.shape is not None and facts.shape != shape:
        found.faults.append(f"{name}: shape {list(facts.shape)} in the checkpoint, {list(shape)} live")
        return
    if facts.dtype is not None and facts.dtype != dtype:
        found.faults.append(f"{name}: {facts.dtype} in the checkpoint, {dtype} live")
        return
    faults = [*_absence_faults(saved, optimizer), *_shape_faults(saved, by_class(type(optimizer)), shape)]
    found.faults.extend(f"{name}: {fault}" for fault in faults)
    slots = saved.slots
    if faults:
        return
    if slots:
        found.entries.append(
            EntryDecision(
                bound.name,
                fate,
                saved.name,
                {key: slot.value for key, slot in slots.items()},
                dict.fromkeys(slots, fate),
            )
        )
    else:
        found.entries.append(EntryDecision(bound.name, Fate("fresh", _why_fresh(saved)), saved.name))


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


def _mention_certainty(found: Decided, saved: Saved) -> None:
    for certainty, meaning in (
        ("recorded", "come from torch's param_names, which lie after a load in another order"),
        ("shapes", "are the only assignment that the shapes allow, not written in the file"),
    ):
        unsure = [name for name, parameter in saved.state.items() if parameter.facts.certainty == certainty]
        if unsure:
            found.warnings.append(f"{count(len(unsure), 'name')} ({listing(unsure, 3)}) {meaning}")


def _compare_order(
    found: Decided, saved: OptimizerInfo, live: LiveSource, live_name: str, pairs: Mapping[str, str]
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


def _mention_hooks(found: Decided, optimizer: torch.optim.Optimizer) -> None:
    hooks = load_hooks(optimizer)
    if hooks:
        found.warnings.append(
            f"{type(optimizer).__name__} has {count(hooks, 'load hook')}; a restore writes by name and does not call them"
        )

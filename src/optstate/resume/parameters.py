"""Parameters of the optimizers: what their names, their order and the optimizers themselves say against a restore."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from optstate.live.source import LiveSource, load_hooks
from optstate.optimizers.registry import by_class
from optstate.resume.decided import Decided
from optstate.resume.names import Matched, Sentences, name_faults
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.absence import Absence
from optstate.text import count, listing, safe_text

_SENTENCES = Sentences(
    "no state in the checkpoint for {}",
    "state in the checkpoint for {} that no live optimizer steps",
    "have one state in the checkpoint ({})",
    "have one state live and several in the checkpoint",
)


def check_parameters(found: Decided, saved: Saved, names: Matched, policy: Policy) -> bool:
    """Say what is wrong with the names of the parameters; returns whether they mean anything."""
    if policy.slots != "restore":
        return True
    hopeless = _nothing_to_match(saved, names)
    if hopeless is not None:
        allowed = policy.missing == "fresh" and (not len(saved.state) or policy.unexpected == "leave")
        (found.warnings if allowed else found.faults).append(hopeless)
        if not allowed:
            return False
        found.notes.append("momentum can be estimated from a few batches: optstate.rebuild(optimizer, model, closure)")
    found.faults.extend(name_faults(names, policy, "parameter", _SENTENCES, partial(_same_state, saved)))
    if policy.unexpected == "leave":
        unused = [*names.unexpected, *(hit for hits in names.tied.values() for hit in hits[1:])]
        found.left_out.extend(f"state of {safe_text(name)}" for name in unused)
    return True


def _same_state(saved: Saved, one: str, other: str) -> bool:
    mine, theirs = (saved.state.source.slots(name) for name in (one, other))
    return mine.keys() == theirs.keys() and all(same(mine[key].value, theirs[key].value) for key in mine)


def _nothing_to_match(saved: Saved, names: Matched) -> str | None:
    """What makes every single parameter a fault, said once: no state at all, or no names for it."""
    source = saved.state.source
    every = list(saved.state)
    number = count(len(every), "parameter")
    if not every:
        return "the checkpoint holds no optimizer state at all: every momentum would start from nothing"
    if all(Absence.NOT_SAVED in source.absences(name).values() for name in every):
        return (
            f"the optimizer state in the checkpoint is empty for all {number}: every momentum would start from nothing"
        )
    if all(source.facts(name).certainty == "position" for name in every) and not names.pairs:
        return (
            f"the checkpoint keys its optimizer state by position, and nothing in it says which of {number} is which; "
            "load it with torch in the order of the program that saved it, then save it by name"
        )
    return None


def mention_oddities(
    found: Decided, saved: Saved, live: LiveSource, optimizers: Mapping[str, str], names: Matched, policy: Policy
) -> None:
    """Say what else deserves a look: unsure names, an order that differs, hooks that will not be called."""
    if policy.slots != "restore":
        return
    _mention_certainty(found, saved)
    for name, saved_name in optimizers.items():
        _compare_order(found, saved, live, name, saved_name, names)
        _mention_hooks(found, live.live_optimizers[name])
        if policy.scale != 1.0 and by_class(type(live.live_optimizers[name])) is None:
            found.warnings.append(
                f"what {type(live.live_optimizers[name]).__name__} keeps is not described: no momentum of it is scaled"
            )


def _mention_certainty(found: Decided, saved: Saved) -> None:
    for certainty, meaning in (
        ("recorded", "come from torch's param_names, which lie after a load in another order"),
        ("shapes", "are the only assignment that the shapes allow, not written in the file"),
    ):
        unsure = [name for name in saved.state if saved.state.source.facts(name).certainty == certainty]
        if unsure:
            found.warnings.append(f"{count(len(unsure), 'name')} ({listing(unsure, 3)}) {meaning}")


def _compare_order(
    found: Decided, saved: Saved, live: LiveSource, live_name: str, saved_name: str, names: Matched
) -> None:
    """State laid out over all parameters (LBFGS) means nothing in another order, and in parts."""
    spec = by_class(type(live.live_optimizers[live_name]))
    if spec is None or not spec.order_matters:
        return
    theirs = [name for group in saved.state.optimizers[saved_name].groups for name in group.parameters]
    mine = [names.pairs.get(name, name) for group in live.optimizers()[live_name].groups for name in group.parameters]
    kind = spec.name.rpartition(".")[2]
    if theirs != mine:
        found.faults.append(
            f"{kind} keeps one history over all parameters in their order, and the order "
            f'differs: {listing(theirs, 3)} in the checkpoint, {listing(mine, 3)} live; slots="fresh" starts it anew'
        )
    elif names.excluded:
        found.faults.append(f"{kind} keeps one history over all parameters: include all of them, or none")


def _mention_hooks(found: Decided, optimizer: torch.optim.Optimizer) -> None:
    hooks = load_hooks(optimizer)
    if hooks:
        found.warnings.append(
            f"{type(optimizer).__name__} has {count(hooks, 'load hook')}; a restore writes by name and does not call them"
        )

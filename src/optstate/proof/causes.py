"""Which component explains a difference: the resume is tried again with one after the other taken from the other run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain

from optstate.proof.moments import BATCH, GRADIENTS, HYPERPARAMETERS, POSITION, SLOTS, Difference
from optstate.proof.proof import Cause, FirstDifference, Trial
from optstate.text import listing

Try = Callable[[Sequence[Sequence[str]]], Sequence[FirstDifference | None]]
"""Resume once for each list of components, with those taken from the uninterrupted run: what differs first, if anything."""


def explain(
    state: Sequence[Difference], after: FirstDifference | None, scheduled: bool, gradients: bool, attempt: Try
) -> Cause:
    """Say what explains a difference.

    state
        What differs as restored; `after` what differs first in the steps that follow, None where nothing does.
    scheduled, gradients
        Whether there is a scheduler, and whether there were gradients at the save.
    """
    parts = list(dict.fromkeys(each.component for each in state))
    code = doctor_code(state, scheduled)
    if after is None:
        return Cause(tuple(parts), f"not restored: {listing(parts, 8)}; no step that was compared shows it", code)
    candidates = parts or ([GRADIENTS] if gradients else [])
    alone = [[each] for each in candidates]
    together = [candidates] if len(candidates) > 1 else []
    outcomes = attempt([*alone, *together])
    trials = tuple(Trial(tuple(taken), left is None) for taken, left in zip([*alone, *together], outcomes, strict=True))
    fitting = [trial.components for trial in trials if trial.exact]
    if fitting:
        return Cause(fitting[0], _explained(fitting[0], parts), code, trials)
    left = outcomes[-1] if outcomes else after
    if left is not None and left.component == BATCH:
        found = (*parts, POSITION)
        return Cause(found, _unheld(parts), code, trials)
    return Cause(tuple(parts), _unexplained(parts), code, trials)


def _explained(taken: Sequence[str], parts: Sequence[str]) -> str:
    all_of_it = "taken from the uninterrupted run, every step that follows is exact"
    if len(taken) > 1:
        return f"{listing(taken, 8)}: all of them {all_of_it}; none of them alone is enough"
    others = [part for part in parts if part not in taken]
    return f"{taken[0]}: {all_of_it}" + (f"; {listing(others, 8)} differ and do not matter there" if others else "")


def _unheld(parts: Sequence[str]) -> str:
    lost = f"{listing(parts, 8)}, and " if parts else ""
    return f"{lost}{POSITION}: the batches are others, and nothing in loader= or objects= that has a state holds where they were"


def _unexplained(parts: Sequence[str]) -> str:
    hidden = "something that Training does not name: a variable of the program, a generator of its own, a file"
    return f"{listing(parts, 8)}, and {hidden}" if parts else hidden


# --- the doctor's words for it ------------------------------------------------------------------------------

_CYCLE = ("max_lr", "min_lr", "base_momentum", "max_momentum")


def doctor_code(state: Collection[Difference], scheduled: bool) -> str | None:
    """The code of the doctor for what differs as restored, the gravest first; None where none fits."""
    slots = [each for each in state if each.component in SLOTS]
    groups = [each for each in state if each.component == HYPERPARAMETERS]
    rules = chain(_slot_codes(slots), _group_codes(groups, scheduled and not _differs(state, "scheduler")))
    return next(rules, None)


def _differs(state: Collection[Difference], component: str) -> bool:
    return any(each.component == component for each in state)


def _slot_codes(slots: Sequence[Difference]) -> Sequence[str]:
    if not slots:
        return ()
    missing = [each for each in slots if each.found is None]
    cast = [each for each in slots if each.expected and each.found and _type(each.expected) != _type(each.found)]
    found: list[str] = []
    if len(missing) == len(slots) and {each.component for each in slots} >= {"step"}:
        found.append("M101")
    elif missing:
        found.append("M114")
    if cast:
        found.append("M211" if all(each.expected and "[]" in each.expected.kind for each in cast) else "M210")
    if _swapped(slots):
        found.append("M202")
    if all(each.component == "step" for each in slots):
        found.append("M311")
    if any(each.component == "master_weights" for each in slots):
        found.append("M316")
    return found


def _type(part: object) -> str:
    return str(getattr(part, "kind", "")).partition(" ")[0]


def _swapped(slots: Sequence[Difference]) -> bool:
    """Whether a slot holds, bit for bit, what belongs to another parameter."""
    own = {
        (each.expected.digest, each.name.rpartition("/")[2]): each.name
        for each in slots
        if each.expected is not None and not each.expected.shown
    }
    return any(
        own.get((each.found.digest, each.name.rpartition("/")[2]), each.name) != each.name
        for each in slots
        if each.found is not None
    )


def _group_codes(groups: Sequence[Difference], kept: bool) -> Sequence[str]:
    """`kept`: the scheduler came back as it was."""
    missing = {each.name.rpartition("/")[2] for each in groups if each.found is None}
    found = ["M410"] if missing & set(_CYCLE) else ["M405"] if "initial_lr" in missing else []
    if groups and kept:
        found.append("M406")
    return [*found, *(["M401"] if groups else [])]

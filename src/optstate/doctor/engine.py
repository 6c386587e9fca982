"""Asking every rule about a case: one pass over the values, then each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optstate.doctor.case import Case
from optstate.doctor.diagnosis import Diagnosis
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.every import RULES
from optstate.doctor.values import NOTHING, Progress, measure
from optstate.errors import ReadError
from optstate.formats.checkpoint import Checkpoint
from optstate.text import count, listing, safe_text


def diagnose_case(
    case: Case, *, values: bool = True, progress: Progress = lambda _done, _total: None, rules: Sequence[Rule] = RULES
) -> Diagnosis:
    """Ask every rule whose needs are met, and say what was not looked at.

    With `values` every tensor is read once, in bounded memory, and `progress` is told the bytes done and in all; one
    that cannot be read is named in `Diagnosis.uninspected` and the rest goes on. Without it only headers are looked
    at, which `Diagnosis.left_out` says.
    """
    if values:
        case = _measured(case, progress)
    clues = _clues(case)
    told = {clue.code for clue in clues}
    answers = [_ask(rule, case, values=values) for rule in rules if case.meets(rule.needs)]
    # The reader of a format knows more than a rule that looks at the result.
    found = [each for answer in answers for each in answer.found if each.parameters or each.code not in told]
    unticked = {answer.checks for answer in answers if answer.found or not answer.whole} | _nothing_to_check(case)
    return Diagnosis(
        subject=_subject(case),
        summary=_summary(case),
        findings=tuple(sorted([*clues, *found], key=lambda finding: finding.rank)),
        checked=tuple(dict.fromkeys(answer.checks for answer in answers if answer.checks not in unticked)),
        uninspected=tuple(
            dict.fromkeys([*_uninspected(case), *(each for answer in answers for each in answer.failed)])
        ),
        left_out=tuple(_left_out(case, values)),
        notes=tuple(safe_text(note, 1000) for file in _files(case) for note in file.notes),
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a rule found and could not look at; `whole` says whether it could look at everything that it is about."""

    checks: str
    found: list[Finding]
    failed: list[str]
    whole: bool


def _ask(rule: Rule, case: Case, *, values: bool) -> _Answer:
    """Ask a rule. A part that cannot be read ends its question, and not the diagnosis."""
    found: list[Finding] = []
    if rule.reads_values and not values:
        return _Answer(rule.checks, found, [], whole=False)
    try:
        found.extend(rule.ask(case))
    except ReadError as error:
        return _Answer(rule.checks, found, [f"{rule.checks}: {_in_one_line(error)}"], whole=False)
    return _Answer(rule.checks, found, [], whole=not (rule.reads_values and case.values.unread))


OF_SLOTS = frozenset({"momentum", "slots", "dtypes", "shapes", "steps", "order", "devices", "memory", "values"})
OF_GROUPS = frozenset({"hyperparameters", "class", "scheduler", "side lists", "flags", "groups", "parameters", "names"})
"""What rules check of slots and of groups; where there are none, nothing was checked."""


def _nothing_to_check(case: Case) -> frozenset[str]:
    slots = any(parameter.slots for parameter in case.state.values())
    weights = {"values"} if case.values.weights else frozenset[str]()
    # Readers say it in a note where a container has none, or not for all.
    unverified = (
        {"checksums"} if any("checksum" in note for file in _files(case) for note in file.notes) else frozenset[str]()
    )
    return (
        (frozenset() if slots else OF_SLOTS - weights) | (frozenset() if case.state.groups else OF_GROUPS) | unverified
    )


def _measured(case: Case, progress: Progress) -> Case:
    """The case with the values of all its tensors looked at."""
    checkpoint, other = case.checkpoint, case.other
    if checkpoint is None:
        return replace(case, values=measure(case.state, {}, {}, progress))
    values = measure(case.state, checkpoint.weights, checkpoint.unplaced, progress)
    theirs = NOTHING if other is None else measure(other.state, {}, other.unplaced, progress)
    return replace(case, values=values, other_values=theirs)


def _in_one_line(error: ReadError) -> str:
    return " · ".join(part for part in (error.what, error.where, error.found) if part)


def _clues(case: Case) -> list[Finding]:
    """What the reader of a file saw."""
    clues = case.checkpoint.clues if case.checkpoint else ()
    return [Finding(clue.code, clue.evidence, fix=clue.fix) for clue in clues]


def _uninspected(case: Case) -> list[str]:
    """Parts that were not read, or not understood."""
    measured = [*case.values.unread.items(), *case.other_values.unread.items()]
    files = _files(case)
    return [
        *(safe_text(part, 1000) for file in files for part in file.unread),
        *(
            f"{count(len(file.unplaced), 'piece')} of optimizer state that could not be placed: {listing(file.unplaced)}"
            for file in files
            if file.unplaced
        ),
        *(f"{name}: {_in_one_line(error)}" for name, error in measured),
    ]


def _files(case: Case) -> list[Checkpoint]:
    return [file for file in (case.checkpoint, case.other) if file is not None]


def _left_out(case: Case, values: bool) -> Iterator[str]:
    if not values:
        yield "the values of tensors: only headers and step counts were read"
    if case.checkpoint is not None and case.live is not None:
        own = [each.name or each.class_name for each in case.live.optimizers.values() if not each.loads_as_torch]
        if own:
            yield f"what load_state_dict would do, which is overridden or hooked in {listing(own)}"


def _subject(case: Case) -> str:
    if case.checkpoint is not None:
        return safe_text(case.checkpoint.path)
    return " and ".join(info.short_name for info in case.state.optimizers.values()) or "no optimizer"


def _summary(case: Case) -> str:
    checkpoint, state = case.checkpoint, case.state
    classes = [info.short_name for info in state.optimizers.values()]
    parts = [
        *([safe_text(checkpoint.format)] if checkpoint else []),
        *([f"step {checkpoint.step:,}"] if checkpoint and checkpoint.step is not None else []),
        *([" and ".join(map(safe_text, classes))] if classes else []),
        *([count(len(state), "parameter")] if len(state) else []),
        *([f"against {safe_text(case.other.path)}"] if case.other else []),
    ]
    return " · ".join(parts)

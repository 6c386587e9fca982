"""Why there is no state, or not for all: absent by nature, not created yet, or lost."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.wording import about, at_group, called
from optstate.optimizers.registry import by_name
from optstate.state.absence import Absence
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParamState
from optstate.text import count, safe_text

_TOLD_WHY = frozenset({"M101", "M103", "M118", "M501", "M522", "M523"})
"""Codes with which the reader of a format explains already why there is nothing."""

_BY_NATURE = frozenset({Absence.NOT_KEPT, Absence.COEFFICIENT_ZERO})


def _no_optimizer(case: Case) -> Iterator[Finding]:
    """A checkpoint without any optimizer."""
    checkpoint = case.checkpoint
    if (
        checkpoint is None
        or checkpoint.state.optimizers
        or _explained(case)
        or checkpoint.unread
        or checkpoint.unplaced
    ):
        return
    weights = count(len(checkpoint.weights), "weight")
    emptied = [key for key in ("optimizer", "optimizers", "optimizer_states") if key in checkpoint.objects]
    kept = f", and {emptied[0]!r} is {_what(checkpoint.objects[emptied[0]])}" if emptied else ""
    yield Finding("M103", f"the file holds {weights} and no optimizer state of any kind{kept}")


def _what(value: object) -> str:
    return "empty" if not value else safe_text(value, 60)


def _nothing_at_all(case: Case) -> Iterator[Finding]:
    """Optimizers that have parameters and state for none of them, although they would keep some."""
    for info, parameters in _optimizers(case.state):
        if not parameters or any(parameter.slots for parameter in parameters) or not _would_keep(info, parameters):
            continue
        where = called(info.name)
        if case.checkpoint is None or case.checkpoint.step == 0:
            yield Finding("M111", f"0 of {count(len(parameters), 'parameter')} have state", where=where)
        elif not _explained(case):
            step = case.checkpoint.step
            at = f"; the file states step {step:,}" if step else ""
            evidence = (
                f"0 of {count(len(parameters), 'parameter')} have state, {count(len(info.groups), 'group')} present{at}"
            )
            yield Finding("M101", evidence, where=where)


def _would_keep(info: OptimizerInfo, parameters: list[ParamState]) -> bool:
    """Whether some state would be there once the optimizer had stepped."""
    spec = by_name(info.class_name)
    if spec is not None and spec.order_matters:  # kept under the first parameter, so that none of the others misses it
        return True
    return any(reason not in _BY_NATURE for parameter in parameters for reason in parameter.absences.values())


def _never_touched(case: Case) -> Iterator[Finding]:
    """Parameters without state beside others that have some."""
    for info, parameters in _optimizers(case.state):
        bare = [p.name for p in parameters if not p.slots and _untouched(p)]
        if bare and len(bare) < len(parameters):
            says = "never received a gradient, or were frozen, and have no state"
            yield about("M110", bare, says, of=len(parameters), where=called(info.name))


def _untouched(parameter: ParamState) -> bool:
    return bool({Absence.NO_GRADIENT, Absence.FROZEN} & {*parameter.absences.values()})


def _no_momentum(case: Case) -> Iterator[Finding]:
    """Groups whose parameters have no momentum, because their optimizer keeps none."""
    for info, parameters in _optimizers(case.state):
        by_group: dict[int, list[ParamState]] = {}
        for parameter in parameters:
            if info.known and parameter.absences.get("momentum") in _BY_NATURE:
                by_group.setdefault(parameter.facts.group, []).append(parameter)
        for index, found in by_group.items():
            group = info.groups[index]
            if len(found) == len(group.parameters):
                yield Finding("M109", _why_none(info, group), where=at_group(info.name, index))


def _why_none(info: OptimizerInfo, group: Group) -> str:
    number = count(len(group.parameters), "parameter")
    if group.hyperparameters.get("momentum") == 0:
        return f"momentum is 0, so {info.short_name} keeps no buffer for its {number}"
    return f"{info.short_name} keeps no momentum, for none of its {number}"


def _refused_by_distributed(case: Case) -> Iterator[Finding]:
    """State of some parameters only, in a layout that torch's distributed load reads."""
    checkpoint = case.checkpoint
    if checkpoint is None or not checkpoint.format.startswith("torch DCP"):
        return
    for info, parameters in _optimizers(checkpoint.state):
        bare = [p.name for p in parameters if not p.slots and _untouched(p)]
        if bare and len(bare) < len(parameters):
            yield about("M505", bare, "have no state in the folder", of=len(parameters), where=called(info.name))


def _explained(case: Case) -> bool:
    return case.checkpoint is not None and any(clue.code in _TOLD_WHY for clue in case.checkpoint.clues)


def _optimizers(state: OptimizerState) -> Iterator[tuple[OptimizerInfo, list[ParamState]]]:
    """Each optimizer with its parameters."""
    parameters = list(state.values())
    for name, info in state.optimizers.items():
        yield info, [parameter for parameter in parameters if parameter.facts.optimizer == name]


RULES = (
    Rule(("M103",), "file", _no_optimizer, "presence"),
    Rule(("M101", "M111"), "state", _nothing_at_all, "presence"),
    Rule(("M110",), "state", _never_touched, "presence"),
    Rule(("M109",), "state", _no_momentum, "momentum"),
    Rule(("M505",), "file", _refused_by_distributed, "presence"),
)

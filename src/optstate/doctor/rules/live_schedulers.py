"""Learning rate schedulers held against the optimizer that they should drive."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.evidence import LiveEvidence, LiveScheduler
from optstate.doctor.finding import Finding
from optstate.doctor.rules.asking import alike, live_rule
from optstate.doctor.rules.wording import called
from optstate.optimizers.spec import coefficient_value
from optstate.state.absence import Absence
from optstate.state.groups import Group
from optstate.state.table import format_value
from optstate.text import count, listing, safe_text


def _short(scheduler: LiveScheduler) -> str:
    return safe_text(scheduler.class_name.rpartition(".")[2])


def _driven(live: LiveEvidence) -> Iterator[tuple[LiveScheduler, tuple[Group, ...]]]:
    for scheduler in live.schedulers:
        if scheduler.drives is not None:
            yield scheduler, live.state.optimizers[scheduler.drives].groups


def _dead(live: LiveEvidence) -> Iterator[Finding]:
    for scheduler in live.schedulers:
        if scheduler.drives is None:
            yield Finding(
                "M407",
                f"{_short(scheduler)} writes to the groups of another optimizer than the one that steps: it was built for "
                "an earlier one",
                fix="build the scheduler anew with this optimizer, then scheduler.load_state_dict(old.state_dict())",
            )


def _groups(live: LiveEvidence) -> Iterator[Finding]:
    """What a step of the scheduler expects of each group."""
    for scheduler, groups in _driven(live):
        where = called(scheduler.drives or "")
        if scheduler.groups is not None and scheduler.groups != len(groups):
            late = tuple(name for group in groups[scheduler.groups :] for name in group.parameters)
            yield Finding(
                "M408",
                f"{_short(scheduler)} holds base values for {count(scheduler.groups, 'group')}, and the optimizer has "
                f"{len(groups)}",
                late,
                where,
            )
            continue
        lost = {key for group in groups for key in scheduler.reads if key not in group.hyperparameters}
        if lost:
            yield Finding(
                "M410",
                f"the groups have no {listing(sorted(lost))}, which each step of {_short(scheduler)} looks up",
                (),
                where,
            )
        elif scheduler.groups is not None and any("initial_lr" not in group.hyperparameters for group in groups):
            yield Finding(
                "M405",
                f"the groups have no initial_lr, without which {_short(scheduler)} cannot be built with last_epoch >= 0",
                (),
                where,
                "    for group, lr in zip(optimizer.param_groups, scheduler.base_lrs): group['initial_lr'] = lr",
            )


def _agreement(live: LiveEvidence) -> Iterator[Finding]:
    """The rate that a scheduler wrote last must be the one in the groups, unless another scheduler wrote after it."""
    for name, info in live.state.optimizers.items():
        rates = [group.hyperparameters.get("lr") for group in info.groups]
        told = [
            each for each in live.schedulers
            if each.drives == name and each.last_lr is not None and len(each.last_lr) == len(rates)
        ]  # fmt: skip
        if told and not any(all(map(alike, each.last_lr or (), rates)) for each in told):
            scheduler = told[-1]
            yield Finding(
                "M406",
                f"{_short(scheduler)} wrote lr {format_value(scheduler.last_lr)} at its step {scheduler.steps}, and the groups "
                f"have {format_value(rates)}",
                (),
                called(name),
                "build optimizer and scheduler first, then load both",
            )


def _cycles(live: LiveEvidence) -> Iterator[Finding]:
    for scheduler, groups in _driven(live):
        optimizer = live.optimizers[scheduler.drives or ""]
        built = coefficient_value(scheduler.cycles, optimizer.defaults) if scheduler.cycles else None
        now = (
            [coefficient_value(scheduler.cycles, group.hyperparameters) for group in groups] if scheduler.cycles else []
        )
        if any(value is not None and not alike(built, value) for value in now):
            yield Finding(
                "M409",
                f"{_short(scheduler)} moves {scheduler.cycles}: built with {format_value(built)}, now {format_value(now[0])}",
                (),
                called(optimizer.name),
                f"{_short(scheduler)}(..., cycle_momentum=False) keeps it",
            )


def _miscounted(live: LiveEvidence) -> Iterator[Finding]:
    for name, optimizer in live.optimizers.items():
        fused = any(group.hyperparameters.get("fused") for group in live.state.optimizers[name].groups)
        if live.scaled and fused and optimizer.step_hooks:
            yield Finding(
                "M417",
                f"{count(optimizer.step_hooks, 'hook')} after a step of a fused optimizer under a GradScaler: called in "
                "steps that the kernel skips, too",
                (),
                called(name),
                "count by state['step'], not in the hook",
            )


def _stepped_without_state(live: LiveEvidence) -> Iterator[Finding]:
    """A schedule that has gone on for a while over an optimizer that looks as if it had never stepped."""
    for name in live.optimizers:
        steps = max((each.steps for each in live.schedulers if each.drives == name), default=0)
        parameters = [each for each in live.state.values() if each.facts.optimizer == name]
        without = [each for each in parameters if Absence.NEVER_STEPPED in each.absences.values()]
        if steps > 0 and parameters and len(without) == len(parameters):
            yield Finding(
                "M102",
                f"the scheduler has counted {count(steps, 'step')}, and 0 of {count(len(parameters), 'parameter')} have state",
                tuple(each.name for each in parameters),
                called(name),
            )


RULES = (
    live_rule(_dead, "M407", checks="scheduler"),
    live_rule(_groups, "M405", "M408", "M410", checks="scheduler"),
    live_rule(_agreement, "M406", checks="scheduler"),
    live_rule(_cycles, "M409", checks="scheduler"),
    live_rule(_miscounted, "M417", checks="hooks"),
    live_rule(_stepped_without_state, "M102", checks="presence"),
)

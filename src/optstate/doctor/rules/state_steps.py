"""Step counts: whether parameters agree with each other and with the trainer, and whether they can still count."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.wording import about, called
from optstate.errors import ReadError
from optstate.optimizers.spec import number
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import is_tensor
from optstate.text import count

SATURATED = 2**24
"""The integer from which float32 cannot count on."""

SLACK = 0.02
"""How far the trainer's count may be from the optimizer's: skipped steps of a gradient scaler, a count begun at 0 or 1."""

ACCUMULATING = 100
"""Optimizer steps from which a trainer's count that is a whole multiple is taken for one of micro-batches."""


def step_counts(state: OptimizerState) -> tuple[dict[str, dict[str, float]], ReadError | None]:
    """The count of each parameter by optimizer, and the first error where some cannot be read."""
    counts: dict[str, dict[str, float]] = {name: {} for name in state.optimizers}
    failure = None
    for parameter in state.values():
        slot = parameter.find("step")
        try:
            value = None if slot is None or (is_tensor(slot.value) and slot.shape != ()) else number(slot.value)
        except ReadError as error:
            failure = failure or error
            continue
        if value is not None:
            counts[parameter.facts.optimizer][parameter.name] = value
    return {name: steps for name, steps in counts.items() if steps}, failure


def _disagreeing(case: Case) -> Iterator[Finding]:
    """Parameters that count fewer steps than others of their optimizer, and a trainer that counts more."""
    counts, failure = step_counts(case.state)
    for name, steps in counts.items():
        most = max(steps.values())
        behind = [parameter for parameter, value in steps.items() if value < most]
        if behind:
            low, high = min(steps[each] for each in behind), max(steps[each] for each in behind)
            said = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
            says = f"count {said} steps where others count {most:,.0f}"
            yield about("M311", behind, says, of=len(steps), where=called(name))
    yield from _behind_the_trainer(case, {name: max(steps.values()) for name, steps in counts.items()})
    if failure is not None:
        raise failure


def _behind_the_trainer(case: Case, most: dict[str, float]) -> Iterator[Finding]:
    trained = case.checkpoint.step if case.checkpoint is not None else None
    if not trained or not most or any(_agree(trained, steps) for steps in (*most.values(), sum(most.values()))):
        return
    each = " and ".join(f"{steps:,.0f}" for steps in most.values())
    yield Finding("M311", f"the trainer counts {count(trained, 'step')}, the optimizer {each}", where="the whole state")


def _agree(trained: int, steps: float) -> bool:
    multiple = steps >= ACCUMULATING and trained % steps == 0
    return multiple or abs(trained - steps) <= max(2, SLACK * max(trained, steps))


def _saturated(case: Case) -> Iterator[Finding]:
    """Counts in float32 that have reached its end."""
    counts, _ = step_counts(case.state)
    for name, steps in counts.items():
        ended = [parameter for parameter, value in steps.items() if value >= SATURATED and _short(case, parameter)]
        if ended:
            yield about(
                "M312", ended, f"count {SATURATED:,} in float32, and no further", of=len(steps), where=called(name)
            )


def _short(case: Case, parameter: str) -> bool:
    step = case.state[parameter].find("step")
    return step is not None and step.dtype == "float32"


RULES = (
    Rule(("M311",), "state", _disagreeing, "steps"),
    Rule(("M312",), "state", _saturated, "steps"),
)

"""Values that no healthy run has. All of them come from the one pass that `optstate.doctor.values` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optstate.doctor.case import Case
from optstate.doctor.counting import Measure, Pair
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.wording import about, called, places
from optstate.errors import Damaged
from optstate.optimizers.spec import coefficient_value, number
from optstate.state.groups import Group
from optstate.state.parameter import ParamState
from optstate.state.roles import Role
from optstate.state.slot import Slot
from optstate.state.tensors import is_tensor
from optstate.text import count, listing, safe_text

NEVER_NEGATIVE: frozenset[Role] = frozenset(
    {"second_moment", "max_second_moment", "infinity_norm", "factored_row", "factored_column", "step_size"}
)
"""Roles of averages and maxima of squares or magnitudes, and of step lengths."""

ABSURD = 1e12
"""The magnitude of a gradient that no run has: with a loss scale of 65,536 left in, others still have six digits to go."""

_DEGREE: Mapping[Role, float] = {
    "momentum": 1,
    "previous_gradient": 1,
    "infinity_norm": 1,
    "second_moment": 2,
    "max_second_moment": 2,
    "factored_row": 2,
    "factored_column": 2,
}
"""By which power of the gradient a slot grows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A slot, what its values are like, and what they say together with the first moment where it is a denominator.

    `steps` is what the parameter counts, None where it counts none or it cannot be read; `optimizer` is a name.
    """

    optimizer: str
    group: Group
    slot: Slot
    measure: Measure
    pair: Pair | None
    steps: float | None
    beside: Mapping[Role, Measure]

    @property
    def place(self) -> tuple[str, str]:
        return self.slot.parameter, self.slot.key


def _seen(case: Case) -> Iterator[Seen]:
    """Every slot whose values were read; `beside` are the parameter's primary slots by role, itself among them."""
    for parameter in case.state.values():
        facts = parameter.facts
        group = case.state.optimizers[facts.optimizer].groups[facts.group]
        places = {key: (parameter.name, key) for key in parameter.slots}
        read = {
            key: (slot, case.values.slots[places[key]])
            for key, slot in parameter.slots.items()
            if places[key] in case.values.slots
        }
        beside = {slot.role: measure for slot, measure in read.values() if slot.primary}
        steps = _steps(parameter, beside)
        for key, (slot, measure) in read.items():
            yield Seen(facts.optimizer, group, slot, measure, case.values.pairs.get(places[key]), steps, beside)


def _steps(parameter: ParamState, beside: Mapping[Role, Measure]) -> float | None:
    if "step" in beside:
        return beside["step"].largest
    step = parameter.find("step")
    return None if step is None or is_tensor(step.value) else number(step.value)


def _report(code: str, found: list[Seen], says: str, number_of: Callable[[Measure], int]) -> Iterator[Finding]:
    """One finding for all slots of a kind: how many elements of how many, and the worst of them first."""
    if not found:
        return
    found.sort(key=lambda each: -number_of(each.measure))
    elements, of = sum(number_of(each.measure) for each in found), sum(each.measure.elements for each in found)
    evidence = (
        f"{elements:,} of {of:,} elements in {count(len(found), 'slot')} {says}: {places(e.place for e in found)}"
    )
    yield Finding(code, evidence, tuple(dict.fromkeys(each.slot.parameter for each in found)))


def _not_finite(case: Case) -> Iterator[Finding]:
    """NaN and infinity, in slots and in the weights beside them."""
    lists = {place: measure for place, measure in case.values.slots.items() if measure.nonfinite}
    if lists:
        elements = sum(measure.nonfinite for measure in lists.values())
        evidence = f"{count(elements, 'value')} in {count(len(lists), 'slot')} NaN or infinite: {places(lists)}"
        yield Finding("M301", evidence, tuple(dict.fromkeys(parameter for parameter, _ in lists)))
    weights = {name: each.nonfinite for name, each in case.values.weights.items() if each.nonfinite}
    if weights:
        evidence = f"{count(sum(weights.values()), 'element')} of {count(len(weights), 'weight')} are NaN or infinite: {listing(weights)}"
        yield Finding("M301", evidence, tuple(weights), "weights")


def _negative(every: Sequence[Seen]) -> Iterator[Finding]:
    """Averages of squares below zero."""
    found = [seen for seen in every if seen.slot.role in NEVER_NEGATIVE and seen.measure.negative]
    yield from _report("M317", found, "are negative", lambda measure: measure.negative)


def _absurd(every: Sequence[Seen]) -> Iterator[Finding]:
    """Magnitudes like those of memory that was never written to."""
    found = [
        seen for seen in every if (degree := _DEGREE.get(seen.slot.role)) and seen.measure.magnitude > ABSURD**degree
    ]
    if found:
        worst = max(found, key=lambda seen: seen.measure.magnitude)
        evidence = f"{count(len(found), 'slot')} with values up to {worst.measure.magnitude:.1e}: {places(e.place for e in found)}"
        yield Finding("M309", evidence, tuple(dict.fromkeys(each.slot.parameter for each in found)))


def _zero_denominators(every: Sequence[Seen]) -> Iterator[Finding]:
    """Denominators that are zero where the first moment is not: wholly, after a reset; in places, by underflow."""
    norms: list[Seen] = []
    resets: list[Seen] = []
    underflows: list[Seen] = []
    for seen in every:
        if seen.pair is not None and seen.pair.dead and not seen.pair.below:
            # In float16 even all of it can underflow; in a longer type only a reset makes all of it zero.
            wholly = seen.measure.all_zero and seen.slot.dtype != "float16"
            (norms if seen.slot.role == "infinity_norm" else resets if wholly else underflows).append(seen)
    if norms:
        yield about("M306", _names(norms), "have a norm of zero in places where momentum is not", where="")
    if resets:
        yield about("M304", _names(resets), "have a second moment of zeros, a momentum and a step count", where="")
    if underflows:
        dead = sum(seen.pair.dead for seen in underflows if seen.pair)
        of = sum(seen.measure.elements for seen in underflows)
        short = sorted({str(seen.slot.dtype) for seen in underflows})
        evidence = (
            f"{dead:,} of {of:,} second moments are zero where momentum is not, in {count(len(underflows), 'slot')} "
            f"of {', '.join(short)}: {places(seen.place for seen in underflows)}"
        )
        yield Finding("M310", evidence, _names(underflows))


def _below_the_mean(every: Sequence[Seen]) -> Iterator[Finding]:
    """A mean of squares that is less than the square of the mean."""
    found = [seen for seen in every if seen.pair is not None and seen.pair.below]
    if found:
        below = sum(seen.pair.below for seen in found if seen.pair)
        evidence = f"{count(below, 'element')} of {places(seen.place for seen in found)} below the square of the mean"
        yield Finding("M305", evidence, _names(found))


def _zero_step_sizes(every: Sequence[Seen]) -> Iterator[Finding]:
    """Step sizes of zero, where the smallest that is allowed is not."""
    found = [
        seen
        for seen in every
        if seen.slot.role == "step_size" and seen.slot.shape and seen.measure.zeros and _smallest_step(seen.group) > 0
    ]
    yield from _report("M307", found, "are zero", lambda measure: measure.zeros)


def _smallest_step(group: Group) -> float:
    sizes = group.hyperparameters.get("step_sizes")
    return (number(sizes[0]) or 0.0) if isinstance(sizes, (tuple, list)) and sizes else 0.0


def _zero_factors(every: Sequence[Seen]) -> Iterator[Finding]:
    """Scalars of NAdam and ASGD that a healthy run cannot bring to zero."""
    found = [seen for seen in every if _cannot_be_zero(seen) and seen.measure.all_zero]
    if found:
        evidence = f"{count(len(found), 'factor')} of zero: {places(seen.place for seen in found)}"
        yield Finding("M308", evidence, _names(found))


def _cannot_be_zero(seen: Seen) -> bool:
    group = seen.group.hyperparameters
    if "t0" in group and "lambd" in group:  # ASGD
        return seen.slot.key == "mu" or (seen.slot.key == "eta" and bool(number(group.get("lr"))))
    if seen.slot.key == "mu_product" and "momentum_decay" in group:
        # Each factor is at least half of betas[0]; the product of many is zero in float32 by itself.
        least = (number(coefficient_value("betas[0]", group)) or 0.0) / 2
        return bool(least ** (seen.steps or 0.0) > 1e-30)
    return False


def _zero_momentum(every: Sequence[Seen]) -> Iterator[Finding]:
    """Momentum that is all zero after steps: fabricated in the first one, or lost in a later one."""
    moments = [seen for seen in every if seen.slot.role == "momentum" and seen.slot.primary and seen.measure.elements]
    for name in dict.fromkeys(seen.optimizer for seen in moments):
        ours = [seen for seen in moments if seen.optimizer == name]
        zero = [seen for seen in ours if seen.measure.all_zero]
        if zero and len(zero) == len(ours) and all((seen.steps or 0) <= 1 and _all_zero_beside(seen) for seen in zero):
            steps = sorted({seen.steps for seen in zero if seen.steps})
            at = f" at step {' and '.join(f'{step:g}' for step in steps)}" if steps else "; no step was counted"
            yield about("M501", _names(zero), f"have moments of nothing but zeros{at}", where=called(name))
            continue
        lost = [seen for seen in zero if seen.steps is None or seen.steps > 1]
        if lost:
            both = sum(map(_all_zero_beside, lost))
            also = f", {both:,} of them also a second moment of zeros," if both else ""
            most = max((seen.steps for seen in lost if seen.steps is not None), default=None)
            after = "" if most is None else f" after up to {most:,.0f} steps"
            says = f"have a momentum of zeros{also}{after}"
            yield about("M320", _names(lost), says, of=len(ours), where=called(name))


def _all_zero_beside(seen: Seen) -> bool:
    """Whether the denominators beside a momentum are zero as well; True where there is none."""
    measures = [seen.beside[role] for role in ("second_moment", "infinity_norm") if role in seen.beside]
    return all(measure.all_zero for measure in measures)


def _stale(every: Sequence[Seen]) -> Iterator[Finding]:
    """Momentum buffers that their group's coefficient of zero neither uses nor deletes."""
    found = [
        seen
        for seen in every
        if seen.slot.role == "momentum"
        and seen.slot.convention == "accumulate"
        and seen.group.hyperparameters.get("momentum") == 0
        and not seen.measure.all_zero
    ]
    if found:
        yield about("M313", _names(found), "have a buffer although their group's momentum is 0")


def _stale_copies(every: Sequence[Seen]) -> Iterator[Finding]:
    """Float32 copies of weights that are not those of the weights."""
    found = [seen for seen in every if seen.pair is not None and seen.pair.apart * 100 > seen.measure.elements]
    if found:
        apart = sum(seen.pair.apart for seen in found if seen.pair)
        says = f"have a float32 copy that differs from the weight in {count(apart, 'element')}"
        yield about("M316", _names(found), says)


def _damaged(case: Case) -> Iterator[Finding]:
    """Tensors whose bytes do not have the checksum or digest that the file states."""
    damaged = {name: error for name, error in case.values.unread.items() if isinstance(error, Damaged)}
    missing = case.checkpoint is not None and any(clue.code == "M513" for clue in case.checkpoint.clues)
    if damaged and not missing:  # what a lost shard held is told by its reader
        first = next(iter(damaged.values()))
        where = f" ({safe_text(first.where)})" if first.where else ""
        evidence = f"{count(len(damaged), 'tensor')}: {listing(damaged)}; {safe_text(first.what)}{where}"
        yield Finding("M512", evidence)


def _names(found: list[Seen]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(seen.slot.parameter for seen in found))


_QUESTIONS: Sequence[Callable[[Sequence[Seen]], Iterator[Finding]]] = (
    _negative, _absurd, _zero_denominators, _below_the_mean, _zero_step_sizes, _zero_factors, _zero_momentum, _stale,
    _stale_copies,
)  # fmt: skip


def _of_slots(case: Case) -> Iterator[Finding]:
    every = list(_seen(case))
    for question in _QUESTIONS:
        yield from question(every)


_CODES = ("M304", "M305", "M306", "M307", "M308", "M309", "M310", "M313", "M316", "M317", "M320", "M501")

RULES = (
    Rule(("M301",), "state", _not_finite, "values", reads_values=True),
    Rule(_CODES, "state", _of_slots, "values", reads_values=True),
    Rule(("M512",), "file", _damaged, "checksums", reads_values=True),
)

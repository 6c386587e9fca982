"""Two optimizer classes under their groups' hyperparameters: what they keep alike, and why there may be no way between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

from optstate.optimizers.at import At
from optstate.optimizers.conventions import is_debiased, primary
from optstate.optimizers.conversion_families import (
    DERIVED,
    REFUSED,
    family,
    family_name,
    is_undecided,
    kept_by,
)
from optstate.optimizers.conversion_moments import (
    at_rest,
    averages,
    convention,
    counted,
    counts,
    decay,
    horizon,
    mean_keys,
    square_key,
    starts_at_zero,
)
from optstate.optimizers.ranges import DECAY
from optstate.optimizers.spec import ALGORITHM_FLAGS, OptimizerSpec, SlotSpec, coefficient_value, number
from optstate.text import safe_text


class Form(NamedTuple):
    """In what form a slot holds a statistic: slots of one form hold the same bits. `counted`: a count of steps enters its use."""

    kind: tuple[Any, ...]
    decay: float
    scales: tuple[float, ...]
    counted: bool

    def serves(self, other: Form) -> bool:
        """Whether the slot may go on as the other one: of a second moment, also where only the other optimizer corrects it."""
        return self[:3] == other[:3] and (other.counted or not self.counted)


@dataclass(frozen=True)
class Pair:
    """A conversion asked for: both sides without slots, hyperparameters as plain numbers.

    What it decides is worked out once and holds for every parameter of the two groups.
    """

    before: At
    after: At
    rows: tuple[OptimizerSpec, OptimizerSpec]

    def __iter__(self) -> Iterator[At]:
        return iter((self.before, self.after))

    @cached_property
    def is_same(self) -> bool:
        """Whether both are one class in one setting, so that every slot stays as it is."""
        one, other = self.before, self.after
        return one.spec == other.spec and _setting(one) == _setting(other)

    def kept(self, key: str, present: Iterable[str], *, same_count: bool = True) -> str | None:
        """The slot of those `present` that goes on as it is in the other optimizer's slot `key`."""
        names, counted = self._serving.get(key, ((), False))
        if counted and not same_count:
            return None
        return next((name for name in present if name in names), None)

    @cached_property
    def _serving(self) -> dict[str, tuple[tuple[str, ...], bool]]:
        """For each slot of the other optimizer, the former one's that can go on as it, and whether their counts must agree."""
        if self.rescaled:
            return {}
        old = {key: form(self.before, key) for key in self.before.spec.slots}
        new = {key: form(self.after, key) for key in self.after.spec.slots}
        return {
            key: (tuple(name for name, each in old.items() if each is not None and each.serves(its)), its.counted)
            for key, its in new.items()
            if its is not None
        }

    @cached_property
    def needs_square(self) -> bool:
        """Whether the other optimizer keeps a second moment."""
        return knows_square(self.after)

    @cached_property
    def reason(self) -> str | None:
        """Why one cannot become the other, in a sentence; None where it can."""
        return refusal(self)

    @cached_property
    def rescaled(self) -> bool:
        """Whether the scale of the gradients changes by as much as nobody knows: one side clips all of them together first."""
        return not self.is_same and _clipped(self.before) != _clipped(self.after)

    @cached_property
    def assumes_one_step(self) -> bool:
        """Whether the state becomes that of an optimizer that has seen one gradient, see `completed`."""
        return self.rescaled or (
            not knows_square(self.before) and knows_mean(self.before) != [] and knows_square(self.after)
        )

    @cached_property
    def most_steps(self) -> float:
        """The count above which the history would be trusted for more than it tells.

        A second moment with a shorter horizon than the other optimizer's has seen 1/(1-β) gradients, however old it is, and
        where none came lately it is nearly zero: as one of thousands of steps, it would let the next one through at up to
        1/√(1-β2) times its size. One that an estimated step size scales may have grown in one step to any size.
        """
        if self.assumes_one_step:
            return 1.0
        if self.is_same:
            return inf
        if family(self.before.spec).scaled and not family(self.before.spec).lr_scaled:
            return 10.0
        return horizon(self.before) if self.longer else inf

    @cached_property
    def longer(self) -> bool:
        """Whether the other optimizer's second moment forgets more slowly."""
        keys = [square_key(at.spec, existing(at)) for at in self]
        decays = [decay(at, key) for at, key in zip(self, keys, strict=True) if key is not None and averages(at, key)]
        return len(decays) == 2 and decays[1] > decays[0]

    def steps(self, former: At) -> float | None:
        """How many steps the parameter will have had; None where neither optimizer counts any."""
        told = counted(former)
        if told is None and knows_square(self.before):
            told = horizon(former)
        return min(1.0 if told is None else told, self.most_steps) if counts(self.after) else told


_PAIRS: dict[Any, Pair] = {}
"""Pairs asked for lately: a restore asks for the same one with each of thousands of parameters."""


def pair_of(
    before: OptimizerSpec, after: OptimizerSpec, group_before: Mapping[str, Any], group_after: Mapping[str, Any]
) -> Pair:
    """The pair of two rows, as they hold for these groups."""
    sides = at_rest(before, {}, group_before, None), at_rest(after, {}, group_after, None)
    asked = tuple((id(at.spec), frozenset(at.hyperparameters.items())) for at in sides)
    known = _PAIRS.get(asked)
    if known is not None and known.rows[0] is before and known.rows[1] is after:
        return known
    former, target = (replace(at, spec=kept_by(at.spec, at.hyperparameters)) for at in sides)
    found = Pair(former, target, rows=(before, after))
    if len(_PAIRS) >= _REMEMBERED:
        _PAIRS.clear()
    _PAIRS[asked] = found
    return found


_REMEMBERED = 64


def knows_mean(at: At) -> list[str]:
    """The slots that tell the mean of the gradients under these hyperparameters, the best first."""
    return mean_keys(at.spec, at.hyperparameters, existing(at))


def writes_mean(at: At) -> str | None:
    """The slot that would hold the mean of the gradients, or of updates; None where none is kept."""
    found = primary(at.spec, "momentum")
    return found if found in existing(at) else None


def knows_square(at: At) -> bool:
    """Whether a second moment is kept under these hyperparameters."""
    return square_key(at.spec, existing(at)) is not None


def existing(at: At) -> list[str]:
    """The slots that must be there for some parameter of the group."""
    return [key for key, slot in at.spec.slots.items() if slot.exists(at.hyperparameters, None)]


def form(at: At, key: str) -> Form | None:
    """In what form a slot is; None where only this conversion's other rules can tell what it becomes."""
    slot = at.spec.slots[key]
    if slot.role in ("step", "counter"):
        return None
    statistic = slot.role.endswith(("moment", "norm")) or slot.role.startswith("factored") or slot.role == "momentum"
    kind: tuple[Any, ...] = (slot.role, slot.primary, slot.of, slot.shape, starts_at_zero(slot))
    gathered = convention(at.spec, key, at.hyperparameters)
    kind += (gathered, slot.age == "weighted", family(at.spec).square)
    if not statistic or not slot.primary:
        kind += (key, family_name(at.spec))
    scales = tuple(float(at.option(name)) for name in _scales(at, slot))
    driver = primary(at.spec, "second_moment") if slot.role == "max_second_moment" else key
    counted = key in DERIVED or str(gathered).endswith("_debiased") or is_debiased(slot, at.hyperparameters)
    return Form(kind, decay(at, driver or key), scales, counted)


def _scales(at: At, slot: SlotSpec) -> Iterator[str]:
    """Hyperparameters by which a slot's values are scaled, beside its decay."""
    if slot.role == "momentum":
        yield "dampening"
    if family(at.spec).scaled or slot.convention == "lr_in_buffer":
        yield from ("d", "lr")
    if slot.role == "other":
        yield from ("momentum_decay", "schedule_decay")


def _setting(at: At) -> dict[str, Any]:
    conditions = {slot.when for slot in at.spec.slots.values()} - {None, "matrix", "vector", "sometimes"}
    flags = {str(key): bool(at.hyperparameters.get(str(key))) for key in ALGORITHM_FLAGS | conditions}
    driven = {slot.coefficient for slot in at.spec.slots.values() if slot.coefficient and family_name(at.spec)}
    return {**flags, **{key: coefficient_value(str(key), at.hyperparameters) for key in driven}}


def _clipped(at: At) -> float:
    return float(at.option("max_grad_norm")) if family_name(at.spec) in ("lamb", "adan") else 0.0


# --- why there is no way ---------------------------------------------------------------------------------------


def refusal(pair: Pair) -> str | None:
    """Why one cannot become the other, in a sentence; None where it can."""
    if pair.is_same:
        return None
    found = [_unfit(pair.before), _unfit(pair.after), _reversed(pair)]
    found += [_without_value(pair.before, "saved"), _without_value(pair.after, "live"), _nothing(pair)]
    return next((reason for reason in found if reason is not None), None)


def class_of(at: At) -> str:
    """The class's own name, as it may be shown."""
    return safe_text(at.spec.name.rpartition(".")[2])


def _unfit(at: At) -> str | None:
    name = class_of(at)
    if at.spec.name in REFUSED:
        return f"{name} {REFUSED[at.spec.name]}"
    if is_undecided(at.spec):
        return f"{name} keeps Muon's or AdamW's slots, and the group does not say which"
    found = [key for key, slot in at.spec.slots.items() if slot.role == "preconditioner"]
    if found:
        return f"{name} keeps a preconditioner ({safe_text(found[0])}), which other statistics do not tell"
    if not family_name(at.spec):
        return f"how {name} uses what it keeps is not known well enough to convert it"
    return None


def _reversed(pair: Pair) -> str | None:
    if pair.before.flag("maximize") == pair.after.flag("maximize"):
        return None
    return "maximize turns the sign of every gradient that a momentum holds: set it as it was saved"


def _without_value(at: At, side: str) -> str | None:
    """The first hyperparameter that a conversion needs and that is none."""
    for key in existing(at):
        coefficient = at.spec.slots[key].coefficient
        if coefficient is None or not averages(at, key):
            continue
        value = number(coefficient_value(coefficient, at.hyperparameters))
        if value is None or value not in DECAY:
            found = "nothing" if value is None else f"{value:g}"
            return f"{coefficient} of the {side} {class_of(at)} must be in {DECAY}, found {found}"
    wrong = next((name for name in _scaling(at) if not 0.0 < at.option(name) < inf), None)
    return (
        None if wrong is None else f"{wrong} of the {side} {class_of(at)} scales what it keeps: it must be more than 0"
    )


def _scaling(at: At) -> tuple[str, ...]:
    """The hyperparameters that are factors in the slots."""
    its = family(at.spec)
    inside = any(convention(at.spec, key, at.hyperparameters) == "lr_in_buffer" for key in existing(at))
    return ("d",) * its.scaled + ("lr",) * (its.lr_scaled or (inside and not its.unread))


def _nothing(pair: Pair) -> str | None:
    name, other = class_of(pair.before), class_of(pair.after)
    if not knows_mean(pair.before) and not knows_square(pair.before):
        return f"{name} keeps nothing of its gradients under the saved options: there is nothing to convert"
    if not knows_mean(pair.before) and not knows_square(pair.after) and existing(pair.after):
        return f"{name} keeps no momentum, and {other} nothing else: there is nothing to convert"
    return None

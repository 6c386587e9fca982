"""One change of hyperparameters, seen by one slot after the other; `coupling` has the meaning and the sources."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optstate.errors import CoefficientError
from optstate.optimizers.conventions import convention_of, is_debiased, primary
from optstate.optimizers.spec import OptimizerSpec, SlotSpec, coefficient_value, number
from optstate.text import listing, safe_text

OnChange = Literal["keep", "steady", "equivalent"]
"""What happens to sums when their coefficient moves. `keep`: nothing, they drift to their new steady value.
`steady`: they are there at once, and so is the changed length of steps. `equivalent`: they are there at once, and the learning
rate is divided by the same factor, so that steps keep their length for good."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change from one set of hyperparameters to another, and perhaps of the step count.

    `moved` names the hyperparameters that change, as `differing` finds them.
    """

    spec: OptimizerSpec
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    moved: Collection[str]
    step: float | None
    new_step: float | None
    on_change: OnChange
    lr_coupling: bool

    def factor(self, key: str) -> float:
        """By how much to multiply a slot."""
        slot = self.spec.slots[key]
        if slot.role == "step_size":
            return self._stored_lr() if slot.coefficient == "lr" else 1.0
        debiasing = self._debiasing(key) if is_debiased(slot, self.after) else 1.0
        convention = convention_of(slot, self.after)
        if convention == "lr_in_buffer":
            return self._with_lr_inside(slot)
        if convention == "accumulate":
            return 0.0 if self._crosses_zero(slot) else self._gain(slot) * self._velocity()
        return debiasing * self._gain(slot) if convention == "accumulate_debiased" else debiasing

    def ends(self, key: str) -> bool:
        """Whether a buffer goes: at β=0 it is neither read nor updated, and what is left would be reused later."""
        slot = self.spec.slots[key]
        return slot.reset == "delete" and self._crosses_zero(slot)

    def equivalent(self) -> dict[str, float]:
        """The learning rate that keeps the length of steps, and the weight decay that then shrinks weights as before."""
        key, lr = primary(self.spec, "momentum"), number(self.after.get("lr"))
        if self.on_change != "equivalent" or key is None or lr is None:
            return {}
        slot = self.spec.slots[key]
        gain = self._gain(slot) if sums(slot, self.after) else 1.0
        if gain == 1.0:
            return {}
        flag = self.spec.decoupled
        beside = bool(self.after.get(flag)) if isinstance(flag, str) else flag
        decay = number(self.after.get("weight_decay")) if beside else None
        return {"lr": lr / gain, **({"weight_decay": decay * gain} if decay else {})}

    def refuse_missing(self, present: Collection[str]) -> None:
        """Refuse values that need a slot which the optimizer makes only together with all others."""
        for key, slot in self.spec.slots.items():
            if slot.when is None or slot.when not in self.moved or key in present or not present:
                continue
            # SGD makes its buffer whenever it is not there.
            if slot.exists(self.after, None) and slot.reset != "delete" and not (slot.convention, slot.of) == _SGD:
                raise CoefficientError(
                    f"{slot.when} needs {safe_text(key)}, which {safe_text(self.spec.name)} makes only in its first step",
                    expected=f"{slot.when} as it is, {safe_text(self.before.get(slot.when))}",
                    found=safe_text(self.after.get(slot.when)),
                    todo=f"start with {slot.when} on, if only a little of it; or reset the whole state",
                )

    def refuse_stored(self, present: Collection[str]) -> None:
        """Refuse another step count where weights are stored that it would have to change by more than a factor."""
        stored = [key for key in present if self.spec.slots[key].age == "stored"]
        if stored:
            raise CoefficientError(
                f"{safe_text(self.spec.name)} stores the weights that {listing(stored)} was given, step by step",
                found="another step count",
                todo="reset_() resets them together",
            )

    def notes(self, present: Collection[str]) -> Iterator[str]:
        """What a user should know about this change, beyond the factors."""
        slots = {key: self.spec.slots[key] for key in present}
        lr = "lr" in self.moved
        for key in filter(self.ends, slots):
            yield f"{safe_text(key)} is removed, so that it starts anew"
        unknown = [key for key, slot in slots.items() if self._not_understood(slot)]
        if unknown:
            yield f"{listing(unknown)}: what the change asks for is not known, so nothing is done"
        if lr and any(slot.coefficient == "etas" for slot in slots.values()):
            yield "lr is only where step_size starts: it stays"
        if (
            lr
            and self.lr_coupling
            and not any(convention_of(slot, self.after) == "accumulate" for slot in slots.values())
        ):
            yield "no slot sums gradients, so lr_coupling changes nothing"
        rectifies = self.spec.update == "radam" or bool(self.after.get("rectify"))
        if rectifies and "betas[1]" in self.moved:
            yield "the rectification depends on betas[1] too, and jumps with it"

    def _not_understood(self, slot: SlotSpec) -> bool:
        """Whether something that drives the slot moves, and nobody said how."""
        if slot.role == "momentum" and slot.convention is None and slot.age is None:
            return slot.coefficient in self.moved or ("lr" in self.moved and slot.lr_degree != 0)
        return (
            is_debiased(slot, self.after)
            and slot.coefficient is None
            and slot.role != "max_second_moment"
            and any(key.startswith("beta") for key in self.moved)
        )

    def _velocity(self) -> float:
        """What keeps the displacement that a sum stands for, with `lr_coupling`; without a learning rate there is none."""
        old, new = self._lr()
        return old / new if self.lr_coupling and new > 0.0 else 1.0

    def _with_lr_inside(self, slot: SlotSpec) -> float:
        if self.on_change == "keep" or slot.coefficient is None or slot.age == "stored":
            return 1.0
        gain = 1.0 if slot.averages else self._gain(slot)
        old, new = self._lr()
        if self.lr_coupling or old == new:
            return gain
        return gain * new / old if old > 0.0 else 0.0  # it holds no scale to keep: it starts anew

    def _gain(self, slot: SlotSpec) -> float:
        """By how much the value to which a sum tends changes; 1 with `keep`."""
        if self.on_change == "keep" or not {slot.coefficient, "dampening"} & set(self.moved):
            return 1.0
        old, new = self._decays(slot)
        damped, damps = (1.0 - (number(group.get("dampening")) or 0.0) for group in (self.before, self.after))
        if damped == 0.0 or damps == 0.0:
            raise CoefficientError(
                "with dampening 1 a sum tends to nothing, so there is no steady value to go to",
                todo='on_change="keep"',
            )
        return (1.0 - old) / (1.0 - new) * (damps / damped)

    def _debiasing(self, key: str) -> float:
        """(1-β'^t')/(1-β^t): what keeps the estimate where it was."""
        slot = self.spec.slots[key]
        square = primary(self.spec, "second_moment")
        driver = self.spec.slots[square] if slot.role == "max_second_moment" and square else slot
        if driver.coefficient is None or (driver.coefficient not in self.moved and self.new_step is None):
            return 1.0
        steps = self._known_step(key)
        counted = steps if self.new_step is None else self.new_step
        if steps == 0.0:
            return 1.0  # nothing has been averaged yet
        if counted == 0.0:
            raise CoefficientError(
                f"{safe_text(key)} cannot be brought back to step 0 by a factor",
                todo="reset_() resets it with its step",
            )
        old, new = self._decays(driver)
        return float((1.0 - new**counted) / (1.0 - old**steps))

    def _known_step(self, key: str) -> float:
        counted = number(self.before.get(self.spec.group_step)) if self.spec.group_step else None
        step = counted if self.step is None else self.step
        if step is None:
            raise CoefficientError(
                f"how far {safe_text(key)} is debiased depends on the number of steps, which is not known",
                where=safe_text(self.spec.name),
                todo="pass step",
            )
        return step

    def _stored_lr(self) -> float:
        """ASGD's eta = η/(1+λ·η·t)^α, which is made at the end of a step for the next one; nothing makes it leave 0."""
        old, new = self._lr()
        now, then = self._eta(self.before, old), self._eta(self.after, new)
        return then / now if now > 0.0 else 1.0

    def _eta(self, group: Mapping[str, Any], lr: float) -> float:
        decay, power = number(group.get("lambd")) or 0.0, number(group.get("alpha")) or 0.0
        return float(lr / (1.0 + decay * lr * (self.step or 0.0)) ** power)

    def _lr(self) -> tuple[float, float]:
        old, new = number(self.before.get("lr")), number(self.after.get("lr"))
        return (1.0, 1.0) if old is None or new is None else (old, self.equivalent().get("lr", new))

    def _decays(self, slot: SlotSpec) -> tuple[float, float]:
        """The slot's coefficient before and after; 0, which is none, where a group has no number for it."""
        key = slot.coefficient or ""
        old, new = (number(coefficient_value(key, group)) for group in (self.before, self.after))
        return old or 0.0, new or 0.0

    def _crosses_zero(self, slot: SlotSpec) -> bool:
        if slot.when is None or slot.when != slot.coefficient or slot.coefficient not in self.moved:
            return False
        old, new = self._decays(slot)
        return (old == 0.0) != (new == 0.0)


_SGD = ("accumulate", "gradient")


def sums(slot: SlotSpec, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether the value to which a momentum tends depends on its coefficient."""
    convention = convention_of(slot, hyperparameters)
    return convention in ("accumulate", "accumulate_debiased") or (convention == "lr_in_buffer" and not slot.averages)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The hyperparameters whose number changes, tuples by element: `lr`, `betas[0]`."""
    return [
        name
        for key, new in after.items()
        if key != "params" and new is not before.get(key)
        for name in ([f"{key}[{index}]" for index in range(len(new))] if isinstance(new, (tuple, list)) else [key])
        if number(coefficient_value(name, before)) != number(coefficient_value(name, after))
    ]

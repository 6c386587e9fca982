"""One slot as a probe saw it behave: the role that this suggests, and what a description says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any

from optstate.optimizers.spec import Created, Dtype, Shape, SlotSpec, coefficient_value, number, steady_gain
from optstate.state.roles import Convention, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSlot:
    """What was seen of one slot; None where it could not be measured or is not one value.

    ranks
        The numbers of dimensions of the probed parameters that have it.
    shape, dtype, created
        The rules of `SlotSpec` that hold for all of them.
    fresh
        What it holds before any gradient: the value first assigned to it, read at the moment of assignment.
        `parameter` is a copy of the weights; `delete` means that the first value is made of the gradient already.
    counts
        Whether it equals the number of steps.
    signed
        Whether it takes both signs under gradients of both signs; False: it is never negative.
    gradient_degree, lr_degree
        The n of k^n by which it scales when all gradients (the learning rate) scale by k.
    decay
        The factor by which a step with a zero gradient multiplies it, where that factor is constant.
    gain
        Its value after infinitely many steps with a constant gradient g, divided by |g|^gradient_degree, and by the
        sign of g where it is signed; infinite where it grows without end.
    debiased
        Whether the update uses it divided by 1 - decay^t.
    coefficients
        The hyperparameters whose value is `decay`.
    """

    ranks: tuple[int, ...]
    shape: Shape | None
    dtype: Dtype | None
    created: Created
    fresh: float | str | None = None
    counts: bool = False
    signed: bool | None = None
    gradient_degree: int | None = None
    lr_degree: int | None = None
    decay: float | None = None
    gain: float | None = None
    debiased: bool | None = None
    coefficients: tuple[str, ...] = ()

    @property
    def bounded(self) -> bool:
        """Whether it tends to a finite value under a constant gradient."""
        return self.gain is not None and isfinite(self.gain)

    @property
    def role(self) -> Role:
        """The role that the behaviour suggests; `other` where it fits none."""
        return next((role for role, traits in _BEHAVIOUR if self._shows(traits)), "other")

    def _shows(self, traits: Mapping[str, object]) -> bool:
        return all(getattr(self, name) == value for name, value in traits.items())

    def convention(self, hyperparameters: Mapping[str, Any]) -> Convention | None:
        """How it accumulates if it is a momentum, from gain, decay and degrees; None for other ways."""
        if self.role != "momentum":
            return None
        if self.lr_degree == 1:
            return "lr_in_buffer"
        if self.gain is None or self.decay is None or self.lr_degree != 0:
            return None
        gain, dampening = abs(self.gain), number(hyperparameters.get("dampening", 0.0)) or 0.0
        if close(gain, 1.0):
            return "ema_debiased" if self.debiased else "ema"
        if close(gain * (1.0 - self.decay), 1.0 - dampening):
            return "accumulate_debiased" if self.debiased else "accumulate"
        return None


_BEHAVIOUR: tuple[tuple[Role, Mapping[str, object]], ...] = (
    ("step", {"counts": True}),
    ("averaged_weights", {"fresh": "parameter"}),
    ("factored_row", {"shape": "row", "signed": False, "gradient_degree": 2}),
    ("factored_column", {"shape": "column", "signed": False, "gradient_degree": 2}),
    ("factored_row", {"shape": "squeezed row", "signed": False, "gradient_degree": 2}),
    ("factored_column", {"shape": "squeezed column", "signed": False, "gradient_degree": 2}),
    ("max_second_moment", {"shape": "parameter", "signed": False, "gradient_degree": 2, "decay": 1.0, "bounded": True}),
    ("second_moment", {"shape": "parameter", "signed": False, "gradient_degree": 2}),
    ("infinity_norm", {"shape": "parameter", "signed": False, "gradient_degree": 1}),
    ("previous_gradient", {"shape": "parameter", "signed": True, "gradient_degree": 1, "decay": 0.0}),
    ("momentum", {"shape": "parameter", "signed": True, "gradient_degree": 1}),
    ("momentum", {"shape": "parameter", "signed": True, "gradient_degree": 0}),
    ("step_size", {"signed": False, "gradient_degree": 0, "lr_degree": 1}),
    ("update_average", {"shape": "parameter", "signed": False, "gradient_degree": 0, "lr_degree": 0}),
)
"""How a slot of each role behaves; the first that fits is suggested."""

_RECOGNISED = {role for role, _ in _BEHAVIOUR}


def close(one: float | str | None, other: float | str | None) -> bool:
    """Whether two numbers agree within what a probe can tell: float32 scalars, gains found as limits."""
    return isinstance(one, (int, float)) and isinstance(other, (int, float)) and isclose(one, other, rel_tol=1e-4)


def structure_differences(described: SlotSpec, measured: MeasuredSlot) -> Iterator[str]:
    """Where shape, type or time of creation are not as described."""
    for label, said, seen in (
        ("shape", described.shape, measured.shape or "list"),
        ("dtype", described.dtype, measured.dtype or described.dtype),
        ("created", described.created, measured.created),
    ):
        # All that a probe sees is that a slot exists once a step has ended.
        if said != seen and (said, seen) != ("after first step", "first gradient"):
            yield f"{label} described as {said}, measured {seen}"


def behaviour_differences(
    described: SlotSpec, measured: MeasuredSlot, hyperparameters: Mapping[str, Any]
) -> Iterator[str]:
    """Where role, degrees, gain or coefficient are not as described."""
    coefficient = number(coefficient_value(described.coefficient or "", hyperparameters))
    if not _role_agrees(described.role, measured, coefficient):
        yield f"role described as {described.role}, measured {measured.role}"
    degrees = [("gradient_degree", described.gradient_degree, measured.gradient_degree)]
    if number(hyperparameters.get("lr")):
        degrees.append(("lr_degree", described.lr_degree, measured.lr_degree))
    for label, said, seen in degrees:
        if said != seen:
            yield f"{label} described as {said}, measured {'no power' if seen is None else seen}"
    if described.convention is not None:
        yield from _convention_differences(described, measured, hyperparameters)
    if coefficient is not None and measured.decay not in (None, 0.0, 1.0) and not close(coefficient, measured.decay):
        fitting = " or ".join(measured.coefficients) or "the value of no hyperparameter"
        yield (
            f"coefficient described as {described.coefficient} = {coefficient:g}, "
            f"measured a decay of {measured.decay:g}, {fitting}"
        )


def _role_agrees(described: Role, measured: MeasuredSlot, coefficient: float | None) -> bool:
    if measured.role == "other":
        return described not in _RECOGNISED
    if described == "momentum" and coefficient == measured.decay == 0.0:
        return measured.role == "previous_gradient"  # a mean that forgets at once
    return measured.role == described or (described, measured.role) == ("counter", "step")


def _convention_differences(
    described: SlotSpec, measured: MeasuredSlot, hyperparameters: Mapping[str, Any]
) -> Iterator[str]:
    said = f"convention described as {described.convention} of {described.of}"
    if (described.convention == "lr_in_buffer") != (measured.lr_degree == 1):
        yield f"{said}, measured lr_degree {measured.lr_degree}"
    if (described.of == "gradient") != (measured.gradient_degree == 1):
        yield f"{said}, measured gradient_degree {measured.gradient_degree}"
    if measured.debiased is not None and measured.debiased != str(described.convention).endswith("debiased"):
        yield f"{said}, but the update {'debiases it' if measured.debiased else 'does not debias it'}"
    gain = steady_gain(described, hyperparameters)
    if gain is not None and measured.gain is not None:
        # `maximize` turns the gradient round before it enters the buffer.
        seen = -measured.gain if hyperparameters.get("maximize") else measured.gain
        if not close(gain, seen):
            yield f"{said}, a steady gain of {gain:g}, measured {seen:g}"

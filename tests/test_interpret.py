"""From raw state to slots with meaning, and to reasons for what is not there."""

from __future__ import annotations

import pytest
import torch

from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_class
from optstate.state.absence import Absence

optim = torch.optim
NO, ZERO, WHY, UNKNOWN = (
    Absence.NOT_KEPT,
    Absence.COEFFICIENT_ZERO,
    Absence.NO_GRADIENT,
    Absence.UNKNOWN_OPTIMIZER,
)


def slots_of(cls, *keys, name="w"):
    """The slots of a parameter whose entry has these keys."""
    return interpret(cls and by_class(cls), name, dict.fromkeys(keys, 1.0))


@pytest.mark.parametrize(
    ("cls", "key", "meaning"),
    [
        (optim.SGD, "momentum_buffer", ("momentum", "accumulate", "gradient", True)),
        (optim.AdamW, "exp_avg", ("momentum", "ema_debiased", "gradient", True)),
        (optim.AdamW, "exp_avg_sq", ("second_moment", None, None, True)),
        (optim.RMSprop, "momentum_buffer", ("momentum", "accumulate", "preconditioned", True)),
        (optim.RMSprop, "grad_avg", ("momentum", "ema", "gradient", False)),
        (optim.Muon, "momentum_buffer", ("momentum", "ema", "gradient", True)),
        (optim.AdamW, "momentum_buffer", ("other", None, None, False)),
        (None, "exp_avg", ("other", None, None, False)),
        (None, "step", ("other", None, None, False)),
    ],
    ids=str,
)
def test_meaning_comes_from_the_class_and_not_from_the_key(cls, key, meaning):
    """One key means something else in each class, and nothing in an unknown one."""
    slot = slots_of(cls, key)[key]
    assert (slot.role, slot.convention, slot.of, slot.primary) == meaning
    assert (slot.parameter, slot.key, slot.value) == ("w", key, 1.0)


def test_key_without_value_is_no_slot():
    """SGD of older torch writes `momentum_buffer: None` where it has none."""
    assert interpret(by_class(optim.SGD), "w", {"momentum_buffer": None}) == {}


def absences(cls, keys=(), ndim=2, **hyperparameters):
    """Why the roles without slot have none; what the optimizer would keep has no gradient."""
    return explain_absences(cls and by_class(cls), slots_of(cls, *keys), hyperparameters, ndim, Absence.NO_GRADIENT)


ADAM = ("step", "exp_avg", "exp_avg_sq")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (absences(optim.SGD, momentum=0.0), {"momentum": ZERO, "second_moment": NO, "step": NO}),
        (absences(optim.SGD, momentum=0.9), {"momentum": WHY, "second_moment": NO, "step": NO}),
        (absences(optim.SGD, ["momentum_buffer"], momentum=0.9), {"second_moment": NO, "step": NO}),
        (absences(optim.SGD, ["momentum_buffer"], momentum=0.0), {"second_moment": NO, "step": NO}),
        (absences(optim.SGD), {"momentum": WHY, "second_moment": NO, "step": NO}),
        (absences(optim.Adam, ADAM, amsgrad=False), {}),
        (absences(optim.Adam, ADAM, amsgrad=True), {"max_second_moment": WHY}),
        (absences(optim.Adam, [*ADAM, "max_exp_avg_sq"], amsgrad=True), {}),
        (absences(optim.Adam, ["step", "exp_avg_sq"], amsgrad=False), {"momentum": WHY}),
        (absences(optim.Adam, amsgrad=False), {"momentum": WHY, "second_moment": WHY, "step": WHY}),
        (absences(optim.RMSprop, ["step", "square_avg"], momentum=0, centered=False), {"momentum": ZERO}),
        (absences(optim.RMSprop, ["step", "square_avg", "grad_avg"], momentum=0, centered=True), {"momentum": ZERO}),
        (absences(optim.RMSprop, ["step", "square_avg"], momentum=0.9, centered=True), {"momentum": WHY}),
        (absences(optim.Adagrad, ["step", "sum"]), {"momentum": NO}),
        (absences(optim.Adafactor, ["step", "row_var", "col_var"]), {"momentum": NO, "second_moment": NO}),
        (absences(optim.Adafactor, ["step", "variance"], ndim=1), {"momentum": NO}),
        (
            absences(optim.Adafactor, ["step"], ndim=2),
            {"momentum": NO, "second_moment": NO, "factored_row": WHY, "factored_column": WHY},
        ),
        (
            absences(optim.Rprop, ["step"]),
            {"momentum": NO, "second_moment": NO, "previous_gradient": WHY, "step_size": WHY},
        ),
        (absences(optim.NAdam, ADAM), {}),  # without `mu_product`, for which nobody asks by role
        (absences(optim.LBFGS), {"momentum": NO, "second_moment": NO, "step": NO}),  # all under the first parameter
        (absences(None, ["exp_avg"]), {"momentum": UNKNOWN, "second_moment": UNKNOWN, "step": UNKNOWN}),
    ],
    ids=lambda value: ",".join(f"{role}={reason.value}" for role, reason in value.items()) or "nothing",
)
def test_absence_has_its_reason(found, expected):
    """A slot is missing because its coefficient is zero, because the class keeps none, or for the reason given."""
    assert found == expected


@pytest.mark.parametrize("otherwise", list(Absence), ids=lambda absence: absence.value)
def test_reason_of_the_caller_is_passed_on(otherwise):
    """What the optimizer would keep is absent for the reason that the caller knows."""
    spec = by_class(optim.Adam)
    found = explain_absences(spec, {}, {"amsgrad": True}, 2, otherwise)
    assert found == dict.fromkeys(("momentum", "second_moment", "step", "max_second_moment"), otherwise)


def test_unknown_shape_counts_as_one_that_has_the_slot():
    """A file that does not tell the shape leaves open which of two slots is missing: both are named."""
    found = absences(optim.Adafactor, ["step"], ndim=None)
    assert {role for role, reason in found.items() if reason is WHY} == {
        "second_moment",
        "factored_row",
        "factored_column",
    }

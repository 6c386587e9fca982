"""Curves: pure functions of the step, the same as torch's schedulers and the published formulas."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from optstate import schedule as s
from optstate.errors import ScheduleError

STEPS = 60


def torch_values(make, steps=STEPS, key="lr", start=0.1):
    """What a scheduler of torch writes at step 0, 1, 2, ..."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=start, momentum=0.9)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return values


TORCH = {
    "constant": (lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0), s.constant(0.1), "lr"),
    "linear": (lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 40), s.linear(0.05, 0.1, 40), "lr"),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.01), s.cosine(0.1, 0.01, STEPS), "lr"),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), s.exponential(0.1, 0.9), "lr"),
    "polynomial": (lambda o: lr_scheduler.PolynomialLR(o, 40, 2.0), s.polynomial(0.1, 0, 40, 2), "lr"),
    "multistep": (lambda o: lr_scheduler.MultiStepLR(o, [10, 30], 0.5), s.multistep(0.1, 0.5, [30, 10]), "lr"),
    "one cycle": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS + 1),
        s.one_cycle(0.02, 0.5, 0.02 / 1e4, STEPS + 1),
        "lr",
    ),
    "one cycle of momentum": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS + 1),
        s.one_cycle(0.95, 0.85, 0.95, STEPS + 1),
        "momentum",
    ),
    "triangular": (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 8, 12), s.triangular(0.01, 0.1, 8, 12), "lr"),
    "triangular momentum": (
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 8, base_momentum=0.8, max_momentum=0.95),
        s.triangular(0.95, 0.8, 8),
        "momentum",
    ),
    "warm restarts": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 15),
        s.repeat(s.cosine(0.1, 0, 15), 15),
        "lr",
    ),
    "one after another": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 10), lr_scheduler.CosineAnnealingLR(o, 50)], [10]
        ),
        s.join((s.linear(0.01, 0.1, 10), 10), (s.cosine(0.1, 0, 50), None)),
        "lr",
    ),
}


@pytest.mark.parametrize(("make", "curve", "key"), TORCH.values(), ids=TORCH)
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's SequentialLR passes it to its own schedulers
def test_curve_is_what_torch_does(make, curve, key):
    """At every step the value is that of torch's scheduler, which gets there by multiplying."""
    assert [curve(t) for t in range(STEPS)] == pytest.approx(torch_values(make, key=key), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("t", "beta"), [(0, 0.9), (25, 0.871), (50, 0.8182), (75, 0.6923), (100, 0.0), (101, 0.0)])
def test_demon_is_the_published_one(t, beta):
    """β₀ = 0.9 over 100 steps, as its paper has it."""
    assert s.demon(0.9, 100)(t) == pytest.approx(beta, abs=5e-5)


def test_demon_lets_the_sum_fall_in_a_straight_line():
    """β/(1-β), which is what a buffer gathers of all further steps, falls linearly to 0."""
    sums = [beta / (1 - beta) for beta in map(s.demon(0.9, 100), range(101))]
    assert sums == pytest.approx([9 * (1 - t / 100) for t in range(101)])


@pytest.mark.parametrize(("t", "beta"), [(0, 0.0), (1, 0.4257), (9, 0.8415), (999, 0.996)])
def test_inverse_power_is_adafactors(t, beta):
    """The value of the step that comes after t steps is 1-(t+1)^-0.8, which Adafactor has in its step t+1."""
    assert s.inverse_power(0.8)(t) == pytest.approx(beta, abs=5e-5)


def test_piecewise_goes_through_its_points():
    """Straight between them, constant outside."""
    curve = s.piecewise((10, 1.0), (20, 2.0), (40, 0.0))
    assert [curve(t) for t in (0, 10, 15, 20, 30, 40, 1000)] == [1.0, 1.0, 1.5, 2.0, 1.0, 0.0, 0.0]


def test_scale_and_function():
    """Any callable is a curve, and any curve can be scaled."""
    assert s.scale(lambda t: t * t, 0.5)(4) == 8.0
    assert s.scale(3, 2)(7) == 6.0


def test_epochs_count_in_epochs():
    """A curve of 10 epochs of 500 steps each; with stairs it moves once per epoch."""
    assert s.epochs(s.linear(1, 0, 10), 500)(2750) == pytest.approx(0.45)
    assert s.epochs(s.linear(1, 0, 10), 500, stairs=True)(2750) == pytest.approx(0.5)


ALL = {
    "constant": s.constant(0.9),
    "linear": s.linear(0.85, 0.95, 300),
    "cosine": s.cosine(0.95, 0.85, 100),
    "polynomial": s.polynomial(1, 0.1, 50, 3),
    "exponential": s.exponential(1, 0.5, 10),
    "inverse_power": s.inverse_power(0.8),
    "demon": s.demon(0.9, 100),
    "multistep": s.multistep(1, 0.5, (10, 20)),
    "one_cycle": s.one_cycle(0.95, 0.85, 0.9, 100, rise=0.4),
    "triangular": s.triangular(0.1, 0.9, 7, 13),
    "piecewise": s.piecewise((0, 1.0), (20, 2.0)),
    "join": s.join((s.linear(1, 2, 10), 10), (s.cosine(2, 0, 30), None)),
    "repeat": s.repeat(s.linear(0, 1, 10), 8),
    "scale": s.scale(s.demon(0.9, 30), 0.5),
    "epochs": s.epochs(s.linear(1, 0, 10), 5, stairs=True),
    "function": s.function(math.sqrt),
}


def test_every_curve_of_the_module_is_tested():
    """The table above misses none."""
    assert set(ALL) == set(s.__all__) - {"BufferSchedule", "Curve", "Preview", "Scheduler"}


@pytest.mark.parametrize("curve", ALL.values(), ids=ALL)
def test_curve_is_pure(curve):
    """Asked again, in any order, by any copy of it, it says the same; it prints as the call that makes it."""
    forwards = [curve(t) for t in range(200)]
    for same in (curve, copy.deepcopy(curve), pickle.loads(pickle.dumps(curve))):
        assert [same(t) for t in reversed(range(200))] == forwards[::-1]
        assert same == curve
        assert hash(same) == hash(curve)
        assert same.fingerprint == curve.fingerprint == repr(curve)


@pytest.mark.parametrize("curve", [curve for name, curve in ALL.items() if name != "function"], ids=str)
def test_text_of_a_curve_makes_it_again(curve):
    """What a curve prints is what one would write, exactly."""
    assert eval(repr(curve), vars(s)) == curve


@pytest.mark.parametrize("curve", [curve for name, curve in ALL.items() if name != "function"], ids=str)
def test_extremes_are_among_the_probes(curve):
    """Looking at a curve where it turns finds the largest and smallest value that it has on whole steps."""
    inside = [curve(t) for t in range(max(curve.probes()) + 1)]
    probed = [curve(t) for t in curve.probes()]
    assert (min(probed), max(probed)) == (min(inside), max(inside))


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(1, 10_000))
def test_curve_ends_where_it_was_told(start, end, steps):
    """The first and the last value are those given, to the bit, and stay."""
    for curve in (s.linear(start, end, steps), s.cosine(start, end, steps), s.polynomial(start, end, steps, 2)):
        assert curve(0) == start
        assert curve(steps) == curve(steps + 1) == curve(10**9) == end


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(2, 1000), st.integers(0, 1100))
def test_curve_stays_between_its_ends(start, end, steps, t):
    """No value on the way is larger or smaller than both, but for the last bit."""
    for curve in (s.linear(start, end, steps), s.cosine(start, end, steps), s.polynomial(start, end, steps, 0.5)):
        assert min(start, end) - 1e-15 <= curve(t) <= max(start, end) + 1e-15


class Warmup:
    """A callable object."""

    def __call__(self, t):
        return min(t / 10, 1.0)


def test_functions_are_known_by_name():
    """A lambda, a partial and an object each have a name; that they are other code nobody can tell."""
    assert s.function(lambda t: t).fingerprint.endswith("<lambda>)")
    assert s.function(partial(pow, 2)).fingerprint == "function(partial(builtins.pow, 2))"
    assert s.function(Warmup()).fingerprint.endswith("Warmup)")


BAD = {
    "no steps": (lambda: s.linear(0, 1, 0), "steps"),
    "negative steps": (lambda: s.cosine(0, 1, -5), "steps"),
    "NaN": (lambda: s.constant(math.nan), "finite"),
    "text": (lambda: s.linear("a", 1, 10), "finite"),
    "True": (lambda: s.constant(True), "finite"),
    "factor of zero": (lambda: s.exponential(1, 0), "factor"),
    "no points": (s.piecewise, "order of the points"),
    "points out of order": (lambda: s.piecewise((10, 1), (5, 2)), "order of the points"),
    "no parts": (s.join, "number of parts"),
    "endless in the middle": (lambda: s.join((s.constant(1), None), (s.constant(2), None)), "number of parts"),
    "no curve": (lambda: s.repeat("linear", 3), "not a curve"),
    "no period": (lambda: s.repeat(s.constant(1), 0), "period"),
    "peak beyond the end": (lambda: s.one_cycle(0, 1, 0, 10, rise=1.0), "rise"),
    "one step": (lambda: s.one_cycle(0, 1, 0, 2), "rise"),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD)
def test_what_is_no_curve_is_refused(make, says):
    """Where it is made, not at the step where it would go wrong."""
    with pytest.raises(ScheduleError, match=says):
        make()

"""The predicted size of the next update: equal to what the real optimizers do, and what it says of edits that hurt."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import optim

from optstate.optimizers.registry import by_class, by_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.optimizers.torch_optim import TORCH_OPTIM
from optstate.optimizers.updates import (
    BOUND,
    elementwise,
    fresh_update,
    next_update,
    safe_verb,
    typical_gradient,
)
from tests.stepped_rows import ROWS, TOLERANCE

DOUBLE = torch.float64


@pytest.fixture(autouse=True, scope="module")
def exact_scalars():
    """Scalar slots such as NAdam's product in float64 too, so that predictions can be held to the last digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(before)


CASES = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": True}),
    (optim.Adam, {}),
    (optim.Adam, {"amsgrad": True, "maximize": True}),
    (
        optim.Adam,
        {
            "lr": torch.tensor(0.25, dtype=DOUBLE),
            "betas": (torch.tensor(0.5, dtype=DOUBLE), torch.tensor(0.75, dtype=DOUBLE)),
        },
    ),
    (optim.AdamW, {"fused": True}),
    (optim.NAdam, {"momentum_decay": 0.1}),
    (optim.RAdam, {}),
    (optim.RAdam, {"betas": (0.9, 0.95)}),
    (optim.RAdam, {"betas": (0.9, 0.6)}),  # never rectifies
    (optim.Adamax, {}),
    (optim.Adagrad, {"initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    (optim.Adadelta, {}),
    (optim.RMSprop, {}),
    (optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (optim.Rprop, {}),
    (optim.ASGD, {"lambd": 0.1, "t0": 2}),
    (optim.SparseAdam, {}),
    (optim.Adafactor, {}),
    (optim.Adafactor, {"eps": (1e-4, 1e-2), "d": 1.5}),
]
OPTIONS = pytest.mark.parametrize(("cls", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))


def built(cls, shape=(4, 3), **options):
    """An optimizer of one parameter, without weight decay."""
    generator = torch.Generator().manual_seed(len(shape))
    parameter = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=DOUBLE))
    decay = {"weight_decay": 0.0} if cls in (optim.AdamW, optim.Adafactor, optim.Muon) else {}
    return cls([parameter], **decay, **options)


def gradient_of(optimizer, seed):
    (parameter,) = optimizer.param_groups[0]["params"]
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def step(optimizer, gradient):
    """Take a step; how far it moved the parameter."""
    (parameter,) = optimizer.param_groups[0]["params"]
    before = parameter.detach().clone()
    parameter.grad = gradient.to_sparse() if isinstance(optimizer, optim.SparseAdam) else gradient.clone()
    if not isinstance(optimizer, (optim.ASGD, optim.Adafactor)):  # they look at the weights
        parameter.data.zero_()  # small updates of large weights would be rounded
    start = parameter.detach().clone()
    optimizer.step()
    moved = parameter.detach() - start
    parameter.data.copy_(before + moved)
    return moved


def slots_of(optimizer):
    entry = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in entry.items()}


def predicted(optimizer, gradient):
    """What the rule says of a live optimizer's next step, from tensors and, which must be the same, from arrays."""
    (group,), slots = optimizer.param_groups, slots_of(optimizer)
    spec, weights = by_class(type(optimizer)), group["params"][0].detach().clone()
    live = next_update(spec, slots, group, gradient, weights)
    arrays = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in slots.items()}
    saved = {key: plain(value) for key, value in group.items() if key != "params"}
    filed = next_update(spec, arrays, saved, gradient.numpy(), weights.numpy())
    assert isinstance(filed, np.ndarray)
    assert filed == pytest.approx(live.numpy(), rel=1e-13, abs=1e-300, nan_ok=True)
    return live


def plain(value):
    """A hyperparameter as a file has it: no tensors."""
    return (
        tuple(map(plain, value))
        if isinstance(value, tuple)
        else value.item()
        if isinstance(value, torch.Tensor)
        else value
    )


def close(one, other, tolerance=1e-12):
    """Whether two updates agree relative to the largest of their elements."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@OPTIONS
@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 4)], ids=str)
def test_prediction_is_the_step(whole, cls, options, shape):
    """At the first step, the tenth and the thousandth, of matrices, vectors and kernels: what is predicted happens."""
    optimizer = built(cls, shape, **options)
    for taken in range(1000 if whole else 10):
        gradient = gradient_of(optimizer, taken)
        if taken in (0, 1, 4, 5, 6, 9, 999):
            expected = predicted(optimizer, gradient)
            assert close(expected, step(optimizer, gradient))
        else:
            step(optimizer, gradient)


def edits(optimizer):
    """Each way to zero, scale or age one slot of a state."""
    entry = optimizer.state[optimizer.param_groups[0]["params"][0]]
    for key, value in list(entry.items()):
        for name, edited in (("zero", 0.0), ("double", 2.0), ("thousand", None)):
            if name != "thousand" or key == "step":
                yield key, (999.0 if edited is None else value * edited)


@OPTIONS
def test_prediction_is_the_step_of_edited_states(cls, options):
    """Whatever was done to a slot, the prediction is of that state."""
    trained = built(cls, **options)
    for taken in range(12):
        step(trained, gradient_of(trained, taken))
    gradient = gradient_of(trained, 99)
    for key, value in edits(trained):
        optimizer = built(cls, **options)
        entry = optimizer.state[optimizer.param_groups[0]["params"][0]]
        entry.update(slots_of(trained))
        entry[key] = int(value) if isinstance(entry[key], int) else torch.as_tensor(value, dtype=entry[key].dtype)
        expected = predicted(optimizer, gradient)
        taken = step(optimizer, gradient)
        assert torch.equal(expected.isfinite(), taken.isfinite())
        finite = taken.isfinite()
        assert not finite.any() or close(expected[finite], taken[finite], 1e-11)


def test_every_class_of_torch_has_a_rule():
    """All but LBFGS, whose step searches along a line."""
    assert [spec.name for spec in TORCH_OPTIM if spec.update is None] == ["torch.optim.lbfgs.LBFGS"]


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, {"adjust_lr_fn": "original"}], ids=str
)
@pytest.mark.parametrize("shape", [(8, 4), (4, 8)], ids=str)
def test_prediction_for_muon(options, shape):
    """Muon's iteration is torch's but for its bfloat16, in which torch runs it."""
    optimizer = built(optim.Muon, shape, lr=0.1, **options)
    for taken in range(5):
        gradient = gradient_of(optimizer, taken)
        expected = predicted(optimizer, gradient)
        assert close(expected, step(optimizer, gradient), 0.05)


@OPTIONS
def test_fresh_update_is_the_first_step(cls, options):
    """What a new optimizer's first step does, said by a trained one's hyperparameters."""
    optimizer = built(cls, **options)
    (group,), gradient = optimizer.param_groups, gradient_of(optimizer, 3)
    expected = fresh_update(by_class(cls), group, gradient, group["params"][0].detach().clone())
    assert close(expected, step(optimizer, gradient))


@OPTIONS
def test_elements_side_by_side(cls, options):
    """Pieces of several parameters with counts of their own are predicted at once as they are one by one."""
    spec = by_class(cls)
    if not elementwise(spec):
        return
    ages, pieces = (1, 7, 30), []
    for age in ages:
        optimizer = built(cls, (5,), **options)
        for taken in range(age):
            step(optimizer, gradient_of(optimizer, taken))
        pieces.append((slots_of(optimizer), optimizer.param_groups[0]["params"][0].detach().clone()))
    gradient = gradient_of(optimizer, 50)
    one_by_one = [next_update(spec, slots, optimizer.param_groups[0], gradient, weights) for slots, weights in pieces]
    together = {
        key: torch.cat([torch.as_tensor(slots[key], dtype=DOUBLE).expand(5) for slots, _ in pieces])
        for key in pieces[0][0]
    }
    weights = torch.cat([weights for _, weights in pieces])
    at_once = next_update(spec, together, optimizer.param_groups[0], gradient.repeat(3), weights)
    assert close(at_once, torch.cat(one_by_one), 1e-14)


@pytest.mark.parametrize("spec", TORCH_OPTIM, ids=lambda spec: spec.name)
def test_elementwise_is_what_it_says(spec):
    """Where an update is elementwise, other elements change nothing; where not, they do."""
    cls = {"Adafactor": optim.Adafactor, "Muon": optim.Muon, "LBFGS": optim.LBFGS}.get(spec.name.rpartition(".")[2])
    cls = cls or getattr(optim, spec.name.rpartition(".")[2])
    if spec.update is None:
        assert not elementwise(spec)
        return
    optimizer = built(cls, lr=0.1)
    weights, gradient = optimizer.param_groups[0]["params"][0].detach().clone(), gradient_of(optimizer, 1)
    other = gradient.clone()
    other[1:] *= 3.0
    one, two = (fresh_update(spec, optimizer.param_groups[0], each, weights) for each in (gradient, other))
    assert torch.equal(one[0], two[0]) == elementwise(spec)


@pytest.mark.parametrize("name", ["timm.optim.lion.Lion", "torch.optim.Muon"])
def test_scale_of_a_momentum_may_not_matter(name):
    """A sign and an orthogonal direction are as long as they are, whatever the momentum's scale."""
    spec, gradient = by_name(name), torch.ones(3, 3, dtype=DOUBLE) + torch.eye(3, dtype=DOUBLE)
    group = {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "momentum": 0.95,
        "eps": 1e-7,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "ns_steps": 5,
    }
    (key,) = spec.slots
    one, seven = (next_update(spec, {key: scale * gradient}, group, gradient) for scale in (1.0, 7.0))
    assert close(one, seven, 1e-6)


def test_unknown_updates_are_none():
    """Where no rule is known, or an option masks the update, nothing is made up."""
    nobody = OptimizerSpec(name="Nobody", slots={})
    gradient = np.ones(2)
    assert next_update(nobody, {}, {"lr": 0.1}, gradient) is None
    assert fresh_update(nobody, {"lr": 0.1}, gradient) is None
    assert typical_gradient(nobody, {}, {"lr": 0.1}) is None
    assert not elementwise(nobody)
    adam = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    assert next_update(by_name("timm.optim.adamw.AdamWLegacy"), {}, {**adam, "caution": True}, gradient) is None
    for name in ("torch.optim.Adafactor", "timm.optim.lamb.Lamb", "timm.optim.lars.Lars"):
        assert next_update(by_name(name), {}, {**adam, "beta2_decay": -0.8}, gradient) is None, "it needs the weights"


# --- the gradient that a state has seen -------------------------------------------------------------------------

SEEN = [
    (optim.Adam, {}),
    (optim.Adam, {"amsgrad": True, "maximize": True}),
    (optim.AdamW, {}),
    (optim.NAdam, {}),
    (optim.RAdam, {}),
    (optim.SparseAdam, {}),
    (optim.Adamax, {"eps": 1e-30}),
    (optim.RMSprop, {"momentum": 0.9}),
    (optim.RMSprop, {"centered": True}),
    (optim.Rprop, {}),
    (optim.Adagrad, {}),
    (optim.Adadelta, {}),
    (optim.Adafactor, {}),
]


@pytest.mark.parametrize(("cls", "options"), SEEN, ids=lambda value: getattr(value, "__name__", str(value)))
def test_typical_gradient_of_a_constant_one_is_that_gradient(cls, options):
    """After steps on one gradient, its size is what the state tells, and its sign where there is a momentum."""
    optimizer = built(cls, **options)
    rows, columns = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=DOUBLE), torch.tensor([1.0, 0.5, -4.0], dtype=DOUBLE)
    gradient = rows[:, None] * columns  # of rank one, so that a factored moment holds it
    for _ in range(7):
        step(optimizer, gradient)
    seen = typical_gradient(by_class(cls), slots_of(optimizer), optimizer.param_groups[0])
    signed = cls not in (optim.Adagrad, optim.Adadelta, optim.Adafactor)
    assert close(seen, gradient if signed else gradient.abs(), 1e-6)


@pytest.mark.parametrize(
    ("cls", "options", "share"),
    [
        (optim.SGD, {"momentum": 0.9, "dampening": 0.5}, 5.0),
        (optim.SGD, {"momentum": 0.9}, 10.0),
        (optim.Muon, {"momentum": 0.9}, 1.0),
    ],
)
def test_typical_gradient_of_a_steady_momentum(cls, options, share):
    """A momentum is brought to the scale of the gradient: b(1-β)/(1-d), or e itself."""
    spec, gradient = by_class(cls), np.array([[1.0, -2.0]])
    assert typical_gradient(spec, {"momentum_buffer": share * gradient}, options) == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(optim.SGD, {"lr": 0.1}), (optim.ASGD, {}), (optim.Adam, {}), (optim.Rprop, {}), (optim.Adafactor, {})],
)
def test_nothing_seen_is_none(cls, options):
    """Plain SGD, ASGD and every state before its first step tell no gradient."""
    optimizer = built(cls, **options)
    if cls in (optim.SGD, optim.ASGD):
        step(optimizer, gradient_of(optimizer, 0))
    assert typical_gradient(by_class(cls), slots_of(optimizer), optimizer.param_groups[0]) is None


# --- what resets of moments do: constant gradient, aged state, in units of the learning rate --------------------

BETAS = [(0.9, 0.999), (0.9, 0.99), (0.9, 0.95), (0.95, 0.95)]
OLD = 10_000_000
ADAM = by_class(optim.Adam)


def adam(betas, t, m, v, g=1.0, spec=ADAM, **more):
    """How far Adam's step t+1 on this gradient moves, from moments as they are after t steps."""
    slots = {"step": float(t), "exp_avg": np.array([m]), "exp_avg_sq": np.array([v]), **more}
    group = {"lr": 1.0, "betas": betas, "eps": 1e-30, "momentum_decay": 4e-3}
    return -next_update(spec, slots, group, np.array([g])).item()


def moments(betas, k):
    """Both moments after k steps of gradient 1."""
    return 1.0 - betas[0] ** k, 1.0 - betas[1] ** k


def after(operation, betas, k, t=OLD):
    """The k-th update after an operation at step t."""
    from_zero, aged = moments(betas, k - 1), moments(betas, t + k - 1)
    grown = {  # what each slot has become by then
        "all": (k - 1, from_zero),
        "m, v": (t + k - 1, from_zero),
        "v": (t + k - 1, (aged[0], from_zero[1])),
        "m": (t + k - 1, (from_zero[0], aged[1])),
        "step": (
            k - 1,
            (
                betas[0] ** (k - 1) * moments(betas, t)[0] + from_zero[0],
                betas[1] ** (k - 1) * moments(betas, t)[1] + from_zero[1],
            ),
        ),
    }
    count, (m, v) = grown[operation]
    return adam(betas, count, m, v)


def trace(operation, betas, steps=60, t=OLD):
    return [after(operation, betas, k, t) for k in range(1, steps + 1)]


RESETS = [  # first, extreme and the step where it is, for each pair of betas; None: the extreme is the first
    ("all", (1.0, 1.0, 1.0, 1.0), (None,) * 4, (None,) * 4),
    ("m, v", (3.162, 1.000, 0.447, 0.224), (6.569, 2.131, 1.097, None), (12, 13, 20, None)),
    ("v", (31.62, 10.0, 4.47, 4.47), (None,) * 4, (None,) * 4),
    ("m", (0.100, 0.100, 0.100, 0.050), (None,) * 4, (None,) * 4),
    ("step", (0.316, 1.000, 2.236, 4.472), (0.152, 0.469, 0.912, None), (12, 13, 20, None)),
]


@pytest.mark.parametrize(("operation", "first", "extreme", "where"), RESETS)
def test_resets_of_adam_moments(operation, first, extreme, where):
    """What each way to reset does to the next updates: only all of it together is a fresh start."""
    for betas, start, peak, k in zip(BETAS, first, extreme, where, strict=True):
        updates = trace(operation, betas)
        assert updates[0] == pytest.approx(start, rel=6e-4, abs=5e-4)
        if peak is not None:
            found = max(updates) if operation != "step" else min(updates)
            assert found == pytest.approx(peak, abs=1e-3)
            assert updates.index(found) + 1 == k


@pytest.mark.parametrize(("betas", "steps"), list(zip(BETAS, (2374, 235, 31, 0), strict=True)))
def test_how_long_a_reset_of_both_moments_is_felt(betas, steps):
    """With the step kept, updates stay more than 5% too large for about two horizons of the second moment."""
    updates = trace("m, v", betas, steps + 60)
    assert sum(each > 1.05 for each in updates) == pytest.approx(steps, abs=1)


@pytest.mark.parametrize(
    ("t", "first", "peak"),
    [
        (1, 0.744, 1.01),
        (10, 0.482, 1.12),
        (100, 0.980, 2.15),
        (1000, 2.515, 5.24),
        (2000, 2.941, 6.11),
        (10_000, 3.162, 6.57),
    ],
)
def test_age_decides_what_a_reset_of_both_moments_does(t, first, peak):
    """The longer a state has been trained, the larger the first updates after its moments are zeroed."""
    updates = trace("m, v", (0.9, 0.999), 100 if t > 1 else 3000, t=t)
    assert updates[0] == pytest.approx(first, abs=1e-3)
    assert max(updates) == pytest.approx(peak, abs=1e-2)


@pytest.mark.parametrize(
    ("betas", "first", "peak", "k"), [((0.9, 0.9999), 10.0, 20.7, 12), ((0.95, 0.999), 1.58, 4.60, 25)]
)
def test_other_betas_after_a_reset_of_both_moments(betas, first, peak, k):
    """A slower second moment makes it worse, a slower mean softer."""
    updates = trace("m, v", betas)
    assert updates[0] == pytest.approx(first, abs=5e-3)
    assert max(updates) == pytest.approx(peak, abs=5e-2)
    assert updates.index(max(updates)) + 1 == pytest.approx(k, abs=1)


def test_second_moment_at_zero_after_two_thousand_steps():
    """The case that users meet: v zeroed, step kept, and the next update is 29 times too large."""
    m, _ = moments((0.9, 0.999), 2000)
    assert adam((0.9, 0.999), 2000, m, 0.0) == pytest.approx(29.4, abs=0.05)
    assert adam((0.9, 0.999), 2000, 0.0, 0.0) == pytest.approx(2.94, abs=5e-3)


def simulated(cls, steps, **options):
    """Slots and group after many steps of gradient 1 on a scalar, lr 1 and as small an eps as there may be."""
    optimizer = built(cls, (1,), **{"lr": 1.0, "eps": 1e-30, **options})
    gradient = torch.ones(1, dtype=DOUBLE)
    for _ in range(steps):
        step(optimizer, gradient)
    return by_class(cls), slots_of(optimizer), optimizer.param_groups[0]


def move(state, gradient=1.0, **edited):
    """How far the next step moves after some slots are given values."""
    spec, slots, group = state
    slots = {**slots, **{key: torch.full_like(slots[key], value) for key, value in edited.items()}}
    return -next_update(spec, slots, group, torch.full((1,), gradient, dtype=DOUBLE)).item()


@pytest.fixture(scope="module")
def nadam():
    return simulated(optim.NAdam, 2000)


def test_resets_of_nadam(nadam):
    """Both moments at zero with the step kept: 14.18 at worst. A full reset without the product: .595, not 1.056."""
    betas, (spec, _, group) = (0.9, 0.999), nadam
    product, worst = 0.0, 0.0  # the product is no longer distinguishable from 0
    for k in range(1, 30):
        m, v = moments(betas, k - 1)
        slots = {
            "step": 1999.0 + k,
            "mu_product": product,
            "exp_avg": torch.tensor([m]),
            "exp_avg_sq": torch.tensor([v]),
        }
        worst = max(worst, -next_update(spec, slots, group, torch.ones(1)).item())
    assert worst == pytest.approx(14.18, abs=0.02)
    assert move(nadam, exp_avg=0.0, exp_avg_sq=0.0, step=0.0, mu_product=1.0) == pytest.approx(1.056, abs=1e-3)
    assert move(nadam, exp_avg=0.0, exp_avg_sq=0.0, step=0.0) == pytest.approx(0.595, abs=1e-3)


def test_resets_of_radam():
    """Steady .828 at t=2000; both moments zeroed with the step kept 2.44, 5.07 at worst; the step zeroed alone 10·ĝ."""
    state = simulated(optim.RAdam, 2000)
    assert move(state) == pytest.approx(0.828, abs=1e-3)
    assert move(state, exp_avg=0.0, exp_avg_sq=0.0) == pytest.approx(2.44, abs=5e-3)
    grown = [
        move(state, exp_avg=m, exp_avg_sq=v, step=1999.0 + k)
        for k in range(1, 30)
        for m, v in [moments((0.9, 0.999), k - 1)]
    ]
    assert max(grown) == pytest.approx(5.07, abs=1e-2)
    assert move(state, step=0.0) == pytest.approx(10.0, rel=1e-6)


def test_resets_of_adamax():
    """Both zeroed is soft (.10); the norm zeroed with the mean kept is ninety million; the step zeroed alone ten."""
    state = simulated(optim.Adamax, 2000, eps=1e-8)
    assert move(state, exp_avg=0.0, exp_inf=0.0) == pytest.approx(0.10, abs=1e-6)
    assert move(state, gradient=0.0, exp_inf=0.0) == pytest.approx(9.0e7, rel=1e-2)
    assert move(state, step=0.0) == pytest.approx(10.0, rel=1e-6)


def test_resets_of_the_others():
    """Adagrad's sum, Adadelta's averages, RMSprop's square: each zeroed, at t=2000."""
    adagrad = simulated(optim.Adagrad, 2000)
    assert [move(adagrad), move(adagrad, sum=0.0)] == pytest.approx([0.02236, 1.0], abs=1e-5)
    adadelta = simulated(optim.Adadelta, 2000, eps=1e-6)
    edited = [{}, {"acc_delta": 0.0}, {"square_avg": 0.0}, {"acc_delta": 0.0, "square_avg": 0.0}]
    assert [move(adadelta, **each) for each in edited] == pytest.approx([0.01455, 0.001, 0.0460, 0.00316], abs=5e-5)
    rmsprop = simulated(optim.RMSprop, 2000, alpha=0.99)
    assert [move(rmsprop), move(rmsprop, square_avg=0.0)] == pytest.approx([1.0, 10.0], rel=1e-3)
    with_momentum = simulated(optim.RMSprop, 2000, alpha=0.99, momentum=0.9)
    spec, slots, group = with_momentum
    buffer, worst = 10.0, 0.0
    for k in range(1, 60):
        square = 1.0 - 0.99 ** (k - 1)
        grown = {"square_avg": torch.tensor([square]), "momentum_buffer": torch.tensor([buffer])}
        buffer = -next_update(spec, {**slots, **grown}, group, torch.ones(1)).item()
        worst = max(worst, buffer)
    assert worst == pytest.approx(33.4, abs=0.05)


def test_centred_square_at_zero_is_not_a_number():
    """RMSprop's square zeroed with its mean kept is the root of a negative number."""
    state = simulated(optim.RMSprop, 50, centered=True)
    assert np.isnan(move(state, square_avg=0.0, gradient=0.5))


def test_adafactor_does_not_spike():
    """Zeroed with its step kept, Adafactor is held by its limit on the update's size."""
    spec, slots, group = simulated(optim.Adafactor, 1000, eps=(None, 1e-3), lr=0.01)
    zeroed = {**slots, "variance": torch.zeros(1, dtype=DOUBLE)}
    weights, gradient = torch.ones(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    before, now = (next_update(spec, each, group, gradient, weights) for each in (slots, zeroed))
    assert abs(now) <= abs(before) * (1 + 1e-6)


# --- the bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "betas", "t", "refused"),
    [
        ("all", (0.9, 0.999), OLD, False),
        ("m", (0.9, 0.999), OLD, False),
        ("m, v", (0.9, 0.999), OLD, True),
        ("m, v", (0.9, 0.999), 2000, True),
        ("m, v", (0.9, 0.999), 1000, True),
        ("m, v", (0.9, 0.999), 100, False),
        ("m, v", (0.9, 0.99), OLD, False),
        ("m, v", (0.95, 0.95), OLD, False),
        *(("v", betas, OLD, True) for betas in BETAS),
        ("step", (0.9, 0.999), OLD, False),
        ("step", (0.9, 0.95), OLD, True),
        ("step", (0.95, 0.95), OLD, True),
    ],
)
def test_bound_separates_what_hurts(operation, betas, t, refused):
    """A next update beyond `BOUND` times the larger of before and a fresh start, which both are 1 here, is refused."""
    assert (after(operation, betas, 1, t) > BOUND) == refused


def test_bound_lets_a_momentum_be_doubled():
    """Doubling a buffer is an edit that people mean; its newest part does not double."""
    sgd, group = by_class(optim.SGD), {"lr": 1.0, "momentum": 0.9}
    before, doubled = (
        next_update(sgd, {"momentum_buffer": np.array([each])}, group, np.ones(1)) for each in (10.0, 20.0)
    )
    assert doubled / before < BOUND


@pytest.mark.parametrize(
    ("cls", "touched", "advice"),
    [
        (
            optim.Adam,
            ["exp_avg_sq"],
            "reset_() of the whole parameter, which also resets step, exp_avg",
        ),
        (
            optim.Adam,
            ["exp_avg", "exp_avg_sq"],
            "reset_() of the whole parameter, which also resets step",
        ),
        (
            optim.Adam,
            ["step"],
            "reset_() of the whole parameter, which also resets exp_avg, exp_avg_sq",
        ),
        (
            partial(optim.RMSprop, centered=True),
            ["square_avg"],
            "reset_() of the whole parameter, which also resets grad_avg",
        ),
        (optim.Adam, ["exp_avg"], "a smaller factor, or clip_norm_() with the norm that the slot has now"),
        (optim.SGD, ["momentum_buffer"], "a smaller factor, or clip_norm_() with the norm that the slot has now"),
        (optim.SGD, ["mine"], "a smaller factor, or clip_norm_() with the norm that the slot has now"),
    ],
)
def test_safe_verb(cls, touched, advice):
    """Moments whose companions were left behind are reset with them; a momentum is scaled less."""
    optimizer = cls([torch.zeros(1)])
    assert safe_verb(by_class(type(optimizer)), touched, optimizer.param_groups[0]) == advice


def test_rules_are_found_by_role_and_not_by_key():
    """One rule serves every library that names the same slots otherwise."""
    fused = by_name("bitsandbytes.optim.adamw.AdamW")
    group, one = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8}, np.ones(1)
    theirs = next_update(fused, {"step": 5, "state1": one, "state2": one}, group, one)
    ours = next_update(ADAM, {"step": 5, "exp_avg": one, "exp_avg_sq": one}, group, one)
    assert theirs == ours


# --- other libraries --------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("library", ROWS)
def test_predictions_hold_for_other_libraries(library):
    """Each rule that a row of another library names is held against a step of the real class."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    root = Path(__file__).parents[1]
    program = [sys.executable, "-m", "tests.stepped_rows", library]
    shown = subprocess.run(program, cwd=root, capture_output=True, text=True, check=True).stdout
    differences = json.loads(shown.splitlines()[-1])
    assert {row: each for row, each in differences.items() if not each < TOLERANCE.get(library, 1e-11)} == {}

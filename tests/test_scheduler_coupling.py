"""Coupling: what buffers do when a schedule moves their coefficient, on the optimizers themselves, in numbers.

One scalar parameter at 0, a constant gradient of 1, lr 1 and eps as good as 0: a debiased Adam then moves by exactly 1 in
every step, and any deviation is an error of the schedule.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import optstate
from optstate import schedule as s
from optstate.errors import CoefficientError
from optstate.optimizers.change import OnChange


@pytest.fixture(autouse=True)
def double():
    """Factors are in float64, and here the slots are as well."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def updates(make, curves, steps, gradients=None, *, on_change="keep", hook=True, lr_coupling=False):
    """|update| of each step under a schedule, and the optimizer."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make([parameter])
    scheduler = s.Scheduler(optimizer, curves, on_change=on_change, lr_coupling=lr_coupling, hook=hook)
    moved = []
    for step in range(steps):
        parameter.grad = torch.ones(1) if gradients is None else gradients[step].clone()
        before = parameter.detach().clone()
        optimizer.step()
        if not hook:
            scheduler.step()
        moved.append((before - parameter.detach()).item())
    return moved, optimizer


def jump(before, after, at=20):
    """A coefficient that has one value for the first steps and another one from then on."""
    return s.join((s.constant(before), at), (s.constant(after), None))


# --- Adam: the debiased estimates are continuous, exactly ---------------------------------------------------

ADAMS = {
    "Adam": lambda betas: lambda p: torch.optim.Adam(p, lr=1.0, eps=1e-30, betas=betas),
    "AdamW": lambda betas: lambda p: torch.optim.AdamW(p, lr=1.0, eps=1e-30, betas=betas, weight_decay=0),
    "AMSGrad": lambda betas: lambda p: torch.optim.Adam(p, lr=1.0, eps=1e-30, betas=betas, amsgrad=True),
    "foreach": lambda betas: lambda p: torch.optim.Adam(p, lr=1.0, eps=1e-30, betas=betas, foreach=True),
}
EDITS = {
    "β2 up": ((0.9, 0.95), (0.9, 0.999), 0.180),
    "β2 down": ((0.9, 0.999), (0.9, 0.95), 3.095),
    "β1 up": ((0.9, 0.999), (0.99, 0.999), 4.623),
    "both": ((0.9, 0.999), (0.95, 0.95), 4.152),
    "both up": ((0.9, 0.95), (0.99, 0.999), 0.832),
}


@pytest.mark.parametrize("make", ADAMS.values(), ids=ADAMS)
@pytest.mark.parametrize(("before", "after", "_"), EDITS.values(), ids=EDITS)
def test_adam_goes_on_as_if_nothing_had_happened(make, before, after, _):
    """Every update stays 1 to 1e-9, at once and for 2000 steps, whichever of the betas jump."""
    moved, optimizer = updates(
        make(before), {"momentum": jump(before[0], after[0]), "second_moment": jump(before[1], after[1])}, 2020
    )
    assert optimizer.param_groups[0]["betas"] == after
    assert max(abs(update - 1) for update in moved) < 1e-9


@pytest.mark.parametrize(("before", "after", "wrong"), EDITS.values(), ids=EDITS)
def test_without_it_adam_jumps(before, after, wrong):
    """The same jumps with the slots left alone: the first update afterwards is off by these factors."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = ADAMS["Adam"](before)([parameter])
    for step in range(21):
        if step == 20:
            optimizer.param_groups[0]["betas"] = after
        parameter.grad = torch.ones(1)
        start = parameter.detach().clone()
        optimizer.step()
    assert (start - parameter.detach()).item() == pytest.approx(wrong, abs=5e-4)


@pytest.mark.parametrize("path", ["at once", "little by little", "there and back"])
def test_result_does_not_depend_on_the_path(path):
    """However β got from one value to the other between two steps, the slots end the same."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = ADAMS["Adam"]((0.9, 0.999))([parameter])
    for _ in range(20):
        parameter.grad = torch.ones(1)
        optimizer.step()
    betas = {
        "at once": [0.95],
        "little by little": [0.99, 0.98, 0.97, 0.96, 0.95],
        "there and back": [0.5, 0.9999, 0.95],
    }
    curve = s.piecewise(*enumerate([0.999, *betas[path]]))
    scheduler = s.Scheduler(optimizer, {"second_moment": curve})
    for _ in betas[path]:
        scheduler.step()
    expected = (1 - 0.95**20) / (1 - 0.999**20) * (1 - 0.999**20)
    assert optimizer.state[parameter]["exp_avg_sq"].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1e-12), (0.1, 0.03)])
def test_adafactors_second_moment_in_adam(noise, most):
    """β2 = min(.999, 1-t^-.8), another one at every step: the update is that of the product of all β2 but for the noise.

    With the slots left alone it is 10.7 % off, noise or none.
    """
    torch.manual_seed(1)
    gradients = [1 + noise * torch.randn(1) for _ in range(60)]
    curve = s.function(lambda t: min(0.999, 1 - (t + 1) ** -0.8))
    worst = {}
    for scheduled in (True, False):
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = ADAMS["Adam"]((0.9, 0.999))([parameter])
        if scheduled:
            s.Scheduler(optimizer, {"second_moment": curve}, hook=True)
        total, weights, errors = 0.0, 1.0, []
        for t, gradient in enumerate(gradients):
            beta = curve(t)
            if not scheduled:
                optimizer.param_groups[0]["betas"] = (0.9, beta)
            parameter.grad = gradient.clone()
            optimizer.step()
            total, weights = beta * total + (1 - beta) * gradient.item() ** 2, weights * beta
            divisor = 1 - optimizer.param_groups[0]["betas"][1] ** (t + 1)
            estimate = optimizer.state[parameter]["exp_avg_sq"].item() / divisor
            errors.append(abs((estimate / (total / (1 - weights))) ** -0.5 - 1))
        worst[scheduled] = max(errors)
    assert worst[True] < most
    assert worst[False] == pytest.approx(0.107, abs=1e-3)


def test_parameters_of_different_age():
    """Each parameter is scaled for its own number of steps; one that was frozen meanwhile goes on as smoothly."""
    old, young = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = ADAMS["Adam"]((0.9, 0.999))([old, young])
    scheduler = s.Scheduler(optimizer, {"second_moment": jump(0.999, 0.95)})
    for step in range(40):
        old.grad = torch.ones(1)
        young.grad = torch.ones(1) if step >= 15 else None
        before = old.detach().clone(), young.detach().clone()
        optimizer.step()
        scheduler.step()
        assert (before[0] - old.detach()).item() == pytest.approx(1, abs=1e-9)
        assert (before[1] - young.detach()).item() == pytest.approx(float(step >= 15), abs=1e-9)
    assert [optimizer.state[each]["step"].item() for each in (old, young)] == [40, 25]


def test_nadam_keeps_its_momentum():
    """(.9, .999) → (.98, .99) at t = 20: .9415 follows .9452; its own product of betas corrects the momentum."""
    moved, _ = updates(
        lambda p: torch.optim.NAdam(p, lr=1.0, eps=1e-30),
        {"momentum": jump(0.9, 0.98), "second_moment": jump(0.999, 0.99)},
        21,
    )
    assert moved[19:] == pytest.approx([0.9452, 0.9415], abs=5e-5)


def test_adamax_second_beta_asks_nothing():
    """The infinity norm is not debiased, the mean is: both moves leave the update at 1."""
    moved, _ = updates(
        lambda p: torch.optim.Adamax(p, lr=1.0, eps=1e-30),
        {"momentum": jump(0.9, 0.99), "betas[1]": jump(0.999, 0.9)},
        60,
    )
    assert max(abs(update - 1) for update in moved) < 1e-9


# --- SGD: three things that one can want --------------------------------------------------------------------

SGD_EDITS = {
    ".9 → .99": ((0.9, 0.0), (0.99, 0.0), (0.100, 0.109, 1.000, 0.100)),
    ".9 → .95": ((0.9, 0.0), (0.95, 0.0), (0.100, 0.105, 0.200, 0.100)),
    ".9 → .5": ((0.9, 0.0), (0.5, 0.0), (0.100, 0.060, 0.020, 0.100)),
    ".95 → .9": ((0.95, 0.0), (0.9, 0.0), (0.200, 0.190, 0.100, 0.200)),
    "dampened": ((0.9, 0.1), (0.99, 0.5), (0.090, 0.0941, 0.500, 0.090)),
    "an average": ((0.9, 0.9), (0.99, 0.99), (0.010, 0.010, 0.010, 0.010)),
}


@pytest.mark.parametrize(("before", "after", "expected"), SGD_EDITS.values(), ids=SGD_EDITS)
@pytest.mark.parametrize("on_change", ["keep", "steady", "equivalent"])
def test_sgd_update_after_a_jump(before, after, expected, on_change: OnChange):
    """From the steady state: the step before, and the first one after, for each of the three policies."""
    curves = {"momentum": jump(before[0], after[0], 1000), "dampening": jump(before[1], after[1], 1000)}
    moved, optimizer = updates(
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=before[0], dampening=before[1]),
        curves,
        1001,
        on_change=on_change,
    )
    which = {"keep": 1, "steady": 2, "equivalent": 3}[on_change]
    assert moved[999:] == pytest.approx([expected[0], expected[which]], abs=6e-4 if expected[which] < 0.15 else 1e-3)
    gain = lambda beta, d: (1 - d) / (1 - beta)  # noqa: E731
    lr = 0.01 * (gain(*before) / gain(*after) if on_change == "equivalent" else 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def test_equivalent_stays_equivalent():
    """Momentum from .5 to .99 over 300 steps: the length of steps never changes, however the learning rate has to."""
    curve = s.linear(0.5, 0.99, 300)
    moved, optimizer = updates(
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
        {"momentum": s.join((0.5, 100), (curve, None))},
        500,
        on_change="equivalent",
    )
    assert moved[99:] == pytest.approx([0.02] * 401, rel=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * (1 - 0.99))


def test_equivalent_with_a_curve_of_the_learning_rate():
    """The learning rate of a curve is meant for the momentum at the start: effectively it is what the curve says."""
    rates = s.linear(0.01, 0.001, 400)
    moved, optimizer = updates(
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
        {"momentum": s.join((0.5, 100), (s.linear(0.5, 0.99, 300), None)), "lr": rates},
        500,
        on_change="equivalent",
    )
    assert moved[99:] == pytest.approx([2 * rates(t) for t in range(99, 500)], rel=1e-9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * 0.001 * (1 - 0.99))


def test_equivalent_keeps_decoupled_decay():
    """Where weights shrink by lr·λ beside the gradient, λ rises as lr falls: their product stays."""
    optimizer = SGDW([nn.Parameter(torch.zeros(1))])
    scheduler = s.Scheduler(optimizer, {"momentum": s.linear(0.9, 0.95, 5)}, on_change="equivalent")
    for _ in range(5):
        scheduler.step()
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((0.05, 0.02))


class SGDW(torch.optim.Optimizer):
    """What the registry knows of timm's class of this name is enough here: no step is taken."""

    __module__, __qualname__ = "timm.optim.sgdw", "SGDW"

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0.01, "nesterov": False})

    def step(self, closure=None):
        """Nothing."""


@pytest.mark.parametrize("driven", [True, False])
def test_preview_of_what_follows(driven):
    """What the learning rate will be is in the preview, whether a curve drives it or it only follows."""
    curves = {"momentum": s.linear(0.9, 0.99, 10)} | ({"lr": s.linear(0.1, 0.05, 10)} if driven else {})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = s.Scheduler(optimizer, curves, on_change="equivalent")
    preview, seen = scheduler.preview(11), []
    for _ in range(11):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert preview.values["lr"] == pytest.approx(seen, rel=1e-12)
    assert scheduler.preview(11).values["lr"] == pytest.approx(seen, rel=1e-12)


def test_average_needs_nothing():
    """Muon's buffer is a plain average: .9 → .99 leaves it at 1, and no update changes."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0)
    scheduler = s.Scheduler(optimizer, {"momentum": jump(0.9, 0.99, 300)}, on_change="steady")
    for _ in range(320):
        parameter.grad = torch.ones(2, 2)
        optimizer.step()
        scheduler.step()
    assert optimizer.state[parameter]["momentum_buffer"].flatten().tolist() == pytest.approx([1.0] * 4)


def test_no_momentum_leaves_no_stale_buffer():
    """At β = 0 torch keeps the buffer, unread, and would reuse it: it goes, so that the first gradient back is alone."""
    curve = s.piecewise((0, 0.9), (4, 0.9), (5, 0), (54, 0), (55, 0.9))
    gradients = [torch.ones(1)] * 5 + [-3 * torch.ones(1)] * 51
    moved, optimizer = updates(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), {"momentum": curve}, 56, gradients)
    assert moved[4] == pytest.approx(4.0951)
    assert moved[5:] == pytest.approx([-3.0] * 51)  # not .9·4.0951 - 3 = .6856
    assert next(iter(optimizer.state.values()))["momentum_buffer"].item() == -3.0


def test_demon_in_sgd_ends_in_plain_sgd():
    """Its momentum ends at 0 exactly, where the buffer goes."""
    moved, optimizer = updates(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), {"momentum": s.demon(0.9, 50)}, 60)
    assert moved[-1] == 1.0
    assert all("momentum_buffer" not in entry for entry in optimizer.state.values())


def test_momentum_that_cannot_start_is_refused():
    """RMSprop makes its buffer in the first step only: from 0 to .9 would be a KeyError in its next step."""
    with pytest.raises(CoefficientError, match="momentum_buffer"):
        updates(lambda p: torch.optim.RMSprop(p, momentum=0.0), {"momentum": jump(0.0, 0.9, 3)}, 10)


# --- the hand-written way, for comparison ----------------------------------------------------------------------


def multiplied(beta, steps_per_epoch, ratio, epochs=200, base=0.9):
    """torch's own buffer, multiplied by a ratio when an epoch begins, after which its coefficient is `beta`."""
    parameter, optimizer = aged(lambda p: torch.optim.SGD(p, lr=0.01, momentum=base), 1000)
    optimizer.param_groups[0]["momentum"] = beta
    for epoch in range(epochs):
        optimizer.state[parameter]["momentum_buffer"] *= ratio(epoch)
        for _ in range(steps_per_epoch):
            parameter.grad = torch.ones(1)
            optimizer.step()
    return optimizer.state[parameter]["momentum_buffer"].item()


@pytest.mark.parametrize(
    ("beta", "steps", "ends"),
    [(0.95, 1, 284.38), (0.95, 2, 41.17), (0.95, 5, 24.69), (0.95, 50, 20.09), (0.99, 9, 2942), (0.9, 1, 10.0)],
)
def test_ratio_to_the_base_compounds(beta, steps, ends):
    """V → ρV + c with ρ = β^L·β/β₀: it ends elsewhere than at 1/(1-β), or not at all."""
    assert multiplied(beta, steps, lambda _: beta / 0.9) == pytest.approx(ends, rel=2e-3)


def test_ratio_to_the_base_undershoots():
    """Base .95, β = .9, one step per epoch: 6.786 instead of 10, for ever."""
    assert multiplied(0.9, 1, lambda _: 0.9 / 0.95, base=0.95) == pytest.approx(6.786, abs=1e-3)


def test_ratio_to_the_previous_one_dies_out():
    """Those factors telescope: a transient, whatever they are, and then the steady state of the coefficient."""
    assert multiplied(0.95, 10, lambda epoch: 0.95 / 0.9 if epoch == 0 else 1.0) == pytest.approx(20, rel=1e-9)


# --- the learning rate --------------------------------------------------------------------------------------


def test_velocity_under_a_falling_learning_rate():
    """With lr_coupling SGD moves like u = βu - ηg: 50 steps of η falling by .97, the same to 1e-12."""
    torch.manual_seed(0)
    gradients = [torch.randn(1) for _ in range(50)]
    moved, _ = updates(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        {"lr": s.exponential(0.1, 0.97)},
        50,
        gradients,
        lr_coupling=True,
    )
    velocity, expected = 0.0, []
    for t, gradient in enumerate(gradients):
        velocity = 0.9 * velocity - 0.1 * 0.97**t * gradient.item()
        expected.append(-velocity)
    assert moved == pytest.approx(expected, rel=1e-12)


def test_asgd_has_its_new_rate_at_once():
    """ASGD uses the rate that it stored a step ago: without the schedule's help the update after 1 → .1 is still 1."""
    moved, _ = updates(lambda p: torch.optim.ASGD(p, lr=1.0, lambd=0.0), {"lr": jump(1.0, 0.1, 2)}, 4)
    assert moved == pytest.approx([1, 1, 0.1, 0.1])


# --- when, and what is written down -------------------------------------------------------------------------


def aged(make, steps=20):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make([parameter])
    for _ in range(steps):
        parameter.grad = torch.ones(1)
        optimizer.step()
    return parameter, optimizer


def test_a_schedule_that_begins_in_the_middle_of_a_run():
    """The first values of a schedule move β as well: the slots follow when the next step begins, not before."""
    parameter, optimizer = aged(ADAMS["Adam"]((0.9, 0.999)))
    before = copy.deepcopy(optimizer.state[parameter])
    scheduler = s.Scheduler(optimizer, {"second_moment": 0.95})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.state[parameter] == before
    start = parameter.detach().clone()
    parameter.grad = torch.ones(1)
    optimizer.step()
    scheduler.step()
    assert (start - parameter.detach()).item() == pytest.approx(1, abs=1e-12)
    assert len(optimizer._optimizer_step_pre_hooks) == 0


def test_the_journal_has_one_entry(tmp_path):
    """It says since when, how often and until when slots were scaled; moves that touch none are not written."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    state = optstate.attach(optimizer, model)
    scheduler = s.Scheduler(optimizer, {"second_moment": s.linear(0.9, 0.99, 50), "lr": s.linear(1, 0, 100)})
    for _ in range(30):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        scheduler.step()
    (entry,) = state.journal
    assert (entry.verb, entry.times, entry.step, entry.arguments["until"]) == ("schedule", 30, 1, 30)
    assert (entry.parameters, entry.slots, entry.elements) == (2, 2, 6)
    assert entry.arguments["second_moment"] == "linear(0.9, 0.99, 50)"


def test_nothing_is_scaled_where_nothing_has_to_be():
    """The learning rate of Adam and the momentum of SGD move without a slot being touched, or the journal."""
    for make, curves in (
        (ADAMS["Adam"]((0.9, 0.999)), {"lr": s.linear(1, 0, 50)}),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            {"momentum": s.linear(0.9, 0.5, 50), "lr": s.linear(1, 0, 50)},
        ),
    ):
        parameter, optimizer = aged(make)
        scheduler = s.Scheduler(optimizer, curves)
        versions = [slot._version for slot in optimizer.state[parameter].values()]
        for _ in range(10):
            scheduler.step()
        assert [slot._version for slot in optimizer.state[parameter].values()] == versions


def test_all_slots_are_scaled_in_place():
    """The tensors and their memory stay."""
    parameter, optimizer = aged(ADAMS["AMSGrad"]((0.9, 0.999)))
    entry = optimizer.state[parameter]
    places = {key: (id(slot), slot.data_ptr()) for key, slot in entry.items()}
    scheduler = s.Scheduler(optimizer, {"momentum": s.linear(0.9, 0.5, 10), "second_moment": s.linear(0.999, 0.9, 10)})
    scheduler.step()
    assert {key: (id(slot), slot.data_ptr()) for key, slot in entry.items()} == places

"""What a change of hyperparameters asks of slots: every factor, on the real optimizers, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf, nan

import pytest
import torch

from optstate.errors import CoefficientError
from optstate.optimizers.coupling import Carry, carry
from optstate.optimizers.kinds import SUM
from optstate.optimizers.ranges import Range, check, range_of
from optstate.optimizers.registry import by_class, by_name
from optstate.optimizers.spec import OptimizerSpec, number

TINY = 1e-30  # eps, where 0 would be refused


def built(cls, **options):
    """The optimizer of one scalar at 0."""
    return cls([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], **options)


def update(optimizer, gradient=1.0):
    """How far one step on this gradient moves the parameter, in units of the learning rate."""
    (parameter,) = optimizer.param_groups[0]["params"]
    before = parameter.item()
    with torch.no_grad():
        parameter.zero_()  # so that no digit is lost
    parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    moved = -parameter.item()
    with torch.no_grad():
        parameter.add_(before)
    return moved / number(optimizer.param_groups[0]["lr"])


def updates(optimizer, steps, gradient=1.0):
    return [update(optimizer, gradient) for _ in range(steps)]


def entry(optimizer):
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


def change(optimizer, hyperparameters, on_change="keep", carried=True, spec=None, **options):
    """Change hyperparameters of a live optimizer, slots along with them unless `carried` is false."""
    (group,), slots = optimizer.param_groups, entry(optimizer)
    before = {key: value for key, value in group.items() if key != "params"}
    after = {**before, **hyperparameters}
    spec = spec or by_class(type(optimizer))
    asked = carry(spec, before, after, number(slots.get("step")), on_change, slots_present=list(slots), **options)
    group.update(hyperparameters)
    if carried:
        group.update(asked.hyperparameters)
        for key, factor in asked.factors.items():
            slots[key].mul_(factor)
        for key in asked.remove:
            del slots[key]
    return asked


# --- the learning rate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {"eps": TINY}),
        (torch.optim.AdamW, {"eps": TINY, "weight_decay": 0.0}),
        (torch.optim.RMSprop, {"momentum": 0.9, "eps": TINY}),
    ],
)
@pytest.mark.parametrize("on_change", ["keep", "steady", "equivalent"])
def test_learning_rate_outside_of_the_buffer_asks_nothing(cls, options, on_change):
    """Where lr is not in the slots, a new one applies to the whole history at once, and no slot is edited."""
    told, untold = (built(cls, lr=1.0, **options) for _ in range(2))
    for optimizer in (told, untold):
        updates(optimizer, 20)
    assert not change(told, {"lr": 0.25}, on_change)
    assert update(told) == pytest.approx(update(untold), rel=1e-9)  # both in units of their learning rate


class Velocity(torch.optim.Optimizer):
    """u = βu - ηg, p += u: the momentum of Keras and Caffe, with the learning rate in the buffer."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                buffer.mul_(group["momentum"]).sub_(parameter.grad, alpha=group["lr"])
                parameter.add_(buffer)


VELOCITY = OptimizerSpec(
    name="Velocity", slots={"velocity": replace(SUM, convention="lr_in_buffer", coefficient="momentum", lr_degree=1)}
)


def travelled(optimizer, rates, spec=None, **options):
    """Where an optimizer is after one step of gradient 1 with each learning rate, slots carried along."""
    for rate in rates:
        if optimizer.state:
            change(
                optimizer,
                {"lr": rate},
                options.get("on_change", "keep"),
                spec=spec,
                **{key: value for key, value in options.items() if key != "on_change"},
            )
        else:
            optimizer.param_groups[0]["lr"] = rate
        update(optimizer)
    return optimizer.param_groups[0]["params"][0].item()


RATES = [0.1] * 3 + [0.01] * 10
DECAYING = [0.1 * 0.97**step for step in range(50)]


@pytest.mark.parametrize("rates", [RATES, DECAYING], ids=["dropped", "decaying"])
def test_momentum_correction_makes_a_velocity_a_sum(rates):
    """With u·η'/η at each change of lr, a buffer with lr in it does what torch's SGD does."""
    velocity = travelled(built(Velocity), rates, VELOCITY, on_change="steady")
    assert velocity == pytest.approx(travelled(built(torch.optim.SGD, momentum=0.9), rates), abs=1e-14)


@pytest.mark.parametrize("rates", [RATES, DECAYING], ids=["dropped", "decaying"])
def test_lr_coupling_makes_a_sum_a_velocity(rates):
    """With `lr_coupling`, torch's SGD does what a buffer with lr in it does when it is left alone."""
    summed = travelled(built(torch.optim.SGD, momentum=0.9), rates, lr_coupling=True)
    assert summed == pytest.approx(travelled(built(Velocity), rates, VELOCITY), abs=1e-13)


def test_sum_and_velocity_agree_only_while_lr_is_constant():
    """Two steps of gradient 1 with lr .1 and .01 end at -.119 with lr outside of the buffer, at -.2 with lr inside."""
    assert travelled(built(torch.optim.SGD, momentum=0.9), [0.1, 0.01]) == pytest.approx(-0.119, abs=1e-15)
    assert travelled(built(Velocity), [0.1, 0.01], VELOCITY) == pytest.approx(-0.2, abs=1e-15)


def test_learning_rates_of_zero_divide_nothing():
    """A schedule may pass through 0: no buffer becomes infinite, a velocity starts again from nothing."""
    sgd = by_class(torch.optim.SGD)
    asked = [
        carry(spec, {"lr": old, "momentum": 0.9}, {"lr": new, "momentum": 0.9}, None, on_change,
              lr_coupling=spec is sgd, slots_present=list(spec.slots)).factors
        for spec, on_change in ((VELOCITY, "steady"), (sgd, "keep"))
        for old, new in ((0.1, 0.0), (0.0, 0.1))
    ]  # fmt: skip
    assert asked == [{"velocity": 0.0}, {"velocity": 0.0}, {}, {"momentum_buffer": 0.0}]


def test_asgd_follows_the_learning_rate_at_once():
    """ASGD stores the lr of the next step: lr 1 → .1 acts one step late, unless eta is written with it."""
    late, at_once = (built(torch.optim.ASGD, lr=1.0, lambd=0.0) for _ in range(2))
    taken = {late: updates(late, 2), at_once: updates(at_once, 2)}
    change(late, {"lr": 0.1}, carried=False)
    change(at_once, {"lr": 0.1})
    for optimizer in taken:
        taken[optimizer] += [0.1 * each for each in updates(optimizer, 2)]
    assert taken[late] == pytest.approx([1, 1, 1, 0.1])
    assert taken[at_once] == pytest.approx([1, 1, 0.1, 0.1])


def test_asgd_eta_is_what_asgd_would_have_made_of_it():
    """The factor counts the decay of eta too: it is the eta of a run that had the new lr all along."""
    edited, told = built(torch.optim.ASGD, lr=1.0, lambd=0.3), built(torch.optim.ASGD, lr=0.1, lambd=0.3)
    for optimizer in (edited, told):
        updates(optimizer, 7)
    change(edited, {"lr": 0.1})
    assert entry(edited)["eta"].item() == pytest.approx(entry(told)["eta"].item(), rel=1e-6)  # float32 slots
    entry(edited)["eta"].zero_()
    assert change(edited, {"lr": 0.0}).factors == {"eta": 0.0}
    assert change(edited, {"lr": 0.1}).factors == {}, "nothing makes eta leave 0 by a factor"


def test_rprop_says_that_lr_is_only_where_it_starts():
    """An lr that Rprop no longer reads is said to be so."""
    optimizer = built(torch.optim.Rprop, lr=0.1)
    update(optimizer)
    assert change(optimizer, {"lr": 0.2}).notes == ("lr is only where step_size starts: it stays",)


# --- the coefficient of a sum -----------------------------------------------------------------------------------

# From, to, options; the update before; the first after with keep, steady, equivalent; where each ends; steps under keep
# until it is within 5% of there. The learning rate is .01 and the gradient 1.
MOVES = [
    (0.9, 0.99, {}, 0.1, (0.109, 1.0, 0.1), (1.0, 0.1), 287),
    (0.9, 0.95, {}, 0.1, (0.105, 0.2, 0.1), (0.2, 0.1), 44),
    (0.9, 0.5, {}, 0.1, (0.06, 0.02, 0.1), (0.02, 0.1), 6),
    (0.95, 0.9, {}, 0.2, (0.19, 0.1, 0.2), (0.1, 0.2), 28),
    (0.9, 0.99, {"dampening": (0.1, 0.5)}, 0.09, (0.0941, 0.5, 0.09), (0.5, 0.09), 278),
    (0.9, 0.99, {"dampening": (0.9, 0.99)}, 0.01, (0.01, 0.01, 0.01), (0.01, 0.01), 0),
    (0.9, 0.99, {"nesterov": True}, 0.1, (0.118, 1.0, 0.1), (1.0, 0.1), 286),
]


def aged_sgd(old, options):
    """SGD after so many steps of gradient 1 that its buffer is steady."""
    dampening = options.get("dampening", (0.0, 0.0))
    optimizer = built(
        torch.optim.SGD, lr=0.01, momentum=old, dampening=dampening[0], nesterov=options.get("nesterov", False)
    )
    update(optimizer)
    entry(optimizer)["momentum_buffer"].fill_((1 - dampening[0]) / (1 - old))
    return optimizer, {"dampening": dampening[1]}


@pytest.mark.parametrize(("old", "new", "options", "before", "first", "ends", "steps"), MOVES)
@pytest.mark.parametrize("on_change", ["keep", "steady", "equivalent"])
def test_momentum_of_sgd_moves(on_change, old, new, options, before, first, ends, steps):
    """`keep` drifts to the new steady value, `steady` is there at once, `equivalent` keeps the length of steps."""
    optimizer, more = aged_sgd(old, options)

    def moved():
        return update(optimizer) * optimizer.param_groups[0]["lr"]

    assert moved() == pytest.approx(before, rel=1e-9)
    change(optimizer, {"momentum": new, **more}, on_change)
    end = ends[on_change == "equivalent"]
    trace = [moved() for _ in range(steps + 1 if on_change == "keep" else 20)]
    assert trace[0] == pytest.approx(first[("keep", "steady", "equivalent").index(on_change)], abs=2e-4)
    if on_change == "keep":
        assert [abs(each - end) <= 0.05 * end for each in trace] == [*[False] * steps, True]
    else:
        assert trace == pytest.approx([end] * 20, rel=1e-9)


def test_equivalent_keeps_decoupled_weight_decay():
    """A learning rate that changes only to keep the length of steps must not change how weights shrink."""
    sgd = by_class(torch.optim.SGD)
    assert sgd is not None
    decoupled = replace(sgd, decoupled=True)
    before = {"lr": 0.01, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1}
    asked = carry(
        decoupled, before, {**before, "momentum": 0.95}, None, "equivalent", slots_present=["momentum_buffer"]
    )
    lr, decay = asked.hyperparameters["lr"], asked.hyperparameters["weight_decay"]
    assert lr == pytest.approx(0.005)
    assert lr * decay == pytest.approx(0.01 * 0.1, rel=1e-15)
    coupled = carry(
        by_class(torch.optim.SGD), before, {**before, "momentum": 0.95}, None, "equivalent", slots_present=[]
    )
    assert set(coupled.hyperparameters) == {"lr"}, "coupled decay comes with the gradient"


@pytest.mark.parametrize(("on_change", "moved"), [("keep", 1.05), ("steady", 2.0), ("equivalent", 1.0)])
def test_velocity_moves_as_a_sum(on_change, moved):
    """A buffer with lr in it goes to its new steady value by the same factor, and stays with `equivalent`."""
    optimizer = built(Velocity, lr=0.1, momentum=0.9)
    update(optimizer)
    entry(optimizer)["velocity"].fill_(-1.0)  # steady
    change(optimizer, {"momentum": 0.95}, on_change, spec=VELOCITY)
    assert update(optimizer) * optimizer.param_groups[0]["lr"] == pytest.approx(moved)


@pytest.mark.parametrize("cls", [torch.optim.Muon, torch.optim.RMSprop])
def test_averages_need_no_factor(cls):
    """An average of a constant gradient is that gradient whatever β is, so no policy touches it."""
    key, moved = {torch.optim.Muon: ("momentum_buffer", "momentum"), torch.optim.RMSprop: ("square_avg", "alpha")}[cls]
    optimizer = cls([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, **{moved: 0.9})
    for _ in range(300):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
        optimizer.step()
    assert not change(optimizer, {moved: 0.99}, "steady")
    assert entry(optimizer)[key] == pytest.approx(torch.ones(2, 2), abs=1e-6)


def test_momentum_of_rmsprop_is_a_sum():
    """RMSprop's buffer sums normalised gradients: policies apply to it as to SGD's."""
    optimizer = built(torch.optim.RMSprop, lr=1.0, momentum=0.9, eps=TINY)
    update(optimizer)
    entry(optimizer)["square_avg"].fill_(1.0)
    entry(optimizer)["momentum_buffer"].fill_(10.0)
    change(optimizer, {"momentum": 0.95}, "steady")
    assert updates(optimizer, 20) == pytest.approx([20.0] * 20)


def test_sum_that_is_debiased_keeps_its_weight():
    """A sum divided by 1-β^t gets both factors: the weights of the next step add up to what they should."""
    spec = OptimizerSpec(name="Sum", slots={"m": replace(SUM, convention="accumulate_debiased", coefficient="beta")})
    old, new, steps = 0.9, 0.99, 20
    m = sum(old**age for age in range(steps))
    asked = carry(spec, {"beta": old}, {"beta": new}, steps, "steady", slots_present=["m"])
    after = new * m * asked.factors["m"] + 1.0
    assert after == pytest.approx((1.0 - new ** (steps + 1)) / (1.0 - new), rel=1e-14)


def test_policies_of_sums_do_not_compound():
    """A schedule's factors telescope: many small moves end where one large move does."""
    spec, betas = by_class(torch.optim.SGD), [0.5 + 0.4 * step / 100 for step in range(101)]
    group = {"lr": 0.1, "dampening": 0.0}
    product = 1.0
    for old, new in pairwise(betas):
        asked = carry(
            spec, {**group, "momentum": old}, {**group, "momentum": new}, None, "steady", slots_present=spec.slots
        )
        product *= asked.factors["momentum_buffer"]
    assert product == pytest.approx((1 - betas[0]) / (1 - betas[-1]), rel=1e-13)


# --- zero and back ----------------------------------------------------------------------------------------------


def test_stale_buffer_is_removed():
    """A buffer that torch leaves behind at momentum 0 would be reused years later, with the wrong sign."""
    stale, carried = (built(torch.optim.SGD, lr=1.0, momentum=0.9) for _ in range(2))
    for optimizer in (stale, carried):
        updates(optimizer, 5)
    change(stale, {"momentum": 0.0}, carried=False)
    assert change(carried, {"momentum": 0.0}).remove == ("momentum_buffer",)
    for optimizer in (stale, carried):
        updates(optimizer, 50, gradient=-3.0)
    assert entry(stale)["momentum_buffer"].item() == pytest.approx(4.0951)
    assert change(stale, {"momentum": 0.9}, carried=False).remove == ("momentum_buffer",)
    change(carried, {"momentum": 0.9})
    assert update(stale, -3.0) == pytest.approx(0.9 * 4.0951 - 3.0), "the wrong direction"
    assert update(carried, -3.0) == -3.0


def test_momentum_from_zero_starts_empty():
    """Where there was no momentum there is no buffer: the first gradient enters it undamped."""
    optimizer = built(torch.optim.SGD, lr=1.0, dampening=0.9)
    update(optimizer)
    assert not change(optimizer, {"momentum": 0.9}, "steady")
    assert update(optimizer, 7.0) == 7.0
    assert entry(optimizer)["momentum_buffer"].item() == 7.0


def test_rmsprop_buffer_is_emptied_and_not_removed():
    """RMSprop makes its buffer only when it starts: at momentum 0 it is emptied, so that momentum can come back."""
    optimizer = built(torch.optim.RMSprop, lr=1.0, momentum=0.9, eps=TINY)
    update(optimizer)
    entry(optimizer)["square_avg"].fill_(1.0)
    asked = change(optimizer, {"momentum": 0.0})
    assert (asked.factors, asked.remove) == ({"momentum_buffer": 0.0}, ())
    change(optimizer, {"momentum": 0.9})
    assert update(optimizer) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cls", "switched", "missing"),
    [
        (torch.optim.RMSprop, {"momentum": 0.9}, "momentum_buffer"),
        (torch.optim.RMSprop, {"centered": True}, "grad_avg"),
        (torch.optim.Adam, {"amsgrad": True}, "max_exp_avg_sq"),
    ],
)
def test_switching_on_what_would_raise_key_error_is_refused(cls, switched, missing):
    """What the optimizer would look for in its next step and not find is refused, in words."""
    optimizer = built(cls, lr=1.0)
    update(optimizer)
    with pytest.raises(CoefficientError, match=rf"{next(iter(switched))} needs {missing}, which .* first step"):
        change(optimizer, switched)
    optimizer.param_groups[0].update(switched)
    with pytest.raises(KeyError, match=missing):
        update(optimizer)


def test_switching_on_before_the_first_step_is_fine():
    """An optimizer that has not stepped makes whatever it needs."""
    spec = by_class(torch.optim.Adam)
    assert carry(spec, {"amsgrad": False}, {"amsgrad": True}, None, "keep", slots_present=[]) == Carry()


# --- averages that are debiased ---------------------------------------------------------------------------------

EDITS = [  # from, to, first and extreme update when nothing is done, at t=20
    ((0.9, 0.95), (0.9, 0.999), 0.180, 0.180),
    ((0.9, 0.999), (0.9, 0.95), 3.095, 3.095),
    ((0.9, 0.999), (0.99, 0.999), 4.623, 4.623),
    ((0.9, 0.999), (0.95, 0.95), 4.152, 4.152),
    ((0.9, 0.95), (0.99, 0.999), 0.832, 0.558),
]


def aged_adam(betas, steps=20, cls=torch.optim.Adam, **options):
    optimizer = built(cls, lr=1.0, betas=betas, eps=TINY, **options)
    updates(optimizer, steps)
    return optimizer


@pytest.mark.parametrize(("old", "new", "first", "extreme"), EDITS)
def test_betas_of_adam_moved_without_care(old, new, first, extreme):
    """What happens without the factors: the first update after the change is far from 1."""
    optimizer = aged_adam(old)
    change(optimizer, {"betas": new}, carried=False)
    trace = updates(optimizer, 300)
    assert trace[0] == pytest.approx(first, abs=1e-3)
    assert max(trace, key=lambda each: abs(each - 1.0)) == pytest.approx(extreme, abs=1e-3)


@pytest.mark.parametrize(("old", "new", "first", "extreme"), EDITS)
@pytest.mark.parametrize(
    ("cls", "options"),
    [(torch.optim.Adam, {}), (torch.optim.Adam, {"amsgrad": True}), (torch.optim.AdamW, {"weight_decay": 0.0})],
    ids=["Adam", "AMSGrad", "AdamW"],
)
def test_estimates_of_adam_are_continuous(whole, cls, options, old, new, first, extreme):
    """With the factors every later update is exactly what it was, for good."""
    steps = 2000 if whole else 100
    optimizer = aged_adam(old, cls=cls, **options)
    asked = change(optimizer, {"betas": new})
    assert set(asked.factors) <= {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert updates(optimizer, steps) == pytest.approx([1.0] * steps, rel=1e-9)


@pytest.mark.parametrize("policy", ["keep", "steady", "equivalent"])
def test_averages_are_treated_alike_by_every_policy(policy):
    """Policies are about sums: an average's estimate is kept continuous by all of them, and lr stays."""
    asked = change(aged_adam((0.9, 0.999)), {"betas": (0.95, 0.99)}, policy)
    assert asked.hyperparameters == {}
    assert asked.factors == pytest.approx(
        {"exp_avg": (1 - 0.95**20) / (1 - 0.9**20), "exp_avg_sq": (1 - 0.99**20) / (1 - 0.999**20)}, rel=1e-15
    )


@pytest.mark.parametrize("new_step", [1, 7, 500])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=["Adam", "AMSGrad"])
def test_betas_and_step_of_adam_move_together(new_step, options):
    """Another step count, with other betas, and every later update is what it was."""
    optimizer = aged_adam((0.9, 0.999), **options)
    change(optimizer, {"betas": (0.8, 0.99)}, new_step=new_step)
    entry(optimizer)["step"].fill_(new_step)
    assert updates(optimizer, 100) == pytest.approx([1.0] * 100, rel=1e-9)


def test_result_does_not_depend_on_the_path():
    """β moved in many steps, back and forth, is β moved at once: m = (1-β^t)·m̂ holds throughout."""
    spec, path, product = by_class(torch.optim.Adam), [0.9, 0.95, 0.5, 0.99, 0.7, 0.8], 1.0
    for old, new in pairwise(path):
        asked = carry(spec, {"betas": (old, 0.9)}, {"betas": (new, 0.9)}, 13, "keep", slots_present=spec.slots)
        product *= asked.factors["exp_avg"]
    at_once = carry(spec, {"betas": (0.9, 0.9)}, {"betas": (0.8, 0.9)}, 13, "keep", slots_present=spec.slots)
    assert product == pytest.approx(at_once.factors["exp_avg"], rel=1e-14)


def second_moment_schedule(step):
    return min(0.999, 1.0 - step**-0.8)


@pytest.mark.parametrize("carried", [True, False])
def test_schedule_of_betas_is_exact_on_a_constant_gradient(carried):
    """β2 = min(.999, 1-t^-.8) at every step: each update is 1, and is not without the factors."""
    optimizer = built(torch.optim.Adam, lr=1.0, betas=(0.9, 0.5), eps=TINY)
    trace = [update(optimizer)]
    for step in range(2, 61):
        change(optimizer, {"betas": (0.9, second_moment_schedule(step))}, carried=carried)
        trace.append(update(optimizer))
    error = max(abs(each - 1.0) for each in trace)
    assert error < 1e-9 if carried else error > 0.05


def test_schedule_of_betas_follows_the_true_weights():
    """On varying gradients, the debiased estimate is within a few percent of dividing by the weights really given."""
    generator = torch.Generator().manual_seed(0)
    worst = {}
    for carried in (True, False):
        generator.manual_seed(0)
        optimizer, square, weights, errors = built(torch.optim.Adam, lr=1.0, betas=(0.9, 0.5), eps=TINY), 0.0, 0.0, []
        for step in range(1, 61):
            beta = 0.5 if step == 1 else second_moment_schedule(step)
            if step > 1:
                change(optimizer, {"betas": (0.9, beta)}, carried=carried)
            gradient = torch.randn(1, generator=generator, dtype=torch.float64).item() + 1.0
            update(optimizer, gradient)
            square, weights = beta * square + (1 - beta) * gradient**2, beta * weights + (1 - beta)
            estimate = entry(optimizer)["exp_avg_sq"].item() / (1 - beta**step)
            errors.append(abs((estimate / (square / weights)) ** 0.5 - 1.0))
        worst[carried] = max(errors)
    assert worst[True] < 0.05 < worst[False]


def test_steps_before_the_first_ask_nothing():
    """At t=0 nothing has been averaged; at t'=0 no factor helps."""
    spec = by_class(torch.optim.Adam)
    before, after = {"betas": (0.9, 0.99)}, {"betas": (0.8, 0.99)}
    assert not carry(spec, before, after, 0, "keep", slots_present=spec.slots).factors
    with pytest.raises(CoefficientError, match=r"(?s)exp_avg cannot be brought back to step 0.*reset_\(\)"):
        carry(spec, before, after, 5, "keep", new_step=0, slots_present=spec.slots)
    with pytest.raises(CoefficientError, match="depends on the number of steps, which is not known"):
        carry(spec, before, after, None, "keep", slots_present=spec.slots)


def test_step_of_a_group_is_found_in_it():
    """Where the group counts, nobody has to pass the count."""
    spec = by_name("timm.optim.lamb.Lamb")
    before = {"betas": (0.9, 0.99), "step": torch.tensor(20.0)}
    asked = carry(spec, before, {**before, "betas": (0.8, 0.99)}, None, "keep", slots_present=spec.slots)
    assert asked.factors == {"exp_avg": pytest.approx((1 - 0.8**20) / (1 - 0.9**20))}


@pytest.mark.parametrize(
    ("name", "group", "slots"),
    [
        ("torch.optim.rmsprop.RMSprop", {"alpha": 0.9}, ["square_avg"]),
        ("torch.optim.adadelta.Adadelta", {"rho": 0.9}, ["square_avg", "acc_delta"]),
        ("torch.optim.Adafactor", {"beta2_decay": -0.5}, ["row_var", "col_var"]),
        ("torch.optim.adamax.Adamax", {"betas": (0.9, 0.5)}, ["exp_inf"]),
        ("timm.optim.lion.Lion", {"betas": (0.9, 0.5)}, ["exp_avg"]),
        ("timm.optim.adopt.Adopt", {"betas": (0.5, 0.5)}, ["exp_avg", "exp_avg_sq"]),
        ("timm.optim.laprop.LaProp", {"betas": (0.5, 0.5)}, ["exp_avg", "exp_avg_sq"]),
        ("pytorch_optimizer.optimizer.ademamix.AdEMAMix", {"betas": (0.9, 0.999, 0.5)}, ["exp_avg_slow"]),
        ("prodigyopt.prodigy.Prodigy", {"betas": (0.5, 0.5), "use_bias_correction": False}, ["exp_avg", "exp_avg_sq"]),
        (
            "apex.optimizers.fused_adam.FusedAdam",
            {"betas": (0.5, 0.5), "bias_correction": False},
            ["exp_avg", "exp_avg_sq"],
        ),
    ],
)
def test_slots_that_are_not_debiased_stay(name, group, slots):
    """Which averages need the factor is said by their rows and by the flags of the group."""
    before = {key: (0.9, 0.999, 0.9999)[: len(value)] if key == "betas" else value for key, value in group.items()}
    before = {key: 0.99 if key in ("alpha", "rho") else value for key, value in before.items()}
    before |= {"beta2_decay": -0.8} if "beta2_decay" in group else {}
    assert not carry(by_name(name), before, group, 20, "steady", slots_present=slots).factors


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.adam.Adam",
        "torch.optim.adamw.AdamW",
        "torch.optim.radam.RAdam",
        "torch.optim.sparse_adam.SparseAdam",
        "timm.optim.adabelief.AdaBelief",
        "timm.optim.adan.Adan",
        "timm.optim.lamb.Lamb",
        "pytorch_optimizer.optimizer.ademamix.AdEMAMix",
        "apex.optimizers.fused_adam.FusedAdam",
        "bitsandbytes.optim.adamw.AdamW",
        "torchao.optim.adam.AdamW8bit",
    ],
)
def test_moments_that_are_debiased_follow(name):
    """The first and the second moment of all kin of Adam get their factors."""
    spec = by_name(name)
    betas = (0.9, 0.95, 0.99)[: 3 if "betas[2]" in {slot.coefficient for slot in spec.slots.values()} else 2]
    before, after = {"betas": betas}, {"betas": tuple(0.5 for _ in betas)}
    factors = carry(spec, before, after, 20, "keep", slots_present=spec.slots).factors
    roles = {spec.slots[key].role for key in factors}
    assert {"momentum", "second_moment"} <= roles <= {"momentum", "second_moment", "max_second_moment"}


# --- one by one -------------------------------------------------------------------------------------------------


def aged_nadam(betas=(0.9, 0.999), steps=20):
    return aged_adam(betas, steps, cls=torch.optim.NAdam)


def test_nadam_scales_its_second_moment_only():
    """NAdam corrects its mean by a product of what each step really used: .9452 goes on as .9415."""
    optimizer = aged_nadam(steps=19)
    assert update(optimizer) == pytest.approx(0.9452, abs=5e-5)
    assert set(change(optimizer, {"betas": (0.98, 0.99)}).factors) == {"exp_avg_sq"}
    assert update(optimizer) == pytest.approx(0.9415, abs=5e-5)


def test_nadam_scaled_otherwise_jumps():
    """Scaling the mean too is step 21 of a run that always had the new betas; scaling nothing is 2.39."""
    scaled, alone, always = aged_nadam(), aged_nadam(), aged_nadam((0.98, 0.99))
    change(alone, {"betas": (0.98, 0.99)}, carried=False)
    change(scaled, {"betas": (0.98, 0.99)})
    entry(scaled)["exp_avg"].mul_((1 - 0.98**20) / (1 - 0.9**20))
    entry(scaled)["mu_product"].copy_(entry(always)["mu_product"])
    assert update(alone) == pytest.approx(2.39, abs=5e-3)
    assert update(scaled) == pytest.approx(update(always), rel=1e-6)


def test_nadam_refuses_another_step_count():
    """Its product of weights would have to be made anew, which no factor does."""
    with pytest.raises(CoefficientError, match="stores the weights that exp_avg was given"):
        change(aged_nadam(), {}, new_step=3)


def rectifier(beta, step):
    """RAdam's factor at this step, from a run with a gradient of 1."""
    optimizer = built(torch.optim.RAdam, lr=1.0, betas=(0.9, beta), eps=TINY)
    return updates(optimizer, step)[-1]


@pytest.mark.parametrize("beta", [0.95, 0.99, 0.999, 0.9999])
def test_radam_rectifies_from_the_sixth_step(beta):
    """Five steps are taken as momentum alone, the sixth is scaled."""
    assert rectifier(beta, 5) == pytest.approx(1.0)
    assert rectifier(beta, 6) < 0.2


def test_radam_says_that_its_rectification_jumps():
    """m̂ and v̂ are continuous; the rectification at t≈20 still goes from .0848 to .579 with β2 .999 → .95."""
    optimizer = aged_adam((0.9, 0.999), 20, cls=torch.optim.RAdam)
    asked = change(optimizer, {"betas": (0.9, 0.95)})
    assert asked.notes == ("the rectification depends on betas[1] too, and jumps with it",)
    assert rectifier(0.999, 21) == pytest.approx(0.0848, abs=5e-3)
    assert update(optimizer) == pytest.approx(rectifier(0.95, 21), rel=1e-9)
    assert rectifier(0.95, 20) == pytest.approx(0.579, abs=1e-2)


def test_adamax_scales_its_mean_only():
    """The infinity norm is no average: β2 asks nothing, β1 the factor of a debiased mean."""
    optimizer = built(torch.optim.Adamax, lr=1.0, betas=(0.9, 0.999), eps=TINY)
    updates(optimizer, 20)
    assert set(change(optimizer, {"betas": (0.95, 0.9)}).factors) == {"exp_avg"}
    assert updates(optimizer, 100) == pytest.approx([1.0] * 100, rel=1e-9)


def test_amsgrad_maximum_moves_with_the_second_moment():
    """The maximum is of raw second moments and divided by today's 1-β2^t, so it gets the same factor."""
    optimizer = aged_adam((0.9, 0.999), amsgrad=True)
    factors = change(optimizer, {"betas": (0.9, 0.95)}).factors
    assert factors["max_exp_avg_sq"] == factors["exp_avg_sq"]


def test_what_is_not_understood_is_said():
    """Where nobody said how a slot follows its coefficient it stays, and the user is told."""
    adan = by_name("adan_pytorch.adan.Adan")
    asked = carry(adan, {"betas": (0.1, 0.1)}, {"betas": (0.2, 0.1)}, 5, "keep", slots_present=adan.slots)
    assert asked == Carry(notes=("m, v, n: what the change asks for is not known, so nothing is done",))
    lars = by_name("timm.optim.lars.Lars")
    asked = carry(lars, {"momentum": 0.5}, {"momentum": 0.9}, 5, "steady", slots_present=lars.slots)
    assert asked.notes == ("momentum_buffer: what the change asks for is not known, so nothing is done",)
    asked = carry(None, {"momentum": 0.5}, {"momentum": 0.9}, 5, "steady", slots_present=["velocity"])
    assert asked.notes == ("nobody described this optimizer: its slots stay as they are",)
    assert carry(None, {"momentum": 0.5}, {"momentum": 0.5}, 5, "steady", slots_present=["velocity"]) == Carry()


def test_lr_coupling_without_a_sum_is_said_to_do_nothing():
    """A user who asks for velocities of an optimizer that has none is told."""
    optimizer = aged_adam((0.9, 0.999))
    asked = change(optimizer, {"lr": 0.5}, lr_coupling=True)
    assert asked == Carry(notes=("no slot sums gradients, so lr_coupling changes nothing",))


def test_dampening_of_one_has_no_steady_value():
    """Nothing enters such a sum, so there is no value to go to."""
    spec = by_class(torch.optim.SGD)
    before = {"momentum": 0.9, "dampening": 1.0}
    with pytest.raises(CoefficientError, match=r'(?s)tends to nothing.*on_change="keep"'):
        carry(spec, before, {**before, "momentum": 0.5}, None, "steady", slots_present=spec.slots)
    assert not carry(spec, before, {**before, "momentum": 0.5}, None, "keep", slots_present=spec.slots)


# --- ranges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "key", "value", "expected"),
    [
        (torch.optim.SGD, "momentum", 1.5, r"\[0, 1\)"),
        (torch.optim.SGD, "momentum", 1.0, r"\[0, 1\)"),
        (torch.optim.SGD, "momentum", -0.1, r"\[0, 1\)"),
        (torch.optim.SGD, "momentum", nan, r"\[0, 1\)"),
        (torch.optim.SGD, "lr", -1.0, "at least 0"),
        (torch.optim.SGD, "lr", inf, "at least 0"),
        (torch.optim.Adam, "betas", (0.9, 1.0), r"\[0, 1\)"),
        (torch.optim.Adam, "betas", (1.045, 0.999), r"\[0, 1\)"),
        (torch.optim.RMSprop, "alpha", 1.0, r"\[0, 1\)"),
        (torch.optim.Adafactor, "beta2_decay", 0.8, "at most 0"),
        (torch.optim.Rprop, "etas", (0.5, 0.9), "more than 1"),
    ],
)
def test_values_out_of_range_are_refused(cls, key, value, expected):
    """torch does not look at an edited group again, so a value with which it diverges is refused before."""
    spec = by_class(cls)
    before = {"lr": 0.1, "momentum": 0.9, "betas": (0.9, 0.999), "alpha": 0.9, "beta2_decay": -0.8, "etas": (0.5, 1.2)}
    with pytest.raises(CoefficientError, match=rf"(?s){key}.* would be .*where .*{spec.name}.*expected +{expected}"):
        carry(spec, before, {**before, key: value}, 5, "keep", slots_present=[])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("torch.optim.asgd.ASGD", "alpha", 1.75),  # an exponent
        ("torch.optim.asgd.ASGD", "t0", 1e6),
        ("torch.optim.Muon", "ns_steps", 5),
        ("torch.optim.sgd.SGD", "dampening", 1.0),
        ("bitsandbytes.optim.ademamix.AdEMAMix", "alpha", 5.0),
        ("transformers.optimization.Adafactor", "lr", None),
        ("torch.optim.sgd.SGD", "nesterov", True),
        ("torch.optim.adam.Adam", "betas", (torch.tensor(0.9), 0.999)),
    ],
)
def test_values_that_mean_something_are_not_refused(name, key, value):
    """The same name may be a decay here and an exponent there: only the first ends at 1."""
    check(by_name(name), key, value)


def test_ranges_read_well():
    """A range says what it holds, ends included or not."""
    assert [str(each) for each in (Range(), Range(0, 1), Range(0, 1, open=True, closed=True), Range(high=2.0))] == [
        "a finite number",
        "[0, 1)",
        "(0, 1]",
        "less than 2",
    ]
    assert [
        0.0 in Range(0, 1, open=True),
        1.0 in Range(0, 1, closed=True),
        Range().__contains__(nan),
        inf in Range(),
    ] == [
        False,
        True,
        False,
        False,
    ]
    assert str(range_of(by_class(torch.optim.Adadelta), "rho")) == "[0, 1)"

"""Conversions between optimizer classes: what is exact is the other class's own, what is not stays within what it says."""

from __future__ import annotations

import itertools
from math import inf, sqrt

import numpy as np
import pytest
import torch
from torch import optim

from optstate.optimizers.conversion import converted, matching_lr, route, table
from optstate.optimizers.registry import by_class, by_name
from optstate.optimizers.torch_optim import TORCH_OPTIM
from tests.conversions import DOUBLE, built, continued, convert, parameter_of, put, slots_of, step

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adagrad": {},
    "Adadelta": {},
    "RMSprop": {"momentum": 0.9},
    "SparseAdam": {},
    "Adafactor": {},
    "Muon": {"momentum": 0.9},
}
"""Every class of torch that has a route, and options under which it keeps what it can."""
PAIRS = list(itertools.permutations(OPTIONS, 2))
AGES = (1, 2, 7, 400)
TINY = 1e-30


@pytest.fixture(autouse=True, scope="module")
def exact_scalars():
    """Scalar slots in float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(before)


def of(name, weights, **options):
    return built(getattr(optim, name), weights, **{**OPTIONS[name], **options})


def stepped(name, gradients, weights=None, **options):
    """An optimizer that has taken these gradients."""
    optimizer = of(name, torch.zeros_like(gradients[0]) if weights is None else weights, **options)
    for gradient in gradients:
        step(optimizer, gradient)
    return optimizer


def random(count, *shape, seed=0):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def constant(value, count):
    return torch.full((count, 1), value)


def way(before, after):
    return route(by_class(type(before)), by_class(type(after)), before.param_groups[0], after.param_groups[0])


def same(one, other):
    """Whether two entries hold the same bits."""
    return one.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one
    )


# --- exact -------------------------------------------------------------------------------------------------

EXACT = [tuple(row[:2]) for row in table() if row[2] == "exact"]


@pytest.mark.parametrize(("before", "after"), EXACT, ids="-".join)
@pytest.mark.parametrize("age", AGES)
def test_exact_is_what_the_class_would_have_kept(before, after, age):
    """Where a conversion is exact, its slots are those of an optimizer of the other class that saw the same gradients."""
    gradients = random(age + 20, 5, 4, seed=age)
    former, other = stepped(before, gradients[:age]), stepped(after, gradients[:age])
    target = of(after, parameter_of(other).detach())
    put(target, convert(former, target))
    found, expected = slots_of(target), slots_of(other)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.as_tensor(value).numpy() == pytest.approx(
            torch.as_tensor(expected[key]).numpy(), rel=1e-13, abs=1e-16
        )
    for gradient in gradients[age:]:
        assert step(target, gradient).numpy() == pytest.approx(step(other, gradient).numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations(["Adam", "AdamW", "NAdam", "RAdam"], 2)), ids="-".join
)
def test_shared_statistics_keep_their_bits(before, after):
    """Adam's moments and count arrive in its relatives bit by bit, in float32 too."""
    former = built(getattr(optim, before), torch.zeros(5, 4, dtype=torch.float32))
    for gradient in random(30, 5, 4).float():
        step(former, gradient)
    found, slots = convert(former, built(getattr(optim, after), torch.zeros(5, 4))), slots_of(former)
    assert all(torch.equal(found[key], slots[key]) for key in ("exp_avg", "exp_avg_sq"))
    assert found["step"] == 30.0


def test_adam_and_adamw_go_on_alike():
    """Without weight decay AdamW continues an Adam bit by bit."""
    gradients = random(60, 5, 4)
    former = stepped("Adam", gradients[:10])
    target = continued(former, optim.AdamW)
    assert all(torch.equal(step(former, gradient), step(target, gradient)) for gradient in gradients[10:])


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_and_sgd_share_their_buffer(nesterov):
    """With one β, Muon's average is (1-β) times SGD's sum, to the last bits; whether SGD looks ahead or not."""
    gradients = random(60, 5, 5)
    options = {"momentum": 0.95, "nesterov": nesterov}
    sgd, muon = stepped("SGD", gradients, **options), stepped("Muon", gradients, **options)
    assert way(sgd, muon).exact
    assert way(muon, sgd).exact
    average, total = convert(sgd, muon)["momentum_buffer"], convert(muon, sgd)["momentum_buffer"]
    assert (average - slots_of(muon)["momentum_buffer"]).abs().max() < 1e-15
    assert (total - slots_of(sgd)["momentum_buffer"]).abs().max() < 2e-14


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.99), (0.0, 0.5), (0.5, 0.0)])
def test_another_dampening_or_coefficient_is_said(before, after):
    """A momentum that goes on with another β is not called exact, nor one whose first gradient was not dampened."""
    weights = torch.zeros(2, 2)
    assert not way(of("Muon", weights), of("SGD", weights, momentum=0.95)).exact
    found = way(of("SGD", weights, dampening=before), of("Muon", weights))
    assert found.exact == (before == 0.0)


def test_rmsprop_hands_its_second_moment_to_adam():
    """With α=β2 the bits of the second moment are Adam's own: 30 steps, no difference."""
    gradients = random(30, 5, 4)
    former, adam = stepped("RMSprop", gradients, alpha=0.99), stepped("Adam", gradients, betas=(0.9, 0.99))
    found = convert(former, adam)
    assert torch.equal(found["exp_avg_sq"], slots_of(former)["square_avg"])
    assert found["exp_avg_sq"].numpy() == pytest.approx(slots_of(adam)["exp_avg_sq"].numpy(), rel=1e-14)


def test_centred_rmsprop_hands_its_mean_to_adam():
    """The mean that centring subtracts is Adam's first moment, where both forget alike."""
    gradients = random(30, 5, 4)
    former = stepped("RMSprop", gradients, alpha=0.99, centered=True, momentum=0.0)
    adam = stepped("Adam", gradients, betas=(0.99, 0.99))
    assert convert(former, adam)["exp_avg"].numpy() == pytest.approx(slots_of(adam)["exp_avg"].numpy(), rel=1e-12)


# --- flags of one class ------------------------------------------------------------------------------------


def test_amsgrad_switched_on():
    """The maximum starts as the second moment is, and a constant gradient moves as before; off, it is dropped."""
    former = stepped("Adam", constant(3.0, 40), eps=TINY)
    target = of("Adam", torch.zeros(1), amsgrad=True, eps=TINY)
    assert way(former, target).lost == ("max_exp_avg_sq starts as the second moment is today",)
    assert way(target, former).lost == ("max_exp_avg_sq is lost",)
    put(target, convert(former, target))
    assert slots_of(target)["max_exp_avg_sq"].equal(slots_of(former)["exp_avg_sq"])
    assert [step(target, torch.tensor([3.0])).item() for _ in range(3)] == pytest.approx([-1.0] * 3, rel=1e-12)
    assert slots_of(continued(target, optim.Adam)).keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_amsgrad_survives_another_coefficient():
    """With another β2 the maximum keeps its place beside the second moment, corrected alike."""
    former = stepped("Adam", constant(1.0, 20), amsgrad=True, betas=(0.9, 0.95), eps=TINY)
    target = continued(former, optim.Adam, amsgrad=True, betas=(0.8, 0.999), eps=TINY)
    assert [step(target, torch.ones(1)).item() for _ in range(200)] == pytest.approx([-1.0] * 200, rel=1e-9)


def test_centring_switched_on_or_off():
    """RMSprop with centring switched on goes on without NaN and no further than before; off, nothing changes."""
    gradients = 1.0 + 0.01 * random(260, 5, 4)
    former = stepped("RMSprop", gradients[:200], centered=True)
    off = continued(former, optim.RMSprop, momentum=0.9)
    assert way(former, off).lost == ("grad_avg is lost",)
    assert all(slots_of(off)[key].equal(slots_of(former)[key]) for key in ("square_avg", "momentum_buffer"))
    on = continued(off, optim.RMSprop, momentum=0.9, centered=True)
    assert slots_of(on)["grad_avg"].abs().max() == 0.0
    fresh = of("RMSprop", torch.zeros(5, 4), centered=True)
    moved = [(step(on, gradient).abs().max(), step(fresh, gradient).abs().max()) for gradient in gradients[200:]]
    largest = torch.tensor(moved).amax(0)
    assert largest.isfinite().all()
    assert largest[0] <= largest[1]


def test_one_class_in_one_setting_stays_as_it_is():
    """The same class keeps every slot, whatever it is; a state of LBFGS too."""
    former = stepped("Adam", random(3, 2, 2))
    assert way(former, former) == route(by_name("torch.optim.Muon"), by_name("torch.optim.Muon"), {}, {})
    lbfgs = by_name("torch.optim.lbfgs.LBFGS")
    assert converted(lbfgs, lbfgs, {"d": 1.0, "mine": 2.0}, {}, {}, None) == {"d": 1.0, "mine": 2.0}


def test_maximize_is_not_turned_round():
    """A momentum of gradients with the other sign is refused, with what to do."""
    reason = way(of("Adam", torch.zeros(1)), of("AdamW", torch.zeros(1), maximize=True))
    assert reason == "maximize turns the sign of every gradient that a momentum holds: set it as it was saved"


# --- from Adam ----------------------------------------------------------------------------------------------


def test_adam_to_sgd_keeps_its_steps_at_the_advised_rate():
    """Constant gradient of 2: the advice is half the steady sum's inverse, and steps of 1.000 go on."""
    former = stepped("Adam", constant(2.0, 400), eps=TINY, lr=1.0)
    target = continued(former, optim.SGD, lr=1.0, momentum=0.9)
    slots = slots_of(former), slots_of(target), None
    advice = matching_lr(
        by_class(optim.Adam), by_class(optim.SGD), [slots], former.param_groups[0], target.param_groups[0]
    )
    assert advice == pytest.approx(0.05, rel=1e-12)
    moved = [advice * step(target, torch.tensor([2.0])).item() for _ in range(50)]
    assert moved == pytest.approx([-1.0] * 50, rel=1e-9)


@pytest.mark.parametrize("age", AGES)
def test_adam_to_sgd_is_the_sum_of_the_same_gradients(age):
    """With β=β1 the buffer is what SGD would hold, however young the state is."""
    gradients = random(age, 5, 4)
    former, sgd = stepped("Adam", gradients), stepped("SGD", gradients)
    assert convert(former, sgd)["momentum_buffer"].numpy() == pytest.approx(
        slots_of(sgd)["momentum_buffer"].numpy(), rel=1e-10, abs=1e-14
    )


@pytest.mark.parametrize("age", AGES)
def test_advice_holds_for_young_sums(age):
    """The advised rate is for a sum that is full: however young it is now, its steps do not outgrow Adam's."""
    former = stepped("Adam", constant(2.0, age), eps=TINY, lr=0.5)
    target = of("SGD", torch.zeros(1))
    entry = slots_of(former), convert(former, target), None
    advice = matching_lr(
        by_class(optim.Adam), by_class(optim.SGD), [entry], former.param_groups[0], target.param_groups[0]
    )
    assert advice == pytest.approx(0.025, rel=1e-12)


def test_adam_to_rmsprop():
    """The second moment arrives corrected, the momentum as a full sum of normalised gradients: 10 at β=.9."""
    former = stepped("Adam", constant(3.0, 400), eps=TINY)
    found = convert(former, of("RMSprop", torch.zeros(1), eps=TINY))
    assert found["momentum_buffer"].item() == pytest.approx(10.0, rel=1e-9)
    assert found["square_avg"].item() == pytest.approx(9.0, rel=1e-12)


def test_adam_to_adagrad():
    """The sum is t times the mean square; the advised rate keeps the step, which then shrinks as Adagrad's do."""
    former = stepped("Adam", constant(5.0, 400), eps=TINY, lr=1.0)
    target = continued(former, optim.Adagrad, eps=TINY)
    assert slots_of(target)["sum"].item() == pytest.approx(400 * 25.0, rel=1e-12)
    entry = slots_of(former), slots_of(target), None
    groups = former.param_groups[0], target.param_groups[0]
    advice = matching_lr(by_class(optim.Adam), by_class(optim.Adagrad), [entry], *groups)
    assert advice == pytest.approx(sqrt(401), rel=1e-9)
    moved = [20.0 * step(target, torch.tensor([5.0])).item() for _ in range(2)]
    assert moved == pytest.approx([-0.9988, -0.9975], abs=5e-5)


def test_adagrad_to_adam():
    """The mean square is the sum over the count; no momentum is known, so that the start is soft."""
    former = stepped("Adagrad", constant(5.0, 400))
    target = continued(former, optim.Adam, eps=TINY)
    assert step(target, torch.tensor([5.0])).item() == pytest.approx(-0.1 / (1 - 0.9**401), rel=1e-6)
    assert slots_of(target)["exp_avg_sq"].item() == pytest.approx(25 * (1 - 0.999**401), rel=1e-9)


def test_adam_to_adamax():
    """The root mean square stands for the largest gradient: exact where all are alike, 2.8 times too small under noise."""
    alike = convert(stepped("Adam", constant(3.0, 400)), of("Adamax", torch.zeros(1), eps=0.0))
    assert alike["exp_inf"].item() == pytest.approx(3.0, rel=1e-9)
    noise = random(6000, 500)
    adamax = slots_of(stepped("Adamax", noise, betas=(0.9, 0.999)))["exp_inf"]
    made = convert(stepped("Adam", noise), of("Adamax", noise[0]))["exp_inf"]
    assert (adamax / made).mean().item() == pytest.approx(2.79, abs=0.15)


def test_adamax_to_adam():
    """The largest gradient is no smaller than the root mean square: Adam's first steps are Adamax's, not larger."""
    gradients = random(401, 6, 5)
    former = stepped("Adamax", gradients[:400])
    target = continued(former, optim.Adam)
    own, moved = step(former, gradients[400]), step(target, gradients[400])
    assert (moved.abs() <= 1.001 * own.abs()).all()


def test_adam_to_adafactor_and_back():
    """Means of rows and columns are kept; the way back is exact where the second moment has rank 1."""
    gradients = random(400, 6, 5)
    former = stepped("Adam", gradients)
    square = slots_of(former)["exp_avg_sq"] / (1 - 0.999**400)
    found = convert(former, of("Adafactor", torch.zeros(6, 5)))
    assert found["row_var"].numpy() == pytest.approx(square.mean(-1, keepdim=True).numpy(), rel=1e-14)
    assert found["col_var"].numpy() == pytest.approx(square.mean(-2, keepdim=True).numpy(), rel=1e-14)
    vector = convert(stepped("Adam", gradients[:, 0]), of("Adafactor", torch.zeros(5)))
    assert vector.keys() == {"step", "variance"}
    rank1 = torch.rand(6, 1) * torch.rand(1, 5)
    state = {"step": 7.0, "row_var": rank1.mean(-1, keepdim=True), "col_var": rank1.mean(-2, keepdim=True)}
    names = by_class(optim.Adafactor), by_class(optim.Adam)
    back = converted(*names, state, {"beta2_decay": -0.8}, {"betas": (0.9, 0.999)}, None)
    assert (back["exp_avg_sq"] / (1 - 0.999**7)).numpy() == pytest.approx(rank1.numpy(), rel=1e-13)
    assert back["exp_avg"].abs().max() == 0.0


def test_kernels_factor_their_last_dimensions():
    """A kernel's second moment is factored over its last two dimensions, as the class does it."""
    former = stepped("Adam", random(5, 4, 3, 2, 6))
    found, own = (
        convert(former, of("Adafactor", torch.zeros(4, 3, 2, 6))),
        slots_of(stepped("Adafactor", random(5, 4, 3, 2, 6))),
    )
    assert {key: value.shape for key, value in found.items() if key != "step"} == {
        key: value.shape for key, value in own.items() if key != "step"
    }


def test_adam_to_adadelta():
    """Updates as long as Adam's were: its squared updates are (η·m̂/√v̂)²."""
    former = stepped("Adam", constant(3.0, 400), lr=0.01)
    target = continued(former, optim.Adadelta, eps=TINY, lr=1.0)
    assert slots_of(target)["acc_delta"].item() == pytest.approx(1e-4, rel=1e-6)
    assert step(target, torch.tensor([3.0])).item() == pytest.approx(-0.01, rel=1e-5)


def test_nadam_starts_its_product_where_it_would_be():
    """The product of NAdam's weights is that of so many steps, also where they are very many."""
    for age in (1, 7, 60, 400):
        gradients = random(age, 3)
        found = convert(
            stepped("Adam", gradients), of("NAdam", torch.zeros(3), momentum_decay=0.1, betas=(0.99, 0.999))
        )
        product = slots_of(stepped("NAdam", gradients, momentum_decay=0.1, betas=(0.99, 0.999)))["mu_product"]
        assert found["mu_product"] == pytest.approx(product.item(), rel=1e-12)
    names = by_class(optim.Adam), by_class(optim.NAdam)
    state = {"step": 1e12, "exp_avg": np.ones(1), "exp_avg_sq": np.ones(1)}
    betas = {"betas": (0.9999999, 0.999)}
    assert converted(*names, state, betas, {**betas, "momentum_decay": 1e-3}, None)["mu_product"] == 0.0


# --- nothing is known of the second moment -----------------------------------------------------------------


def test_sgd_to_adam_continues():
    """The momentum counts as one gradient: a constant one goes on at steps of 1.000. Zero with the count kept would jump."""
    former = stepped("SGD", constant(2.0, 400))
    target = continued(former, optim.Adam, eps=TINY)
    assert [step(target, torch.tensor([2.0])).item() for _ in range(200)] == pytest.approx([-1.0] * 200, rel=1e-9)
    naive = of("Adam", torch.zeros(1), eps=TINY)
    put(naive, {"step": 400.0, "exp_avg": torch.tensor([2.0]), "exp_avg_sq": torch.zeros(1)})
    assert step(naive, torch.tensor([2.0])).item() == pytest.approx(-18.2, abs=0.05)


GRADIENTS = {
    "random": lambda count, generator: torch.randn((count, 64), generator=generator),
    "constant": lambda count, generator: torch.randn((1, 64), generator=generator).expand(count, 64),
    "rare": lambda count, generator: torch.randn((count, 64), generator=generator) * (torch.rand((count, 64), generator=generator) < 0.05),
    "growing": lambda count, generator: 1.1 ** torch.arange(count).unsqueeze(1) * torch.randn((count, 64), generator=generator).sign(),
    "growing alike": lambda count, _: 1.11 ** torch.arange(count).unsqueeze(1) * torch.ones(count, 64),
    "fading": lambda count, generator: 0.9 ** torch.arange(count).unsqueeze(1) * torch.randn((count, 64), generator=generator),
    "one": lambda count, _: torch.eye(count)[:, :64],
    "wide": lambda count, generator: torch.randn((count, 64), generator=generator) * 10 ** (3 * torch.randn((count, 64), generator=generator)),
}  # fmt: skip


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.95, 0.95), (0.5, 0.9999)], ids=str)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_an_assumed_second_moment_is_safe(betas, kind):
    """Whatever the momentum is and whatever gradients come, no update in 200 steps exceeds 1.1 times a fresh start's largest.

    The momentum is larger than the gradients, as large, or far smaller, zero in some places, along or against them.
    """
    generator = torch.Generator().manual_seed(len(kind))
    gradients = GRADIENTS[kind](200, generator)
    size = 10.0 ** torch.linspace(-8, 8, 64) * (torch.rand(64, generator=generator) < 0.9)
    state = {"momentum_buffer": size * torch.randn(64, generator=generator).sign()}
    slots = converted(
        by_class(optim.SGD),
        by_class(optim.Adam),
        state,
        {"momentum": 0.9},
        {"betas": betas, "lr": 1.0, "eps": TINY},
        None,
    )
    target, fresh = (built(optim.Adam, torch.zeros(64), lr=1.0, betas=betas, eps=TINY) for _ in range(2))
    put(target, slots)
    moved, usual = (torch.stack([step(each, gradient).abs() for gradient in gradients]) for each in (target, fresh))
    assert moved.isfinite().all()
    assert moved.max() <= 1.1 * usual.max().clamp(min=1.0)


def test_assumed_elements_with_equal_history_start_alike():
    """A momentum of zero beside the assumed second moment of zero moves nothing by itself, and no gradient by more than 1."""
    names = by_class(optim.Muon), by_class(optim.Adam)
    found = converted(*names, {"momentum_buffer": torch.zeros(2, 2)}, {"momentum": 0.9}, {"betas": (0.9, 0.999)}, None)
    target = built(optim.Adam, torch.zeros(2, 2))
    put(target, found)
    assert step(target, torch.zeros(2, 2)).abs().max() == 0.0
    assert step(target, torch.full((2, 2), 1e6)).abs().max() < 1.0


# --- every pair --------------------------------------------------------------------------------------------

KINDS = ("random", "constant", "drifting", "sparse", "heavy", "small", "large", "mixed")


def drawn(kind, count, shape, generator):
    noise = torch.randn((count, *shape), generator=generator)
    match kind:
        case "constant":
            return noise[:1].expand(count, *shape)
        case "drifting":
            return noise + 0.5
        case "sparse":
            return noise * (torch.rand((count, *shape), generator=generator) < 0.1)
        case "heavy":
            return noise / torch.rand((count, *shape), generator=generator) ** 0.5
        case "small" | "large":
            return noise * (1e-4 if kind == "small" else 1e4)
        case "mixed":
            return noise * 10 ** (2 * torch.randn(shape, generator=generator))
    return noise


def beyond(before, after, shape, age, kind, dtype, seed):
    """How many times as large as the largest of a fresh start's, the former optimizer's, and those of one of the other class
    that has seen all gradients, is the largest of 50 updates; and the bound. None where there is nothing to convert.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator).to(dtype)
    gradients = drawn(kind, age + 50, shape, generator).to(dtype)
    former = stepped(before, gradients[:age], weights)
    fresh = of(after, parameter_of(former).detach())
    told = way(former, fresh)
    if isinstance(told, str):
        return None
    target = of(after, parameter_of(former).detach())
    put(target, convert(former, target))
    seasoned = stepped(after, gradients[:age], weights)
    parts = [
        torch.stack([step(each, gradient).abs() for gradient in gradients[age:]])
        for each in (target, former, fresh, seasoned)
    ]
    assert parts[0].isfinite().all()
    assert {key: torch.as_tensor(value).shape for key, value in slots_of(target).items()} == {
        key: torch.as_tensor(value).shape for key, value in slots_of(fresh).items()
    }
    largest = [part.max().item() for part in parts]
    return largest[0] / max(largest[1:]) if max(largest[1:]) > 0 else 0.0, inf if told.exact else told.bound


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), PAIRS, ids="-".join)
def test_first_updates_stay_within_the_bound(whole, before, after):
    """The first 50 updates after a conversion stay within the route's bound: young states and old ones, of gradients of all kinds."""
    shapes = [(6, 5)] if "Muon" in (before, after) else [(6, 5), (7,)]
    cases = list(itertools.product(shapes, AGES, KINDS, (torch.float64, torch.float32)))
    pick = np.random.default_rng(len(before) + 31 * len(after)).permutation(len(cases))[: len(cases) if whole else 3]
    for index in pick:
        shape, age, kind, dtype = cases[index]
        found = beyond(before, after, shape, age, kind, dtype, int(index))
        assert found is None or found[0] <= found[1], cases[index]


# --- what is said ------------------------------------------------------------------------------------------


def test_the_table_tells_every_pair():
    """Every ordered pair of torch's classes has a line: exact, approximate with what is lost, or none with the reason."""
    rows = list(table())
    assert len(rows) == len(TORCH_OPTIM) * (len(TORCH_OPTIM) - 1)
    assert {kind for _, _, kind, _ in rows} == {"exact", "approximate", "none"}
    assert all((kind == "exact") == (text == "") for _, _, kind, text in rows)
    assert {(before, after) for before, after, kind, _ in rows if kind == "exact"} == {
        *itertools.permutations(["Adam", "AdamW", "NAdam", "RAdam", "SparseAdam"], 2),
        *itertools.permutations(["SGD", "Muon"], 2),
    }


def test_a_plan_can_say_in_one_line_what_happens():
    """The note names the slots, the count that they get, and a weight decay that changes its place."""
    weights = torch.zeros(2, 2)
    assert way(of("SGD", weights), of("Adam", weights)).note == (
        "momentum: momentum_buffer → exp_avg; second moment: from the momentum → exp_avg_sq; counted as 1 step at most"
    )
    found = way(of("Adam", weights, weight_decay=0.1), of("AdamW", weights))
    assert found.exact
    assert found.note.endswith("weight decay was within the gradients and is beside them now")


@pytest.mark.parametrize("before", ["Adagrad", "Adafactor", "Adadelta"])
def test_nothing_to_convert_is_said(before):
    """An optimizer without a momentum has nothing for one that keeps nothing else."""
    told = way(of(before, torch.zeros(2, 2)), of("Muon", torch.zeros(2, 2)))
    assert told == f"{before} keeps no momentum, and Muon nothing else: there is nothing to convert"


def test_a_state_that_never_stepped_is_a_fresh_start():
    """Nothing is made of nothing: Adagrad's state before the first step becomes no state at all."""
    assert convert(of("Adagrad", torch.zeros(2, 2)), of("Adam", torch.zeros(2, 2))) == {}
    assert (
        converted(by_class(optim.SGD), by_class(optim.Adam), {}, {"momentum": 0.9}, {"betas": (0.9, 0.99)}, None) == {}
    )


def test_arrays_of_a_file_give_what_tensors_give():
    """numpy and torch give the same, and no input is changed."""
    former = stepped("RMSprop", random(7, 3, 4))
    slots, kept = slots_of(former), slots_of(former)
    for name in ("Adam", "SGD", "Adafactor", "Adamax", "NAdam"):
        names, groups = (
            (by_class(optim.RMSprop), by_class(getattr(optim, name))),
            (former.param_groups[0], of(name, torch.zeros(3, 4)).param_groups[0]),
        )
        live = converted(*names, slots, *groups, None)
        filed = converted(*names, {key: value.numpy() for key, value in slots.items()}, *groups, None)
        assert live.keys() == filed.keys()
        assert all(np.asarray(filed[key]) == pytest.approx(np.asarray(live[key]), rel=1e-14) for key in live)
    assert same(slots, kept)


def test_a_short_memory_is_not_taken_for_a_long_one():
    """A second moment of 10 gradients counts as 10 steps of Adam: where none came lately, the next is not let through whole."""
    rare = torch.zeros(400, 1)
    rare[::40] = 1.0
    former = stepped("Adadelta", rare)
    found = way(former, of("Adam", torch.zeros(1)))
    assert "the second moment was averaged with 0.9 and goes on with 0.999, counted as 10 steps" in found.lost
    target = continued(former, optim.Adam, eps=TINY)
    assert abs(step(target, torch.ones(1)).item()) < 1.0
    put(target, {**slots_of(continued(former, optim.Adam)), "step": 400.0})
    assert abs(step(target, torch.ones(1)).item()) > 1.5

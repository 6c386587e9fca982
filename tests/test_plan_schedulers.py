"""Schedulers in a plan: exact whatever was built first, along with their groups, and with a learning rate that holds."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optstate
from optstate import Policy
from optstate import schedule as s
from optstate.errors import RestoreRefused

POINTS, AFTER = 12, 12
BASES = (0.1, 0.03)

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of")


class Decay:
    """A function of the step with something to remember."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate**step


def sequential(optimizer):
    first = lr_scheduler.LinearLR(optimizer, 0.2, total_iters=4)
    then = lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.002)
    return lr_scheduler.SequentialLR(optimizer, [first, then, lr_scheduler.ExponentialLR(optimizer, 0.9)], [4, 14])


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


def cyclic(optimizer, **options):
    bases = [float(group["lr"]) for group in optimizer.param_groups]
    return lr_scheduler.CyclicLR(optimizer, bases, [5 * base for base in bases], step_size_up=5, **options)


def one_cycle(optimizer):
    peaks = [25 * float(group["lr"]) for group in optimizer.param_groups]
    return lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=30)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [Decay(0.9), Decay(0.8)][: len(o.param_groups)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 1 - 1 / (2 + step)),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5, 14], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, total_iters=6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7, eta_min=0.005),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, min_lr=[1e-3, 1e-4]),
    "CyclicLR": cyclic,
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.001),
    "OneCycleLR": one_cycle,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 15, 2.0),
}
"""All of torch's."""

VARIANTS = {
    **{name: (build, {}) for name, build in SCHEDULERS.items()},
    "CyclicLR, halved": (lambda o: cyclic(o, mode="triangular2"), {}),
    "CyclicLR, decaying": (lambda o: cyclic(o, mode="exp_range", gamma=0.9), {}),
    "CyclicLR of betas": (cyclic, {"cls": torch.optim.AdamW}),
    "OneCycleLR of betas": (one_cycle, {"cls": torch.optim.AdamW}),
    "StepLR of a tensor": (SCHEDULERS["StepLR"], {"tensor": True}),
    "OneCycleLR of a tensor": (one_cycle, {"tensor": True}),
    "CosineAnnealingLR of a tensor": (SCHEDULERS["CosineAnnealingLR"], {"tensor": True}),
}


class Net(nn.Module):
    """Two layers, named."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)


def optimizer_of(model, cls=torch.optim.SGD, tensor=False, bases=BASES, order=1):
    rates = [torch.tensor(base, dtype=torch.float64) if tensor else base for base in bases]
    groups = [
        {"params": [*model.encoder.parameters()], "lr": rates[0]},
        {"params": [*model.head.parameters()], "lr": rates[1], "weight_decay": 0.1},
    ]
    return cls(groups[::order], **({"momentum": 0.9} if cls is torch.optim.SGD else {"lr": rates[0]}))


def step(model, optimizer, scheduler, number):
    """One step; the metric goes up and down."""
    for place, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, math.sin(number + place))
    optimizer.step()
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1 + number % 3)
    else:
        scheduler.step()


def picture(optimizer, scheduler):
    """Every hyperparameter of every group, and all that the scheduler holds, to the last bit."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return plain(groups), plain(scheduler.state_dict())


def plain(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in sorted(value.items())}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def run(model, optimizer, scheduler, steps):
    pictures = []
    for number in steps:
        step(model, optimizer, scheduler, number)
        pictures.append(picture(optimizer, scheduler))
    return pictures


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def built_first(path, build, options):
    """Everything is built, then restored at once."""
    model = Net()
    optimizer = optimizer_of(model, **options)
    scheduler = build(optimizer)
    assert optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler).exact
    return model, optimizer, scheduler


def built_between(path, build, options):
    """Model and optimizer are restored, the scheduler is built on them, then all three are restored."""
    model = Net()
    optimizer = optimizer_of(model, **options)
    optstate.restore(path, model=model, optimizer=optimizer)
    scheduler = build(optimizer)
    assert optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler).exact
    return model, optimizer, scheduler


def restored_last(path, build, options):
    """The scheduler is built before its optimizer is restored, and restored alone after it."""
    model = Net()
    optimizer = optimizer_of(model, **options)
    scheduler = build(optimizer)
    optstate.restore(path, model=model, optimizer=optimizer)
    plan = optstate.restore(path, scheduler=scheduler)
    assert plan.warnings == []
    return model, optimizer, scheduler


@pytest.mark.slow
@pytest.mark.parametrize("order", [built_first, built_between, restored_last])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_scheduler_of_torch_goes_on_bit_for_bit(tmp_path, name, order, whole):
    """From each of twelve steps, whatever was built or restored first: rates, cycled momentum and what groups keep for them."""
    build, options = VARIANTS[name]
    points = range(1, POINTS + 1) if whole or order is built_first else (2, 5, 12)
    model = Net()
    optimizer = optimizer_of(model, **options)
    scheduler = build(optimizer)
    pictures = []
    for number in range(POINTS):
        pictures += run(model, optimizer, scheduler, [number])
        optstate.save(tmp_path / str(number + 1), model=model, optimizer=optimizer, scheduler=scheduler)
    pictures += run(model, optimizer, scheduler, range(POINTS, POINTS + AFTER))
    for point in points:
        model, optimizer, scheduler = order(tmp_path / str(point), build, options)
        assert picture(optimizer, scheduler) == pictures[point - 1], point
        assert run(model, optimizer, scheduler, range(point, point + AFTER)) == pictures[point : point + AFTER], point


def test_all_schedulers_of_torch_are_here():
    """Nothing of torch's own is left out."""
    every = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert every == set(SCHEDULERS)
    assert len(every) == 15


@pytest.mark.parametrize("name", ["LambdaLR", "CyclicLR", "OneCycleLR", "SequentialLR"])
def test_a_scheduler_restored_alone_onto_other_rates_is_refused(tmp_path, name):
    """Its constructor wrote to the restored groups, and its own state cannot undo that: the fault says what to pass."""
    build, _ = VARIANTS[name]
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = build(optimizer)
    run(model, optimizer, scheduler, range(5))
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    again = optimizer_of(Net())
    late = build(again)
    before = picture(again, late)
    with pytest.raises(RestoreRefused, match=r"M406 scheduler goes on from what group 0 holds(.|\n)*optimizer="):
        optstate.restore(tmp_path / "ck", scheduler=late)
    assert picture(again, late) == before


# --- a learning rate that holds -----------------------------------------------------------------------------

NEW = (0.04, 0.06)


def moved_by_base(name):
    """All but the one that keeps no base rate."""
    return name != "ReduceLROnPlateau"


def close(a, b):
    return all(math.isclose(x, y, rel_tol=1e-12, abs_tol=1e-18) for x, y in zip(a, b, strict=True))


def saved_runs(folder, build, options, bases=BASES):
    model = Net()
    optimizer = optimizer_of(model, bases=bases, **options)
    scheduler = build(optimizer)
    for number in range(POINTS):
        step(model, optimizer, scheduler, number)
        optstate.save(folder / str(number + 1), model=model, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("name", list(filter(moved_by_base, VARIANTS)))
def test_a_live_rate_holds_through_the_restored_scheduler(tmp_path, name, whole):
    """From any step on, the rates are those of a run that had the live base rates from the beginning; and the plan's."""
    build, options = VARIANTS[name]
    saved_runs(tmp_path, build, options)
    model = Net()
    optimizer = optimizer_of(model, bases=NEW, **options)
    scheduler = build(optimizer)
    truth = []
    for number in range(POINTS + AFTER):
        step(model, optimizer, scheduler, number)
        truth.append((rates(optimizer), [float(rate) for rate in scheduler.get_last_lr()]))
    for point in range(1, POINTS + 1) if whole else (1, 3, 4, 7, 8, 12):
        model = Net()
        optimizer = optimizer_of(model, bases=NEW, **options)
        scheduler = build(optimizer)
        plan = optstate.plan(
            tmp_path / str(point),
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            policy=Policy(hyperparameters={"lr": "live"}),
        ).apply()
        assert not plan.exact
        planned = {item.group: float(item.value) for item in plan.hyperparameters if item.key == "lr"}
        assert close(rates(optimizer), truth[point - 1][0]), point
        assert rates(optimizer) == [planned[0], planned[1]]
        assert close([float(rate) for rate in scheduler.get_last_lr()], truth[point - 1][1]), point
        for number in range(point, point + AFTER):
            step(model, optimizer, scheduler, number)
            assert close(rates(optimizer), truth[number][0]), (point, number)


def test_a_rate_without_a_base_goes_on_from_the_live_one(tmp_path):
    """ReduceLROnPlateau keeps only the rate of now: a live one is where it goes on from, and is reduced as ever."""
    build, options = VARIANTS["ReduceLROnPlateau"]
    saved_runs(tmp_path, build, options)
    model = Net()
    optimizer = optimizer_of(model, bases=NEW)
    scheduler = build(optimizer)
    policy = Policy(hyperparameters={"lr": "live"})
    plan = optstate.restore(tmp_path / "10", model=model, optimizer=optimizer, scheduler=scheduler, policy=policy)
    assert rates(optimizer) == list(NEW) == scheduler.get_last_lr()
    assert any("until the metric stops improving" in note for note in plan.notes)
    for number in range(10, 20):
        step(model, optimizer, scheduler, number)
    assert all(rate < base for rate, base in zip(rates(optimizer), NEW, strict=True))


def test_a_given_rate_is_a_base_rate(tmp_path):
    """`{"lr": 0.02}` is what the schedule starts from: half of the saved base is half of each later rate."""
    build, options = VARIANTS["LinearLR"]
    saved_runs(tmp_path, build, options, bases=(0.04, 0.04))
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = build(optimizer)
    policy = Policy(hyperparameters={"lr": 0.02})
    optstate.restore(tmp_path / "3", model=model, optimizer=optimizer, scheduler=scheduler, policy=policy)
    factor = 0.1 + 0.9 * 3 / 8
    assert close(rates(optimizer), [0.02 * factor] * 2)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.02, 0.02] == scheduler.base_lrs


def test_a_given_rate_holds_through_a_scheduler_that_stays(tmp_path):
    """One that is not restored goes on where it is, from the given base rate; reverting puts it back."""
    model = Net()
    optimizer = optimizer_of(model)
    run(model, optimizer, SCHEDULERS["StepLR"](optimizer), range(3))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    again = optimizer_of(model)
    scheduler = SCHEDULERS["ExponentialLR"](again)
    policy = Policy(hyperparameters={"lr": 0.5})
    before = picture(again, scheduler)
    plan = optstate.plan(path, model=model, optimizer=again, policy=policy)
    assert picture(again, scheduler) == before
    plan.apply()
    assert scheduler.base_lrs == [0.5, 0.5] == rates(again)
    plan.revert()
    assert picture(again, scheduler) == before
    plan.apply()
    step(model, again, scheduler, 0)
    assert close(rates(again), [0.45, 0.45])


def test_rates_that_no_factor_moves_are_refused(tmp_path):
    """From a base of 0, or where several schedulers multiply a rate that has a floor, nothing tells what it would be."""
    model = Net()
    zero = optimizer_of(model, bases=(0.0, 0.1))
    first = SCHEDULERS["ExponentialLR"](zero)
    run(model, zero, first, range(2))
    path = optstate.save(tmp_path / "zero", model=model, optimizer=zero, scheduler=first)
    again = optimizer_of(model)
    policy = Policy(hyperparameters={"lr": "live"})
    with pytest.raises(RestoreRefused, match=r"group 0: a new base rate cannot hold: the saved one is 0"):
        optstate.restore(
            path, model=model, optimizer=again, scheduler=SCHEDULERS["ExponentialLR"](again), policy=policy
        )

    def both(optimizer):
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0.005)
        return lr_scheduler.ChainedScheduler([cosine, lr_scheduler.ExponentialLR(optimizer, 0.9)])

    floored = optimizer_of(model)
    second = both(floored)
    run(model, floored, second, range(2))
    path = optstate.save(tmp_path / "floored", model=model, optimizer=floored, scheduler=second)
    again = optimizer_of(model, bases=NEW)
    with pytest.raises(RestoreRefused, match=r"measured from eta_min; hyperparameters=\{\"lr\": \"saved\"\}"):
        optstate.restore(path, model=model, optimizer=again, scheduler=both(again), policy=policy)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR of betas"])
def test_cycled_momentum_is_the_schedulers_own(tmp_path, name):
    """A live momentum cannot stay where a restored scheduler writes it: asking for it by name is a fault, `*` leaves it."""
    build, options = VARIANTS[name]
    saved_runs(tmp_path, build, options)
    model = Net()
    key = "betas" if options else "momentum"

    def fresh(policy):
        optimizer = optimizer_of(model, bases=NEW, **options)
        scheduler = build(optimizer)
        plan = optstate.plan(
            tmp_path / "5", model=model, optimizer=optimizer, scheduler=scheduler, policy=Policy(hyperparameters=policy)
        )
        return plan, optimizer, scheduler

    plan, *_ = fresh({key: "live"})
    assert any(f"scheduler writes {key} at each of its steps" in fault for fault in plan.faults)
    plan, optimizer, _ = fresh({"*": "live"})
    plan.apply()
    saved = optstate.open(tmp_path / "5").state.groups[0].hyperparameters
    assert optimizer.param_groups[0][key] == saved[key]


# --- groups that are others than when they were saved --------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_reordered_groups_take_their_schedule_along(tmp_path, name):
    """Groups in another order: each parameter goes on with the rates and momentum that it would have had."""
    build, options = VARIANTS[name]
    model = Net()
    optimizer = optimizer_of(model, **options)
    scheduler = build(optimizer)
    run(model, optimizer, scheduler, range(5))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    truth = run(model, optimizer, scheduler, range(5, 15))
    model = Net()
    optimizer = optimizer_of(model, order=-1, **options)
    scheduler = build(optimizer)
    if name == "LambdaLR":
        scheduler.lr_lambdas.reverse()  # functions are the program's, those of a group in its place
    plan = optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert plan.exact
    for before, (groups, _) in zip(truth, run(model, optimizer, scheduler, range(5, 15)), strict=True):
        assert groups[::-1] == before[0]


def test_one_group_becomes_two_and_two_become_one(tmp_path):
    """A split group has its schedule twice; groups that were alike merge, and such as were not are a fault."""
    model = Net()
    one = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS["CosineAnnealingLR"](one)
    run(model, one, scheduler, range(4))
    path = optstate.save(tmp_path / "one", model=model, optimizer=one, scheduler=scheduler)
    two = torch.optim.SGD([{"params": model.encoder.parameters()}, {"params": model.head.parameters()}], lr=0.1)
    split = SCHEDULERS["CosineAnnealingLR"](two)
    assert optstate.restore(path, model=model, optimizer=two, scheduler=split).exact
    assert rates(two) == rates(one) * 2
    assert split.base_lrs == scheduler.base_lrs * 2
    path = optstate.save(tmp_path / "two", model=model, optimizer=two, scheduler=split)
    assert optstate.restore(path, model=model, optimizer=one, scheduler=scheduler).exact
    assert len(scheduler.base_lrs) == len(scheduler.get_last_lr()) == 1
    step(model, one, scheduler, 4)

    two = optimizer_of(model)
    split = SCHEDULERS["CosineAnnealingLR"](two)
    run(model, two, split, range(4))
    path = optstate.save(tmp_path / "differ", model=model, optimizer=two, scheduler=split)
    one = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.1)
    scheduler = SCHEDULERS["CosineAnnealingLR"](one)
    plan = optstate.plan(path, model=model, optimizer=one, scheduler=scheduler)
    assert any("differ in lr" in fault for fault in plan.faults)
    policy = Policy(hyperparameters={"lr": "live", "weight_decay": "live"})
    optstate.restore(path, model=model, optimizer=one, scheduler=scheduler, policy=policy)
    factor = (1 + math.cos(math.pi * 4 / 7)) / 2
    assert close(rates(one), [0.005 + 0.195 * factor])
    assert scheduler.base_lrs == [0.2]
    assert close(scheduler.get_last_lr(), rates(one))


def test_a_new_group_follows_the_schedule_from_its_own_base(tmp_path):
    """It does not stay at the first rate of a warm-up that is over."""
    model = Net()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    scheduler = SCHEDULERS["LinearLR"](optimizer)
    run(model, optimizer, scheduler, range(9))
    saved = model.head
    del model.head
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    model.head = saved
    more = torch.optim.SGD(
        [{"params": model.encoder.parameters()}, {"params": model.head.parameters(), "lr": 0.7}], lr=0.1
    )
    again = SCHEDULERS["LinearLR"](more)
    plan = optstate.plan(path, model=model, optimizer=more, scheduler=again, policy=Policy(missing="fresh"))
    assert not any("head" in fault and "rate" in fault for fault in plan.faults)
    assert any("group 1 has no parameter of the checkpoint" in note for note in plan.notes)
    rate = next(item for item in plan.hyperparameters if (item.group, item.key) == (1, "lr"))
    assert close([rate.value], [0.7])


# --- overrides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(filter(moved_by_base, SCHEDULERS)))
def test_an_overridden_rate_holds_as_well(tmp_path, name):
    """Parameters by name get a base rate of their own, as if they had been a group from the beginning."""
    build, _ = VARIANTS[name]
    if name == "LambdaLR":
        build = lambda o: lr_scheduler.LambdaLR(o, Decay(0.9))  # noqa: E731
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = build(optimizer)
    run(model, optimizer, scheduler, range(5))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    reference = optimizer_of(model)
    follows = build(reference)
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    restored = build(again)
    policy = Policy(overrides={"head.*": {"lr": BASES[1], "weight_decay": 0.1}})
    plan = optstate.restore(path, model=model, optimizer=again, scheduler=restored, policy=policy)
    assert not plan.exact
    assert "overrides: 2 groups then, of 2, 2 parameters" in plan.notes
    assert [group["weight_decay"] for group in again.param_groups] == [0, 0.1]
    for number in range(15):
        step(model, reference, follows, number)
        if number > 4:
            step(model, again, restored, number)
        if number >= 4:
            assert close(rates(again), rates(reference)), number


# --- seeing what will be ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_plan_shows_the_next_rates_and_changes_nothing(tmp_path, name):
    """What a rehearsal on copies gives is what then happens; until it does, nothing live is other than before."""
    build, options = VARIANTS[name]
    saved_runs(tmp_path, build, options)
    model = Net()
    optimizer = optimizer_of(model, **options)
    scheduler = build(optimizer)
    before = copy.deepcopy(picture(optimizer, scheduler)), vars(optimizer).keys(), dict(optimizer.state)
    objects = [id(value) for group in optimizer.param_groups for value in group.values()]
    plan = optstate.plan(tmp_path / "6", model=model, optimizer=optimizer, scheduler=scheduler)
    assert (picture(optimizer, scheduler), vars(optimizer).keys(), dict(optimizer.state)) == before
    assert objects == [id(value) for group in optimizer.param_groups for value in group.values()]
    notes = [note for note in plan.notes if note.startswith("lr of group")]
    shown = [
        [float(word) for word in note.partition(": ")[2].replace(" now", "").replace("then ", "").split(", ")[:4]]
        for note in notes
        if "until" not in note
    ]
    plan.apply()
    seen = [rates(optimizer)]
    for number in range(6, 9):
        step(model, optimizer, scheduler, number)
        seen.append(rates(optimizer))
    if name == "ReduceLROnPlateau":
        assert all(note.endswith("until the metric stops improving") for note in notes)
    else:
        for line, rate in zip(shown, zip(*seen, strict=True), strict=True):
            assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(line, rate, strict=True))


class Broken(lr_scheduler.ExponentialLR):
    """Loads nothing."""

    def load_state_dict(self, state):
        raise ValueError("no such key")


class Uncopied(lr_scheduler.ExponentialLR):
    """Cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("has a lock")


class Ended(lr_scheduler.ExponentialLR):
    """Takes no further step."""

    def get_lr(self):
        if self.last_epoch > 2:
            raise RuntimeError("is over")
        return super().get_lr()


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Broken, "scheduler does not load: ValueError: no such key"),
        (Uncopied, "scheduler cannot be tried before: TypeError: has a lock"),
        (Ended, "scheduler cannot take its next step: RuntimeError: is over"),
    ],
)
def test_a_scheduler_that_cannot_be_rehearsed_is_named(tmp_path, cls, said):
    """One that raises in `load_state_dict` is a fault before anything is touched; the others are restored, with a warning."""
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = cls(optimizer, 0.9)
    run(model, optimizer, scheduler, range(2))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert (plan.faults if cls is Broken else plan.warnings) == [said]
    if cls is not Broken:
        assert plan.apply().exact


def test_a_schedule_of_ours_is_checked_and_shown(tmp_path):
    """Its next rates are those of its curve; other curves than the saved ones are a fault, a given rate is one too."""
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(0.1, 0.0, 100)})
    for number in range(10):
        step(model, optimizer, scheduler, number)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    again = optimizer_of(model)
    same = s.Scheduler(again, {"lr": s.linear(0.1, 0.0, 100)})
    before = [dict(group) for group in again.param_groups]
    plan = optstate.plan(path, model=model, optimizer=again, scheduler=same)
    assert "lr of groups 0, 1: 0.09 now, then 0.089, 0.088, 0.087, …" in plan.notes
    assert [dict(group) for group in again.param_groups] == before
    assert same.steps == 0
    assert plan.warnings == []
    given = Policy(hyperparameters={"lr": 0.3})
    plan = optstate.plan(path, model=model, optimizer=again, scheduler=same, policy=given)
    assert any("scheduler writes lr at each of its steps" in fault for fault in plan.faults)
    optstate.restore(path, model=model, optimizer=again, scheduler=same)
    assert rates(again) == [0.09, 0.09]
    same.release()
    other = s.Scheduler(again, {"lr": s.linear(0.2, 0.0, 100)})
    plan = optstate.plan(path, model=model, optimizer=again, scheduler=other)
    assert plan.faults == ["scheduler does not load: the checkpoint is of another schedule of lr"]


def test_a_schedule_of_ours_goes_with_its_groups(tmp_path):
    """Curves by name, several optimizers, groups that come in another order or split by an override."""

    def build(order, path=None, policy=None):
        model = Net()
        pair = {
            "one": torch.optim.SGD(
                [{"params": [p]} for p in list(model.encoder.parameters())[::order]], lr=0.1, momentum=0.5
            ),
            "two": torch.optim.AdamW(model.head.parameters(), lr=0.2),
        }
        curves = {
            "one": {"lr": s.cosine(0.1, 0.0, 50), "momentum": s.linear(0.5, 0.9, 50)},
            "two": {"lr": s.linear(0.2, 0, 50)},
        }
        scheduler = s.Scheduler(pair, curves, on_change="equivalent")
        plan = None
        if path is not None:
            plan = optstate.restore(path, model=model, optimizer=pair, scheduler=scheduler, policy=policy)
        return model, pair, scheduler, plan

    def steps(model, pair, scheduler, numbers):
        for number in numbers:
            for place, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, math.sin(number + place))
            for optimizer in pair.values():
                optimizer.step()
            scheduler.step()
        return [[each.tolist() for each in model.parameters()], [rates(each)[0] for each in pair.values()]]

    model, pair, scheduler, _ = build(1)
    steps(model, pair, scheduler, range(6))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=pair, scheduler=scheduler)
    truth = steps(model, pair, scheduler, range(6, 12))
    for policy in (None, Policy(overrides={"head.bias": {"weight_decay": 0.01}, "encoder.bias": {"nesterov": False}})):
        model, pair, scheduler, plan = build(-1, path, policy)
        assert scheduler.steps == {"one": 6, "two": 6}
        assert sum(note.startswith("lr of group") for note in plan.notes) == 2
        assert steps(model, pair, scheduler, range(6, 12)) == truth


def test_a_scheduler_can_be_built_at_a_later_step(tmp_path):
    """`last_epoch=` needs what the groups noted of their first rates: a restore without the scheduler brings it (M405)."""
    model = Net()
    optimizer = optimizer_of(model)
    scheduler = SCHEDULERS["StepLR"](optimizer)
    run(model, optimizer, scheduler, range(4))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    again = optimizer_of(model)
    optstate.restore(path, model=model, optimizer=again)
    lr_scheduler.StepLR(again, 3, 0.5, last_epoch=4)
    assert [group["initial_lr"] for group in again.param_groups] == list(BASES)
    kept = optimizer_of(model, bases=NEW)
    optstate.restore(path, model=model, optimizer=kept, policy=Policy(hyperparameters={"lr": "live"}))
    assert lr_scheduler.LambdaLR(kept, Decay(1.0)).base_lrs == list(NEW)


def test_a_checkpoint_without_a_scheduler_leaves_it_its_keys(tmp_path):
    """What OneCycleLR noted in the live groups stays there, so that its next step finds it (M410)."""
    model = Net()
    optimizer = optimizer_of(model)
    step(model, optimizer, SCHEDULERS["StepLR"](optimizer), 0)
    for group in optimizer.param_groups:
        del group["initial_lr"]
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    again = optimizer_of(model)
    scheduler = one_cycle(again)
    with pytest.raises(RestoreRefused, match=r"scheduler: not among the objects of the checkpoint \(none\)"):
        optstate.restore(path, model=model, optimizer=again, scheduler=scheduler)
    policy = Policy(objects={"scheduler": "live"}, hyperparameters={"lr": "live", "momentum": "live"})
    optstate.restore(path, model=model, optimizer=again, scheduler=scheduler, policy=policy)
    step(model, again, scheduler, 1)


def test_two_schedulers_of_one_optimizer_hold_together(tmp_path):
    """A warm-up and a decay side by side: both base rates follow, and both have to load."""
    model = Net()

    def build(bases):
        optimizer = optimizer_of(model, bases=bases)
        return optimizer, SCHEDULERS["LinearLR"](optimizer), SCHEDULERS["ExponentialLR"](optimizer)

    def both(parts, numbers):
        optimizer, first, second = parts
        for number in numbers:
            step(model, optimizer, first, number)
            second.step()
        return rates(optimizer)

    parts = build(BASES)
    both(parts, range(4))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=parts[0], warm=parts[1], decay=parts[2])
    truth = build(NEW)
    both(truth, range(4))
    again = build(NEW)
    policy = Policy(hyperparameters={"lr": "live"})
    optstate.restore(path, model=model, optimizer=again[0], warm=again[1], decay=again[2], policy=policy)
    assert close(rates(again[0]), rates(truth[0]))
    assert close(both(again, range(4, 10)), both(truth, range(4, 10)))

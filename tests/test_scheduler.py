"""Scheduler: what it drives, how it is addressed, who owns what, and what it refuses."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optstate
from optstate import schedule as s
from optstate.errors import BindError, CoefficientError, NothingSelected, OptstateError, ScheduleError


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def train(model, *optimizers, steps=1, seed=0):
    for step in range(steps):
        torch.manual_seed(seed + step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(5, 4)).pow(2).mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.fixture
def model():
    return mlp()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def adam(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.1, **options})


def everything(model, optimizer):
    """All there is to change, copied."""
    return copy.deepcopy((optimizer.state_dict(), model.state_dict()))


def same(one, other):
    """Whether two copies are equal to the bit."""
    return str(one) == str(other)


# --- what it drives ---------------------------------------------------------------------------------------


def test_values_are_those_of_the_curve(model):
    """Before the first step the value of 0, after t steps that of t; the optimizer's other hyperparameters stay."""
    optimizer = sgd(model, weight_decay=0.01)
    scheduler = s.Scheduler(optimizer, {"lr": s.cosine(0.1, 0.01, 10), "momentum": s.linear(0.85, 0.95, 10)})
    for t in range(12):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"]) == (s.cosine(0.1, 0.01, 10)(t), s.linear(0.85, 0.95, 10)(t))
        assert group["weight_decay"] == 0.01
        train(model, optimizer)
        scheduler.step()
    assert scheduler.steps == 12


ROLES = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {"momentum": "momentum"}),
    "Adam": (torch.optim.Adam, {"momentum": "betas[0]", "second_moment": "betas[1]"}),
    "NAdam": (torch.optim.NAdam, {"momentum": "betas[0]", "second_moment": "betas[1]"}),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, momentum=0.9), {"momentum": "momentum", "second_moment": "alpha"}),
    "Adadelta": (torch.optim.Adadelta, {"second_moment": "rho"}),
    "Muon": (lambda p: torch.optim.Muon([each for each in p if each.ndim == 2]), {"momentum": "momentum"}),
}


@pytest.mark.parametrize(("make", "paths"), ROLES.values(), ids=ROLES)
def test_roles_mean_what_drives_them_here(model, make, paths):
    """`momentum` and `second_moment` are other hyperparameters in every optimizer, items of tuples among them."""
    optimizer = make(list(model.parameters()))
    s.Scheduler(optimizer, dict.fromkeys(paths, s.linear(0.5, 0.6, 10)))
    for path in paths.values():
        key, _, index = path.partition("[")
        value = optimizer.param_groups[0][key]
        assert (value[int(index[0])] if index else value) == 0.5


def test_items_of_tuples_by_their_number(model):
    """`betas[1]` leaves `betas[0]`, and the tuple stays a tuple."""
    optimizer = adam(model)
    s.Scheduler(optimizer, {"betas[1]": 0.95})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def groups_of(model):
    return torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2].parameters()}], lr=0.1, momentum=0.9
    )


def test_one_curve_for_each_group(model):
    """A list has one for every group; a mapping by number leaves the others alone."""
    optimizer = groups_of(model)
    s.Scheduler(optimizer, {"lr": [0.5, s.linear(0.25, 0, 4)], "momentum": {1: 0.8}})
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.5, 0.9), (0.25, 0.8)]


def test_what_is_said_of_a_part_goes_before_what_is_said_of_all(model):
    """All groups have the general curve but those for which there is one of their own; names go before numbers."""
    optimizer = groups_of(model)
    s.Scheduler(
        optimizer,
        {"lr": 0.5, "momentum": 0.8, "0.bias": {"lr": 0.1, "momentum": 0.6}, "2.*": {"lr": 0.2}},
        model=model,
    )
    state = optstate.attach(optimizer, model)
    found = {
        name: [state.groups[parameter.facts.group].hyperparameters[key] for key in ("lr", "momentum")]
        for name, parameter in state.items()
    }
    assert found == {"0.weight": [0.5, 0.8], "0.bias": [0.1, 0.6], "2.weight": [0.2, 0.8], "2.bias": [0.2, 0.8]}


def test_names_split_groups_and_keep_the_state(model):
    """Parameters by name go to groups of their own; their slots are the same tensors, and the journal says so."""
    optimizer = sgd(model)
    train(model, optimizer, steps=2)
    state = optstate.attach(optimizer, model)
    before = {name: parameter.momentum.tensor for name, parameter in state.items()}
    scheduler = s.Scheduler(optimizer, {"*.bias": {"momentum": s.linear(0.9, 0.5, 4)}}, model=model)
    assert [group.parameters for group in state.groups] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]
    assert all(state[name].momentum.tensor is tensor for name, tensor in before.items())
    assert state.journal[-1].verb == "regroup"
    scheduler.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.8]


def test_groups_are_found_again(model):
    """After a load, which makes new groups, and after one is added, the curves go where they belong."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(1, 0, 10), "momentum": {0: s.linear(0.5, 0.6, 10)}})
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.9
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.52, 0.9]


def test_regrouping_beside_a_schedule(model):
    """A group that splits keeps its curve in both parts; values are those of the curve, whatever the number of groups."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"momentum": {0: s.linear(0.5, 0.6, 10)}})
    optstate.attach(optimizer, model).regroup({"*.bias": {"weight_decay": 0.1}})
    scheduler.step()
    assert [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.51, 0), (0.51, 0.1)]


def test_merging_what_two_curves_drive_is_told(model):
    """Where parameters with and without a curve come into one group, the next step says so and changes nothing."""
    optimizer = groups_of(model)
    scheduler = s.Scheduler(optimizer, {"momentum": {0: s.linear(0.9, 0.5, 10)}})
    first, second = optimizer.param_groups
    first["params"].append(second["params"].pop())
    before = everything(model, optimizer)
    with pytest.raises(ScheduleError, match="and others"):
        scheduler.step()
    assert same(everything(model, optimizer), before)
    assert scheduler.steps == 0


def test_tensors_are_written_in_place(model):
    """A learning rate and betas that are tensors stay the same objects: compiled and captured steps hold on to them."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(0.1),
        betas=(torch.tensor(0.9), torch.tensor(0.99)),
        capturable=True,
        foreach=False,
    )
    group = optimizer.param_groups[0]
    held = (group["lr"], *group["betas"])
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(0.5, 0, 10), "momentum": s.linear(0.5, 0.6, 10)})
    for _ in range(3):
        scheduler.step()
    assert all(one is other for one, other in zip(held, (group["lr"], *group["betas"]), strict=True))
    assert [value.item() for value in held] == pytest.approx([0.35, 0.53, 0.99])


def test_several_optimizers(model):
    """A curve for all goes to those that have such a hyperparameter; one may be meant alone; each counts its own steps."""
    optimizers = {
        "muon": torch.optim.Muon([model[0].weight, model[2].weight], lr=0.1),
        "adamw": torch.optim.AdamW([model[0].bias, model[2].bias], lr=0.1),
    }
    scheduler = s.Scheduler(
        optimizers, {"momentum": s.linear(0.5, 0.6, 10), "second_moment": 0.95, "muon": {"lr": s.linear(0.2, 0, 10)}}
    )
    scheduler.step()
    assert (optimizers["muon"].param_groups[0]["momentum"], optimizers["muon"].param_groups[0]["lr"]) == (0.51, 0.18)
    assert (optimizers["adamw"].param_groups[0]["betas"], optimizers["adamw"].param_groups[0]["lr"]) == (
        (0.51, 0.95),
        0.1,
    )
    assert scheduler.steps == {"muon": 1, "adamw": 1}
    assert list(scheduler.preview(2).values) == [
        "muon: momentum",
        "muon: lr",
        "adamw: momentum (betas[0])",
        "adamw: second_moment (betas[1])",
    ]


def test_unknown_optimizers_have_their_own_names():
    """Nobody needs to describe an optimizer to have its hyperparameters driven; what is not known is said."""

    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"momentum": 0.5, "heat": 1.0})

        def step(self, closure=None):
            """Nothing."""

    optimizer = Own([nn.Parameter(torch.zeros(1))])
    scheduler = s.Scheduler(optimizer, {"momentum": 0.25, "heat": s.linear(1, -1, 2)})
    scheduler.step()
    scheduler.step()
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["heat"]) == (0.25, -1.0)
    assert "nobody described this optimizer" in str(scheduler.preview(3))
    with pytest.raises(ScheduleError, match="not in the registry"):
        s.Scheduler(Own([nn.Parameter(torch.zeros(1))]), {"momentum": 0.25}, on_change="steady")


# --- previews ---------------------------------------------------------------------------------------------


def test_preview_touches_nothing_and_says_what_will_be(model):
    """The values before they happen, as numbers, a table and a picture."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"lr": s.cosine(0.1, 0, 20), "momentum": lambda t: 0.5 + t / 100})
    before = everything(model, optimizer)
    preview = scheduler.preview(21)
    for render in (str, repr, lambda each: each._repr_html_(), lambda each: each.svg()):
        assert "momentum" in render(preview)
    assert same(everything(model, optimizer), before)
    seen = []
    for _ in range(21):
        seen.append(optimizer.param_groups[0]["momentum"])
        scheduler.step()
    assert preview.values["momentum"] == tuple(seen)


def test_picture_is_inert(model):
    """A name with markup in it reaches neither the picture nor the table as markup."""
    model = nn.ModuleDict({"<script>": nn.Linear(2, 2)})
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"<script>.*": {"momentum": 0.5}}, model=model)
    html = scheduler.preview(3)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "href" not in html


def test_long_preview_makes_a_small_picture(model):
    """A hundred thousand steps are drawn by their extremes, a narrow peak among them."""
    scheduler = s.Scheduler(sgd(model), {"lr": s.piecewise((0, 1), (50_000, 1), (50_001, 9), (50_002, 1), (10**5, 1))})
    picture = scheduler.preview(100_001).svg()
    assert len(picture) < 20_000
    assert ">9<" in picture


# --- owners -----------------------------------------------------------------------------------------------


def test_two_schedules_of_one_hyperparameter(model):
    """The second is refused, both are named, and nothing has changed; another hyperparameter is no conflict."""
    optimizer = sgd(model)
    first = s.Scheduler(optimizer, {"momentum": s.linear(0.5, 0.6, 10)})
    before = everything(model, optimizer)
    with pytest.raises(
        ScheduleError, match=r"two schedules would drive momentum[^¤]*constant\(0.1\)[^¤]*linear\(0.5, 0.6, 10\)"
    ):
        s.Scheduler(optimizer, {"lr": 0.7, "momentum": 0.1})
    assert same(everything(model, optimizer), before)
    s.Scheduler(optimizer, {"lr": 0.7})
    first.release()
    s.Scheduler(optimizer, {"momentum": 0.1})


def test_a_schedule_that_is_gone_owns_nothing(model):
    """Ownership ends with the schedule: a cell of a notebook can be run twice."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"momentum": 0.5})
    del scheduler
    assert s.Scheduler(optimizer, {"momentum": 0.6}).steps == 0


def test_schedules_of_different_groups(model):
    """Two may drive the same hyperparameter where no group has both."""
    optimizer = groups_of(model)
    first = s.Scheduler(optimizer, {"lr": {0: 0.3}})
    second = s.Scheduler(optimizer, {"lr": {1: 0.4}})
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.4]
    assert first.steps == second.steps


TORCH_OWNERS = {
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)), "lr"),
    "ReduceLROnPlateau": (lr_scheduler.ReduceLROnPlateau, "lr"),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10), "momentum"),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.2), "momentum"),
}


@pytest.mark.parametrize(("make", "path"), TORCH_OWNERS.values(), ids=TORCH_OWNERS)
@pytest.mark.parametrize("make_optimizer", [sgd, adam])
def test_torch_owns_it_already(model, make, path, make_optimizer):
    """A scheduler of torch that drives the same is found, and named."""
    optimizer = make_optimizer(model)
    theirs = make(optimizer)
    with pytest.raises(ScheduleError, match=f"two schedules would drive[^¤]*{type(theirs).__name__}"):
        s.Scheduler(optimizer, {path: 0.5})
    del theirs
    s.Scheduler(optimizer, {path: 0.5})


@pytest.mark.parametrize(
    ("make", "path"), [item for item in TORCH_OWNERS.values() if item[0] is not lr_scheduler.ReduceLROnPlateau]
)
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_torch_comes_later(model, make, path, tensor):
    """One that is made later is found at the next step, before anything is written."""
    optimizer = sgd(model, lr=torch.tensor(0.1) if tensor else 0.1)
    ours = s.Scheduler(optimizer, {path: s.linear(0.5, 0.1, 10)})
    theirs = make(optimizer)
    train(model, optimizer)
    theirs.step()
    with pytest.raises(ScheduleError, match=type(theirs).__name__):
        ours.step()
    assert ours.steps == 0


def test_beside_a_scheduler_of_torch(model):
    """torch drives the learning rate, we the momentum, and neither disturbs the other."""
    optimizer = sgd(model)
    theirs = lr_scheduler.ExponentialLR(optimizer, 0.5)
    ours = s.Scheduler(optimizer, {"momentum": s.linear(0.5, 0.9, 4)})
    for _ in range(2):
        train(model, optimizer)
        theirs.step()
        ours.step()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.025, 0.7)


def test_names_split_the_lists_of_torchs_scheduler(model):
    """The groups that names make have their place in the lists of a scheduler of torch that is there."""
    optimizer = sgd(model)
    theirs = lr_scheduler.ExponentialLR(optimizer, 0.5)
    ours = s.Scheduler(optimizer, {"*.bias": {"momentum": 0.5}}, model=model)
    train(model, optimizer)
    theirs.step()
    ours.step()
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.05, 0.9), (0.05, 0.5)]


def test_a_value_set_by_hand_gives_way(model):
    """Somebody who writes a hyperparameter by hand has it until the next step, as with any scheduler."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(1, 0, 10)})
    optimizer.param_groups[0]["lr"] = 123.0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.9


# --- bad input --------------------------------------------------------------------------------------------

BAD = {
    "no such name": ({"momentun": 0.5}, ScheduleError, "did you mean 'momentum'"),
    "no such item": ({"betas[7]": 0.5}, ScheduleError, "no hyperparameter 'betas\\[7\\]'"),
    "no item at all": ({"lr[0]": 0.5}, ScheduleError, "no hyperparameter 'lr\\[0\\]'"),
    "the parameters": ({"params": 0.5}, ScheduleError, "no hyperparameter 'params'"),
    "a role it lacks": ({"infinity_norm": 0.5}, ScheduleError, "no hyperparameter"),
    "a tuple": ({"betas": 0.5}, ScheduleError, "drive an item of it, such as betas\\[0\\]"),
    "a flag": ({"amsgrad": 0.5}, ScheduleError, "no number"),
    "nothing": ({}, ScheduleError, "mapping of hyperparameters to curves"),
    "no mapping": (s.constant(0.5), ScheduleError, "mapping of hyperparameters to curves"),
    "no curve": ({"lr": "cosine"}, ScheduleError, "not a curve"),
    "no name": ({0: 0.5}, ScheduleError, "named by a string"),
    "a group that is not there": ({"lr": {3: 0.5}}, ScheduleError, "no group 3"),
    "more curves than groups": ({"lr": [0.1, 0.2]}, ScheduleError, "no group 1"),
    "two names of one": ({"momentum": 0.5, "betas[0]": 0.6}, ScheduleError, "two curves would drive betas\\[0\\]"),
    "names that mean nothing": ({"3.*": {"lr": 0.1}}, NothingSelected, "matches nothing"),
    "names that overlap": ({"*.bias": {"lr": 0.1}, "2.*": {"lr": 0.2}}, OptstateError, "two curves would drive lr"),
    "beta of 1": ({"momentum": 1.0}, CoefficientError, "leaves the range"),
    "negative": ({"lr": -0.1}, CoefficientError, "leaves the range"),
    "out of range at its end": ({"momentum": s.linear(0.9, 1.05, 1000)}, CoefficientError, "step 1,000 of linear"),
    "NaN at once": ({"lr": lambda _: math.nan}, CoefficientError, "found     nan"),
    "infinite at once": ({"lr": lambda _: math.inf}, CoefficientError, "found     inf"),
}  # fmt: skip


@pytest.mark.parametrize(("curves", "error", "says"), BAD.values(), ids=BAD)
def test_bad_schedules_are_refused(model, curves, error, says):
    """An error that names what is wrong, and nothing has changed: no group split, no value written, nothing owned."""
    optimizer = adam(model)
    train(model, optimizer)
    before = everything(model, optimizer)
    with pytest.raises(error, match=says):
        s.Scheduler(optimizer, curves, model=model)
    gc.collect()
    assert same(everything(model, optimizer), before)
    assert len(optimizer._optimizer_step_pre_hooks) == 0
    s.Scheduler(optimizer, {"lr": 0.1, "momentum": 0.9})


def test_role_that_an_optimizer_lacks(model):
    """SGD has nothing that drives a second moment, and why is said."""
    with pytest.raises(
        ScheduleError, match="nothing that drives its second moment: this optimizer, configured as it is, keeps none"
    ):
        s.Scheduler(sgd(model), {"second_moment": 0.5})


def test_names_need_a_model(model):
    """Names come from a model, and from nothing else."""
    with pytest.raises(ScheduleError, match="pass model="):
        s.Scheduler(sgd(model), {"*.bias": {"lr": 0.1}})


@pytest.mark.parametrize(("optimizer", "error"), [(None, BindError), ({}, BindError), (mlp(), BindError)])
def test_what_is_no_optimizer(optimizer, error):
    """The argument is checked before anything else is."""
    with pytest.raises(error):
        s.Scheduler(optimizer, {"lr": 0.1})


def test_unknown_policy(model):
    """A misspelt word is not taken for the default."""
    with pytest.raises(ScheduleError, match="keep, steady or equivalent"):
        s.Scheduler(sgd(model), {"lr": 0.1}, on_change="stady")


def test_a_curve_that_goes_wrong_on_the_way(model):
    """At the step where its value is none, all hyperparameters stay as they were, the other ones too."""
    optimizer = sgd(model)
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(1, 0, 100), "momentum": lambda t: 0.9 if t < 3 else 1.5})
    scheduler.step()
    scheduler.step()
    before = everything(model, optimizer)
    for _ in range(2):
        with pytest.raises(CoefficientError, match=r"where\s+step 3 of function.*\n.*\[0, 1\)\n.*1.5"):
            scheduler.step()
    assert same(everything(model, optimizer), before)
    assert scheduler.steps == 2


@pytest.mark.parametrize("groups", [1, 3])
def test_a_function_that_raises_on_the_way(model, groups):
    """Its exception comes through, and no hyperparameter has moved, in no group; the next step is taken as if nothing was."""
    broken = [True]

    def momentum(t: int) -> float:
        if t == 3 and broken:
            raise LookupError("no table")
        return 0.9 - 0.1 * t

    each = [{"params": [parameter]} for parameter in model.parameters()][:groups]
    optimizer = torch.optim.SGD(each, lr=0.1)
    scheduler = s.Scheduler(optimizer, {"lr": s.linear(1, 0, 100), "momentum": momentum})
    scheduler.step()
    scheduler.step()
    before = everything(model, optimizer)
    with pytest.raises(LookupError, match="no table"):
        scheduler.step()
    assert same(everything(model, optimizer), before)
    broken.clear()
    scheduler.step()
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.97, momentum(3))] * groups


def test_several_optimizers_move_together_or_not_at_all(model):
    """Where one of them cannot go on, none does."""
    optimizers = {
        "a": torch.optim.SGD(model[0].parameters(), lr=0.1),
        "b": torch.optim.SGD(model[2].parameters(), lr=0.1),
    }
    scheduler = s.Scheduler(
        optimizers, {"a": {"lr": s.linear(1, 0, 10)}, "b": {"lr": lambda t: 0.5 if t < 1 else math.nan}}
    )
    with pytest.raises(CoefficientError):
        scheduler.step()
    assert optimizers["a"].param_groups[0]["lr"] == 1.0
    assert scheduler.steps == {"a": 0, "b": 0}

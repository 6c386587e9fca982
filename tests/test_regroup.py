"""Regroup: other hyperparameters by name; the next steps are those of an optimizer that was built with such groups."""

from __future__ import annotations

import copy
from math import inf, nan
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import optstate
from optstate.errors import BindError, CoefficientError, NothingSelected, OptstateError, SelectionError
from optstate.live.regroup import regroup
from optstate.live.transaction import Transaction

CLASSES = [
    cls
    for cls in vars(torch.optim).values()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and cls not in (torch.optim.Optimizer, torch.optim.LBFGS)
]
VARIANTS = [
    *((cls, {}) for cls in CLASSES),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    (torch.optim.Adam, {"amsgrad": True, "foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(1e-3)}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
]
NO_DECAY = {"*.bias": {"weight_decay": 0.0}}


class Net(torch.nn.Module):
    """Two layers, named."""

    def __init__(self, *, bias=True):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torch.nn.Linear(3, 4, bias=bias)
        self.head = torch.nn.Linear(4, 2, bias=bias)


def steps(model, optimizer, seeds, after=lambda: None):
    """Steps on gradients that the seeds decide."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient
        optimizer.step()
        after()


def apply(optimizer, model, changes, **options):
    """Regroup in a transaction of its own; returns the journal's entry."""
    transaction = Transaction()
    try:
        return regroup(transaction, optstate.attach(optimizer, model).source, changes, **options)
    except BaseException:
        transaction.rollback()
        raise


def names(model, optimizer):
    """The names in each group."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def rates(optimizer):
    """The learning rate of each group as a number."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def picture(optimizer, *schedulers):
    """Everything that an optimizer and its schedulers hold: objects by identity, values by bits."""
    return copy.deepcopy(
        [
            [{key: repr(value) for key, value in group.items()} for group in optimizer.param_groups],
            [(id(group), list(group), [id(p) for p in group["params"]]) for group in optimizer.param_groups],
            [(id(parameter), id(entry), list(entry)) for parameter, entry in optimizer.state.items()],
            [{key: id(value) for key, value in entry.items()} for entry in optimizer.state.values()],
            [repr(entry) for entry in optimizer.state.values()],
            [{key: repr(value) for key, value in vars(each).items() if key != "optimizer"} for each in schedulers],
        ]
    )


# --- what stays and what changes --------------------------------------------------------------------


def test_a_group_splits_by_name():
    """What was asked for goes to a group of its own at the end; the rest stays where it was, in the old order."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    first = optimizer.param_groups[0]
    entry = apply(optimizer, model, NO_DECAY)
    assert names(model, optimizer) == [["encoder.weight", "head.weight"], ["encoder.bias", "head.bias"]]
    assert optimizer.param_groups[0] is first
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert list(optimizer.param_groups[1]) == list(first)
    assert (entry.verb, entry.arguments, entry.parameters) == ("regroup", {"*.bias": {"weight_decay": 0.0}}, 2)


def test_groups_that_became_equal_merge():
    """What is undone by hand leaves one group in the old order; equal groups that nobody asked for stay two."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    apply(optimizer, model, NO_DECAY)
    apply(optimizer, model, {"*.bias": {"weight_decay": 0.1}})
    assert names(model, optimizer) == [["encoder.weight", "head.weight", "encoder.bias", "head.bias"]]
    halves = torch.optim.SGD([{"params": model.encoder.parameters()}, {"params": model.head.parameters()}], lr=0.1)
    apply(halves, model, {"encoder.*": {"momentum": 0.5}})
    apply(halves, model, {"encoder.weight": {"momentum": 0.5}})
    assert [len(each) for each in names(model, halves)] == [2, 2]


def test_nothing_new_changes_nothing():
    """Asking for what is already so leaves every object as it is."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    steps(model, optimizer, [1])
    before = picture(optimizer)
    apply(optimizer, model, NO_DECAY)
    assert picture(optimizer) == before


def test_parts_stay_apart_when_asked():
    """Without merging a pattern splits although its group would equal the other: who asked makes them differ later."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    apply(optimizer, model, {"*.bias": {}}, merge=False)
    assert [len(each) for each in names(model, optimizer)] == [2, 2]
    apply(optimizer, model, {"*.bias": {}}, merge=False)
    assert [len(each) for each in names(model, optimizer)] == [2, 2]


def test_state_is_untouched():
    """Not one entry, tensor, key or order of the state is another one afterwards."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer, range(3))
    before = picture(optimizer)[2:]
    apply(optimizer, model, NO_DECAY)
    assert picture(optimizer)[2:] == before


@pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=lambda item: getattr(item, "__name__", str(item)))
def test_next_steps_are_those_of_such_an_optimizer(cls, options):
    """An optimizer of any class of torch goes on, bit by bit, as one built with these groups and given the state."""
    model = Net(bias=cls is not torch.optim.Muon)
    optimizer = cls(model.parameters(), **options)
    steps(model, optimizer, range(3))
    apply(optimizer, model, {"head.*": {"lr": 0.004}})

    twin = copy.deepcopy(model)
    groups = [{"params": list(twin.encoder.parameters())}, {"params": list(twin.head.parameters()), "lr": 0.004}]
    if isinstance(options.get("lr"), torch.Tensor):
        groups[1]["lr"] = torch.tensor(0.004)
    built = cls(groups, **options)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        built.state[other] = copy.deepcopy(optimizer.state[parameter])
    for each in ((model, optimizer), (twin, built)):
        steps(*each, range(3, 8))
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert optimizer.state[parameter].keys() == built.state[other].keys()
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(built.state[other][key]))
    assert rates(optimizer) == rates(built)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam, torch.optim.SparseAdam])
def test_averages_keep_their_meaning(cls):
    """New betas in a young run: the corrected averages m/(1-β^t) and v/(1-β^t) are what they were, so no update jumps."""
    model = Net()
    optimizer = cls(model.parameters(), betas=(0.9, 0.999))
    steps(model, optimizer, range(20))

    def corrected(parameter):
        (group,) = (each for each in optimizer.param_groups if any(parameter is one for one in each["params"]))
        entry = optimizer.state[parameter]
        averages = zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True)
        return [entry[key].double() / (1 - beta ** float(entry["step"])) for key, beta in averages]

    before = [corrected(parameter) for parameter in model.parameters()]
    weight = optimizer.state[model.head.weight]["exp_avg_sq"].clone()
    entry = apply(optimizer, model, {"*.bias": {"betas": (0.95, 0.9)}})
    after = [corrected(parameter) for parameter in model.parameters()]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=0)
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg_sq"], weight)  # nothing was asked of it
    assert entry.slots == 4  # two biases, two averages


def test_items_of_a_pair_are_hyperparameters():
    """`betas[0]` changes one of two, and both may be given at once by two patterns."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    apply(optimizer, model, {"*.bias": {"betas[0]": 0.8}, "head.*": {"betas[1]": 0.95}})
    by_name = dict(zip(map(tuple, names(model, optimizer)), optimizer.param_groups, strict=True))
    assert {key: group["betas"] for key, group in by_name.items()} == {
        ("encoder.weight",): (0.9, 0.999),
        ("encoder.bias",): (0.8, 0.999),
        ("head.weight",): (0.9, 0.95),
        ("head.bias",): (0.8, 0.95),
    }


def test_recorded_names_stay_true():
    """`param_names` move with their parameters."""
    model = Net()
    optimizer = torch.optim.AdamW(model.named_parameters())
    apply(optimizer, model, NO_DECAY)
    assert [group["param_names"] for group in optimizer.param_groups] == names(model, optimizer)


def test_rates_in_tensors_are_the_groups_own():
    """A learning rate that is a tensor stays one, is changed in place, and no two groups hold the same."""
    model, rate = Net(), torch.tensor(0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    apply(optimizer, model, {"*": {"lr": 0.2}})
    assert optimizer.param_groups[0]["lr"] is rate
    assert rates(optimizer) == [pytest.approx(0.2)]
    apply(optimizer, model, {"*.bias": {"lr": 0.4}})
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert tensors[0] is rate
    assert tensors[1] is not rate
    assert rates(optimizer) == pytest.approx([0.2, 0.4])


def test_a_shared_rate_is_not_written_to():
    """torch gives all groups the very tensor it was given; changing one group leaves the others their value."""
    model = Net()
    groups = [{"params": model.encoder.parameters()}, {"params": model.head.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.1))
    assert optimizer.param_groups[0]["lr"] is optimizer.param_groups[1]["lr"]
    apply(optimizer, model, {"head.*": {"lr": 0.5}})
    assert rates(optimizer) == pytest.approx([0.1, 0.5])


def test_several_optimizers():
    """A pattern may mean parameters of several optimizers; each is regrouped for itself."""
    model = Net()
    both = {
        "a": torch.optim.AdamW(model.encoder.parameters(), weight_decay=0.1),
        "b": torch.optim.SGD(model.head.parameters(), lr=0.1, weight_decay=0.1),
    }
    apply(both, model, NO_DECAY)
    assert [names(model, each) for each in both.values()] == [
        [["encoder.weight"], ["encoder.bias"]],
        [["head.weight"], ["head.bias"]],
    ]


def test_fused_groups_merge_only_if_they_keep_the_same():
    """A fused kernel takes buffers of all parameters of a group or of none: such groups stay two."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True)
    apply(optimizer, model, NO_DECAY)
    for parameter in (model.encoder.weight, model.head.weight):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    apply(optimizer, model, {"*.bias": {"weight_decay": 0.1}})
    assert len(optimizer.param_groups) == 2
    steps(model, optimizer, [1])


# --- schedulers ---------------------------------------------------------------------------------------


def ramp(step):
    """A warm-up over four steps."""
    return min(1.0, (step + 1) / 4)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, ramp),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, [0.1] * len(o.param_groups), 3, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [float(g["lr"]) for g in o.param_groups], 12),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.LambdaLR(o, ramp)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=6),
}


def run(kind, *, changes=None, groups=False, lr=0.1):
    """The learning rates of each parameter over ten steps, regrouped after the third where changes are given."""
    model = Net()
    parts = [{"params": model.encoder.parameters()}, {"params": model.head.parameters(), "lr": lr}]
    optimizer = torch.optim.SGD(parts if groups else model.parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[kind](optimizer)
    seen = []
    for number in range(10):
        if number == 3 and changes is not None:
            apply(optimizer, model, changes, scheduler=scheduler)
            assert scheduler.get_last_lr() == rates(optimizer)
        steps(model, optimizer, [number], scheduler.step)
        seen.append(
            {
                name: rate
                for group, rate in zip(names(model, optimizer), rates(optimizer), strict=True)
                for name in group
            }
        )
        assert scheduler.get_last_lr() == rates(optimizer)
    return seen


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_go_on(kind):
    """Every scheduler of torch goes on, for parts that split off, as if nothing had happened."""
    assert run(kind, changes={"head.*": {"weight_decay": 0.5}}) == run(kind)


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind not in ("CyclicLR", "SWALR")])
def test_schedulers_go_on_from_a_changed_rate(kind):
    """A rate that is halved by hand stays half of what the schedule says, whichever way a scheduler computes it."""
    halved = run(kind, changes={"head.*": {"lr": _at(kind, 3) / 2}})
    expected = run(kind, groups=True, lr=0.05)
    assert [rates["encoder.weight"] for rates in halved] == [rates["encoder.weight"] for rates in expected]
    assert [rates["head.bias"] for rates in halved[3:]] == pytest.approx([rates["head.bias"] for rates in expected[3:]])


def _at(kind, number):
    return run(kind)[number - 1]["head.bias"]


def test_cyclic_ends_follow_a_changed_rate():
    """The lower and the upper end of CyclicLR are multiplied as the rate is."""
    before, after = run("CyclicLR"), run("CyclicLR", changes={"head.*": {"lr": _at("CyclicLR", 3) * 3}})
    assert [rates["head.bias"] for rates in after[3:]] == pytest.approx(
        [rates["head.bias"] * 3 for rates in before[3:]]
    )


def test_plateau_keeps_its_floors():
    """ReduceLROnPlateau keeps one floor for each group, and what it says of the last rates is true."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.04])
    apply(optimizer, model, {"*.bias": {"lr": 0.2}})
    assert scheduler.min_lrs == [0.04, 0.04]
    assert scheduler._last_lr == [0.1, 0.2]
    for loss in (1.0, 2.0, 3.0):
        scheduler.step(loss)
    assert rates(optimizer) == pytest.approx([0.04, 0.04])


def test_schedulers_are_found():
    """A scheduler that nobody passes is found all the same, inside a chain too; an empty tuple says there is none."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    scheduler: Any = SCHEDULERS["SequentialLR"](optimizer)
    apply(optimizer, model, NO_DECAY)
    assert len(scheduler.get_last_lr()) == 2
    assert [len(child.base_lrs) for child in scheduler._schedulers] == [2, 2]
    apply(optimizer, model, {"*.bias": {"weight_decay": 0.1}}, scheduler=())
    assert len(scheduler.get_last_lr()) == 2


def test_merging_takes_items_away():
    """When groups merge, schedulers have one item less; where the items differ the groups stay two."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, ramp)
    apply(optimizer, model, NO_DECAY)
    apply(optimizer, model, {"*.bias": {"weight_decay": 0.1}})
    assert (len(scheduler.base_lrs), len(scheduler.lr_lambdas)) == (1, 1)
    apply(optimizer, model, NO_DECAY)
    scheduler.lr_lambdas[1] = lambda _: 1.0
    apply(optimizer, model, {"*.bias": {"weight_decay": 0.1}})
    assert len(optimizer.param_groups) == len(scheduler.base_lrs) == 2


# --- what is refused, and leaves no trace --------------------------------------------------------------

REFUSED = {
    "typo in a pattern": ({"*.bais": {"lr": 0.1}}, NothingSelected, r"\*\.bias"),
    "typo in a hyperparameter": ({"*": {"weight_decy": 0.1}}, SelectionError, "did you mean 'weight_decay'"),
    "a role": ({"*": {"momentum": 0.8}}, SelectionError, r"did you mean 'betas\[0\]'"),
    "an item too many": ({"*": {"betas[2]": 0.9}}, SelectionError, "no item 'betas\\[2\\]'"),
    "an item of a number": ({"*": {"lr[0]": 0.9}}, SelectionError, "no item"),
    "a kernel": ({"*": {"fused": True}}, SelectionError, "'fused' is chosen when an optimizer is built"),
    "not a number": ({"*": {"lr": nan}}, CoefficientError, "lr cannot become nan"),
    "infinite": ({"*": {"weight_decay": inf}}, CoefficientError, "weight_decay cannot become inf"),
    "text": ({"*": {"lr": "0.1"}}, CoefficientError, "lr cannot become 0.1"),
    "a flag for a number": ({"*": {"lr": True}}, CoefficientError, "lr cannot become True"),
    "a number for a flag": ({"*": {"maximize": 1}}, CoefficientError, "maximize cannot become 1"),
    "one of a pair": ({"*": {"betas": 0.9}}, CoefficientError, "betas cannot become 0.9"),
    "out of range": ({"*.bias": {"betas[0]": 1.0}}, CoefficientError, r"betas\[0\] would be 1"),
    "negative": ({"*.bias": {"lr": -0.1}}, CoefficientError, "lr would be -0.1"),
    "a slot that nobody made": ({"*.bias": {"amsgrad": True}}, CoefficientError, "max_exp_avg_sq"),
    "a clash": (
        {"*.bias": {"lr": 0.1}, "head.*": {"lr": 0.2}},
        SelectionError,
        "two patterns ask for another lr of head.bias",
    ),
    "nothing": ({}, SelectionError, "regroup takes patterns"),
    "no hyperparameters": ({"*.bias": {}}, SelectionError, "regroup takes patterns"),
    "no mapping": ([("*.bias", "lr")], SelectionError, "regroup takes patterns"),
    "params": ({"*.bias": {"params": []}}, SelectionError, "no hyperparameter 'params'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_changes_nothing(case):
    """Each mistake has an error that says how to go on, and everything is as it was, to the bit."""
    changes, kind, match = REFUSED[case]
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    steps(model, optimizer, range(2), scheduler.step)
    before = picture(optimizer, scheduler)
    with pytest.raises(kind, match=match) as caught:
        apply(optimizer, model, changes)
    assert "\n" in str(caught.value)
    assert picture(optimizer, scheduler) == before


def test_what_the_class_refuses_is_refused():
    """A combination that the constructor would not take, and that a step would take silently."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = picture(optimizer)
    with pytest.raises(CoefficientError, match="SGD refuses these hyperparameters: Nesterov"):
        apply(optimizer, model, {"*.bias": {"nesterov": True, "dampening": 0.5}})
    assert picture(optimizer) == before


def test_flat_state_does_not_split():
    """LBFGS knows one group: splitting it is refused, changing all of it is not."""
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = picture(optimizer)
    with pytest.raises(BindError, match="laid out over all parameters"):
        apply(optimizer, model, {"*.bias": {"lr": 0.5}})
    assert picture(optimizer) == before
    apply(optimizer, model, {"*": {"lr": 0.5}})
    assert rates(optimizer) == [0.5]


def test_what_a_scheduler_cycles_is_its_own():
    """A momentum that OneCycleLR writes at each step would be lost: refused."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    with pytest.raises(BindError, match="OneCycleLR writes betas"):
        apply(optimizer, model, {"*": {"betas[0]": 0.5}}, scheduler=scheduler)


def test_a_rate_of_zero_has_no_factor():
    """During a warm-up from 0 the rate says nothing of the schedule: its start has to be given, and then it follows."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    with pytest.raises(BindError, match="give initial_lr"):
        apply(optimizer, model, {"*.bias": {"lr": 0.05}})
    apply(optimizer, model, {"*.bias": {"initial_lr": 0.05}})
    steps(model, optimizer, range(4), scheduler.step)
    assert rates(optimizer) == pytest.approx([0.1, 0.05])


def test_strange_schedulers_are_refused():
    """One of another optimizer, one that missed a group, and one that may keep rates of its own for each group."""
    model = Net()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1, weight_decay=0.1)
    other = lr_scheduler.StepLR(torch.optim.SGD(model.head.parameters(), lr=0.1), 2)
    with pytest.raises(BindError, match="drives another optimizer"):
        apply(optimizer, model, NO_DECAY, scheduler=other)
    with pytest.raises(BindError, match="not a scheduler"):
        apply(optimizer, model, NO_DECAY, scheduler="cosine")

    class Warm(lr_scheduler.StepLR):
        """Keeps a list of its own."""

        def __init__(self, *arguments):
            self.warm_lrs = [0.5]
            super().__init__(*arguments)

    warm = Warm(optimizer, 2)
    with pytest.raises(BindError, match="as long as there are groups: warm_lrs"):
        apply(optimizer, model, NO_DECAY, scheduler=warm)
    late = lr_scheduler.StepLR(optimizer, 2)
    optimizer.add_param_group({"params": model.head.parameters()})
    with pytest.raises(BindError, match="before the last group was added"):
        apply(optimizer, model, NO_DECAY, scheduler=late)
    assert [len(each) for each in names(model, optimizer)] == [2, 2]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_rollback_puts_everything_back(cls):
    """A transaction that fails after the groups were made leaves groups, rates, lists and schedulers as they were."""
    model = Net()
    optimizer = cls(model.named_parameters(), lr=torch.tensor(0.1), weight_decay=0.1)
    scheduler = lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LambdaLR(optimizer, ramp), lr_scheduler.StepLR(optimizer, 2)], [3]
    )
    every = (scheduler, *scheduler._schedulers)
    steps(model, optimizer, range(2), scheduler.step)
    before = picture(optimizer, *every)
    transaction = Transaction()
    regroup(transaction, optstate.attach(optimizer, model).source, {"*.bias": {"lr": 0.3}, "*": {"weight_decay": 0.5}})
    assert picture(optimizer, *every) != before
    transaction.rollback()
    assert picture(optimizer, *every) == before


def test_every_error_is_ours():
    """What regroup refuses can be caught by one class."""
    assert all(issubclass(kind, OptstateError) for _, kind, _ in REFUSED.values())


# --- on a live state --------------------------------------------------------------------------------------


@pytest.fixture
def live():
    """A stepped AdamW with a scheduler, and its state."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, ramp)
    steps(model, optimizer, range(3), scheduler.step)
    return optstate.attach(optimizer, model), optimizer, scheduler


def test_regroup_is_written_down_and_undone(live):
    """The journal has it with the note; undo puts groups and schedulers back bit by bit, and the journal says so."""
    state, optimizer, scheduler = live
    before = picture(optimizer, scheduler)
    state.regroup(NO_DECAY, note="biases do not decay")
    assert [len(group.parameters) for group in state.groups] == [2, 2]
    assert state["head.bias"].facts.group == 1
    assert (state.journal[-1].verb, state.journal[-1].note) == ("regroup", "biases do not decay")
    state.undo()
    assert picture(optimizer, scheduler) == before
    assert state.journal[-1].undone


def test_regroup_belongs_to_its_edit(live):
    """In an edit that fails later, or that is a dry run, the groups are as they were."""
    state, optimizer, scheduler = live
    before = picture(optimizer, scheduler)
    with state.edit(dry_run=True) as edit:
        edit.regroup({"*.bias": {"lr": 0.01}}, scheduler=scheduler)
    assert edit.change.entries[0].verb == "regroup"
    assert picture(optimizer, scheduler) == before
    edit = state.edit()
    with pytest.raises(CoefficientError), edit:
        [edit.regroup({"*.bias": {"lr": rate}}) for rate in (0.01, -1.0)]
    assert picture(optimizer, scheduler) == before
    assert len(state.journal) == 0


def test_regroup_in_a_step_is_refused(live):
    """A group cannot change while the optimizer goes through it."""
    state, optimizer, _ = live
    optimizer.register_step_pre_hook(lambda *_: state.regroup(NO_DECAY))
    with pytest.raises(OptstateError):
        optimizer.step()
    assert len(optimizer.param_groups) == 1


def test_a_saved_regroup_restores(live, tmp_path):
    """A checkpoint of a regrouped optimizer goes back into one that is regrouped alike, journal and all."""
    state, optimizer, scheduler = live
    state.regroup(NO_DECAY)
    model = state.source.model
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer, scheduler=scheduler)
    assert [entry.arguments for entry in optstate.open(tmp_path / "a").journal] == [NO_DECAY]
    other = Net()
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    again = lr_scheduler.LambdaLR(fresh, ramp)
    optstate.attach(fresh, other).regroup(NO_DECAY)
    optstate.restore(tmp_path / "a", model=other, optimizer=fresh, scheduler=again)
    steps(model, optimizer, range(3, 6), scheduler.step)
    steps(other, fresh, range(3, 6), again.step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

"""Objects in a plan: which are restored, which stay, and what happens when one of them fails."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optstate
from optstate import Policy
from optstate.errors import PolicyError, RestoreFailed, RestoreRefused


class Counter:
    """An object that counts."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Other(Counter):
    """Another class."""


class Failing(Counter):
    """One that fails in the middle of loading, in its own way."""

    def __init__(self, value=0, error=None):
        super().__init__(value)
        self.error = error

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.error is not None:
            error, self.error = self.error, None
            raise error


class Uncopied(Counter):
    """One whose state cannot be kept aside."""

    def state_dict(self):
        return {"value": self.value, "lock": Locked()}


class Locked(dict):
    """What nobody can copy."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def train(model, optimizer, steps=2):
    for number in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 + number)
        optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """A model, its optimizer and some objects, saved."""
    model, optimizer = build()
    train(model, optimizer)
    objects = {"counter": Counter(7), "train_loader": Counter(8), "my_sampler": Counter(9)}
    return optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, **objects)


def everything(model, optimizer, *objects):
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), [each.value for each in objects]], buffer)
    return buffer.getvalue()


# --- which are restored -------------------------------------------------------------------------------------


def test_the_last_pattern_that_means_an_object_counts(saved):
    """What stays is left out and listed; patterns are those of names everywhere."""
    model, _ = build()
    objects = {"counter": Counter(), "train_loader": Counter(), "my_sampler": Counter()}
    policy = Policy(objects={"*": "live", "re:.*_(loader|sampler)": "restore", "my_*": "live"})
    plan = optstate.restore(saved, model=model, policy=policy, **objects)
    assert [item.value for item in objects.values()] == [0, 8, 0]
    assert "objects counter, my_sampler: the live ones stay as they are" in plan.left_out
    assert [item.name for item in plan.objects] == ["train_loader"]
    assert not plan.exact


def test_new_data_leaves_what_feeds_it(saved):
    """The preset restores objects but loaders and samplers, and its patterns may mean nothing."""
    model, optimizer = build()
    objects = {"counter": Counter(), "train_loader": Counter(), "my_sampler": Counter()}
    optstate.restore(saved, model=model, optimizer=optimizer, policy=Policy.new_data(), **objects)
    assert [item.value for item in objects.values()] == [7, 0, 0]
    path = optstate.save(saved.with_name("bare"), model=model, optimizer=optimizer)
    optstate.restore(path, model=model, optimizer=optimizer, policy=Policy.new_data())


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("cuonter", "did you mean 'counter'"), ("*scheduler*", "no object is meant"), ("loader.", "expected  some of")],
)
def test_a_pattern_that_means_no_object_is_an_error(saved, pattern, said):
    """A typo does not restore what was to stay."""
    model, _ = build()
    with pytest.raises(PolicyError, match=said):
        optstate.plan(saved, model=model, policy=Policy(objects={pattern: "live"}))


def test_objects_of_one_side_only(saved):
    """Saved but not passed is left out; passed but not saved is a fault, unless it is to stay."""
    model, _ = build()
    plan = optstate.plan(saved, model=model)
    assert "objects counter, train_loader, my_sampler" in plan.left_out
    plan = optstate.plan(saved, model=model, ema=Counter(3))
    assert any(
        fault.startswith("ema: not among the objects") and 'objects={"ema": "live"}' in fault for fault in plan.faults
    )
    ema = Counter(3)
    assert optstate.restore(saved, model=model, ema=ema, policy=Policy(objects={"ema": "live"})).faults == []
    assert ema.value == 3


def test_an_object_of_another_class_is_a_fault_unless_it_stays(saved):
    """The state of one class means nothing to another."""
    model, _ = build()
    with pytest.raises(RestoreRefused, match=r"counter: a .*Counter in the checkpoint, a .*Other live"):
        optstate.restore(saved, model=model, counter=Other())
    optstate.restore(saved, model=model, counter=Other(), policy=Policy(objects={"counter": "live"}))


class Memory(nn.Linear):
    """A module that keeps something besides tensors."""

    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_what_modules_keep_goes_with_their_weights(tmp_path):
    """It is restored although objects stay, it stays where weights do, and a module that is new keeps its own."""
    memory = Memory(2, 2)
    memory.seen = 7
    path = optstate.save(tmp_path / "ck", model=nn.Sequential(memory))

    def seen(policy, *more):
        model = nn.Sequential(Memory(2, 2), *more)
        if policy.weights == "loaded":
            model[0].load_state_dict({**memory.state_dict(), "_extra_state": {"seen": 1}})
        optstate.restore(path, model=model, policy=policy)
        return [each.seen for each in model]

    assert seen(Policy(objects={"*": "live"})) == [7]
    assert seen(Policy(weights="loaded")) == [1]
    assert seen(Policy.finetune(), Memory(2, 2)) == [7, 0]


# --- what fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_failure_in_any_object_puts_everything_back(tmp_path, position, error):
    """The first, the middle or the last: weights, slots, hyperparameters, earlier objects and the half-loaded one."""
    model, optimizer = build()
    train(model, optimizer)
    objects = {f"o{place}": Failing(place) for place in range(3)}
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, **objects)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    for item in objects.values():
        item.value += 10
    before = everything(model, optimizer, *objects.values())
    objects[f"o{position}"].error = copy.copy(error)
    expected = RestoreFailed if isinstance(error, Exception) else type(error)
    with pytest.raises(expected) as caught:
        optstate.restore(path, model=model, optimizer=optimizer, **objects)
    if expected is RestoreFailed:
        assert caught.value.found == "everything is as it was before"
    assert everything(model, optimizer, *objects.values()) == before
    optstate.restore(path, model=model, optimizer=optimizer, **objects)
    assert [item.value for item in objects.values()] == [0, 1, 2]


def test_what_cannot_be_put_back_is_named_before_and_after(tmp_path):
    """An object whose state cannot be kept aside: the plan says so, and so does the error, of this one alone."""
    model, optimizer = build()
    train(model, optimizer)
    kept, last = Uncopied(1), Failing(2)
    named = {"kept": Counter(1), "last": last}
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, **named)
    kept.value, last.value, last.error = 5, 6, RuntimeError("no room")
    kept_class = type(kept)
    kept_class.__qualname__ = "Counter"  # as if it had been saved so
    before = everything(model, optimizer, last)
    plan = optstate.plan(path, model=model, optimizer=optimizer, kept=kept, last=last)
    assert [item.name for item in plan.objects if not item.reversible] == ["kept"]
    with pytest.raises(RestoreFailed, match=r"undone in part(.|\n)*not put back: kept"):
        plan.apply()
    assert kept.value == 1
    assert everything(model, optimizer, last) == before


# --- schedulers among them -------------------------------------------------------------------------------------


class Wrapped:
    """A wrapper around a scheduler, as libraries have them."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


def test_a_scheduler_in_a_wrapper_is_one(tmp_path):
    """Its rates hold and are shown, as if it had been passed bare."""
    model, optimizer = build()
    wrapped = Wrapped(lr_scheduler.ExponentialLR(optimizer, 0.5))
    train(model, optimizer)
    wrapped.scheduler.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=wrapped)
    model, optimizer = build()
    optimizer.param_groups[0]["lr"] = 0.8
    again = Wrapped(lr_scheduler.ExponentialLR(optimizer, 0.5))
    policy = Policy(hyperparameters={"lr": "live"})
    plan = optstate.restore(path, model=model, optimizer=optimizer, scheduler=again, policy=policy)
    assert optimizer.param_groups[0]["lr"] == 0.4 == again.scheduler.get_last_lr()[0]
    assert "lr of group 0: 0.4 now, then 0.2, 0.1, 0.05, …" in plan.notes


def test_the_way_out_of_a_warning_is_a_line_of_policy(tmp_path):
    """A saved rate that replaces the program's: one warning for all groups alike, which names the line that keeps it."""
    model, _ = build()
    groups = [{"params": layer.parameters()} for layer in model]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    train(model, optimizer)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    for group in optimizer.param_groups:
        group.update(lr=0.7, initial_lr=0.7, weight_decay=0.5)
    plan = optstate.plan(path, model=model, optimizer=optimizer)
    assert [warning.partition(":")[0] for warning in plan.warnings] == ["M401 groups 0, 1"] * 2
    assert 'hyperparameters={"lr": "live"} keeps yours' in plan.warnings[0]
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert [("weight_decay" in warning, "lr becomes" in warning) for warning in plan.warnings] == [(True, False)]


def test_settings_that_the_checkpoint_overrules_are_named(tmp_path):
    """A longer schedule than the saved one would be lost without a word: a scheduler loads how it was built as well."""
    model, optimizer = build()
    train(model, optimizer)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    longer = lr_scheduler.CosineAnnealingLR(optimizer, 50)
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=longer)
    assert plan.warnings == [
        "scheduler: T_max is 10 in the checkpoint and 50 live; set it after the restore to keep yours"
    ]
    assert optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler).warnings == []


def test_a_chain_of_another_length_is_a_fault(tmp_path):
    """One scheduler inside has no state: refused while planning, not after half of the chain has loaded."""
    model, optimizer = build()
    train(model, optimizer)

    def chain(length):
        inside = [lr_scheduler.ExponentialLR(optimizer, 0.9) for _ in range(length)]
        return lr_scheduler.ChainedScheduler(inside)

    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=chain(2))
    with pytest.raises(RestoreRefused, match="not that of a ChainedScheduler such as the live one"):
        optstate.restore(path, model=model, optimizer=optimizer, scheduler=chain(3))


class Sparing(lr_scheduler.ExponentialLR):
    """One with a list for its groups that nobody else knows."""

    def __init__(self, optimizer, gamma):
        self.factors = [1.0 for _ in optimizer.param_groups]
        super().__init__(optimizer, gamma)


def test_a_scheduler_that_may_keep_more_for_each_group_is_not_guessed(tmp_path):
    """Of a class of somebody's own with a list as long as there are groups, other groups are a fault."""
    model, _ = build()
    groups = [{"params": layer.parameters()} for layer in model]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    train(model, optimizer)
    scheduler = Sparing(optimizer, 0.9)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    assert optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler).exact
    groups = [{"params": layer.parameters()} for layer in reversed(model)]
    other = torch.optim.AdamW(groups, lr=0.1)
    with pytest.raises(RestoreRefused, match="may keep something for each group in factors"):
        optstate.restore(path, model=model, optimizer=other, scheduler=Sparing(other, 0.9))
    policy = Policy(hyperparameters={"lr": "live"})
    optimizer.param_groups[0]["initial_lr"] = 0.2
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler, policy=policy)
    assert any("nothing is known; the new base rate holds if" in warning for warning in plan.warnings)

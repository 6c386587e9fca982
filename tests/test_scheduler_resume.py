"""A schedule resumes exactly: whatever the order in which things are built, loaded and restored."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import optstate
from optstate import schedule as s
from optstate.errors import ScheduleError

TOTAL, SAVED = 12, 7

CURVES = {
    "lr": s.cosine(0.1, 0.01, TOTAL),
    "momentum": s.join((s.linear(0.85, 0.95, 5), 5), (s.cosine(0.95, 0.8, 7), None)),
    "second_moment": s.inverse_power(0.8),
}
SGD_CURVES = {key: CURVES[key] for key in ("lr", "momentum")}

KINDS = {
    "Adam": (torch.optim.AdamW, {}, CURVES, "keep"),
    "AMSGrad": (torch.optim.AdamW, {"amsgrad": True}, CURVES, "keep"),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}, SGD_CURVES, "keep"),
    "SGD steady": (torch.optim.SGD, {"momentum": 0.9}, SGD_CURVES, "steady"),
    "SGD equivalent": (torch.optim.SGD, {"momentum": 0.9}, SGD_CURVES, "equivalent"),
    "SGD whose lr follows": (torch.optim.SGD, {"momentum": 0.9}, {"momentum": CURVES["momentum"]}, "equivalent"),
}


def build(kind):
    cls, options, _, _ = KINDS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, cls(model.parameters(), lr=0.1, **options)


def schedule(kind, optimizer):
    _, _, curves, on_change = KINDS[kind]
    return s.Scheduler(optimizer, curves, on_change=on_change)


def train(model, optimizer, scheduler, steps):
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 4)).pow(2).mean().backward()
        optimizer.step()
        scheduler.step()


def outcome(model, optimizer):
    """Everything, as bytes."""
    state = optimizer.state_dict()
    tensors = [*model.state_dict().values(), *(v for entry in state["state"].values() for v in entry.values())]
    return [each.numpy().tobytes() for each in tensors], str(state["param_groups"])


def uninterrupted(kind):
    model, optimizer = build(kind)
    scheduler = schedule(kind, optimizer)
    train(model, optimizer, scheduler, range(TOTAL))
    return outcome(model, optimizer)


def saved(kind):
    model, optimizer = build(kind)
    scheduler = schedule(kind, optimizer)
    train(model, optimizer, scheduler, range(SAVED))
    return copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))


def built_first(model, optimizer, kind, weights, slots, steps):
    scheduler = schedule(kind, optimizer)
    model.load_state_dict(weights)
    optimizer.load_state_dict(slots)
    scheduler.load_state_dict(steps)
    return scheduler


def earlyloaded_first(model, optimizer, kind, weights, slots, steps):
    scheduler = schedule(kind, optimizer)
    scheduler.load_state_dict(steps)
    model.load_state_dict(weights)
    optimizer.load_state_dict(slots)
    return scheduler


def built_last(model, optimizer, kind, weights, slots, steps):
    model.load_state_dict(weights)
    optimizer.load_state_dict(slots)
    scheduler = schedule(kind, optimizer)
    scheduler.load_state_dict(steps)
    return scheduler


ORDERS = (built_first, earlyloaded_first, built_last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_resume_is_exact(kind, order):
    """Saved after 7 of 12 steps and loaded in any order, the run ends as the uninterrupted one does, bit for bit."""
    model, optimizer = build(kind)
    scheduler = order(model, optimizer, kind, *saved(kind))
    assert scheduler.steps == SAVED
    train(model, optimizer, scheduler, range(SAVED, TOTAL))
    assert outcome(model, optimizer) == uninterrupted(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_restore_is_exact(kind, used, tmp_path):
    """So it does by `save` and `restore`, into fresh objects and into ones that have trained on something else."""
    model, optimizer = build(kind)
    scheduler = schedule(kind, optimizer)
    train(model, optimizer, scheduler, range(SAVED))
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=SAVED, scheduler=scheduler)
    model, optimizer = build(kind)
    scheduler = schedule(kind, optimizer)
    if used:
        train(model, optimizer, scheduler, range(100, 103))
    optstate.restore(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    train(model, optimizer, scheduler, range(SAVED, TOTAL))
    assert outcome(model, optimizer) == uninterrupted(kind)


def test_restore_when_the_schedule_is_built_last(tmp_path):
    """Restored first, scheduled then: the schedule's own state is loaded by itself."""
    model, optimizer = build("Adam")
    scheduler = schedule("Adam", optimizer)
    train(model, optimizer, scheduler, range(SAVED))
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=SAVED)
    steps = pickle.loads(pickle.dumps(scheduler.state_dict()))
    model, optimizer = build("Adam")
    optstate.restore(tmp_path / "ck", model=model, optimizer=optimizer)
    scheduler = schedule("Adam", optimizer)
    scheduler.load_state_dict(steps)
    train(model, optimizer, scheduler, range(SAVED, TOTAL))
    assert outcome(model, optimizer) == uninterrupted("Adam")


def test_saved_before_slots_followed_the_first_values():
    """A schedule that begins in the middle of a run, saved before the next step: that slots are to follow is saved too."""
    model, optimizer = build("Adam")
    plain = s.Scheduler(optimizer, {"weight_decay": 0.0})
    train(model, optimizer, plain, range(3))
    begun = s.Scheduler(optimizer, {"second_moment": 0.9})
    weights, slots, steps = copy.deepcopy((model.state_dict(), optimizer.state_dict(), begun.state_dict()))
    train(model, optimizer, begun, range(3, 6))
    expected = outcome(model, optimizer)
    for early in (True, False):
        model, optimizer = build("Adam")
        again = s.Scheduler(optimizer, {"second_moment": 0.9}) if early else None
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(slots))  # torch goes on to step the very tensors that it loads
        again = again or s.Scheduler(optimizer, {"second_moment": 0.9})
        again.load_state_dict(steps)
        train(model, optimizer, again, range(3, 6))
        assert outcome(model, optimizer) == expected


def test_state_is_small_and_plain():
    """A number of steps and the text of each curve: nothing that a checkpoint could not hold."""
    _, optimizer = build("Adam")
    assert schedule("Adam", optimizer).state_dict() == {
        "format": "optstate.schedule/1",
        "optimizers": {
            "": {
                "steps": 0,
                "curves": {
                    "lr": "cosine(0.1, 0.01, 12)",
                    "momentum": "join((linear(0.85, 0.95, 5), 5), (cosine(0.95, 0.8, 7), None))",
                    "second_moment": "inverse_power(0.8)",
                },
            }
        },
    }


def test_other_curves_are_told():
    """Which hyperparameter has another curve, and both; nothing has moved. Not strict, the new curve goes on from there."""
    _, optimizer = build("SGD")
    state = s.Scheduler(optimizer, {"lr": s.linear(1, 0, 10)}).state_dict()
    state["optimizers"][""]["steps"] = 5
    other = s.Scheduler(optimizer, {"lr": s.linear(2, 0, 10)})
    with pytest.raises(ScheduleError, match=r"another schedule of lr\n.*linear\(1, 0, 10\)\n.*linear\(2, 0, 10\)"):
        other.load_state_dict(state)
    assert (other.steps, optimizer.param_groups[0]["lr"]) == (0, 2.0)
    other.load_state_dict(state, strict=False)
    assert (other.steps, optimizer.param_groups[0]["lr"]) == (5, 1.0)


@pytest.mark.parametrize("change", [{"momentum": 0.5}, {"lr": 0.1, "weight_decay": 0.1}])
def test_curves_that_came_or_went_are_told(change):
    """One more or one less is another schedule, too."""
    _, optimizer = build("SGD")
    state = s.Scheduler(optimizer, {"lr": 0.1}).state_dict()
    with pytest.raises(ScheduleError, match="another schedule"):
        s.Scheduler(optimizer, change).load_state_dict(state)


@pytest.mark.parametrize(
    "state",
    [None, {}, {"last_epoch": 3}, {"format": "optstate.schedule/1", "optimizers": {"muon": {}}}],
    ids=["None", "empty", "torch's", "several optimizers'"],
)
def test_what_is_no_state(state):
    """The state of something else is refused before anything changes."""
    _, optimizer = build("SGD")
    scheduler = s.Scheduler(optimizer, {"lr": 0.3})
    with pytest.raises(ScheduleError, match="not the state of such a schedule"):
        scheduler.load_state_dict(state)


def test_several_optimizers_resume():
    """Each has its own number of steps, as each may have been stepped a different number of times."""
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizers = {"a": torch.optim.SGD(one.parameters(), lr=0.1), "b": torch.optim.SGD(other.parameters(), lr=0.1)}
    scheduler = s.Scheduler(optimizers, {"lr": s.linear(1, 0, 10)}, hook=True)
    optimizers["a"].step()
    optimizers["b"].step()
    optimizers["b"].step()
    state = scheduler.state_dict()
    scheduler.release()
    again = s.Scheduler(optimizers, {"lr": s.linear(1, 0, 10)})
    again.load_state_dict(state)
    assert again.steps == {"a": 1, "b": 2}
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()] == [0.9, 0.8]

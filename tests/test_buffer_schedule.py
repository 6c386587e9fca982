"""BufferSchedule: what a buffer has gathered, scaled along a curve, and never twice."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import optstate
from optstate import schedule as s
from optstate.errors import NothingSelected, ScheduleError

STEPS = 40


class Rig:
    """One parameter of a model under an optimizer, and the gradients that it will get."""

    def __init__(self, make, dtype=torch.float64):
        torch.manual_seed(0)
        self.model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(3, dtype=dtype))})
        self.gradients = torch.randn(STEPS, 3, dtype=dtype)
        self.optimizer = make(self.model.parameters())
        self.state = optstate.attach(self.optimizer, self.model)
        self.taken = 0

    def step(self, steps=1):
        for _ in range(steps):
            self.model["w"].grad = self.gradients[self.taken].clone()
            self.optimizer.step()
            self.taken += 1

    @property
    def buffer(self):
        return self.state["w"].momentum.tensor


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


CURVES = {
    "falling": s.linear(1, 0.1, 30),
    "rising": s.exponential(0.5, 1.05),
    "there and back": s.triangular(0.2, 1.0, 6),
    "a step": s.multistep(1, 0.5, (10,)),
    "a function": s.function(lambda t: 1 + math.sin(t) / 2),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("kind", ["sum", "average"])
def test_buffer_is_what_the_formula_says(curve, kind):
    """v_T = Σ β^(T-1-s)·c(T)/c(s)·g_s, summed from scratch at every step, for a sum and for Adam's average."""
    rig = Rig(sgd if kind == "sum" else lambda p: torch.optim.Adam(p, lr=0.1))
    weight = 1.0 if kind == "sum" else 0.1
    scheduler = s.BufferSchedule(rig.state, "momentum", curve)
    for total in range(1, STEPS + 1):
        rig.step()
        scheduler.step()
        expected = sum(
            0.9 ** (total - 1 - step) * curve(total) / curve(step) * weight * rig.gradients[step]
            for step in range(total)
        )
        torch.testing.assert_close(rig.buffer, expected, rtol=1e-12, atol=1e-14)


def test_what_was_there_at_first():
    """A buffer that is left alone holds c(t)/c(0) of what it held: a schedule that begins in the middle of a run."""
    rig = Rig(sgd)
    rig.step(5)
    before = rig.buffer.clone()
    scheduler = s.BufferSchedule(rig.state, "momentum", s.linear(4, 1, 10))
    torch.testing.assert_close(rig.buffer, before, rtol=0, atol=0)
    for _ in range(10):
        scheduler.step()
    torch.testing.assert_close(rig.buffer, before / 4, rtol=1e-14, atol=0)


def test_it_never_compounds():
    """A curve that comes back brings the scale back: ten times up and down leave powers of two as they were, to the bit."""
    rig = Rig(sgd)
    rig.step(5)
    before = rig.buffer.clone()
    scheduler = s.BufferSchedule(rig.state, "momentum", s.function(lambda t: 1.0 if t % 2 == 0 else 0.25))
    for _ in range(10):
        scheduler.step()
        assert torch.equal(rig.buffer, before / 4)
        scheduler.step()
        assert torch.equal(rig.buffer, before)


@pytest.mark.parametrize("value", [0.1, 1.0, 7.0])
def test_a_constant_changes_nothing(value):
    """Only how a curve moves matters: the buffer is never written to, and the journal is empty."""
    rig, free = Rig(sgd), Rig(sgd)
    s.BufferSchedule(rig.state, "momentum", value, hook=True)
    rig.step(STEPS)
    free.step(STEPS)
    assert torch.equal(rig.buffer, free.buffer)
    assert len(rig.state.journal) == 0


def test_where_the_curve_stops_the_buffer_comes_back():
    """Whatever was scaled away is gathered again: within 3/(1-β) steps the buffer is the unscaled one to 5 %."""
    rig, free = Rig(sgd), Rig(sgd)
    for each in (rig, free):
        each.gradients = torch.ones(STEPS, 3, dtype=torch.float64)
    s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.5, 5), hook=True)
    rig.step(35)
    free.step(35)
    assert ((free.buffer - rig.buffer) / free.buffer).max() < 0.05


def test_only_what_is_selected():
    """Other parameters' buffers, and other slots, stay as they are."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state = optstate.attach(optimizer, model)
    before = {(name, key): slot.tensor.clone() for name, each in state.items() for key, slot in each.slots.items()}
    scheduler = s.BufferSchedule(state, "exp_avg", s.linear(1, 0.5, 2), select="1.*")
    scheduler.step()
    for (name, key), tensor in before.items():
        factor = 0.75 if name.startswith("1.") and key == "exp_avg" else 1.0
        assert torch.equal(state[name][key].tensor, tensor * factor)


def test_several_optimizers_follow_their_own_steps():
    """Each buffer is scaled after the steps of its own optimizer, each by its own key of the role."""
    model = nn.Sequential(nn.Linear(2, 2))
    optimizers = {"muon": torch.optim.Muon([model[0].weight], lr=0.1), "adam": torch.optim.Adam([model[0].bias])}
    model(torch.ones(2)).sum().backward()
    state = optstate.attach(optimizers, model)
    scheduler = s.BufferSchedule(state, "momentum", s.linear(1, 0.5, 10), hook=True)
    optimizers["muon"].step()
    optimizers["muon"].step()
    optimizers["adam"].step()
    assert scheduler.steps == {"muon": 2, "adam": 1}


@pytest.mark.parametrize("built", ["before", "after"])
def test_resume_is_exact(built):
    """Saved after 7 steps and loaded, before the optimizer or after it: the same bits after 20."""
    curve = s.triangular(0.2, 1.0, 6)

    def start(rig):
        return s.BufferSchedule(rig.state, "momentum", curve, hook=True)

    whole = Rig(sgd)
    start(whole)
    whole.step(20)
    rig = Rig(sgd)
    scheduler = start(rig)
    rig.step(7)
    saved = copy.deepcopy((rig.model.state_dict(), rig.optimizer.state_dict(), scheduler.state_dict()))
    again = Rig(sgd)
    scheduler = start(again) if built == "before" else None
    again.model.load_state_dict(saved[0])
    again.optimizer.load_state_dict(saved[1])
    scheduler = scheduler or start(again)
    scheduler.load_state_dict(saved[2])
    again.taken = 7
    again.step(13)
    assert torch.equal(again.model["w"], whole.model["w"])
    assert torch.equal(again.buffer, whole.buffer)


def test_save_and_restore(tmp_path):
    """A checkpoint holds it like any object."""
    rig = Rig(sgd)
    scheduler = s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.1, 30), hook=True)
    rig.step(5)
    optstate.save(tmp_path / "ck", model=rig.model, optimizer=rig.optimizer, step=5, buffer=scheduler)
    rig.step(5)
    expected = rig.buffer.clone()
    again = Rig(sgd)
    scheduler = s.BufferSchedule(again.state, "momentum", s.linear(1, 0.1, 30), hook=True)
    optstate.restore(tmp_path / "ck", model=again.model, optimizer=again.optimizer, buffer=scheduler)
    again.taken = 5
    again.step(5)
    assert torch.equal(again.buffer, expected)


def test_another_curve_is_told():
    """Which curve the checkpoint is of, and which this is."""
    rig = Rig(sgd)
    state = s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.1, 30)).state_dict()
    other = s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.2, 30))
    with pytest.raises(ScheduleError, match=r"another curve\n.*linear\(1, 0.1, 30\)\n.*linear\(1, 0.2, 30\)"):
        other.load_state_dict(state)
    with pytest.raises(ScheduleError, match="not the state"):
        other.load_state_dict({"last_epoch": 3})
    other.load_state_dict({**state, "steps": {"": 4}}, strict=False)
    assert other.steps == 4


def test_the_journal_has_one_entry():
    """Since when, how often and until when."""
    rig = Rig(sgd)
    s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.5, 10), hook=True)
    rig.step(STEPS)
    (entry,) = rig.state.journal
    assert (entry.verb, entry.times, entry.step, entry.arguments["until"], entry.selection) == (
        "schedule",
        10,
        1,
        10,
        "*",
    )


def test_two_schedules_of_one_buffer():
    """The second is refused; other parameters, or another slot, are no conflict."""
    rig = Rig(torch.optim.Adam)
    first = s.BufferSchedule(rig.state, "momentum", 1.0)
    with pytest.raises(ScheduleError, match="two schedules would drive slot exp_avg"):
        s.BufferSchedule(rig.state, "exp_avg", s.linear(1, 0.5, 10))
    s.BufferSchedule(rig.state, "second_moment", 1.0)
    first.release()
    s.BufferSchedule(rig.state, "exp_avg", s.linear(1, 0.5, 10))


BAD = {
    "a role that it lacks": (("infinity_norm", 1.0), ScheduleError, "no slot 'infinity_norm'"),
    "a key that it lacks": (("exp_awg", 1.0), ScheduleError, "did you mean 'exp_avg'"),
    "a count": (("step", 1.0), ScheduleError, "it counts"),
    "zero": (("momentum", s.linear(1, 0, 10)), ScheduleError, "step 10 of linear"),
    "negative": (("momentum", -1.0), ScheduleError, "more than 0"),
    "NaN": (("momentum", lambda _: math.nan), ScheduleError, "found     nan"),
    "no curve": (("momentum", "linear"), ScheduleError, "not a curve"),
}


@pytest.mark.parametrize(("arguments", "error", "says"), BAD.values(), ids=BAD)
def test_bad_input(arguments, error, says):
    """Refused where it is made, with nothing owned."""
    rig = Rig(torch.optim.Adam)
    with pytest.raises(error, match=says):
        s.BufferSchedule(rig.state, *arguments)
    s.BufferSchedule(rig.state, "momentum", 1.0)


def test_other_bad_input():
    """A pattern that means nothing, a state that does not run, and steps by hand beside a hook."""
    rig = Rig(sgd)
    rig.step()
    with pytest.raises(NothingSelected):
        s.BufferSchedule(rig.state, "momentum", 1.0, select="x")
    with pytest.raises(ScheduleError, match="running optimizer"):
        s.BufferSchedule(rig.state.snapshot(), "momentum", 1.0)
    with pytest.raises(ScheduleError, match="by itself"):
        s.BufferSchedule(rig.state, "momentum", 1.0, hook=True).step()


def test_a_curve_that_goes_wrong_on_the_way():
    """At that step nothing is scaled, and the count stays."""
    rig = Rig(sgd)
    rig.step(3)
    scheduler = s.BufferSchedule(rig.state, "momentum", lambda t: 1.0 if t < 2 else 0.0)
    scheduler.step()
    before = rig.buffer.clone()
    with pytest.raises(ScheduleError, match="step 2"):
        scheduler.step()
    assert torch.equal(rig.buffer, before)
    assert scheduler.steps == 1


def test_buffers_are_not_scaled_in_the_middle_of_a_step():
    """In a closure it is refused, and nothing has changed."""
    rig = Rig(sgd)
    rig.step(3)
    scheduler = s.BufferSchedule(rig.state, "momentum", s.linear(1, 0.5, 10))
    before = rig.buffer.clone()
    rig.model["w"].grad = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ScheduleError, match="in the middle of a step"):
        rig.optimizer.step(scheduler.step)
    assert torch.equal(rig.buffer, before)


def test_sparse_buffers():
    """SGD's buffer of sparse gradients is scaled by its values."""
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    state = optstate.attach(optimizer, model)
    before = state["weight"].momentum.tensor.to_dense()
    s.BufferSchedule(state, "momentum", s.linear(1, 0.5, 1)).step()
    assert torch.equal(state["weight"].momentum.tensor.to_dense(), before / 2)

"""A schedule with a hook follows the steps that an optimizer really takes: once each, and no other."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from optstate import schedule as s
from optstate.errors import ScheduleError

LINE = s.linear(1, 0, 100)


def parameter():
    each = nn.Parameter(torch.ones(3))
    each.grad = torch.ones(3)
    return each


def test_each_step_once():
    """No call is needed, and one by hand is refused."""
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = s.Scheduler(optimizer, {"lr": LINE}, hook=True)
    for _ in range(3):
        optimizer.step()
    assert (scheduler.steps, optimizer.param_groups[0]["lr"]) == (3, 0.97)
    with pytest.raises(ScheduleError, match="by itself"):
        scheduler.step()
    scheduler.release()
    optimizer.step()
    assert scheduler.steps == 3


def test_it_follows_though_nobody_holds_it():
    """`Scheduler(..., hook=True)` alone on a line works."""
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    s.Scheduler(optimizer, {"lr": LINE}, hook=True)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.99


@pytest.mark.parametrize("parent_built", [False, True])
def test_a_step_that_calls_its_parents(parent_built):
    """torch runs hooks twice then, as soon as the parent class has been built somewhere; it is one step."""

    class Parent(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Child(Parent):
        def step(self, closure=None):
            return super().step(closure)

    if parent_built:
        Parent([parameter()], lr=0.1)
    optimizer = Child([parameter()], lr=0.1)
    scheduler = s.Scheduler(optimizer, {"lr": LINE}, hook=True)
    optimizer.step()
    optimizer.step()
    assert scheduler.steps == 2


def test_a_closure_that_raises():
    """Such a step was not taken, and the next one counts as it should, nested or not."""

    class Child(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    def fail():
        raise RuntimeError("out of data")

    optimizer = Child([parameter()], lr=0.1)
    scheduler = s.Scheduler(optimizer, {"lr": LINE}, hook=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of data"):
            optimizer.step(fail)
        assert scheduler.steps == 0
    optimizer.step()
    assert scheduler.steps == 1


def test_a_step_within_another_ones_closure():
    """Optimizers that step inside each other's closures are each followed."""
    inner, outer = torch.optim.SGD([parameter()], lr=0.1), torch.optim.SGD([parameter()], lr=0.1)
    schedulers = [s.Scheduler(each, {"lr": LINE}, hook=True) for each in (inner, outer)]
    outer.step(lambda: inner.step() or 0.0)
    assert [each.steps for each in schedulers] == [1, 1]


def test_lbfgs_calls_its_closure_often():
    """One step of LBFGS is one step, however often it looks at the loss; the rate of the next is that of the curve."""
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = torch.optim.LBFGS([weight], lr=1.0)
    scheduler = s.Scheduler(optimizer, {"lr": LINE}, hook=True)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = (weight**4).sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert len(calls) > 4
    assert (scheduler.steps, optimizer.param_groups[0]["lr"]) == (2, 0.98)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaler(fused):
    """A step that GradScaler skips does not count, also where a fused optimizer is called and skips it itself."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    scheduler = s.Scheduler(optimizer, {"lr": LINE, "second_moment": s.linear(0.999, 0.9, 100)}, hook=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scheduler.steps == 2
    assert optimizer.state[weight]["step"].item() == 2


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
def test_implementations_of_adam(implementation):
    """Wherever they keep their counts, the updates are those of the plain loop."""
    moved = {}
    for flags in ({"foreach": False}, {implementation: True}):
        weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = torch.optim.AdamW([weight], lr=0.1, **flags)
        s.Scheduler(
            optimizer,
            {"lr": LINE, "momentum": s.linear(0.9, 0.5, 50), "second_moment": s.linear(0.99, 0.9, 50)},
            hook=True,
        )
        for step in range(30):
            weight.grad = torch.sin(torch.arange(3.0) + step)
            optimizer.step()
        moved[str(flags)] = weight.detach().clone()
    one, other = moved.values()
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_slots_are_not_changed_in_the_middle_of_a_step():
    """Called in a closure, `step()` would scale what the step is using: refused, and nothing has changed."""
    weight = parameter()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    optimizer.step()
    scheduler = s.Scheduler(optimizer, {"second_moment": s.linear(0.999, 0.9, 100)})
    optimizer.step()
    before = optimizer.state[weight]["exp_avg_sq"].clone()
    with pytest.raises(ScheduleError, match="in the middle of a step"):
        optimizer.step(scheduler.step)
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], before)
    assert scheduler.steps == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: torch.compile cannot make a kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch calls deprecated
@pytest.mark.parametrize("hook", [False, True])
def test_compiled_step_is_not_compiled_again(hook):
    """With tensors for lr and betas a schedule runs beside a compiled AdamW step, which stays as it was compiled."""
    torch._dynamo.reset()
    weight = parameter()
    optimizer = torch.optim.AdamW(
        [weight], lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.99)), capturable=True, foreach=False
    )
    scheduler = s.Scheduler(
        optimizer, {"lr": LINE, "momentum": s.linear(0.5, 0.9, 50), "second_moment": s.linear(0.9, 0.99, 50)}, hook=hook
    )
    step = torch.compile(optimizer.step)

    def go(steps):
        for _ in range(steps):
            step()
            if not hook:
                scheduler.step()

    go(4)  # the first steps find no state, and then some
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    go(10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert scheduler.steps == 14
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.86)

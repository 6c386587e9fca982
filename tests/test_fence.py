"""The fence: whatever writes to weights or slots asks it first, and nothing has changed when it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optstate
from optstate import schedule as s
from optstate.live.fence import cross, put_up, standing, take_down


class Watch:
    """A fence that notes what it sees when somebody comes."""

    def __init__(self, look):
        self._look = look
        self.writes, self.steps = [], []

    def before_write(self):
        self.writes.append(self._look())

    def before_step(self, optimizer):
        self.steps.append(self._look())


class Scene:
    """A model after some steps, its state, a checkpoint of another moment, and a watch."""

    def __init__(self, folder):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.step()
        self.file = optstate.save(folder / "it", model=self.model, optimizer=self.optimizer)
        self.step()
        self.state = optstate.attach(self.optimizer, self.model)
        self.watch = Watch(self.look)

    def step(self):
        self.model(torch.rand(5, 3)).square().sum().backward()
        self.optimizer.step()

    def look(self):
        """Every bit of weights and slots."""
        slots = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return [value.detach().clone().numpy().tobytes() for value in (*self.model.parameters(), *slots)]

    def plan(self):
        return optstate.plan(self.file, model=self.model, optimizer=self.optimizer)


def edit(verb):
    def write(scene):
        with scene.state.edit() as edit:
            verb(edit)

    return write


VERBS = {
    "scale_": edit(lambda edit: edit.select("*").momentum.scale_(0.5)),
    "zero_": edit(lambda edit: edit.select("*").momentum.zero_()),
    "reset_": edit(lambda edit: edit["0.weight"].reset_()),
    "set_": edit(lambda edit: edit["0.bias"].momentum.set_(torch.zeros(4))),
    "clip_norm_": edit(lambda edit: edit.select("*").momentum.clip_norm_(1e-6)),
    "clamp_": edit(lambda edit: edit.select("*").momentum.clamp_(-1e-9, 1e-9)),
    "rows": edit(lambda edit: edit["0.weight"].rows([1]).reset_()),
}


def without_backup(scene):
    with scene.state.edit(backup=False) as edit:
        edit.select("*").momentum.scale_(0.5)


def undo(scene):
    scene.state.select("*").momentum.scale_(0.5)
    put_up(scene.watch)
    scene.state.undo()


def trial(scene):
    scene.state.trial(
        lambda: scene.model(torch.ones(1, 3)).sum().item(), lambda edit: edit.select("*").momentum.scale_(0.5)
    )


def taken_back(scene):
    with scene.state.edit(dry_run=True) as edit:
        edit.select("*").momentum.scale_(0.5)
        put_up(scene.watch)


def coupled(scene):
    scheduler = s.Scheduler(scene.optimizer, {"momentum": s.linear(0.9, 0.5, 2)}, on_change="steady")
    put_up(scene.watch)
    scheduler.step()


def buffers(scene):
    schedule = s.BufferSchedule(scene.state, "momentum", s.linear(1, 0.5, 2))
    put_up(scene.watch)
    schedule.step()


def reverted(scene):
    plan = scene.plan().apply()
    put_up(scene.watch)
    plan.revert()


WRITES = {
    **VERBS,
    "without a backup": without_backup,
    "undo": undo,
    "taking back": taken_back,
    "towards a file": lambda scene: scene.state.select("*").momentum.lerp_(scene.file, 0.5),
    "a trial": trial,
    "a scheduler with coupling": coupled,
    "a buffer schedule": buffers,
    "a plan": lambda scene: scene.plan().apply(),
    "revert": reverted,
    "restore": lambda scene: optstate.restore(scene.file, model=scene.model, optimizer=scene.optimizer),
}
STARTS_LATER = {undo, taken_back, coupled, buffers, reverted}


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    yield made
    take_down(made.watch)
    assert standing() == ()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_whatever_writes_asks_first(write, scene):
    """The first that a fence hears of a change is before any bit of it."""
    before = []
    if write not in STARTS_LATER:
        put_up(scene.watch)
        before = scene.look()
    write(scene)
    assert scene.watch.writes
    assert not before or scene.watch.writes[0] == before
    assert write is trial or scene.look() != scene.watch.writes[0]


def closure(scene):
    optimizer = torch.optim.LBFGS(scene.model.parameters(), max_iter=2)

    def loss():
        optimizer.zero_grad()
        loss = scene.model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(loss)


def scheduled(scene):
    scheduler = torch.optim.lr_scheduler.StepLR(scene.optimizer, 1)
    scene.step()
    scheduler.step()


def hooked(scene):
    def double(*_):
        scene.model[0].weight.data.mul_(2)

    scene.optimizer.register_step_pre_hook(double)
    scene.step()


STEPS = {"a step": Scene.step, "a closure": closure, "torch's scheduler": scheduled, "a hook that writes": hooked}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_step_asks_first(step, scene):
    """Before hooks, closures and the step itself."""
    put_up(scene.watch)
    before = scene.look()
    step(scene)
    assert scene.watch.steps[0] == before
    assert scene.look() != before


def test_fence_that_was_taken_down_is_asked_no_more(scene):
    """Nothing of it stays with the optimizer."""
    put_up(scene.watch)
    take_down(scene.watch)
    take_down(scene.watch)
    scene.step()
    cross()
    assert scene.watch.steps == scene.watch.writes == []
    assert len(scene.optimizer._optimizer_step_pre_hooks) == 0


def test_step_that_is_refused_changes_nothing(scene):
    """What a fence raises is raised in place of the step."""

    class Closed(Watch):
        def before_step(self, optimizer):
            raise RuntimeError("closed")

    closed = Closed(scene.look)
    put_up(closed)
    before = scene.look()
    with pytest.raises(RuntimeError, match="closed"):
        scene.step()
    take_down(closed)
    assert scene.look() == before

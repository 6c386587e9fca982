"""A checkpoint that is damaged in part: refused by name, or salvaged, and never half of what belongs together."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import Damaged, ReadError, RestoreRefused
from optstate.resume.plan import live_side, planned
from tests.test_restore import Counter, fingerprint, mlp, train

SALVAGE = optstate.Policy(damaged="salvage")

CLASSES = {
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=1.0),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2, initial_accumulator_value=0.1),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=1e-2),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "AMSGrad": lambda params: torch.optim.Adam(params, lr=1e-2, amsgrad=True),
    "ASGD": lambda params: torch.optim.ASGD(params, lr=1e-2),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=1e-2),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-2, momentum=0.5, centered=True),
    "Rprop": lambda params: torch.optim.Rprop(params, lr=1e-2),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "SGD, damped and fused": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, dampening=0.5, fused=True),
}


def trained(make, seed=0, steps=40):
    model = mlp(seed)
    optimizer = make(model.parameters())
    train(model, optimizer, steps)
    return model, optimizer


def adamw(seed=0, steps=40):
    return trained(CLASSES["AdamW"], seed, steps)


def tensors(path):
    """Every tensor of a checkpoint by its key, with where its bytes are."""
    return json.loads((path / "manifest.json").read_text())["body"]["tensors"]


def damage(path, *keys):
    """Change a byte in the middle of each of these tensors."""
    for key in keys:
        chunk = tensors(path)[key]["chunks"][0]
        with (path / chunk["file"]).open("r+b") as file:
            place = chunk["offset"] + chunk["nbytes"] // 2
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def path(tmp_path):
    """A checkpoint of AdamW with an object that holds a tensor."""
    model, optimizer = adamw()
    loader = Counter(torch.arange(1000))
    return optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, loader=loader, step=40)


KEYS = (
    "weights/0.weight",
    "weights/2.bias",
    "optimizer/0.weight/exp_avg",
    "optimizer/2.bias/step",
    "objects/loader/value",
)


@pytest.mark.parametrize("key", KEYS)
def test_strict_refuses_by_name_and_changes_nothing(path, key):
    """One damaged tensor, whichever it is: the error names it and the way to save the rest, and nothing is touched."""
    damage(path, key)
    model, optimizer = adamw(seed=9, steps=2)
    loader = Counter()
    before = fingerprint(model, optimizer)
    plan = optstate.plan(path, model=model, optimizer=optimizer, loader=loader)
    with pytest.raises(Damaged, match=rf'{key.partition("/")[2]}(.|\n)*Policy\(damaged="salvage"\)'):
        plan.apply()
    assert fingerprint(model, optimizer) == before
    assert loader.value == 1


def test_salvage_of_a_whole_checkpoint_is_exact(path):
    """Where nothing is damaged the policy changes nothing."""
    model, optimizer = adamw(seed=9, steps=2)
    assert optstate.restore(path, model=model, optimizer=optimizer, loader=Counter(), policy=SALVAGE).exact


def test_a_damaged_slot_starts_fresh_with_what_belongs_to_it(path):
    """The second moment is damaged: with it the step count and the momentum of that parameter start anew, no other."""
    damage(path, "optimizer/0.weight/exp_avg_sq")
    source, _ = adamw()
    model, optimizer = adamw(seed=9, steps=2)
    plan = optstate.plan(path, model=model, optimizer=optimizer, loader=Counter(), policy=SALVAGE)
    assert {(slot.parameter, slot.key) for slot in plan.slots if slot.decision == "fresh"} == {
        ("0.weight", "step"),
        ("0.weight", "exp_avg"),
        ("0.weight", "exp_avg_sq"),
    }
    assert "slots of 1 parameter cannot be read and start fresh: 0.weight" in plan.warnings
    assert "exp_avg_sq cannot be read: 0.weight/exp_avg_sq was changed since it was written" in str(plan)
    assert not plan.exact
    plan.apply()
    entry = optimizer.state[model[0].weight]
    assert list(entry) == ["step", "exp_avg", "exp_avg_sq"]
    assert not any(slot.any() for slot in entry.values())
    assert optimizer.state[model[0].bias]["step"] == 40.0
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


def cases():
    """Each class with each of its slots."""
    for name, make in CLASSES.items():
        model, optimizer = trained(make, steps=1)
        for key in optimizer.state[model[0].weight]:
            yield pytest.param(name, key, id=f"{name} {key}")


@pytest.mark.parametrize(("name", "key"), list(cases()))
def test_a_salvaged_state_is_coherent(tmp_path, name, key):
    """Whichever slot is lost: the next update of its parameter is no larger than the uninterrupted run's or a fresh start's."""
    make = CLASSES[name]
    model, optimizer = trained(make)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    damaged = f"optimizer/0.weight/{key}"
    if damaged not in tensors(path):
        pytest.skip("it is a number in the manifest, which has a digest of its own")
    damage(path, damaged)
    salvaged = mlp(seed=9)
    restored = make(salvaged.parameters())
    plan = optstate.restore(path, model=salvaged, optimizer=restored, policy=SALVAGE)
    assert "0.weight" in " ".join(plan.warnings)
    fresh = mlp()
    fresh.load_state_dict(model.state_dict())
    runs = [(model, optimizer), (fresh, make(fresh.parameters())), (salvaged, restored)]
    sizes = []
    for each, its_optimizer in runs:
        before = each[0].weight.detach().clone()
        train(each, its_optimizer, 1, 40)
        sizes.append((each[0].weight - before).norm().item())
    assert sizes[2] <= 1.01 * max(sizes[:2]), sizes
    train(salvaged, restored, 2, 41)


def test_a_damaged_weight_keeps_its_live_value(path):
    """It is left out, loudly, and all else comes back."""
    damage(path, "weights/0.weight", "weights/2.weight")
    model, optimizer = adamw(seed=9, steps=2)
    was = model[0].weight.detach().clone()
    plan = optstate.plan(path, model=model, optimizer=optimizer, loader=Counter(), policy=SALVAGE)
    assert [(item.name, item.decision) for item in plan.weights if item.decision != "exact"] == [
        ("0.weight", "left out"),
        ("2.weight", "left out"),
    ]
    assert any("2 weights of the checkpoint cannot be read" in warning for warning in plan.warnings)
    assert not plan.apply().exact
    assert torch.equal(model[0].weight, was)
    assert optimizer.state[model[0].weight]["step"] == 40.0


def test_a_damaged_object_is_left_out(path):
    """It stays as it is, and is listed."""
    damage(path, "objects/loader/value")
    model, optimizer = adamw(seed=9, steps=2)
    loader = Counter()
    plan = optstate.restore(path, model=model, optimizer=optimizer, loader=loader, policy=SALVAGE)
    assert [line.partition(",")[0] for line in plan.left_out] == ["object loader"]
    assert loader.value == 1
    assert not plan.exact


def test_what_a_policy_does_besides_is_done_to_the_rest(path):
    """Scaled and padded slots are so as well where a companion was lost: the lost ones start from zero first."""
    damage(path, "optimizer/2.bias/exp_avg")
    model = mlp(seed=9, width=16)
    optimizer = CLASSES["AdamW"](model.parameters())
    policy = optstate.Policy(damaged="salvage", shape="pad", scale=0.5)
    optstate.restore(path, model=model, optimizer=optimizer, loader=Counter(), policy=policy)
    entry = optimizer.state[model[2].bias]
    assert [entry["step"].item(), entry["exp_avg"].any().item(), entry["exp_avg_sq"].any().item()] == [0, False, False]
    assert optimizer.state[model[2].weight]["exp_avg"].shape == (2, 16)
    assert optimizer.state[model[2].weight]["step"] == 40.0


class Mine(torch.optim.Optimizer):
    """An optimizer that nobody described."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            entry = self.state[parameter]
            entry.setdefault("a", torch.zeros_like(parameter)).add_(parameter.grad)
            entry.setdefault("b", torch.zeros_like(parameter)).add_(1)
            parameter.sub_(entry["a"], alpha=0.01)


def test_of_an_unknown_optimizer_the_whole_entry_goes(tmp_path):
    """What belongs together nobody said: the parameter starts fresh as a whole."""
    model, optimizer = trained(Mine, steps=3)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    damage(path, "optimizer/0.bias/a")
    optstate.restore(path, model=model, optimizer=optimizer, policy=SALVAGE)
    assert model[0].bias not in optimizer.state
    assert set(optimizer.state[model[0].weight]) == {"a", "b"}


class ScheduleFree(torch.optim.Optimizer):
    """What schedule-free AdamW keeps, as its library names it: the group counts the steps of all its parameters."""

    __module__, __qualname__ = "schedulefree.adamw_schedulefree", "AdamWScheduleFree"

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999), "k": 0, "weight_sum": 0.0, "lr_max": -1.0})

    @torch.no_grad()
    def step(self, closure=None):
        self.param_groups[0]["k"] += 1
        for parameter in self.param_groups[0]["params"]:
            entry = self.state[parameter]
            entry.setdefault("z", parameter.clone()).sub_(parameter.grad, alpha=0.1)
            entry.setdefault("exp_avg_sq", torch.zeros_like(parameter)).add_(parameter.grad**2)


def test_what_is_counted_for_a_whole_group_cannot_start_alone(tmp_path):
    """A fresh second moment under a count of many steps would be wrong: a fault that says so, and nothing is changed."""
    model, optimizer = trained(ScheduleFree, steps=3)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    damage(path, "optimizer/0.bias/exp_avg_sq")
    before = fingerprint(model, optimizer)
    with pytest.raises(
        RestoreRefused, match=r"0\.bias: exp_avg_sq cannot be read, and cannot start fresh alone, for k, weight"
    ):
        optstate.restore(path, model=model, optimizer=optimizer, policy=SALVAGE)
    assert fingerprint(model, optimizer) == before


def test_a_file_of_another_program_is_salvaged_by_its_checksums(tmp_path):
    """torch keeps a checksum of each tensor: strict refuses the file, salvage takes what is whole."""
    model, optimizer = adamw()
    file = tmp_path / "theirs.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    momentum = optimizer.state[model[0].weight]["exp_avg"].numpy().tobytes()
    raw = bytearray(file.read_bytes())
    raw[raw.index(momentum) + 5] ^= 1
    file.write_bytes(raw)
    assert zipfile.ZipFile(file).testzip() is not None
    other, fresh = adamw(seed=9, steps=1)
    before = fingerprint(other, fresh)
    with pytest.raises(ReadError):
        optstate.restore(file, model=other, optimizer=fresh)
    assert fingerprint(other, fresh) == before
    plan = optstate.restore(file, model=other, optimizer=fresh, policy=SALVAGE)
    assert {slot.parameter for slot in plan.slots if slot.decision == "fresh"} == {"0.weight"}
    assert fresh.state[other[2].weight]["step"] == 40.0


def test_progress_is_told(path):
    """After each tensor how many bytes are done, up to all of them."""
    model, optimizer = adamw(seed=9, steps=1)
    told = []
    planned(path, live_side(model, optimizer, {}, rng=False), SALVAGE, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1] > 0


def test_a_damaged_weight_without_a_twin_does_not_stop_the_search(path):
    """Renames are looked for by content while planning: what cannot be read is nobody's twin, and the rest is salvaged."""
    damage(path, "weights/0.weight")
    saved, _ = adamw()
    model = nn.ModuleDict({"a": saved[0], "b": saved[2]})
    optimizer = CLASSES["AdamW"](model.parameters())
    policy = optstate.Policy(damaged="salvage", missing="fresh", unexpected="leave")
    plan = optstate.restore(path, model=model, optimizer=optimizer, loader=Counter(), policy=policy)
    decisions = {item.name: item.decision for item in plan.weights}
    assert decisions == {"a.weight": "fresh", "a.bias": "renamed", "b.weight": "renamed", "b.bias": "renamed"}


def test_planning_a_salvage_changes_nothing(path):
    """Reading everything is all that planning does."""
    damage(path, "optimizer/0.weight/exp_avg", "weights/0.bias")
    model, optimizer = adamw(seed=9, steps=1)
    before = fingerprint(model, optimizer)
    str(optstate.plan(path, model=model, optimizer=optimizer, policy=SALVAGE))
    assert fingerprint(model, optimizer) == before


def test_salvage_can_be_reverted(path):
    """A salvaged restore is taken back like any other."""
    damage(path, "optimizer/0.weight/exp_avg", "weights/0.bias")
    model, optimizer = adamw(seed=9, steps=1)
    before = fingerprint(model, optimizer)
    optstate.plan(path, model=model, optimizer=optimizer, policy=SALVAGE).apply().revert()
    assert fingerprint(model, optimizer) == before

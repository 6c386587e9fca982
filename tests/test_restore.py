"""Plans and restores: strict, all or nothing, in place, and honest about what they leave out."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import BindError, Damaged, RestoreError, RestoreFailed, RestoreRefused, StalePlan


def mlp(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def train(model, optimizer, steps=3, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).pow(2).mean().backward()
        optimizer.step()


def fingerprint(*things):
    """Everything that a restore could change, as bytes."""
    buffer = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], buffer)
    return buffer.getvalue()


@pytest.fixture
def saved(tmp_path):
    """A model and AdamW after three steps, and the checkpoint of both."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    return model, optimizer, optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=3)


def same_state(a, b):
    """Whether two live states hold the same bits, dtypes and keys under the same names."""
    if set(a) != set(b):
        return False
    for name, parameter in a.items():
        mine, theirs = parameter.slots, b[name].slots
        if mine.keys() != theirs.keys():
            return False
        for key, slot in mine.items():
            if slot.dtype != theirs[key].dtype or not torch.equal(slot.tensor, theirs[key].tensor):
                return False
    return True


def test_a_key_without_a_value_comes_back(saved, tmp_path):
    """Some optimizers ask whether a key is there, so one whose value is None is put back too."""
    model, optimizer, _ = saved
    for parameter in model.parameters():
        optimizer.state[parameter]["correction"] = None
    other = mlp(seed=9)
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-2)
    optstate.restore(optstate.save(tmp_path / "none", model=model, optimizer=optimizer), model=other, optimizer=fresh)
    assert [list(fresh.state[parameter]) for parameter in other.parameters()] == [
        list(optimizer.state[parameter]) for parameter in model.parameters()
    ]


def test_what_stands_beside_the_parameters_comes_back(saved, tmp_path):
    """Some optimizers count under a key of their own; an optimizer of another class does not get it."""
    model, optimizer, _ = saved
    beside = {"k": torch.tensor([3]), "averages": {"short": 0.5}, 7: [1, 2]}
    optimizer.state.update(beside)
    path = optstate.save(tmp_path / "beside", model=model, optimizer=optimizer)
    for cls, there in ((torch.optim.AdamW, beside), (torch.optim.NAdam, {})):
        other = mlp(seed=9)
        fresh = cls(other.parameters(), lr=1e-2)
        fresh.state["left over"] = 1
        policy = optstate.Policy(optimizer_change="convert", hyperparameters={"*": "live"}) if not there else None
        plan = optstate.plan(path, model=other, optimizer=fresh, policy=policy)
        plan.apply()
        found = {key: value for key, value in fresh.state.items() if not isinstance(key, torch.Tensor)}
        assert found == (there or {"left over": 1})
        plan.revert()
        assert fresh.state == {"left over": 1}


class Ahead(torch.optim.Optimizer):
    """Wraps another optimizer, whose state is none of its own, and counts in an attribute; all of it is in its state dict."""

    def __init__(self, params):
        self.inner = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        super().__init__(self.inner.param_groups, {})
        self.param_groups, self.count = self.inner.param_groups, 0

    def step(self, closure=None):
        self.inner.step(closure)
        self.count += 1
        if self.count % 2 == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(0.9)

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.count = self.inner.param_groups, state_dict["count"]


def test_an_optimizer_with_a_state_dict_of_its_own_goes_on(tmp_path):
    """What a wrapper keeps in attributes and in what it wraps comes back by its own state dict, where the order is the same."""
    model, other = mlp(), mlp(seed=9)
    optimizer, fresh = Ahead(model.parameters()), Ahead(other.parameters())
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    assert optstate.restore(path, model=other, optimizer=fresh).exact
    train(model, optimizer, start=3)
    train(other, fresh, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    policy = optstate.Policy(hyperparameters={"lr": "live", "*": "saved"})
    slower = Ahead(other.parameters())
    slower.param_groups[0]["lr"] = 0.01
    optstate.restore(path, model=other, optimizer=slower, policy=policy)
    assert (slower.param_groups[0]["lr"], slower.count) == (0.01, 3)
    with pytest.raises(RestoreRefused, match="scale has no effect"):
        optstate.restore(path, model=other, optimizer=slower, policy=optstate.Policy(scale=0.5))
    reordered = Ahead(list(other.parameters())[::-1])
    plan = optstate.restore(path, model=other, optimizer=reordered)
    assert (plan.exact, reordered.count) == (False, 0)
    assert "parameters stand in another order" in plan.left_out[0]


def test_a_restore_puts_back_every_bit_by_name(saved):
    """Into a program whose optimizer has another order, each parameter gets its own state."""
    model, optimizer, path = saved
    other = mlp(seed=9)
    reordered = torch.optim.AdamW(list(other.parameters())[::-1], lr=1e-2)
    plan = optstate.restore(path, model=other, optimizer=reordered)
    assert plan.exact
    assert plan.step == 3
    assert same_state(optstate.attach(optimizer, model), optstate.attach(reordered, other))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_restored_slots_lie_where_torch_would_put_them(saved, tmp_path):
    """New slots start at 64 bytes, as torch's own do: libraries may add in another order for memory elsewhere."""
    model, optimizer, path = saved
    torch.save({"optimizer": optstate.named_state_dict(optimizer, model)}, tmp_path / "named.pt")
    for source in (path, tmp_path / "named.pt", optstate.attach(optimizer, model)):
        fresh = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optstate.restore(source, model=model, optimizer=fresh)
        slots = [value for entry in fresh.state.values() for value in entry.values()]
        assert {slot.data_ptr() % 64 for slot in slots} == {0}


def test_a_restore_writes_in_place(saved):
    """Storage of weights and of slots that were there stays the same, so nobody who shares it is left behind."""
    model, optimizer, path = saved
    places = [p.data_ptr() for p in model.parameters()]
    slots = [optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()]
    group = optimizer.param_groups[0]
    train(model, optimizer)
    optstate.restore(path, model=model, optimizer=optimizer)
    assert places == [p.data_ptr() for p in model.parameters()]
    assert slots == [optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()]
    assert optimizer.param_groups[0] is group


def test_planning_touches_nothing(saved):
    """A plan only looks, however often it is printed."""
    _, _, path = saved
    other = mlp(seed=9)
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-2)
    before = fingerprint(other, fresh)
    plan = optstate.plan(path, model=other, optimizer=fresh)
    assert "exact: everything in the checkpoint, bit for bit" in str(plan)
    assert "<table>" in plan._repr_html_()
    assert fingerprint(other, fresh) == before
    assert len(fresh.state) == 0


def test_the_plan_prints_each_parameter_and_slot(saved):
    """What happens to each weight and slot can be read before it happens."""
    model, optimizer, path = saved
    text = optstate.plan(path, model=model, optimizer=optimizer).table().text()
    for name, _ in model.named_parameters():
        assert any(line.split()[:2] == [name, "exact"] for line in text.splitlines())
    assert "exact: step, exp_avg, exp_avg_sq" in text


def test_all_faults_come_at_once_and_nothing_changes(saved):
    """A model of another width and another optimizer: one error with every reason, live objects untouched."""
    _, _, path = saved
    other = mlp(width=16)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    train(other, sgd)
    before = fingerprint(other, sgd)
    with pytest.raises(RestoreRefused, match="does not fit") as caught:
        optstate.restore(path, model=other, optimizer=sgd)
    faults = "\n".join(caught.value.faults)
    assert "state of AdamW in the checkpoint, SGD live" in faults
    for name in ("0.weight", "0.bias", "2.weight"):
        assert f"{name}: shape" in faults
    assert fingerprint(other, sgd) == before


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda model, arguments: arguments.update(amsgrad=True), "amsgrad is False in the checkpoint and True live"),
        (lambda model, arguments: arguments.update(maximize=True), "maximize is False in the checkpoint and True live"),
        (lambda model, arguments: model.bfloat16(), "float32 in the checkpoint, bfloat16"),
        (
            lambda model, arguments: model.append(nn.Linear(2, 2)),
            "no state in the checkpoint for 2 parameters: 3.weight",
        ),
        (
            lambda model, arguments: model.pop(2),
            "state in the checkpoint for 2 parameters that no live optimizer steps",
        ),
    ],
)
def test_each_misfit_is_a_fault(saved, change, fault):
    """What would continue as another run is refused and said."""
    _, _, path = saved
    model, arguments = mlp(), {"lr": 1e-2}
    change(model, arguments)
    optimizer = torch.optim.AdamW(model.parameters(), **arguments)
    with pytest.raises(RestoreRefused) as caught:
        optstate.restore(path, model=model, optimizer=optimizer)
    assert any(fault in line for line in caught.value.faults), caught.value.faults


def test_a_damaged_checkpoint_is_found_before_anything_is_written(saved):
    """Every digest is verified first: the last tensor of the file being wrong protects the first live one."""
    model, optimizer, path = saved
    train(model, optimizer)
    before = fingerprint(model, optimizer)
    largest = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[-1] ^= 1
    largest.write_bytes(raw)
    with pytest.raises(Damaged):
        optstate.restore(path, model=model, optimizer=optimizer)
    assert fingerprint(model, optimizer) == before


class Faulty:
    """An object that takes everything except a restore."""

    def __init__(self, value: object = 1):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        raise RuntimeError("no room")


class Counter(Faulty):
    """An object that restores as it should."""

    def load_state_dict(self, state):
        self.value = state["value"]


def test_a_failure_while_writing_is_undone(tmp_path):
    """When an object refuses its state, weights, slots, hyperparameters and earlier objects are put back."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    counter, faulty = Counter(), Faulty()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, counter=counter, faulty=faulty)
    train(model, optimizer)
    counter.value = 2
    optimizer.param_groups[0]["lr"] = 0.5
    late = next(model.parameters())
    del optimizer.state[late]  # so that the restore also creates an entry
    before = fingerprint(model, optimizer)
    with pytest.raises(RestoreFailed, match=r"undone: RuntimeError: no room(.|\n)*as it was before"):
        optstate.restore(path, model=model, optimizer=optimizer, counter=counter, faulty=faulty)
    assert fingerprint(model, optimizer) == before
    assert late not in optimizer.state
    assert counter.value == 2


def test_an_interrupt_while_writing_is_undone_and_stays_one(tmp_path):
    """Ctrl-C during a restore leaves everything as it was, and is not turned into another error."""

    class Interrupted(Faulty):
        def load_state_dict(self, state):
            raise KeyboardInterrupt

    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    last = Interrupted()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, last=last)
    train(model, optimizer)
    before = fingerprint(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        optstate.restore(path, model=model, optimizer=optimizer, last=last)
    assert fingerprint(model, optimizer) == before


def test_a_stale_plan_is_refused(saved):
    """A plan made before the optimizer was rebuilt does not write into the wrong one."""
    model, optimizer, path = saved
    plan = optstate.plan(path, model=model, optimizer=optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(StalePlan, match="another than when this plan was made: the param groups"):
        plan.apply()


def test_saved_moments_keep_their_dtype(tmp_path):
    """float32 moments of bfloat16 parameters come back as float32, where torch's own load rounds them."""
    model = mlp().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.rand(parameter.shape),
            "exp_avg_sq": torch.rand(parameter.shape),
        }
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    fresh = torch.optim.AdamW(model.parameters())
    optstate.restore(path, model=model, optimizer=fresh)
    assert same_state(optstate.attach(optimizer, model), optstate.attach(fresh, model))
    rounded = torch.optim.AdamW(model.parameters())
    rounded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not same_state(optstate.attach(optimizer, model), optstate.attach(rounded, model))


def test_implementation_flags_stay_live_and_are_printed(saved):
    """`foreach` belongs to the program that runs, and the plan says that it stays."""
    _, _, path = saved
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
    plan = optstate.restore(path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["foreach"] is True
    assert "foreach stays True" in str(plan)
    assert not plan.exact


def test_a_changed_learning_rate_is_printed_and_warned_about(saved):
    """The saved value wins; when no scheduler explains the change, the plan warns with its code."""
    _, _, path = saved
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    plan = optstate.restore(path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert "lr 0.5 → 0.01 (saved)" in str(plan)
    assert [warning[:4] for warning in plan.warnings] == ["M401"]


def test_a_restored_scheduler_explains_the_learning_rate(tmp_path):
    """With the scheduler restored as well there is nothing to warn about, and its next step is the same."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer)
    scheduler.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    fresh = torch.optim.AdamW(model.parameters(), lr=0.1)
    again = torch.optim.lr_scheduler.ExponentialLR(fresh, 0.5)
    plan = optstate.restore(path, model=model, optimizer=fresh, scheduler=again)
    assert plan.warnings == []
    fresh.step()
    again.step()
    assert fresh.param_groups[0]["lr"] == 0.1 * 0.5 * 0.5


def test_a_scheduler_of_another_optimizer_is_noticed(saved):
    """A scheduler that drives a dead optimizer would never change the live one."""
    model, optimizer, _ = saved
    scheduler = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
    path = saved[2].with_name("with-scheduler")
    optstate.save(path, model=model, optimizer=optimizer, scheduler=scheduler)
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert any(warning.startswith("M407") for warning in plan.warnings)


def tied(order):
    """Two modules that share a weight; whichever is registered first gives it its name."""
    parts = {"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)}
    parts["head"].weight = parts["embed"].weight
    return nn.ModuleDict({name: parts[name] for name in order})


def test_a_tied_weight_is_found_under_either_name(tmp_path):
    """Reordering the modules renames a tied weight; its state follows."""
    model = tied(["embed", "head"])
    optimizer = torch.optim.AdamW(model.parameters())
    model["head"](model["embed"](torch.arange(5))).sum().backward()
    optimizer.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    other = tied(["head", "embed"])
    fresh = torch.optim.AdamW(other.parameters())
    assert list(optstate.attach(fresh, other)) == ["head.weight"]
    assert optstate.restore(path, model=other, optimizer=fresh).exact
    weights = other["head"].weight, model["head"].weight
    assert torch.equal(*weights)
    assert torch.equal(fresh.state[weights[0]]["exp_avg"], optimizer.state[weights[1]]["exp_avg"])


def test_another_number_of_optimizers_is_a_fault_that_names_them(tmp_path):
    """Two optimizers were saved and one is live: the fault says which, and what one without a name is."""
    model = mlp()
    pair = {"first": torch.optim.AdamW(model[0].parameters()), "last": torch.optim.AdamW(model[2].parameters())}
    path = optstate.save(tmp_path / "ck", model=model, optimizer=pair)
    with pytest.raises(
        RestoreRefused, match="optimizers first, last in the checkpoint, one optimizer without a name live"
    ):
        optstate.restore(path, model=model, optimizer=torch.optim.AdamW(model.parameters()))


def test_tying_or_untying_weights_is_a_fault(tmp_path):
    """One tensor here and two there is another model, in either direction."""
    one, two = tied(["embed", "head"]), tied(["embed", "head"])
    two["head"].weight = nn.Parameter(torch.randn(5, 4))
    paths = [
        optstate.save(
            tmp_path / str(len(list(model.parameters()))), model=model, optimizer=torch.optim.AdamW(model.parameters())
        )
        for model in (one, two)
    ]
    with pytest.raises(RestoreRefused, match=r"are one tensor in the checkpoint \(embed.weight\) and two live"):
        optstate.restore(paths[0], model=two)
    with pytest.raises(RestoreRefused, match="are one tensor live and differ in the checkpoint"):
        optstate.restore(paths[1], model=one)


def test_extra_state_of_modules_comes_back(tmp_path):
    """What a module keeps through `get_extra_state` is part of the model."""

    class Memory(nn.Linear):
        seen = 0

        def get_extra_state(self):
            return {"seen": self.seen}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    memory, other = Memory(2, 2), Memory(2, 2)
    memory.seen = 7
    path = optstate.save(tmp_path / "ck", model=nn.Sequential(memory))
    assert optstate.restore(path, model=nn.Sequential(other)).exact
    assert other.seen == 7


def test_an_object_of_another_class_is_a_fault(tmp_path):
    """The state of one scheduler means nothing to another."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    schedulers = torch.optim.lr_scheduler
    path = optstate.save(tmp_path / "ck", model=model, scheduler=schedulers.ExponentialLR(optimizer, 0.5))
    with pytest.raises(RestoreRefused, match="ExponentialLR in the checkpoint, a .*StepLR live"):
        optstate.restore(path, model=model, scheduler=schedulers.StepLR(optimizer, 3))


def test_groups_in_another_order_take_their_schedule_along(tmp_path):
    """A scheduler keeps one value per group by position: its lists follow the groups that the parameters are in."""
    model = mlp()

    def build(order):
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
        optimizer = torch.optim.AdamW(groups[::order])
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    optimizer, scheduler = build(1)
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    optimizer, scheduler = build(-1)
    assert optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler).exact
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1] == scheduler.base_lrs


def test_groups_that_merge_must_agree(tmp_path):
    """Two saved groups into one live group: fine where their values agree, a fault that names the key where not."""
    model = mlp()
    halves = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW(halves)
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    one = torch.optim.AdamW(model.parameters())
    with pytest.raises(RestoreRefused, match=r"2 saved groups that differ in weight_decay \(0\.01 of 0.*; 0\.5 of 2"):
        optstate.restore(path, model=model, optimizer=one)
    optimizer.param_groups[1]["weight_decay"] = 0.01
    path = optstate.save(tmp_path / "ck2", model=model, optimizer=optimizer)
    optstate.restore(path, model=model, optimizer=one)
    assert same_state(optstate.attach(optimizer, model), optstate.attach(one, model))


def test_a_saved_optimizer_that_never_stepped_restores_as_fresh(tmp_path):
    """State that did not exist is put back as not existing: live entries are removed."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    train(model, optimizer)
    plan = optstate.restore(path, model=model, optimizer=optimizer)
    assert len(optimizer.state) == 0
    assert "fresh: " in plan.table().text()


def test_lbfgs_in_another_order_is_refused(tmp_path):
    """Its history is one vector over all parameters: in another order it means nothing."""
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    reordered = torch.optim.LBFGS(list(model.parameters())[::-1], max_iter=2)
    with pytest.raises(RestoreRefused, match="one history over all parameters in their order"):
        optstate.restore(path, model=model, optimizer=reordered)


def test_a_foreign_file_without_optimizer_state_is_refused(tmp_path):
    """A checkpoint with no momentum in it does not resume without a word."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "early.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for name, fault in (("early.pt", "is empty for all 4 parameters"), ("weights.pt", "no optimizer state at all")):
        with pytest.raises(RestoreRefused, match=f"1 fault.*\n.*{fault}"):
            optstate.restore(tmp_path / name, model=model, optimizer=optimizer)


def test_a_foreign_file_by_position_is_refused_with_one_reason(tmp_path):
    """Equal shapes and no names: nothing says which momentum is whose, and guessing would be silent damage."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(list(model.parameters())[::-1])
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    with pytest.raises(RestoreRefused, match=r"1 fault(.|\n)*which of 4 parameters is which"):
        optstate.restore(tmp_path / "both.pt", model=model, optimizer=optimizer)


def test_a_foreign_file_with_recorded_names_restores_by_them(tmp_path):
    """torch's recorded names are used, and the plan warns that they are evidence and not proof."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "named.pt")
    other = mlp(seed=5)
    fresh = torch.optim.AdamW(list(other.named_parameters())[::-1], lr=1e-2)
    plan = optstate.restore(tmp_path / "named.pt", model=other, optimizer=fresh)
    assert same_state(optstate.attach(optimizer, model), optstate.attach(fresh, other))
    assert any("param_names" in warning for warning in plan.warnings)


@pytest.mark.parametrize("source", ["dict", "file", "live", "snapshot", "opened"])
def test_every_kind_of_source_restores_the_same(saved, tmp_path, source):
    """A by-name dict, its file, a live state, a snapshot and an opened checkpoint all lead to the same state."""
    model, optimizer, path = saved
    named = optstate.named_state_dict(optimizer, model)
    torch.save(named, tmp_path / "named.pt")
    state = optstate.attach(optimizer, model)
    origin = {
        "dict": lambda: named,
        "file": lambda: tmp_path / "named.pt",
        "live": lambda: state,
        "snapshot": state.snapshot,
        "opened": lambda: optstate.open(path),
    }[source]()
    fresh = torch.optim.AdamW(list(model.parameters())[::-1], lr=1e-2)
    optstate.restore(origin, model=model, optimizer=fresh)
    assert same_state(state, optstate.attach(fresh, model))
    train(model, fresh)  # what was restored shares nothing with its source
    assert not same_state(state, optstate.attach(fresh, model))


def test_weights_alone_can_be_restored_and_the_rest_is_named(saved):
    """For inference the model alone is enough; the plan says what was left out."""
    model, _, path = saved
    other = mlp(seed=4)
    plan = optstate.restore(path, model=other)
    assert torch.equal(other[0].weight, model[0].weight)
    assert plan.left_out == ["optimizer state (4 parameters)"]
    assert not plan.exact


def test_random_state_comes_back(tmp_path):
    """python, numpy and torch go on with the numbers that they would have drawn."""
    import random

    import numpy as np

    model = mlp()
    path = optstate.save(tmp_path / "ck", model=model, rng=True)
    expected = (random.random(), np.random.rand(), torch.rand(3))
    optstate.restore(path, model=model, rng=True)
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert expected[:2] == again[:2]
    assert torch.equal(expected[2], again[2])


def test_memory_format_comes_back(tmp_path):
    """A channels-last weight and its moments are restored with their strides, whatever is live."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    fresh = torch.optim.AdamW(model.parameters())
    optstate.restore(path, model=model, optimizer=fresh)
    after = fresh.state[model[0].weight]["exp_avg"]
    assert torch.equal(before, after)
    assert before.stride() == after.stride() != torch.empty(after.shape).stride()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, BindError, "nothing to restore into"),
        ({"optimizer": "adam"}, BindError, "without its model"),
        ({"model": "adam"}, BindError, "not a model"),
        ({"model": "self", "scheduler": 3}, BindError, "scheduler cannot be restored into"),
    ],
)
def test_wrong_arguments(saved, arguments, error, message):
    """Mix-ups are answered before a file is opened."""
    if arguments.get("model") == "self":
        arguments = {**arguments, "model": saved[0]}
    with pytest.raises(error, match=message):
        optstate.restore(saved[2], **arguments)


def test_a_plain_dict_is_no_source(saved):
    """`torch.load(...)` passed straight in gets an answer that helps."""
    model, optimizer, _ = saved
    with pytest.raises(RestoreError, match=r"nothing to restore from(.|\n)*pass the path"):
        optstate.restore({"model": model.state_dict()}, model=model, optimizer=optimizer)


def test_objects_that_were_not_saved_or_not_asked_for(tmp_path):
    """Asking for an object that is not there is a fault; one that nobody asked for is left out and named."""
    model, counter = mlp(), Counter()
    path = optstate.save(tmp_path / "ck", model=model, counter=counter)
    with pytest.raises(RestoreRefused, match="loader: not among the objects of the checkpoint"):
        optstate.restore(path, model=model, loader=counter)
    assert optstate.restore(path, model=model).left_out == ["objects counter"]

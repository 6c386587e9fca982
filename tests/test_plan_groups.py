"""Groups in a plan: matched by whose parameters they hold, with the hyperparameters that a policy asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optstate
from optstate import Policy
from optstate.errors import PolicyError, RestoreRefused


class Net(nn.Module):
    """Three layers, named."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(3, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)


def train(model, optimizer, steps=2):
    for number in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 + number)
        optimizer.step()


def groups_of(model, *values):
    layers = [model.encoder, model.middle, model.head]
    return [{"params": [*layer.parameters()], **each} for layer, each in zip(layers, values, strict=True)]


@pytest.fixture
def saved(tmp_path):
    """AdamW with one group for each layer."""
    model = Net()
    groups = groups_of(model, {"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.2}, {"lr": 0.3, "betas": (0.8, 0.95)})
    optimizer = torch.optim.AdamW(groups)
    train(model, optimizer)
    return optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)


def value(optimizer, key):
    return [group[key] for group in optimizer.param_groups]


def everything(optimizer):
    return repr(optimizer.state_dict()["param_groups"])


def test_each_group_gets_what_its_parameters_had(saved):
    """Reordered and regrouped parameters: values follow names, never positions."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {})[::-1])
    assert optstate.restore(saved, model=model, optimizer=optimizer).exact
    assert value(optimizer, "lr") == [0.3, 0.1, 0.1]
    assert value(optimizer, "weight_decay") == [0.01, 0.2, 0.01]
    assert value(optimizer, "betas") == [(0.8, 0.95), (0.9, 0.999), (0.9, 0.999)]


def test_one_group_becomes_two(tmp_path):
    """The halves of a group have its values; the state is exact."""
    model = Net()
    one = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    train(model, one)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=one)
    split = torch.optim.AdamW(groups_of(model, {}, {"lr": 5.0}, {}))
    plan = optstate.restore(path, model=model, optimizer=split)
    assert plan.exact
    assert (value(split, "lr"), value(split, "weight_decay")) == ([0.1] * 3, [0.3] * 3)


def test_by_name_each_hyperparameter_is_live_saved_or_a_value(saved):
    """One policy for all groups: what it does not name goes by `*`."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {}), lr=7.0, weight_decay=0.9, eps=1e-6)
    words = {"lr": "live", "weight_decay": 0.5, "betas[1]": 0.99, "*": "saved"}
    plan = optstate.restore(saved, model=model, optimizer=optimizer, policy=Policy(hyperparameters=words))
    assert value(optimizer, "lr") == [7.0] * 3
    assert value(optimizer, "weight_decay") == [0.5] * 3
    assert value(optimizer, "betas") == [(0.9, 0.99), (0.9, 0.99), (0.8, 0.99)]
    assert value(optimizer, "eps") == [1e-8] * 3
    assert not plan.exact
    winners = {item.key: item.winner for item in plan.hyperparameters if item.group == 0}
    assert [winners[key] for key in ("lr", "weight_decay", "betas", "eps")] == ["live", "given", "given", "saved"]


def test_everything_can_stay_live(saved):
    """With `*` live nothing is written to a group, and that is no warning."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {"lr": 4.0}), lr=7.0)
    before = everything(optimizer)
    plan = optstate.restore(saved, model=model, optimizer=optimizer, policy=Policy(hyperparameters={"*": "live"}))
    assert value(optimizer, "lr") == [7.0, 7.0, 4.0]
    assert everything(optimizer) == before
    assert plan.warnings == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"weight_decy": "live"}, r"no group has a hyperparameter 'weight_decy'; did you mean 'weight_decay'\?"),
        ({"betas[2]": 0.9}, r"no group has an item 'betas\[2\]'"),
        ({"lr[0]": 0.9}, r"no group has an item 'lr\[0\]'"),
        ({"lr": -1.0}, r"lr would be -1"),
        ({"lr": "fast"}, r"lr cannot become fast"),
        ({"lr": True}, r"lr cannot become True"),
        ({"betas": 0.9}, r"betas cannot become 0.9"),
        ({"betas": (0.9, 0.99, 0.999)}, r"betas cannot become"),
        ({"betas[0]": 1.5}, r"betas\[0\] would be 1.5"),
        ({"fused": True}, r"fused belongs to the program that runs"),
        ({"foreach": "saved"}, r"foreach belongs to the program that runs"),
    ],
)
def test_a_policy_that_means_nothing_is_an_error(saved, words, said):
    """A name that no group has, a value that it cannot have: said before anything is planned, nothing is touched."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {}))
    before = everything(optimizer)
    with pytest.raises(PolicyError, match=said):
        optstate.plan(saved, model=model, optimizer=optimizer, policy=Policy(hyperparameters=words))
    assert everything(optimizer) == before


# --- saved values that collide -------------------------------------------------------------------------------


def test_two_saved_values_for_one_group_are_a_fault_that_names_the_ways(saved):
    """Both values, whose they are, and what a policy may say."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    plan = optstate.plan(saved, model=model, optimizer=optimizer)
    fault = next(fault for fault in plan.faults if "weight_decay" in fault)
    assert "3 saved groups that differ in weight_decay (0.01 of encoder.weight, encoder.bias; 0.2 of middle" in fault
    assert 'hyperparameters={"weight_decay": "live"} or a value, or overrides={' in fault
    assert {word for fault in plan.faults for word in fault.split() if word in ("lr", "betas", "weight_decay")} == {
        "lr",
        "betas",
        "weight_decay",
    }


def test_the_policy_settles_a_collision(saved):
    """Live, a value, or both by parameter: and the plan says what became of the saved values."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.7)
    policy = Policy(
        hyperparameters={"lr": "live", "weight_decay": 0.4, "betas": "saved"},
        overrides={"head.*": {"betas": (0.5, 0.6)}},
    )
    plan = optstate.restore(saved, model=model, optimizer=optimizer, policy=policy)
    assert value(optimizer, "lr") == [0.7, 0.7]
    assert value(optimizer, "weight_decay") == [0.4, 0.4]
    assert value(optimizer, "betas") == [(0.9, 0.999), (0.5, 0.6)]
    assert any("weight_decay is 0.4 (given) for parameters from 3 saved groups" in note for note in plan.notes)
    assert any("lr is 0.7 (live) for parameters from 3 saved groups" in note for note in plan.notes)


def test_a_group_of_new_parameters_keeps_its_own_values(tmp_path):
    """Nothing was saved for them; that is said once, and a value that the policy gives is for them too."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {})[:2], lr=0.1)
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    more = torch.optim.AdamW(groups_of(model, {}, {}, {"lr": 9.0, "weight_decay": 0.7}), lr=0.2)
    policy = Policy(missing="fresh", hyperparameters={"eps": 1e-5})
    plan = optstate.restore(path, model=model, optimizer=more, policy=policy)
    assert value(more, "lr") == [0.1, 0.1, 9.0]
    assert value(more, "weight_decay") == [0.01, 0.01, 0.7]
    assert value(more, "eps") == [1e-5] * 3
    notes = [note for note in plan.notes if "group 2 has no parameter of the checkpoint" in note]
    assert len(notes) == 1


# --- flags -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["live", "saved", True])
def test_a_flag_of_the_algorithm_differs_only_when_the_policy_names_it(tmp_path, word):
    """`maximize` turns the direction of each step: a strict fault, until a policy says whose counts."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    again = torch.optim.AdamW(model.parameters(), maximize=True)
    for words in ({}, {"*": "live"}):
        with pytest.raises(RestoreRefused, match=r"maximize is False in the checkpoint and True live(.|\n)*hyperparam"):
            optstate.restore(path, model=model, optimizer=again, policy=Policy(hyperparameters=words))
    policy = Policy(hyperparameters={"maximize": word})
    plan = optstate.plan(path, model=model, optimizer=again, policy=policy)
    assert not any("maximize is False" in fault for fault in plan.faults)
    assert plan.hyperparameters[[item.key for item in plan.hyperparameters].index("maximize")].value is (
        word != "saved"
    )


def test_another_class_keeps_what_its_own_groups_have(tmp_path):
    """From Adam to AdamW: its way of decay and the keys of SGD do not come along, the shared values do."""
    model = Net()
    adam = torch.optim.Adam(model.parameters(), lr=0.4, weight_decay=0.3)
    train(model, adam)
    path = optstate.save(tmp_path / "adam", model=model, optimizer=adam)
    adamw = torch.optim.AdamW(model.parameters())
    plan = optstate.plan(path, model=model, optimizer=adamw, policy=Policy(optimizer_change="convert"))
    planned = {item.key: item.value for item in plan.hyperparameters}
    assert (planned["lr"], planned["weight_decay"], planned["decoupled_weight_decay"]) == (0.4, 0.3, True)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, sgd)
    path = optstate.save(tmp_path / "sgd", model=model, optimizer=sgd)
    plan = optstate.plan(path, model=model, optimizer=adamw, policy=Policy(optimizer_change="convert"))
    assert {"momentum", "dampening", "nesterov"}.isdisjoint(item.key for item in plan.hyperparameters)


def test_a_new_rate_comes_late_where_the_slots_hold_it(tmp_path):
    """ASGD steps by its slot `eta`: the next update still has the saved rate, which is said (M418)."""
    model = Net()
    optimizer = torch.optim.ASGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    again = torch.optim.ASGD(model.parameters(), lr=0.5)
    policy = Policy(hyperparameters={"lr": "live"})
    plan = optstate.plan(path, model=model, optimizer=again, policy=policy)
    assert [warning[:4] for warning in plan.warnings] == ["M418"]
    assert optstate.plan(path, model=model, optimizer=optimizer, policy=policy).warnings == []


# --- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_regroup_when_all_else_is_restored(saved):
    """No decay for biases, whatever was saved: groups split, the state stays exact, and the plan said so."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {}))
    plan = optstate.plan(
        saved, model=model, optimizer=optimizer, policy=Policy(overrides={"*.bias": {"weight_decay": 0.0}})
    )
    assert "overrides: 5 groups then, of 1, 1, 1, 2, 1 parameters" in plan.notes
    assert len(optimizer.param_groups) == 3
    plan.apply()
    state = optstate.attach(optimizer, model)
    decays = {name: group.hyperparameters["weight_decay"] for group in state.groups for name in group.parameters}
    assert {name: decays[name] for name in decays if name.endswith("bias")} == dict.fromkeys(
        ["encoder.bias", "middle.bias", "head.bias"], 0.0
    )
    assert decays["middle.weight"] == 0.2
    assert not plan.exact
    train(model, optimizer)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"*.bais": {"weight_decay": 0.0}}, r"'\*\.bais' matches nothing(.|\n)*did you mean '\*\.bias'"),
        ({"*.bias": {"weight_decy": 0.0}}, r"no hyperparameter 'weight_decy'(.|\n)*did you mean 'weight_decay'"),
        ({"*.bias": {"weight_decay": -1.0}}, r"weight_decay would be -1"),
        ({"*.bias": {"weight_decay": "live"}}, r"overrides give values, and 'live' is none"),
        ({"*.bias": {"eps": 0.1}, "head.*": {"eps": 0.2}}, r"two patterns ask for another eps of head\.bias"),
    ],
)
def test_overrides_that_mean_nothing_are_errors(saved, overrides, said):
    """A pattern or a name that nothing has, a value that cannot be, and two patterns that clash."""
    model = Net()
    optimizer = torch.optim.AdamW(groups_of(model, {}, {}, {}))
    before = everything(optimizer)
    with pytest.raises(PolicyError, match=said):
        optstate.plan(saved, model=model, optimizer=optimizer, policy=Policy(overrides=overrides))
    assert everything(optimizer) == before


def test_an_override_that_asks_for_a_slot_nobody_made_is_refused(tmp_path):
    """RMSprop with momentum looks for a buffer at its next step: found while planning, not then."""
    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters())
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    with pytest.raises(PolicyError, match=r"momentum cannot become 0\.9(.|\n)*encoder\.weight(.|\n)*momentum_buffer"):
        optstate.plan(path, model=model, optimizer=optimizer, policy=Policy(overrides={"*.weight": {"momentum": 0.9}}))


class Faulty:
    """An object that is restored only when told so."""

    def __init__(self):
        self.fails = False

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        if self.fails:
            raise RuntimeError("no room")


def test_what_fails_leaves_groups_as_they_were(tmp_path):
    """When an object raises, hyperparameters and groups are put back; so does reverting a plan with overrides."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer)
    faulty = Faulty()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, faulty=faulty)
    optimizer.param_groups[0]["lr"] = 0.7
    before = everything(optimizer), [id(group) for group in optimizer.param_groups]
    policy = Policy(overrides={"*.bias": {"weight_decay": 0.0}}, hyperparameters={"eps": 1e-3})
    faulty.fails = True
    with pytest.raises(optstate.errors.RestoreFailed, match="as it was before"):
        optstate.restore(path, model=model, optimizer=optimizer, faulty=faulty, policy=policy)
    assert (everything(optimizer), [id(group) for group in optimizer.param_groups]) == before
    faulty.fails = False
    plan = optstate.plan(path, model=model, optimizer=optimizer, faulty=faulty, policy=policy).apply()
    assert value(optimizer, "weight_decay") == [0.01, 0.0]
    plan.revert()
    assert (everything(optimizer), [id(group) for group in optimizer.param_groups]) == before


# --- tensors among the hyperparameters -----------------------------------------------------------------------------


def test_tensors_are_written_in_place(tmp_path):
    """A rate and betas that are tensors stay the very tensors, for compiled steps hold on to them."""
    model = Net()

    def build(rate, betas):
        return torch.optim.Adam(
            model.parameters(), lr=torch.tensor(rate), betas=tuple(map(torch.tensor, betas)), foreach=False
        )

    optimizer = build(0.1, (0.8, 0.9))
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    for words, rate in (({}, 0.1), ({"lr": 0.4, "betas[1]": 0.95}, 0.4)):
        again = build(0.3, (0.5, 0.6))
        group = again.param_groups[0]
        held = group["lr"], *group["betas"]
        optstate.restore(path, model=model, optimizer=again, policy=Policy(hyperparameters=words))
        assert all(one is other for one, other in zip(held, (group["lr"], *group["betas"]), strict=True))
        assert torch.equal(held[0], torch.tensor(rate))
        assert torch.equal(held[1], torch.tensor(0.8))
        assert torch.equal(held[2], torch.tensor(0.95 if words else 0.9))


def test_groups_that_share_a_tensor_part_where_they_must(tmp_path):
    """torch gives every group the very tensor that it was given: different saved rates do not overwrite each other."""
    model = Net()
    rates = [torch.tensor(0.1), torch.tensor(0.2), torch.tensor(0.2)]
    optimizer = torch.optim.Adam(groups_of(model, *({"lr": rate} for rate in rates)), foreach=False)
    train(model, optimizer)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    shared = torch.tensor(0.5)
    again = torch.optim.Adam(groups_of(model, {}, {}, {}), lr=shared, foreach=False)
    assert value(again, "lr")[0] is shared is value(again, "lr")[2]
    plan = optstate.plan(path, model=model, optimizer=again).apply()
    assert [float(rate) for rate in value(again, "lr")] == [float(rate) for rate in rates]
    plan.revert()
    assert value(again, "lr")[0] is shared is value(again, "lr")[2]
    assert float(shared) == 0.5
    optstate.restore(path, model=model, optimizer=again, policy=Policy(hyperparameters={"lr": 0.25}))
    assert value(again, "lr")[0] is shared is value(again, "lr")[2]
    assert float(shared) == 0.25

"""A running optimizer as named state: names by identity, a view that follows, and no side effect at all."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import BindError, MissingSlot, NoSuchParameter
from optstate.live.source import NOT_IN_MODEL, NOT_OPTIMIZED
from optstate.state.absence import Absence


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def train(model, *optimizers, steps=2):
    for step in range(steps):
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(5, 4)).pow(2).mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.fixture
def model():
    return mlp()


@pytest.fixture
def adam(model):
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    return optimizer


def test_names_come_from_identity_not_from_position(model):
    """An optimizer built in any order has the names of the model, each with its own tensor."""
    optimizer = torch.optim.AdamW(list(model.parameters())[::-1])
    train(model, optimizer)
    state = optstate.attach(optimizer, model)
    assert list(state) == ["2.bias", "2.weight", "0.bias", "0.weight"]
    for name, tensor in model.named_parameters():
        assert state[name].momentum.tensor is optimizer.state[tensor]["exp_avg"]
        assert state[name].facts.certainty == "identity"


def test_names_ignore_what_torch_recorded(model):
    """After a load in another order `param_names` lie; identity does not."""
    saved = torch.optim.AdamW(list(model.named_parameters())[::-1]).state_dict()
    optimizer = torch.optim.AdamW(model.named_parameters())
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["param_names"][0] == "2.bias"  # the lie
    assert list(optstate.attach(optimizer, model)) == [name for name, _ in model.named_parameters()]


def test_the_slot_is_the_live_buffer(model, adam):
    """Writing through a slot is writing into the optimizer."""
    slot = optstate.attach(adam, model)["0.weight"].momentum
    slot.tensor.zero_()
    assert not adam.state[model[0].weight]["exp_avg"].any()


def test_attaching_and_looking_change_nothing(model):
    """No dummy step, no entry in the state, no gradient, no random number drawn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = copy.deepcopy((optimizer.state_dict(), model.state_dict(), torch.get_rng_state()))
    state = optstate.attach(optimizer, model)
    str(state), state._repr_html_(), state.snapshot(), state.select("*"), optstate.named_state_dict(optimizer, model)
    for parameter in state.values():
        str(parameter)
        with pytest.raises(MissingSlot, match="has not stepped yet"):
            _ = parameter.momentum
    assert len(optimizer.state) == 0
    assert optimizer.state_dict() == before[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[1].values(), strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(tensor.grad is None for tensor in model.parameters())


def test_a_state_follows_its_optimizer(model):
    """First step, load, added group and replaced module are all seen by the same view."""
    optimizer = torch.optim.AdamW(model[0].parameters())
    state = optstate.attach(optimizer, model)
    assert len(state) == 2
    assert state.left_out[NOT_OPTIMIZED] == ["2.weight", "2.bias"]

    parameter = state["0.weight"]
    slot_before = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer)
    assert parameter.step.item() == 2.0

    optimizer.add_param_group({"params": list(model[2].parameters()), "weight_decay": 0.0})
    assert len(state) == 4
    assert state["2.bias"].facts.group == 1

    optimizer.param_groups.pop()
    optimizer.load_state_dict(slot_before)
    assert parameter.slots == {}

    model[0] = nn.Linear(4, 8)
    with pytest.raises(NoSuchParameter):
        _ = state["0.weight"]
    assert list(state) == ["#0", "#1"]


def test_a_slot_follows_a_load(model, adam):
    """A slot that was asked for before a load reads the tensor that is there after it."""
    slot = optstate.attach(adam, model)["0.weight"].momentum
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert slot.tensor is adam.state[model[0].weight]["exp_avg"]
    adam.state.clear()
    with pytest.raises(MissingSlot, match="no longer in the optimizer"):
        _ = slot.tensor


def test_a_state_keeps_no_slot_tensor_alive(model, adam):
    """The view, its parameters and its slots hold no buffer."""
    state = optstate.attach(adam, model)
    held = [parameter.momentum for parameter in state.values()]
    buffer = weakref.ref(adam.state[model[0].weight]["exp_avg"])
    adam.state.clear()
    gc.collect()
    assert buffer() is None
    assert len(held) == 4


def test_a_snapshot_is_frozen(model, adam):
    """Later steps do not reach a snapshot, and its tensors share no memory with the live ones."""
    state = optstate.attach(adam, model)
    frozen = state.snapshot()
    before = frozen["0.weight"].momentum.tensor.clone()
    train(model, adam)
    assert torch.equal(frozen["0.weight"].momentum.tensor, before)
    assert not torch.equal(state["0.weight"].momentum.tensor, before)
    assert frozen.snapshot()["0.weight"].step.item() == 2.0


def test_tied_weights_come_once_with_their_aliases():
    """One tensor under two names is one parameter."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    state = optstate.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert list(state) == ["embed.weight"]
    assert state["embed.weight"].facts.aliases == ("head.weight",)


def test_parameters_of_no_model_are_reported(model):
    """A tensor that the model lost keeps its state under its position, and both sides are named."""
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    model[2] = nn.Linear(8, 2)
    state = optstate.attach(optimizer, model)
    assert state.left_out == {NOT_OPTIMIZED: ["2.weight", "2.bias"], NOT_IN_MODEL: ["#2", "#3"]}
    assert state["#2"].facts.certainty == "position"
    assert state["#2"].momentum.shape == (2, 8)
    assert "in an optimizer, but not in the model: #2, #3" in str(state)


def test_several_optimizers_are_one_state(model):
    """Two optimizers over one model: each parameter says whose it is."""
    muon = torch.optim.Muon([model[0].weight, model[2].weight])
    adamw = torch.optim.AdamW([model[0].bias, model[2].bias])
    train(model, muon, adamw)
    state = optstate.attach({"muon": muon, "adamw": adamw}, model)
    assert state.select(optimizer="muon").names == ("0.weight", "2.weight")
    assert (state["0.weight"].momentum.convention, state["0.bias"].momentum.convention) == ("ema", "ema_debiased")
    assert [group.optimizer for group in state.groups] == ["muon", "adamw"]


def test_one_parameter_in_two_optimizers_is_refused(model):
    """Two optimizers that step the same tensor have no one state of it."""
    pair = {"a": torch.optim.SGD(model.parameters(), lr=0.1), "b": torch.optim.SGD(model[0].parameters(), lr=0.1)}
    with pytest.raises(BindError, match="0.weight is in two optimizers"):
        optstate.attach(pair, model)


def test_a_parameter_twice_in_a_group_is_one(model):
    """torch warns and steps it twice; here it has one name and one place."""
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = torch.optim.SGD([model[0].weight, model[0].weight, model[0].bias], lr=0.1)
    assert list(optstate.attach(optimizer, model)) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda model, optimizer: (model, optimizer), "not an optimizer"),
        (lambda model, optimizer: (optimizer, optimizer), "not a model"),
        (lambda model, optimizer: (optimizer.state_dict(), model), "not an optimizer"),
        (lambda model, optimizer: ({}, model), "mapping of optimizers is empty"),
        (lambda model, optimizer: ({1: optimizer}, model), "named by non-empty strings"),
    ],
)
def test_wrong_arguments_say_what_is_expected(model, adam, arguments, message):
    """The usual mix-ups have an answer."""
    with pytest.raises(BindError, match=message):
        optstate.attach(*arguments(model, adam))


def test_wrappers_are_seen_through_by_type(model, adam):
    """Compiled and parallel models have the names of the model inside, at any depth."""
    names = [name for name, _ in model.named_parameters()]
    assert list(optstate.attach(adam, torch.compile(model, backend="eager"))) == names
    assert list(optstate.attach(adam, nn.DataParallel(model))) == names

    nested = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    assert list(optstate.attach(optimizer, nested)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_distributed_model_has_the_names_of_the_model_inside(model, adam):
    """DistributedDataParallel, really initialised with one process, leaves no trace in the names."""
    distributed = torch.distributed
    store = distributed.HashStore()  # type: ignore[attr-defined]  # there, but not in its __all__
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
        assert list(optstate.attach(adam, parallel)) == [name for name, _ in model.named_parameters()]
        assert list(optstate.named_state_dict(adam, parallel)["state"]) == [
            name for name, _ in model.named_parameters()
        ]
    finally:
        distributed.destroy_process_group()


def test_a_real_submodule_called_module_keeps_its_name():
    """A prefix is stripped because of the wrapper's type, never because of its spelling."""
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    state = optstate.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert list(state) == ["module.weight", "module.bias", "_orig_mod.weight", "_orig_mod.bias"]


def test_a_wrapped_optimizer_is_seen_through(model, adam):
    """An Accelerate-style wrapper is known by its qualified class, and nothing else is guessed."""
    wrapper = type("AcceleratedOptimizer", (), {"__module__": "accelerate.optimizer"})()
    wrapper.optimizer = adam
    assert list(optstate.attach(wrapper, model)) == [name for name, _ in model.named_parameters()]
    stranger = type("Holder", (), {"__module__": "somewhere"})()
    stranger.optimizer = adam
    with pytest.raises(BindError, match="found     a somewhere.Holder"):
        optstate.attach(stranger, model)


def test_a_module_that_contains_itself_ends():
    """torch allows such trees; walking one must stop."""
    model = mlp()
    model.itself = model
    assert len(optstate.attach(torch.optim.SGD(model[0].parameters(), lr=0.1), model)) == 2


def test_reasons_for_absence_on_a_live_optimizer(model):
    """Never stepped, no gradient, frozen, coefficient zero, not kept: each is told apart."""
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, plain)
    absences = optstate.attach(plain, model)["0.weight"].absences
    assert (absences["momentum"], absences["second_moment"]) == (Absence.COEFFICIENT_ZERO, Absence.NOT_KEPT)

    model.unused = nn.Parameter(torch.zeros(2))
    model[2].bias.requires_grad_(False)
    adam = torch.optim.AdamW(model.parameters())
    state = optstate.attach(adam, model)
    assert state["unused"].absences["momentum"] is Absence.NEVER_STEPPED
    model.zero_grad()
    torch.autograd.backward(model[2](model[0](torch.randn(5, 4))).sum())
    adam.step()
    assert state["unused"].absences["momentum"] is Absence.NO_GRADIENT
    assert state["2.bias"].absences["momentum"] is Absence.FROZEN

    adam.param_groups[0]["amsgrad"] = True
    assert state["0.weight"].absences == {"max_second_moment": Absence.DROPPED}


def test_an_unknown_optimizer_is_handled_conservatively(model):
    """A class that nobody described shows its slots by key and claims no meaning."""

    class Odd(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    odd = Odd(model.parameters())
    train(model, odd)
    parameter = optstate.attach(odd, model)["0.weight"]
    assert {slot.role for slot in parameter.slots.values()} == {"other"}
    assert parameter.absences["momentum"] is Absence.UNKNOWN_OPTIMIZER
    with pytest.raises(MissingSlot, match=r"optstate\.register"):
        _ = parameter.momentum


def test_odd_values_in_the_state_can_be_looked_at(model):
    """Lists, bfloat16, sparse and complex slots print; nothing raises."""
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        lbfgs.zero_grad()
        loss = model(torch.ones(2, 4)).pow(2).sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert "old_dirs" in str(optstate.attach(lbfgs, model)["0.weight"])

    for dtype in (torch.bfloat16, torch.complex64):
        weight = nn.ParameterDict({"w": nn.Parameter(torch.ones(3, dtype=dtype))})
        optimizer = torch.optim.Adam(weight.parameters())
        weight["w"].grad = torch.ones(3, dtype=dtype)
        optimizer.step()
        assert "exp_avg" in str(optstate.attach(optimizer, weight))

    embedding = nn.Embedding(4, 2, sparse=True)
    sgd = torch.optim.SGD(embedding.parameters(), lr=0.1, momentum=0.9)
    embedding(torch.tensor([1])).sum().backward()
    sgd.step()
    assert "momentum_buffer" in str(optstate.attach(sgd, embedding))


def test_by_name_dict_shares_nothing_and_survives_safe_loading(model, adam, tmp_path):
    """`named_state_dict` is plain data: weights_only loads it, and later steps do not reach it."""
    named = optstate.named_state_dict(adam, model)
    before = copy.deepcopy(named["state"])
    train(model, adam)
    assert torch.equal(named["state"]["0.weight"]["exp_avg"], before["0.weight"]["exp_avg"])
    torch.save(named, tmp_path / "named.pt")
    loaded = torch.load(tmp_path / "named.pt", weights_only=True)
    assert loaded["optimizers"][""]["class"] == "torch.optim.adamw.AdamW"
    assert loaded["optimizers"][""]["groups"][0]["parameters"] == list(loaded["state"])


class Around(torch.optim.Optimizer):
    """An optimizer put around another one, as some libraries do it: nothing of torch's own constructor is called."""

    def __init__(self, inner):
        self.inner = inner

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)


def test_wrapper_without_torchs_constructor(model, adam, tmp_path):
    """What is put around an optimizer is saved, restored and edited like it, though it lacks what torch would have made."""
    wrapper = Around(adam)
    optstate.save(tmp_path / "ck", model=model, optimizer=wrapper)
    before = optstate.attach(adam, model).snapshot()
    adam.state[model[0].weight]["exp_avg"].zero_()
    optstate.restore(tmp_path / "ck", model=model, optimizer=wrapper)
    state = optstate.attach(wrapper, model)
    state.select("*").slot("exp_avg").scale_(0.5)
    state.undo()
    optstate.assert_state_equal(optstate.attach(adam, model), before)

"""Edits of every kind of slot: sparse, complex, narrow, strided, empty, in codes; of optimizers nobody described; of several."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import optstate
from optstate.errors import EditError, EditRefused, MissingSlot
from optstate.live.stepping import is_stepping, steps_running
from optstate.live.transaction import Transaction
from tests.editing import everything, slots, train, trained


def one(parameter, make):
    """A module with one parameter under an optimizer that has stepped twice on ones."""
    model = nn.Module()
    model.p = nn.Parameter(parameter)
    optimizer = make(model.parameters())
    for _ in range(2):
        model.p.grad = torch.ones_like(model.p)
        optimizer.step()
    return model, optimizer, optstate.attach(optimizer, model)


def adam(p):
    return torch.optim.Adam(p, lr=0.01)


SHAPES = {
    "no dimension": torch.tensor(1.0),
    "empty": torch.zeros(0, 3),
    "bfloat16": torch.ones(3, 2, dtype=torch.bfloat16),
    "float16": torch.ones(3, 2, dtype=torch.float16),
    "float64": torch.ones(3, 2, dtype=torch.float64),
    "complex": torch.ones(3, 2, dtype=torch.complex64),
    "channels last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": torch.ones(3, 2).t(),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_tensor(kind):
    """Scaling, resetting and undoing are exact whatever type, shape and layout a slot has."""
    model, optimizer, state = one(SHAPES[kind], adam)
    before = everything(model, optimizer)
    half = state["p"].momentum.tensor * 0.5
    state["p"].momentum.scale_(0.5)
    assert torch.equal(state["p"].momentum.tensor, half)
    assert state["p"].momentum.tensor.stride() == model.p.stride()
    state.undo()
    assert everything(model, optimizer) == before
    state["p"].reset_()
    assert not state["p"].second_moment.tensor.any()
    state.undo()
    assert everything(model, optimizer) == before


def test_rows_of_a_complex_parameter_are_reset():
    """The second moment of a complex parameter is a pair of real ones."""
    _, _, state = one(torch.ones(3, 2, dtype=torch.complex64), adam)
    state["p"].rows([0]).reset_()
    assert not state["p"].momentum.tensor[0].any()
    assert torch.equal(state["p"].second_moment.tensor[0], state["p"].second_moment.tensor[1])
    with pytest.raises(EditError, match="no order"):
        state["p"].momentum.clamp_(0, 1)


def test_a_sparse_buffer_is_scaled_by_its_values():
    """SGD over sparse gradients keeps a sparse buffer: scaling and zeroing are exact, other verbs say that they are not."""
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    state = optstate.attach(optimizer, model)
    dense = state["weight"].momentum.tensor.to_dense()
    state["weight"].momentum.scale_(0.5)
    assert torch.equal(state["weight"].momentum.tensor.to_dense(), dense * 0.5)
    state.undo()
    assert torch.equal(state["weight"].momentum.tensor.to_dense(), dense)
    for refused in (lambda t: t.clamp_(0, 1), lambda t: t.set_(0.0), lambda t: t.rows([0]).scale_(0.5)):
        with pytest.raises(EditError, match="only scale_ and zero_"):
            refused(state["weight"].momentum)
    state["weight"].reset_()
    assert not state["weight"].momentum.tensor.to_dense().any()


def test_codes_are_scaled_by_their_scales():
    """F87: bitsandbytes' blocks of codes are multiplied by multiplying their scales, and zero by zeroing them."""
    model, optimizer, _ = one(torch.ones(4, 4), adam)
    codes = torch.arange(16, dtype=torch.uint8).view(4, 4)
    optimizer.state[model.p] = {
        "state1": codes.clone(),
        "absmax1": torch.tensor([2.0]),
        "qmap1": torch.linspace(-1, 1, 256),
    }
    state = optstate.attach(optimizer, model)
    state["p"]["state1"].scale_(0.5)
    entry = optimizer.state[model.p]
    assert torch.equal(entry["absmax1"], torch.tensor([1.0]))
    assert torch.equal(entry["state1"], codes)
    state["p"]["state1"].zero_()
    assert not entry["absmax1"].any()
    with pytest.raises(EditError, match="as codes"):
        state["p"]["state1"].set_(0)


class Strange(torch.optim.Optimizer):
    """An optimizer that nobody described."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                entry = self.state[p]
                entry.setdefault("speed", torch.zeros_like(p)).add_(p.grad)
                entry["age"] = entry.get("age", 0) + 1
                entry["scale"] = torch.tensor([1.0, 2.0])
                p.sub_(entry["speed"], alpha=group["lr"])


def test_an_unknown_optimizer_is_edited_by_key():
    """What nobody described can be scaled by its key where it is shaped as the parameter; nothing is guessed."""
    _, _, state = one(torch.ones(3), Strange)
    with state.edit() as edit:
        edit["p"]["speed"].scale_(0.5)
    assert torch.equal(state["p"]["speed"].tensor, torch.ones(3))
    assert edit.change.notes == ("how large the next update of Strange will be is not known",)
    with pytest.raises(EditError, match="register"):
        state["p"].reset_()
    with pytest.raises(MissingSlot, match="not in the registry"):
        state.select("*").momentum.scale_(0.5)
    for key in ("scale", "age"):
        with pytest.raises(EditError, match=f"does not fit p/{key}"):
            state["p"][key].scale_(0.5)
    state["p"]["age"].set_(7)
    assert state["p"]["age"].value == 7
    state.undo()
    assert state["p"]["age"].value == 2


REFUSED = {
    "ASGD": ("averaged_weights", "scale_", "weights, not a moment"),
    "Rprop": ("step_size", "zero_", "does not recover from zero"),
    "Adafactor": ("factored_row", "scale_", "together"),
    "LBFGS": ("preconditioner", "scale_", "together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_verbs_that_make_no_sense_are_refused_by_role(name):
    """Averaged weights are no momentum, a step size does not recover from zero, rows and columns belong together."""
    model, optimizer = trained(name)
    before = everything(model, optimizer)
    role, verb, reason = REFUSED[name]
    target = optstate.attach(optimizer, model).select("*").role(role)
    with pytest.raises(EditError, match=reason):
        target.scale_(0.5) if verb == "scale_" else target.zero_()
    assert everything(model, optimizer) == before


def test_a_part_of_a_history_over_all_parameters_is_refused():
    """LBFGS keeps one history; only the whole of it can be cleared."""
    model, optimizer = trained("LBFGS")
    state = optstate.attach(optimizer, model)
    with pytest.raises(EditError, match="laid out over all"):
        state.select("0.*").reset_()
    state.select("*").reset_()
    assert not any(optimizer.state.values())


def test_fused_sgd_keeps_all_buffers_of_a_group_or_none():
    """A part of a group of fused SGD is zeroed, for a missing buffer would make the next step fail; the whole is removed."""
    model, optimizer = trained("SGD fused")
    state = optstate.attach(optimizer, model)
    state.select("0.*").reset_()
    assert not state["0.weight"].momentum.tensor.any()
    train(model, optimizer, 1)
    state.select("*").reset_()
    assert not any(optimizer.state.values())
    train(model, optimizer, 1)


def test_several_optimizers_are_edited_as_one():
    """One edit over both; a failure takes both back, and the journal is one."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    both = {"muon": torch.optim.Muon([model[0].weight, model[2].weight]), "adam": adam([model[0].bias, model[2].bias])}
    model(torch.ones(2, 4)).sum().backward()
    for optimizer in both.values():
        optimizer.step()
    state = optstate.attach(both, model)
    before = everything(model, *both.values())

    def do():
        with state.edit() as edit:
            edit.select("*").momentum.scale_(0.5)
            edit["0.bias"].momentum.set_(float("inf"))

    with pytest.raises(EditRefused):
        do()
    assert everything(model, *both.values()) == before
    state.select("*").momentum.scale_(0.5)
    assert state.journal[-1].optimizer == "adam, muon"
    assert set(state.journal[-1].norms) == {"exp_avg", "momentum_buffer"}


def test_wrapped_models_and_tied_weights():
    """Names are those of the model that the user wrote; a tied weight is edited once."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = optstate.attach(optimizer, torch.compile(nn.DataParallel(model), backend="eager"))
    old = state["0.weight"].momentum.tensor.clone()
    state.select("*.weight").momentum.scale_(0.5)
    assert torch.equal(state["0.weight"].momentum.tensor, old * 0.5)


def test_a_shared_tensor_is_not_changed_twice():
    """Two parameters that share a slot's tensor are told."""
    model, optimizer = trained("Adam")
    entries = list(optimizer.state.values())
    entries[1]["step"] = entries[0]["step"]
    with pytest.raises(EditError, match="one tensor"):
        optstate.attach(optimizer, model).select("*").reset_()


def test_edits_between_the_steps_of_a_scaler():
    """GradScaler on the CPU, and the fused kernel that it skips inside: both edit between steps and train on."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu")
    state = optstate.attach(optimizer, model)
    for bad in (False, True, False):
        scaler.scale(model(torch.ones(2, 4)).sum() * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state.select("*").momentum.scale_(0.5)
    assert len(state.journal) == 3


# --- trials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AdamW fused", "SGD", "LBFGS", "SparseAdam", "AdamW tensor lr"])
def test_a_trial_leaves_no_trace_but_its_edit(name):
    """A trial may train: weights, buffers, state, groups, gradients and random numbers are as before, bit for bit."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)
    gradients = [(id(p.grad), p.grad.to_dense().clone()) for p in model.parameters()]

    def evaluate():
        torch.rand(3)
        model.eval()
        train(model, optimizer, 2, seed=3)
        optimizer.param_groups[0]["weight_decay"] = 0.5
        return float(sum(p.detach().sum() for p in model.parameters()))

    trial = state.trial(evaluate, lambda edit: edit.select("*").reset_(), keep=False)
    assert everything(model, optimizer) == before
    for parameter, (identity, gradient) in zip(model.parameters(), gradients, strict=True):
        assert id(parameter.grad) == identity
        assert torch.equal(parameter.grad.to_dense(), gradient)
    assert model.training
    assert trial.before != trial.after
    assert not trial.kept
    assert len(state.journal) == 0


def test_a_trial_keeps_what_is_better():
    """`if better` keeps an edit with a lower value only; it is journalled and can be undone."""
    model, optimizer = trained("Adam")
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)
    size = lambda: float(state["0.weight"].momentum.tensor.norm())  # noqa: E731
    assert not state.trial(size, lambda edit: edit["0.weight"].momentum.scale_(1.5)).kept
    assert everything(model, optimizer) == before
    trial = state.trial(size, lambda edit: edit["0.weight"].momentum.scale_(0.5), note="halve")
    assert trial.kept
    assert trial.after == pytest.approx(trial.before / 2)
    assert "kept" in str(trial)
    assert state.journal[-1].note == "halve"
    state.undo()
    assert everything(model, optimizer) == before


def test_a_trial_that_fails_changes_nothing():
    """An evaluation that raises, or returns no number, or a wrong word: every bit stays."""
    model, optimizer = trained("Adam")
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)
    halve = lambda edit: edit.select("*").momentum.scale_(0.5)  # noqa: E731

    def fails():
        train(model, optimizer, 1)
        raise ValueError("no batch left")

    with pytest.raises(ValueError, match="no batch"):
        state.trial(fails, halve)
    with pytest.raises(EditError, match="one number"):
        state.trial(lambda: "low", halve)
    with pytest.raises(EditError, match="if better"):
        state.trial(lambda: 0.0, halve, keep="maybe")
    assert everything(model, optimizer) == before


# --- what edits are built on -----------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts how often numbers are fetched from tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["Adam", "SGD", "AdamW tensor lr"])
def test_no_verb_waits_for_a_device(name):
    """No number is fetched one by one: all that an edit measures is read together when it ends."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    with Waits() as waits, state.edit() as edit:
        edit.select("*").momentum.scale_(0.5)
        edit.select("*").momentum.clip_norm_(1e-3)
        edit.select("*.weight").momentum.clamp_(-1, 1)
    assert waits.count == 0


def test_steps_under_way_are_seen_from_the_stack():
    """Hooks and closures see the step, how deep it is, and that of no other optimizer."""
    seen = []

    class Twice(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer, other = Twice([p]), adam([p])
    optimizer.register_step_post_hook(lambda *_: seen.append((steps_running(optimizer), is_stepping(other))))
    optimizer.step()
    assert seen == [(2, False), (1, False)]
    assert not is_stepping(optimizer)


def test_a_transaction_takes_everything_back():
    """Values, a removed entry at its place, a new one, groups and numbers in them."""
    model, optimizer = trained("AdamW tensor lr")
    before = everything(model, optimizer)
    first, second, *_ = optimizer.param_groups[0]["params"]
    transaction = Transaction()
    transaction.before_write([optimizer.state[first]["exp_avg"]])
    optimizer.state[first]["exp_avg"].zero_()
    transaction.before_entry(optimizer, second)
    del optimizer.state[second]
    transaction.before_groups(optimizer)
    transaction.hyperparameter(optimizer.param_groups[0], "lr", 0.5)
    transaction.hyperparameter(optimizer.param_groups[0], "betas", (0.5, 0.5))
    optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups.append({"params": []})
    transaction.rollback()
    assert everything(model, optimizer) == before


def test_a_copy_is_not_shared(tmp_path):
    """Optimizers that were deep-copied are edited apart."""
    model, optimizer = trained("Adam")
    twin_model, twin = copy.deepcopy((model, optimizer))
    before = slots(twin)
    optstate.attach(optimizer, model).select("*").momentum.scale_(0.5)
    assert slots(twin) == before
    assert len(optstate.attach(twin, twin_model).journal) == 0

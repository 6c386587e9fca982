"""Rebuilding: lost moments are the measured ones again, nothing else changes, and everything says that they were rebuilt."""

from __future__ import annotations

import copy
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

import optstate
from optstate.errors import EditError
from optstate.optimizers.conversion import _usual as usual
from optstate.optimizers.conversion_moments import Moments
from optstate.optimizers.rebuilding import common, known, obstacle, rebuilt
from optstate.optimizers.registry import by_class, by_name, known_names

SERVED = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"amsgrad": True, "betas": (0.8, 0.95)}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adafactor, {}),
]
LAYERS = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]


def build(cls=torch.optim.AdamW, seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    return model, cls(model.parameters(), **options)


def batches_of(model, seed=0):
    """A closure that sees the same batches whenever it is made anew."""
    generator = torch.Generator().manual_seed(seed)

    def closure():
        loss = model(torch.randn(16, 4, generator=generator)).square().sum(1).mean()
        loss.backward()
        return loss

    return closure


def by_hand(model, optimizer, batches):
    """The mean of the gradients and of their squares, as the optimizer would have them."""
    torch.manual_seed(7)
    closure, group, found = batches_of(model), optimizer.param_groups[0], defaultdict(list)
    coupled = 0.0 if isinstance(optimizer, (torch.optim.AdamW, torch.optim.Adafactor)) else group["weight_decay"]
    for _ in range(batches):
        model.zero_grad()
        closure()
        for name, parameter in model.named_parameters():
            gradient = (-1 if group.get("maximize") else 1) * parameter.grad + coupled * parameter.detach()
            found[name].append(gradient.double())
    model.zero_grad()
    return {name: (torch.stack(each).mean(0), torch.stack(each).square().mean(0)) for name, each in found.items()}


def everything(model, optimizer):
    """All that must be as it was."""
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "state": optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "random": [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()],
        }
    )


def same_bits(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return type(one) is type(other) and one == other


# --- what is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options"), SERVED)
def test_estimates_are_the_measured_ones(cls, options):
    """Whatever the convention: what the optimizer makes of its slots is the mean gradient and the mean of squares."""
    model, optimizer = build(cls, **options)
    expected = by_hand(model, optimizer, 10)
    torch.manual_seed(7)
    found = optstate.rebuild(optimizer, model, batches_of(model), 10, momentum=1.0, trust=10)
    assert found.entry.parameters == len(LAYERS)
    spec, group = by_class(cls), optimizer.param_groups[0]
    for name, parameter in model.named_parameters():
        slots = {
            key: value.item() if value.dim() == 0 else value.double()
            for key, value in optimizer.state[parameter].items()
        }
        moments, (mean, square) = known(spec, slots, group), expected[name]
        if moments.mean is not None and cls not in (torch.optim.NAdam, torch.optim.RMSprop):
            full = 1.0 if "step" in slots else 1 - 0.9**10  # a sum that nobody counts holds what came in ten steps
            torch.testing.assert_close(moments.mean, full * mean, rtol=1e-4, atol=1e-6)
        used = slots.get("square_avg", moments.square)  # which is used as it is, not corrected for its start
        if used is not None and cls is not torch.optim.Adafactor:
            torch.testing.assert_close(used, square, rtol=1e-4, atol=1e-6)
        if "step" in slots:
            assert slots["step"] == 10.0
    batches_of(model)()
    optimizer.step()


def test_first_update_is_that_of_a_run_that_saw_the_same():
    """C of F81: with all of the mean and a constant gradient, Adam's next update is one learning rate."""
    weight = nn.Parameter(torch.zeros(3))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.Adam([weight], lr=1.0, eps=1e-30)

    def closure():
        (2.0 * weight).sum().backward()

    for batches in (1, 10, 50):
        optimizer.state.clear()
        optstate.rebuild(optimizer, model, closure, batches, momentum=1.0, trust=batches)
        before = weight.detach().clone()
        optimizer.zero_grad()
        closure()
        optimizer.step()
        assert (before - weight.detach()).tolist() == pytest.approx([1.0] * 3, rel=1e-5)


def test_a_weight_without_gradient_is_not_thrown_away():
    """Where no batch had a gradient, the first ones that come move a weight no further than a fresh start."""
    weight = nn.Parameter(torch.zeros(2))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0)

    def closure():
        weight[0].backward()

    def furthest(trust):
        optimizer.state.clear()
        optstate.rebuild(optimizer, model, closure, 200, trust=trust)
        moves = []
        for _ in range(60):
            before = weight.detach().clone()
            weight.grad = torch.ones(2)
            optimizer.step()
            moves.append(float((before - weight.detach())[1]))
        return max(moves)

    assert furthest(None) < 1.05
    assert 1.5 < furthest(64) < 2.0 < furthest(100)


def test_a_share_of_the_mean_that_counts_for_two_steps_is_the_default():
    """As it comes, the second moment is whole, momentum a share, and both are remembered for as long as two gradients."""
    model, optimizer = build()
    expected = by_hand(model, optimizer, 5)
    torch.manual_seed(7)
    optstate.rebuild(optimizer, model, batches_of(model), 5)
    entry, (mean, square) = optimizer.state[model[0].weight], expected["0.weight"]
    assert entry["step"].item() == 2.0
    torch.testing.assert_close(entry["exp_avg"].double() / (1 - 0.9**2), 0.3 * mean, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(entry["exp_avg_sq"].double() / (1 - 0.999**2), square, rtol=1e-4, atol=1e-7)
    optstate.rebuild(optimizer, model, batches_of(model), 1)
    assert entry["step"].item() == 1.0


def test_state_that_is_there_is_replaced_in_place_and_comes_back():
    """Tensors that compiled steps hold on to stay the same ones; undo gives back their bits, keys and order."""
    model, optimizer = build()
    for _ in range(3):
        batches_of(model)()
        optimizer.step()
    optimizer.zero_grad()
    optimizer.state[model[0].weight]["mine"] = torch.ones(2)
    before, places = everything(model, optimizer), optimizer.state[model[0].weight]["exp_avg"].data_ptr()
    found = optstate.rebuild(optimizer, model, batches_of(model), 4, note="they were lost")
    entry = optimizer.state[model[0].weight]
    assert (entry["exp_avg"].data_ptr(), entry["step"].item(), entry["mine"].tolist()) == (places, 2.0, [1.0, 1.0])
    found.undo()
    assert same_bits(everything(model, optimizer), before)
    journal = optstate.attach(optimizer, model).journal
    assert (journal[-1].verb, journal[-1].undone, journal[-1].note) == ("rebuild_", True, "they were lost")
    with pytest.raises(EditError, match="undone already"):
        found.undo()


def test_nothing_to_undo_after_a_step():
    """A step has used the state: taking it back would leave weights and momentum of two runs."""
    model, optimizer = build()
    found = optstate.rebuild(optimizer, model, batches_of(model), 2)
    batches_of(model)()
    optimizer.step()
    with pytest.raises(EditError, match="can no longer be undone"):
        found.undo()


def test_complex_bfloat16_and_sparse_parameters_are_served():
    """Complex weights get complex moments, bfloat16 ones their own type, and sparse gradients count as dense ones."""
    model = nn.ParameterDict(
        {
            "c": nn.Parameter(torch.ones(3, dtype=torch.complex64)),
            "b": nn.Parameter(torch.ones(4, dtype=torch.bfloat16)),
        }
    )
    optimizer = torch.optim.Adam(model.parameters())

    def closure():
        ((model["c"] * (1 + 2j)).real.sum() + model["b"].float().sum()).backward()

    optstate.rebuild(optimizer, model, closure, 3, momentum=1.0)
    mean = optimizer.state[model["c"]]["exp_avg"] / (1 - 0.9**2)
    assert torch.allclose(mean, torch.full((3,), 1 - 2j))
    assert optimizer.state[model["b"]]["exp_avg_sq"].dtype == torch.bfloat16

    table = nn.Embedding(5, 2, sparse=True)
    sparse = torch.optim.SparseAdam(table.parameters())
    optstate.rebuild(sparse, table, lambda: table(torch.tensor([1, 1])).sum().backward(), 2, momentum=1.0)
    assert sparse.state[table.weight]["exp_avg"].count_nonzero() == 2
    table(torch.tensor([1])).sum().backward()
    sparse.step()


def test_several_optimizers_and_what_got_no_gradient():
    """Each parameter is rebuilt by its own optimizer's row; frozen and unused ones stay, with the reason."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "unused": nn.Linear(2, 2)})
    model["a"].bias.requires_grad_(False)
    optimizers = {
        "muon": torch.optim.Muon([model["a"].weight, model["b"].weight]),
        "sgd": torch.optim.SGD([model["a"].bias, model["b"].bias, *model["unused"].parameters()], lr=0.1, momentum=0.5),
    }

    def closure():
        model["b"](model["a"](torch.ones(2, 3))).sum().backward()

    found = optstate.rebuild(optimizers, model, closure, 2)
    assert found.entry.parameters == 3
    assert found.left == {
        "a.bias": "frozen",
        "unused.weight": "no batch left it a gradient",
        "unused.bias": "no batch left it a gradient",
    }
    assert "left as they are, frozen: a.bias" in str(found)
    assert found.document()["left"]["a.bias"] == "frozen"


def test_a_count_of_the_group_follows():
    """An optimizer that counts for all its parameters gets the count where it keeps it."""
    spec = by_name("apex.optimizers.fused_adam.FusedAdam")
    assert common(spec, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "step": 900}, 30.0) == {"step": 30.0}


@pytest.mark.parametrize("name", known_names())
def test_every_row_is_served_or_refused_with_a_reason(name):
    """No row of the registry fails in the middle: what is served gets finite slots, from which the mean can be read again."""
    spec = by_name(name)
    group = {**usual(spec), "lr": 0.1, "d": 0.5, "d0": 1e-6}
    reason = obstacle(spec, group)
    if reason is not None:
        assert len(reason) > 20
        return
    mean, square = np.full((3, 2), 0.5), np.full((3, 2), 2.0)
    with np.errstate(all="raise", under="ignore"):
        shared = common(spec, group, 30.0)
        slots = rebuilt(spec, Moments(30.0, mean, square), group, np.ones((3, 2)), shared)
    assert slots
    assert all(np.isfinite(value).all() for value in slots.values() if not isinstance(value, bool))


RARE = {
    "schedulefree.AdamWScheduleFree": {},
    "schedulefree.RAdamScheduleFree": {},
    "timm.optim.Lamb": {},
    "timm.optim.Lion": {},
    "timm.optim.RMSpropTF": {"momentum": 0.9},
    "timm.optim.Adan": {},
    "prodigyopt.Prodigy": {},
    "lion_pytorch.Lion": {},
    "pytorch_optimizer.AdaBelief": {},
    "bitsandbytes.optim.AdamW": {},
    "transformers.Adafactor": {"lr": 1e-3, "beta1": 0.9, "relative_step": False, "scale_parameter": False},
}


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("path", RARE)
def test_optimizers_of_other_libraries_go_on_from_it(path):
    """The real class steps from the slots that it was given, and no further than from a fresh start."""
    library, _, name = path.rpartition(".")
    cls = getattr(pytest.importorskip(library), name)
    moved = []
    for rebuilds in (True, False):
        model, optimizer = build(cls, **RARE[path])
        if hasattr(optimizer, "train"):
            optimizer.train()
        if rebuilds:
            optstate.rebuild(optimizer, model, batches_of(model), 5)
        before = model[0].weight.detach().clone()
        torch.manual_seed(1)
        batches_of(model, seed=1)()
        optimizer.step()
        moved.append(float((model[0].weight.detach() - before).norm()))
    rate = optimizer.param_groups[0]["lr"] * model[0].weight.numel() ** 0.5  # some stand still at first
    assert moved[0] < 2 * max(moved[1], rate)


# --- nothing else changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_everything_else_is_as_it_was(fails):
    """Weights, BatchNorm's statistics, gradients, modes and random numbers: bit by bit, also after Ctrl-C."""
    model, optimizer = build()
    batches_of(model)()
    before, gradients = everything(model, optimizer), [parameter.grad for parameter in model.parameters()]
    calls, inner = [], batches_of(model)

    def closure():
        calls.append(all(parameter.grad is None for parameter in model.parameters()))
        model.eval()
        model.train()
        random.random()
        np.random.random()
        if fails and len(calls) == 2:
            model.eval()
            raise fails("stop")
        inner()

    if fails:
        with pytest.raises(fails):
            optstate.rebuild(optimizer, model, closure, 3)
    else:
        found = optstate.rebuild(optimizer, model, closure, 3)
        found.undo()
    assert calls == [True] * (2 if fails else 3)
    assert same_bits(everything(model, optimizer), before)
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))


def refused(match, optimizer, model, *arguments, **options):
    before = everything(model, optimizer)
    with pytest.raises(EditError, match=match) as caught:
        optstate.rebuild(optimizer, model, *arguments, **options)
    assert same_bits(everything(model, optimizer), before)
    return caught.value


def test_a_closure_that_steps_is_refused_before_it_writes():
    """The usual closure with `optimizer.step()` in it changes nothing."""
    model, optimizer = build()

    def closure():
        batches_of(model)()
        optimizer.step()

    refused("the closure steps the optimizer", optimizer, model, closure, 3)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("how", ["counted", "data", "state", "group"])
def test_a_closure_that_writes_is_noticed(how):
    """Also where torch does not count the write, and where it is to the optimizer."""
    model, optimizer = build()

    def closure():
        batches_of(model)()
        with torch.no_grad():
            if how == "counted":
                model[0].weight.mul_(2)
            elif how == "data":
                model[0].weight.data.mul_(2)
            elif how == "state":
                optimizer.state[model[0].weight]["mine"] = 1
            else:
                optimizer.param_groups[0]["lr"] = 0.5

    match = "writes to 0.weight" if how in ("counted", "data") else "changes the optimizer"
    with pytest.raises(EditError, match=match):
        optstate.rebuild(optimizer, model, closure, 2)


def test_no_gradient_or_none_that_is_finite_is_refused_by_name():
    """A closure without backward, and a loss that overflowed, are told with the parameters and the batch."""
    model, optimizer = build()
    error = refused("batch 1 left no gradient on any parameter", optimizer, model, lambda: model(torch.ones(4, 4)), 2)
    assert error.where.startswith("0.weight, 0.bias")

    def overflow():
        (model(torch.randn(4, 4)).sum() * float("inf")).backward()

    error = refused("batch 1 left gradients that are not finite", optimizer, model, overflow, 2)
    assert "unscale" in error.todo


@pytest.mark.parametrize("batches", [0, -1, 2.5, True, "10"])
def test_a_number_of_batches_that_is_none(batches):
    """Zero batches estimate nothing."""
    model, optimizer = build()
    refused("nothing is measured on this many batches", optimizer, model, batches_of(model), batches)


def test_arguments_that_mean_nothing():
    """What cannot be done is said before the closure is called."""
    model, optimizer = build()
    refused("momentum is a share", optimizer, model, batches_of(model), 2, momentum=1.5)
    refused("nothing is measured on this many", optimizer, model, batches_of(model), 2, trust=0)
    refused("there is nothing to call", optimizer, model, "closure", 2)
    refused("there is nothing to rebuild from", optimizer, model)


def test_eval_mode_is_warned_about_once():
    """Without dropout the gradients are not those of training."""
    model, optimizer = build()
    model.eval()
    with pytest.warns(UserWarning, match="the model is in eval mode") as caught:
        optstate.rebuild(optimizer, model, batches_of(model), 3)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not model.training


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (torch.optim.LBFGS, "keeps a history of differences over all parameters"),
        (torch.optim.Rprop, "keeps the last gradient and a step size of its own"),
        (torch.optim.ASGD, "keeps averaged weights"),
        (lambda p: torch.optim.SGD(p, lr=0.1), "keeps nothing under these hyperparameters"),
        (lambda p: torch.optim.Optimizer(p, {"lr": 0.1}), "not in the registry"),
    ],
)
def test_optimizers_that_cannot_be_served_are_refused_with_the_reason(make, reason):
    """Before anything is computed."""
    model = nn.Linear(3, 2)
    refused(reason, make(model.parameters()), model, lambda: pytest.fail("it was called"), 2)


# --- it says so -----------------------------------------------------------------------------------------------


def test_checkpoint_and_plan_say_that_it_was_rebuilt(tmp_path):
    """Months later, the manifest and a plan of it still tell an estimate from a momentum that a run had."""
    model, optimizer = build()
    optstate.save(tmp_path / "weights", model=model, step=120)
    plan = optstate.plan(tmp_path / "weights", model=model, optimizer=optimizer, policy=optstate.Policy.weights_only())
    plan = optstate.plan(
        tmp_path / "weights", model=model, optimizer=optimizer, policy=optstate.Policy(missing="fresh")
    )
    assert "momentum can be estimated from a few batches: optstate.rebuild(optimizer, model, closure)" in str(plan)
    plan.apply()
    optstate.rebuild(optimizer, model, batches_of(model), 3)
    optstate.save(tmp_path / "rebuilt", model=model, optimizer=optimizer, step=120)
    assert [entry.verb for entry in optstate.open(tmp_path / "rebuilt").journal] == ["restore", "rebuild_"]

    other, fresh = build(seed=1)
    plan = optstate.plan(tmp_path / "rebuilt", model=other, optimizer=fresh)
    assert "it was rebuilt from 3 batches at frozen weights" in str(plan)
    assert plan.exact
    assert "rebuilt" in str(plan.document()["notes"])
    plain = optstate.plan(tmp_path / "weights", model=other, optimizer=fresh, policy=optstate.Policy(missing="fresh"))
    assert "was rebuilt" not in str(plain)


# --- from weights ---------------------------------------------------------------------------------------------


def trained(cls, steps, **options):
    """A run's weights after each of its last steps, with its model and optimizer."""
    model, optimizer = build(cls, **options)
    inner, kept = batches_of(model), []
    for _ in range(steps):
        optimizer.zero_grad()
        inner()
        optimizer.step()
        kept.append(copy.deepcopy(model.state_dict()))
    return model, optimizer, kept


def test_momentum_of_sgd_from_two_weights():
    """C of F78: b = (p_before - p)/η, up to the rounding of the weights, which is told."""
    model, optimizer, kept = trained(torch.optim.SGD, 20, lr=0.1, momentum=0.9)
    expected = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    optimizer.state.clear()
    found = optstate.rebuild(optimizer, model, weights=kept[-2:], steps=[19, 20])
    assert found.error["0.bias"] == float("inf")  # BatchNorm takes it out again: it does not move
    for name, parameter in model.named_parameters():
        if name == "0.bias":
            continue
        error = (optimizer.state[parameter]["momentum_buffer"] - expected[name]).norm() / expected[name].norm()
        assert error < 3 * found.error[name] + 1e-6
        assert found.error[name] < 1e-3
    assert "from weights 1 step apart" in str(found)
    assert "in the median" in str(found)
    assert found.entry.arguments["momentum"] == 1.0


def test_momentum_of_adam_from_weights_and_batches():
    """C of F80: with second moments from batches, m̂ is the direction of the weights times √v̂ + ε, decay left out."""
    model, optimizer, kept = trained(torch.optim.AdamW, 20, lr=1e-2, weight_decay=0.1)
    optimizer.state.clear()
    optstate.rebuild(optimizer, model, batches_of(model), 4, weights=kept[-3:], steps=[18, 19, 20])
    weight, entry = model[0].weight, optimizer.state[model[0].weight]
    step = (kept[-2]["0.weight"] * (1 - 1e-2 * 0.1) - kept[-1]["0.weight"]) / 1e-2
    mean, root = entry["exp_avg"] / (1 - 0.9**4), (entry["exp_avg_sq"] / (1 - 0.999**4)).sqrt() + 1e-8
    torch.testing.assert_close(mean / root, step, rtol=0.02, atol=1e-3)
    assert weight.grad is not None


def test_weights_alone_do_not_tell_adams_scale():
    """Adam's steps have no scale: without a second moment the gradients' size is not known, and it says so."""
    model, optimizer, kept = trained(torch.optim.AdamW, 3)
    moments = {parameter: dict(entry) for parameter, entry in optimizer.state.items()}
    found = optstate.rebuild(optimizer, model, weights=kept[-2:], steps=[2, 3])
    assert found.entry.parameters == len(LAYERS)  # the second moments were there
    assert moments
    optimizer.state.clear()
    refused("up to a scale only", optimizer, model, weights=kept[-2:], steps=[2, 3])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    """Momentum belongs to its weights, and a velocity needs two moments in a known order."""
    model, optimizer, kept = trained(torch.optim.SGD, 3, lr=0.1, momentum=0.9)
    refused("not the live ones", optimizer, model, weights=kept[:2], steps=[1, 2])
    refused("difference of two moments", optimizer, model, weights=kept[-1:], steps=[3])
    refused("how many steps lie between", optimizer, model, weights=kept[-2:])
    refused("how many steps lie between", optimizer, model, weights=kept[-2:], steps=[3, 2])
    optstate.save(tmp_path / "a", model=build(seed=3)[0], step=10)
    optstate.save(tmp_path / "b", model=model, step=12)
    found = optstate.rebuild(optimizer, model, weights=[tmp_path / "a", tmp_path / "b"])
    assert "2 steps apart" in str(found)


def test_a_mean_is_written_in_the_convention_of_the_row():
    """Sums and averages hold what they would after so many steps, whoever corrects them; everything where that is unknown."""
    mean, square = np.full(2, 3.0), np.full(2, 9.0)
    group = {"lr": 1.0, "momentum": 0.75, "betas": (0.5, 0.75), "eps": 1e-8}

    def momentum(name, key, steps):
        return rebuilt(by_name(name), Moments(steps, mean, square), group, None, {})[key].tolist()

    assert momentum("torch.optim.sgd.SGD", "momentum_buffer", 2.0) == [12 * (1 - 0.75**2)] * 2
    assert momentum("torch.optim.sgd.SGD", "momentum_buffer", None) == [12.0, 12.0]
    assert momentum("torch.optim.Muon", "momentum_buffer", 2.0) == [3 * (1 - 0.75**2)] * 2
    assert momentum("torch.optim.adam.Adam", "exp_avg", 2.0) == [2.25, 2.25]
    adam = rebuilt(by_name("torch.optim.adam.Adam"), Moments(2.0, mean, square), group, None, {})
    assert adam["step"] == 2.0
    assert adam["exp_avg_sq"].tolist() == pytest.approx([9 * (1 - 0.75**2)] * 2, rel=1e-6)

"""What a plan does to the slots: shapes, dtypes, factors, other optimizers; each with its decisions and its bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import RestoreError, RestoreRefused
from optstate.resume.policy import Policy
from tests.programs import OPTIMIZERS, matrices, step, trained
from tests.test_plan_names import Net, adamw, bits, decisions, plan, restore, saved

# --- shape ---------------------------------------------------------------------------------------------------


def grown(tmp_path, make=torch.optim.AdamW, rows=(5, 8), **arguments):
    """A checkpoint of a linear layer with some rows, and a live one with others."""
    source, model = nn.Linear(4, rows[0]), nn.Linear(4, rows[1])
    path, optimizer = saved(tmp_path, source, make(source.parameters(), **arguments))
    return path, source, optimizer, model, make(model.parameters(), **arguments)


def test_another_shape_is_a_fault_that_names_the_ways(tmp_path):
    """Both tensors are named, with both shapes, once each."""
    path, _, _, model, fresh = grown(tmp_path)
    faults = plan(path, model=model, optimizer=fresh).faults
    assert [fault.split(":")[0] for fault in faults] == ["weight", "bias"]
    assert "shape [5, 4] in the checkpoint, [8, 4] live" in faults[0]
    assert 'shape="fresh", "pad" or "slice"' in faults[0]


def test_another_shape_can_start_fresh(tmp_path):
    """What fits comes back; what does not keeps its weight, and its entry is gone."""
    source, model = Net(encoder=1), Net(seed=1, head=7, encoder=1)
    path, _ = saved(tmp_path, source)
    fresh = adamw(model)
    step(fresh, 1)
    before = model.head.weight.clone()
    found = restore(path, model=model, optimizer=fresh, policy=Policy(shape="fresh"))
    assert decisions(found) == ({"exact": 2, "fresh": 2}, {"exact": 6, "fresh": 2})
    assert torch.equal(model.head.weight, before)
    assert model.head.weight not in fresh.state


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "Adagrad", "RMSprop"])
def test_pad_keeps_the_old_entries(tmp_path, name):
    """Old rows of weight and slots come back bit for bit; new rows keep the live weight; the next step works."""
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    path, source, optimizer, model, fresh = grown(tmp_path, getattr(torch.optim, name), lr=0.01, **arguments)
    live = model.weight.detach().clone()
    found = restore(path, model=model, optimizer=fresh, policy=Policy(shape="pad"))
    assert not found.exact
    assert decisions(found)[0] == {"resized": 2}
    assert torch.equal(model.weight[:5], source.weight)
    assert torch.equal(model.weight[5:], live[5:])
    for key, old in optimizer.state[source.weight].items():
        new = fresh.state[model.weight][key]
        assert new.dtype == old.dtype
        if old.shape == source.weight.shape:
            assert torch.equal(new[:5], old)
    before = model.weight.detach().clone()
    step(fresh, 1)
    assert ((model.weight - before).abs() < 0.1).all()


def test_slice_keeps_the_leading_part(tmp_path):
    """Fewer rows: what is left is what it was."""
    path, source, optimizer, model, fresh = grown(tmp_path, rows=(8, 5))
    found = restore(path, model=model, optimizer=fresh, policy=Policy(shape="slice"))
    assert decisions(found) == ({"resized": 2}, {"exact": 2, "resized": 4})
    assert torch.equal(model.weight, source.weight[:5])
    assert torch.equal(fresh.state[model.weight]["exp_avg"], optimizer.state[source.weight]["exp_avg"][:5])


def test_a_shape_that_nothing_leads_to(tmp_path):
    """Padding makes nothing smaller, and the plan says so before anything is touched."""
    path, _, _, model, fresh = grown(tmp_path, rows=(8, 5))
    before = bits(model, fresh)
    with pytest.raises(RestoreRefused, match="dimension 0 is 8 in the checkpoint and 5 live"):
        restore(path, model=model, optimizer=fresh, policy=Policy(shape="pad"))
    assert bits(model, fresh) == before


def test_a_function_shapes(tmp_path):
    """A function of one's own gets name, key, tensor and the shape that is due, for weights and slots alike."""
    path, source, optimizer, model, fresh = grown(tmp_path)
    asked = []

    def reshape(name, key, tensor, shape):
        asked.append((name, key, tuple(tensor.shape), shape))
        return torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *shape[1:])])

    found = restore(path, model=model, optimizer=fresh, policy=Policy(shape=reshape))
    assert decisions(found) == ({"resized": 2}, {"exact": 2, "resized": 4})
    assert ("weight", "", (5, 4), (8, 4)) in asked
    assert ("bias", "exp_avg", (5,), (8,)) in asked
    assert torch.equal(model.weight[:5], source.weight)
    assert torch.equal(fresh.state[model.bias]["exp_avg_sq"][:5], optimizer.state[source.bias]["exp_avg_sq"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *_: 1 / 0, r"shape function failed on weight(.|\n)*ZeroDivisionError"),
        (lambda name, key, tensor, shape: tensor, r"made something else of weight(.|\n)*found +shape \[5, 4\]"),
        (lambda *_: None, r"made something else of weight(.|\n)*found +a NoneType"),
    ],
)
def test_a_function_that_fails_changes_nothing(tmp_path, make, message):
    """Whatever it does wrong, the tensor is named and everything is as it was."""
    path, _, _, model, fresh = grown(tmp_path)
    before = bits(model, fresh)
    with pytest.raises(RestoreError, match=message):
        restore(path, model=model, optimizer=fresh, policy=Policy(shape=make))
    assert bits(model, fresh) == before


def test_lbfgs_cannot_be_resized(tmp_path):
    """One history over all parameters has no rows of one of them."""
    source, optimizer = trained("LBFGS")
    path = optstate.save(tmp_path / "ck", model=source, optimizer=optimizer)
    model = matrices(5)
    found = plan(path, model=model, optimizer=OPTIMIZERS["LBFGS"](model.parameters()), policy=Policy(shape="pad"))
    assert any("has a layout of its own" in fault for fault in found.faults)


# --- dtype ---------------------------------------------------------------------------------------------------


def test_a_parameter_of_another_dtype(tmp_path):
    """A fault that names dtype="param"; with it weights and moments are cast, counts are not."""
    source = Net(encoder=1)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=1).bfloat16()
    fresh = adamw(model)
    faults = plan(path, model=model, optimizer=fresh).faults
    assert len(faults) == 4
    assert all('float32 in the checkpoint, bfloat16 in the model; dtype="param" casts it' in fault for fault in faults)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(dtype="param"))
    assert decisions(found) == ({"cast": 4}, {"exact": 4, "cast": 8})
    assert {item.reason for item in found.weights} == {"float32 → bfloat16"}
    entry, old = fresh.state[model.head.weight], optimizer.state[source.head.weight]
    assert torch.equal(model.head.weight, source.head.weight.bfloat16())
    assert torch.equal(entry["exp_avg"], old["exp_avg"].bfloat16())
    assert (entry["step"].dtype, entry["exp_avg_sq"].dtype) == (torch.float32, torch.bfloat16)
    step(fresh, 1)


def wide_moments(dtype=torch.bfloat16):
    """A model of a narrow type whose moments are float32."""
    model = nn.Linear(4, 4).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        moments = {key: torch.rand(parameter.shape) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **moments}
    return model, optimizer


def test_moments_of_another_dtype_than_the_parameter(tmp_path):
    """float32 moments of a bfloat16 parameter are no fault and stay; `param` casts them."""
    model, optimizer = wide_moments()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    fresh = torch.optim.AdamW(model.parameters())
    assert restore(path, model=model, optimizer=fresh).exact
    assert fresh.state[model.weight]["exp_avg"].dtype == torch.float32
    found = restore(path, model=model, optimizer=fresh, policy=Policy(dtype="param"))
    assert decisions(found) == ({"exact": 2}, {"exact": 2, "cast": 4})
    assert fresh.state[model.weight]["exp_avg"].dtype == torch.bfloat16


def test_squares_that_float16_cannot_hold(tmp_path):
    """The reason of such a cast says what may vanish."""
    model, optimizer = wide_moments(torch.float16)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    found = plan(path, model=model, optimizer=optimizer, policy=Policy(dtype="param"))
    reasons = {item.key: item.reason for item in found.slots}
    assert reasons["exp_avg_sq"] == "float32 → float16, in which squares below 6e-8 vanish"
    assert reasons["exp_avg"] == "float32 → float16"


def test_whole_numbers_are_not_cast(tmp_path):
    """A buffer of integers that became floats is another model, whatever the policy says."""
    source, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    path = optstate.save(tmp_path / "ck", model=source)
    model.num_batches_tracked = torch.tensor(0.0)
    faults = plan(path, model=model, policy=Policy(dtype="param")).faults
    assert faults == ["num_batches_tracked: int64 in the checkpoint, float32 in the model"]


# --- scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.25, 0.3])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Muon", "NAdam"])
def test_momentum_is_scaled_on_its_way_in(tmp_path, name, factor):
    """Only momentum, and by exactly the factor: powers of two bit for bit."""
    model, optimizer = trained(name)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    fresh = OPTIMIZERS[name](model.parameters())
    found = restore(path, model=model, optimizer=fresh, policy=Policy(scale=factor))
    state, old = optstate.attach(fresh, model), optstate.attach(optimizer, model)
    scaled = {(item.parameter, item.key) for item in found.slots if item.decision == "scaled"}
    for parameter in old:
        for key, slot in old[parameter].slots.items():
            is_momentum = slot.role == "momentum"
            assert ((parameter, key) in scaled) is is_momentum
            assert torch.equal(state[parameter][key].tensor, slot.tensor * factor if is_momentum else slot.tensor)
    assert not found.exact


def test_factors_by_pattern(tmp_path):
    """The last pattern that matches counts; who is not named keeps all of it; a typo is an error."""
    source = Net(encoder=1)
    path, optimizer = saved(tmp_path, source)
    fresh = adamw(source)
    found = restore(path, model=source, optimizer=fresh, policy=Policy(scale={"encoder.*": 0.5, "*.bias": 0.0}))
    assert decisions(found)[1] == {"exact": 9, "scaled": 3}
    old = {name: optimizer.state[parameter]["exp_avg"] for name, parameter in source.named_parameters()}
    new = {name: fresh.state[parameter]["exp_avg"] for name, parameter in source.named_parameters()}
    assert torch.equal(new["encoder.0.weight"], old["encoder.0.weight"] / 2)
    assert not new["encoder.0.bias"].any()
    assert torch.equal(new["head.weight"], old["head.weight"])
    with pytest.raises(optstate.errors.PolicyError, match=r"scale: 'encodr\.\*' means no parameter"):
        plan(path, model=source, optimizer=fresh, policy=Policy(scale={"encodr.*": 0.5}))


def test_new_data_starts_momentum_from_zero(tmp_path):
    """The preset keeps second moments and counts, so that the first updates are small ones."""
    model, optimizer = trained("AdamW")
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    restore(path, model=model, optimizer=optimizer, policy=Policy.new_data())
    state = optstate.attach(optimizer, model)
    assert not any(parameter.momentum.tensor.any() for parameter in state.values())
    assert all(parameter.step.item() == 3 and parameter.second_moment.tensor.all() for parameter in state.values())


class Unknown(torch.optim.SGD):
    """An optimizer that nobody described."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["mean"] = torch.ones_like(parameter)


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.99, 0.999), (0.95, 0.95)])
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_averages_follow_betas_of_the_program(tmp_path, cls, betas):
    """Under live betas the corrected averages are what they were saved as, so a constant gradient goes on at full step."""

    def go_on(optimizer, model, steps):
        sizes = []
        for _ in range(steps):
            before = model.weight.detach().clone()
            model.weight.grad = torch.full_like(model.weight, 3.0)
            optimizer.step()
            sizes += ((before - model.weight.detach()) / optimizer.param_groups[0]["lr"]).flatten().tolist()
        return sizes

    make = {"lr": 1.0, "eps": 1e-30, "weight_decay": 0.0}
    source, model = (nn.Linear(2, 3, bias=False, dtype=torch.float64) for _ in range(2))
    optimizer, fresh = (
        cls(source.parameters(), betas=(0.9, 0.999), **make),
        cls(model.parameters(), betas=betas, **make),
    )
    go_on(optimizer, source, 20)
    path = optstate.save(tmp_path / "ck", model=source, optimizer=optimizer)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(hyperparameters={"betas": "live"}))
    told = {slot.key: slot.reason for slot in found.slots if slot.decision == "scaled"}
    assert told.keys() == {
        key for key, old, new in zip(("exp_avg", "exp_avg_sq"), (0.9, 0.999), betas, strict=True) if old != new
    }
    assert "betas[" in next(iter(told.values()))
    assert go_on(fresh, model, 200) == pytest.approx([1.0] * 1200, rel=1e-9)


def test_betas_as_saved_leave_every_bit(tmp_path):
    """Where no coefficient is another one, nothing is multiplied."""
    source, model = Net(), Net(seed=1)
    path, _ = saved(tmp_path, source)
    found = restore(path, model=model, optimizer=adamw(model, lr=0.5), policy=Policy(hyperparameters={"lr": "live"}))
    assert decisions(found)[1].keys() == {"exact"}


def test_an_unknown_optimizer(tmp_path):
    """It comes back exactly by name; what cannot be known of its slots is said, and nothing is converted."""
    model = matrices()
    optimizer = Unknown(model.parameters(), lr=0.1)
    optimizer.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    fresh = Unknown(model.parameters(), lr=0.1)
    assert restore(path, model=model, optimizer=fresh).exact
    found = plan(path, model=model, optimizer=fresh, policy=Policy(scale=0.5))
    assert any("no momentum of it is scaled" in warning for warning in found.warnings)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = plan(path, model=model, optimizer=sgd, policy=Policy(optimizer_change="convert"))
    assert any("what Unknown keeps is not described" in fault for fault in found.faults)
    wide = matrices(5)
    found = plan(path, model=wide, optimizer=Unknown(wide.parameters(), lr=0.1), policy=Policy(shape="pad"))
    assert any("the optimizer is not described" in fault for fault in found.faults)


# --- another optimizer -----------------------------------------------------------------------------------------


def changed(tmp_path, before, after, **arguments):
    """A checkpoint under one optimizer, and a live other one."""
    model, optimizer = trained(before)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    return path, model, optimizer, getattr(torch.optim, after)(model.parameters(), **arguments)


def test_another_class_is_a_fault_that_offers_the_way(tmp_path):
    """Strictly, another class is refused; the sentence says what converting would do."""
    path, model, _, live = changed(tmp_path, "AdamW", "SGD", lr=0.1, momentum=0.9)
    (fault,) = [fault for fault in plan(path, model=model, optimizer=live).faults if "state of" in fault]
    assert fault.startswith(
        'state of AdamW in the checkpoint, SGD live; optimizer_change="convert" would go on from it'
    )


@pytest.mark.parametrize(
    ("before", "after", "arguments", "keys"),
    [
        ("Adam", "AdamW", {}, {"step", "exp_avg", "exp_avg_sq"}),
        ("AdamW", "NAdam", {}, {"step", "mu_product", "exp_avg", "exp_avg_sq"}),
        ("AdamW", "SGD", {"lr": 0.1, "momentum": 0.9}, {"momentum_buffer"}),
        ("SGD", "AdamW", {}, {"step", "exp_avg", "exp_avg_sq"}),
        ("AdamW", "Adagrad", {"lr": 0.1}, {"step", "sum"}),
        ("AdamW", "Adafactor", {"lr": 0.1}, {"step", "row_var", "col_var"}),
        ("SGD", "Muon", {"lr": 0.1}, {"momentum_buffer"}),
    ],
)
def test_classes_are_converted(tmp_path, before, after, arguments, keys):
    """The plan names the slots that there will be, and how; they are there afterwards; the optimizer steps."""
    path, model, _, live = changed(tmp_path, before, after, **arguments)
    lr = live.param_groups[0]["lr"]
    policy = Policy(optimizer_change="convert", hyperparameters={"*": "live"})
    found = plan(path, model=model, optimizer=live, policy=policy)
    assert found.faults == []
    assert {item.key for item in found.slots} == keys
    assert {item.decision for item in found.slots} == {"converted"}
    assert all(f"{before} → {after}, " in item.reason for item in found.slots)
    found.apply()
    assert {key for entry in live.state.values() for key in entry} == keys
    assert live.param_groups[0]["lr"] == lr
    made = torch.optim.__dict__[after](matrices().parameters(), **arguments)
    step(made, 1)
    due, entry = next(iter(made.state.values())), next(iter(live.state.values()))
    assert {key: (value.dtype, value.shape) for key, value in entry.items()} == {
        key: (value.dtype, value.shape) for key, value in due.items()
    }
    step(live, 2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        torch.optim.Adamax,
    ],
    ids=["SGD", "Adagrad", "RMSprop", "Adamax"],
)
def test_a_learning_rate_is_advised_where_it_means_something_else(tmp_path, make):
    """The plan tells the rate with which the other optimizer's first step is as long as the next one would have been."""

    def length(model, optimizer):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        torch.manual_seed(3)
        (model(torch.randn(64, 8)) - torch.randn(64, 2)).pow(2).mean().backward()
        optimizer.step()
        return (
            sum((p.detach() - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True)) ** 0.5
        )

    source, model = (nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(2))
    optimizer, other = torch.optim.AdamW(source.parameters(), lr=1e-3), make(model.parameters())
    for _ in range(50):
        length(source, optimizer)
    path = optstate.save(tmp_path / "ck", model=source, optimizer=optimizer)
    policy = Policy(optimizer_change="convert", hyperparameters={"*": "live"})
    (note,) = restore(path, model=model, optimizer=other, policy=policy).notes
    advised = float(note.removeprefix("group 0: with lr ").partition(" ")[0])
    assert note.endswith(f"its steps would be as long as they were (it is {other.param_groups[0]['lr']:g})")
    for group in other.param_groups:
        group["lr"] = advised
    assert length(model, other) == pytest.approx(length(source, optimizer), rel=0.1)


def test_adam_to_adamw_loses_nothing(tmp_path):
    """Both keep the same statistics: every bit of them comes over."""
    path, model, optimizer, live = changed(tmp_path, "Adam", "AdamW")
    found = restore(path, model=model, optimizer=live, policy=Policy(optimizer_change="convert"))
    assert all("(exact)" in item.reason for item in found.slots)
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(live.state[parameter][key], value)


def test_a_conversion_that_does_not_exist(tmp_path):
    """It is said with its reason, and nothing is changed; starting fresh is the other way."""
    path, model, _, live = changed(tmp_path, "LBFGS", "AdamW")
    before = bits(model, live)
    with pytest.raises(RestoreRefused, match='nothing converts it: .*optimizer_change="fresh" starts it anew'):
        restore(path, model=model, optimizer=live, policy=Policy(optimizer_change="convert"))
    assert bits(model, live) == before
    policy = Policy(optimizer_change="fresh", hyperparameters={"*": "live"})
    found = restore(path, model=model, optimizer=live, policy=policy)
    assert decisions(found)[1] == {"fresh": 2}
    assert not live.state


def test_amsgrad_switched_on(tmp_path):
    """Strictly a fault; converted, the maximum starts at the second moment."""
    path, model, optimizer, live = changed(tmp_path, "AdamW", "AdamW", amsgrad=True)
    assert any("amsgrad" in fault for fault in plan(path, model=model, optimizer=live).faults)
    restore(
        path,
        model=model,
        optimizer=live,
        policy=Policy(optimizer_change="convert", hyperparameters={"amsgrad": "live"}),
    )
    assert live.param_groups[0]["amsgrad"] is True
    for parameter in model.parameters():
        assert torch.equal(live.state[parameter]["max_exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])
    step(live, 1)


@pytest.mark.parametrize(
    "arguments",
    [{"foreach": True}, {"fused": True}, {"capturable": True}, {"lr": torch.tensor(1e-2)}, {"foreach": False}],
)
def test_implementations_of_one_class_are_exact(tmp_path, arguments):
    """State moves between foreach, fused, single and tensor-lr optimizers without a bit of change."""
    source = Net(encoder=1)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=1)
    fresh = torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, **arguments})
    found = restore(path, model=model, optimizer=fresh)
    assert decisions(found) == ({"exact": 4}, {"exact": 12})
    for mine, theirs in zip(model.parameters(), source.parameters(), strict=True):
        assert all(torch.equal(fresh.state[mine][key], value) for key, value in optimizer.state[theirs].items())
    if "capturable" not in arguments:  # whose steps want an accelerator
        step(fresh, 1)


def test_a_mixture_restores_by_parameter(tmp_path):
    """One AdamW becomes Muon for the matrices and AdamW for the rest: each parameter finds its own."""
    source = Net(encoder=2)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=2)
    matrices_, rest = (
        [each for each in model.parameters() if (each.dim() == 2) is is_matrix] for is_matrix in (True, False)
    )
    pair = {"muon": torch.optim.Muon(matrices_, lr=0.02), "adamw": torch.optim.AdamW(rest)}
    assert any("by parameter" in fault for fault in plan(path, model=model, optimizer=pair).faults)
    found = restore(
        path, model=model, optimizer=pair, policy=Policy(optimizer_change="convert", hyperparameters={"*": "live"})
    )
    assert decisions(found)[1] == {"converted": 3, "exact": 9}
    assert torch.equal(pair["adamw"].state[model.head.bias]["exp_avg"], optimizer.state[source.head.bias]["exp_avg"])
    assert pair["muon"].state[model.head.weight].keys() == {"momentum_buffer"}
    assert pair["muon"].param_groups[0]["lr"] == 0.02
    step(pair["muon"], 1)
    path = optstate.save(tmp_path / "back", model=model, optimizer=pair)
    one = adamw(model)
    found = restore(
        path, model=model, optimizer=one, policy=Policy(optimizer_change="convert", hyperparameters={"*": "live"})
    )
    assert decisions(found)[1] == {"converted": 9, "exact": 9}
    step(one, 1)


# --- all slots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["fresh", "leave"])
def test_slots_of_all_parameters(tmp_path, word):
    """`fresh` removes every entry, `leave` leaves every bit; whatever was saved, also of another optimizer."""
    path, model, _, live = changed(tmp_path, "Adam", "SGD", lr=0.1, momentum=0.9)
    step(live, 1)
    before = {id(parameter): live.state[parameter]["momentum_buffer"].clone() for parameter in model.parameters()}
    found = restore(path, model=model, optimizer=live, policy=Policy(slots=word, hyperparameters={"*": "live"}))
    assert not found.exact
    assert decisions(found)[1] == {"fresh" if word == "fresh" else "left out": 2}
    if word == "fresh":
        assert not live.state
    else:
        for parameter in model.parameters():
            assert torch.equal(live.state[parameter]["momentum_buffer"], before[id(parameter)])


def test_a_fresh_start_of_slots_that_the_constructor_makes(tmp_path):
    """Adagrad steps by what its constructor made: a fresh entry has it, as it would be."""
    model = matrices()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.25)
    made = {key: value.clone() for key, value in optimizer.state[model[0].weight].items()}
    path, _ = saved(tmp_path, model, optimizer)
    restore(path, model=model, optimizer=optimizer, policy=Policy.weights_only())
    entry = optimizer.state[model[0].weight]
    assert entry.keys() == made.keys()
    assert all(torch.equal(entry[key], made[key]) and entry[key].dtype == made[key].dtype for key in made)
    step(optimizer, 1)


def test_a_fused_group_has_buffers_for_all_or_none(tmp_path):
    """torch's fused SGD takes no group in which one momentum is missing: a fresh one beside others is zero."""
    source, model = Net(encoder=1), Net(seed=1, encoder=1, added=1)
    path, _ = saved(tmp_path, source, torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9))
    live = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    found = restore(path, model=model, optimizer=live, policy=Policy(missing="fresh"))
    assert decisions(found)[1] == {"exact": 4, "fresh": 2}
    assert not live.state[model.added[0].weight]["momentum_buffer"].any()
    step(live, 1)


def test_all_that_is_done_to_a_slot_is_told(tmp_path):
    """Renamed, cast, grown and scaled at once: the decision is the farthest from exact, the reason has all."""
    source = Net(encoder=1, head=2)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, backbone=1, head=3).bfloat16()
    policy = Policy(rename={"encoder.": "backbone."}, dtype="param", shape="pad", scale=0.5)
    found = restore(path, model=model, optimizer=adamw(model), policy=policy)
    told = {(item.parameter, item.key): (item.decision, item.reason) for item in found.slots}
    rule = "renamed by 'encoder.' → 'backbone.'"
    assert told["backbone.0.weight", "exp_avg"] == ("scaled", f"{rule}; float32 → bfloat16; × 0.5")
    assert told["backbone.0.weight", "step"] == ("renamed", rule)
    assert told["head.weight", "exp_avg"] == ("resized", "[2, 4] → [3, 4] by pad; float32 → bfloat16; × 0.5")
    assert told["head.bias", "exp_avg_sq"] == ("resized", "[2] → [3] by pad; float32 → bfloat16")


# --- slots in codes, and counts in groups ------------------------------------------------------------------------


def wide(seed=0):
    """Layers of which one is large enough for codes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 4))


CONVERT = Policy(optimizer_change="convert", hyperparameters={"*": "live"})


@pytest.mark.whole
@pytest.mark.parametrize(
    ("before", "after", "policy", "expected", "told"),
    [
        ("AdamW8bit", "AdamW8bit", Policy(), {"exact": 16}, ""),
        ("AdamW8bit", "AdamW8bit", Policy(scale=0.5), {"exact": 10, "scaled": 6}, "× 0.5"),
        (
            "AdamW8bit",
            "AdamW32bit",
            Policy(),
            {"exact": 10, "cast": 2},
            "the values of 8-bit blocks of 256, without loss",
        ),
        ("AdamW32bit", "AdamW8bit", Policy(), {"exact": 10, "cast": 6}, "written in 8-bit blocks of 256: error 1."),
    ],
)
def test_bitsandbytes_between_widths(tmp_path, before, after, policy, expected, told):
    """Codes travel as they are, widening loses nothing, and narrowing tells the error that was measured."""
    optim = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").optim
    source, model = wide(), wide(1)
    path, optimizer = saved(tmp_path, source, getattr(optim, before)(source.parameters()))
    live = getattr(optim, after)(model.parameters())
    found = restore(path, model=model, optimizer=live, policy=policy)
    assert decisions(found)[1] == expected
    assert any(told in item.reason for item in found.slots)
    if before == after:
        mine, theirs = live.state[model[0].weight], optimizer.state[source[0].weight]
        assert torch.equal(mine["state1"], theirs["state1"])
        assert torch.equal(mine["absmax1"], theirs["absmax1"] * policy.scale)
    step(live, 2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.whole
@pytest.mark.parametrize(("before", "after"), [("8bit", "8bit"), ("8bit", ""), ("", "8bit"), ("4bit", "8bit")])
def test_torchao_between_widths(before, after):
    """The same for torchao, from a live state: exact, or converted with what it costs."""
    optim = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    source, model = wide(), wide(1)
    make = {"": torch.optim.AdamW, "8bit": optim.AdamW8bit, "4bit": optim.AdamW4bit}
    optimizer, live = make[before](source.parameters()), make[after](model.parameters())
    step(optimizer, 3)
    found = restore(optstate.attach(optimizer, source), model=model, optimizer=live, policy=CONVERT)
    assert decisions(found)[1] == {"exact" if before == after else "converted": 12}
    assert any("error" in item.reason for item in found.slots) is (after == "8bit" != before)
    step(live, 2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.whole
@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (Policy(), 3),
        (Policy.finetune(), 3),
        (Policy.weights_only(), 0),
        (Policy(slots="fresh"), 0),
        (Policy(slots="leave"), 1),
    ],
)
def test_counts_of_a_group_follow_its_slots(tmp_path, policy, steps):
    """What an optimizer counts for a whole group is state: saved, live or fresh as its slots are, whatever becomes of lr."""
    optim = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    source, model = wide(), wide(1)
    optimizer, live = (
        optim.AdamWScheduleFree(each.parameters(), lr=lr) for each, lr in ((source, 0.01), (model, 0.02))
    )
    optimizer.train()
    live.train()
    path, _ = saved(tmp_path, source, optimizer)
    step(live, 1)
    restore(path, model=model, optimizer=live, policy=policy)
    assert live.param_groups[0]["k"] == steps


@pytest.mark.whole
def test_adamw_becomes_schedule_free(tmp_path):
    """The count goes from the parameters to the group, and training goes on."""
    optim = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    source, model = wide(), wide(1)
    path, _ = saved(tmp_path, source)
    live = optim.AdamWScheduleFree(model.parameters(), lr=0.01)
    found = restore(path, model=model, optimizer=live, policy=CONVERT)
    assert decisions(found)[1] == {"converted": 8}
    assert live.param_groups[0]["k"] == 3
    assert torch.equal(live.state[model[0].weight]["z"], source[0].weight)
    live.train()
    step(live, 2)

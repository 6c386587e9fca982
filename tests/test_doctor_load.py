"""A file against a program: what doctor says would happen is what happens when torch loads it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, Adam, AdamW, Muon
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import optstate
from tests.programs import OPTIMIZERS, matrices, step, trained

CLASS = {"M207", "M208", "M209", "M411"}


@pytest.fixture
def file(tmp_path):
    """Write what a program would save, model first; the optimizer's dict alone with `bare`."""

    def write(model, optimizer, *, bare=False):
        state = optimizer if isinstance(optimizer, dict) else optimizer.state_dict()
        path = tmp_path / "checkpoint.pt"
        torch.save(state if bare else {"model": model.state_dict(), "optimizer": state}, path)
        return path

    return write


def codes(diagnosis):
    """The codes of all errors and warnings."""
    return {finding.code for finding in diagnosis.reaching("warning")}


def loaded(optimizer, path):
    """What torch really makes of the file: the optimizer, and where it raised: `load`, `step` or nowhere."""
    node = torch.load(path, weights_only=False)
    state = node.get("optimizer", node)
    try:
        optimizer.load_state_dict(state)
    except Exception:  # noqa: BLE001 - whatever it is, it is what a user would see
        return optimizer, "load"
    before = copy.deepcopy(optimizer.state_dict())
    try:
        step(optimizer)
    except Exception:  # noqa: BLE001 - as above
        return before, "step"
    return before, "nowhere"


# --- the class ----------------------------------------------------------------------------------------------


PAIRS = [
    # Every class as file and as program; all pairs with --whole.
    pytest.param(saved, live, marks=() if (row + column) % 5 == 0 else pytest.mark.whole)
    for row, saved in enumerate(OPTIMIZERS)
    for column, live in enumerate(OPTIMIZERS)
]


@pytest.mark.parametrize(("saved", "live"), PAIRS)
def test_state_of_another_class(saved, live, file):
    """For a pair of classes, doctor knows whether loading raises, the next step raises, or nothing does."""
    model, before = trained(saved)
    path = file(model, before)
    found = codes(optstate.diagnose(path, model, against=OPTIMIZERS[live](model.parameters()))) & CLASS
    _, raised = loaded(OPTIMIZERS[live](model.parameters()), path)
    same = type(before) is type(OPTIMIZERS[live](model.parameters()))
    silent = {frozenset({"M208"})} if not same else {frozenset()}
    if (type(before), type(OPTIMIZERS[live](model.parameters()))) == (AdamW, Adam):
        silent = {frozenset()}  # that it loads, and what it makes of Adam, is M403
    expected = {"load": {frozenset({"M209"})}, "step": {frozenset({"M207"})}, "nowhere": silent}[raised]
    assert frozenset(found) in expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_missing_group_key(name, file):
    """A group key that the file lacks is reported exactly where torch neither fills it in nor goes without it."""
    for key in trained(name)[1].defaults:
        model, optimizer = trained(name)
        state = copy.deepcopy(optimizer.state_dict())
        del state["param_groups"][0][key]
        path = file(model, state)
        found = codes(optstate.diagnose(path, model, against=OPTIMIZERS[name](model.parameters())))
        _, raised = loaded(OPTIMIZERS[name](model.parameters()), path)
        # One key less can make the groups those of a sister class, which then is said to load and step.
        assert bool(found & CLASS - {"M208"}) == (raised != "nowhere"), (key, found, raised)


class Undescribed(AdamW):
    """A class of which the registry knows nothing, because it steps in a way of its own."""

    def step(self, closure=None):
        return super().step(closure)


def test_class_that_nobody_described(file):
    """A file that could be of a class that the registry lacks is not called another's."""
    model = matrices()
    path = file(model, step(Undescribed(model.parameters()), 3))
    assert codes(optstate.diagnose(path, model, against=Undescribed(model.parameters()))) == set()


# --- element types and shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(d, marks=pytest.mark.whole) for d in (torch.float16, torch.float64))]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_casts(name, dtype, file):
    """The parameters of whose slots doctor says that loading casts them are those of which it does."""
    model, optimizer = trained(name)
    path = file(model, optimizer)
    model.to(dtype)
    found = optstate.diagnose(path, model, against=OPTIMIZERS[name](model.parameters()))
    foretold = {each for finding in found if finding.code in {"M210", "M211", "M212"} for each in finding.parameters}
    live = OPTIMIZERS[name](model.parameters())
    before = torch.load(path, weights_only=False)["optimizer"]["state"]
    live.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
    after = live.state_dict()["state"]
    names = [each for each, _ in model.named_parameters()]
    assert foretold == {names[key] for key in before if types(before[key]) != types(after[key])}


def types(entry):
    """The element types of all tensors of an entry."""
    tensors = [item for value in entry.values() for item in (value if isinstance(value, list) else [value])]
    return [each.dtype for each in tensors if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("name", [each for each in OPTIMIZERS if each not in ("LBFGS", "SGD without momentum")])
def test_shapes(name, file):
    """State of another shape, which torch accepts, is reported; what really happens is an error in the next step."""
    model, optimizer = trained(name)
    path, other = file(model, optimizer), matrices(6)
    found = codes(optstate.diagnose(path, other, against=OPTIMIZERS[name](other.parameters())))
    assert "M203" in found
    if name != "AdamW, fused":  # its kernel checks no sizes either: it reads and writes beyond the end
        assert loaded(OPTIMIZERS[name](other.parameters()), path)[1] == "step"


def test_counter_is_rounded(file):
    """An integer in the state becomes a float, and one too large for it another number."""
    model, optimizer = trained("AdamW")
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["seen"] = torch.tensor(2**24 + 1)
    path = file(model, state)
    found = {finding.code: finding for finding in optstate.diagnose(path, model, against=optimizer)}
    assert "int64 → float32" in found["M212"].evidence
    loaded(optimizer, path)
    assert optimizer.state[next(model.parameters())]["seen"].item() == 2**24


def test_text_is_corrupted(file):
    """Text in the state becomes the name of a generator object."""
    model, optimizer = trained("AdamW")
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["note"] = "warm"
    path = file(model, state)
    assert "M213" in codes(optstate.diagnose(path, model, against=optimizer))
    loaded(optimizer, path)
    assert "generator object" in optimizer.state[next(model.parameters())]["note"]


def test_step_stays_on_the_host(file):
    """The count stays where the file put it although the live flags want it on the parameter's device."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    away = matrices().to("meta")
    live = AdamW(away.parameters(), capturable=True)
    assert "M215" in codes(optstate.diagnose(path, away, against=live, values=False))
    live.load_state_dict(torch.load(path)["optimizer"])
    entry = live.state[next(away.parameters())]
    assert (entry["step"].device.type, entry["exp_avg"].device.type) == ("cpu", "meta")


# --- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("name", [each for each in OPTIMIZERS if each not in ("LBFGS", "SGD without momentum")])
def test_order(name, named, file):
    """Parameters in another order: doctor names those that would get the state of another, and they do."""
    model, _ = four(name)
    listed = list(model.named_parameters()) if named else list(model.parameters())
    before = step(OPTIMIZERS[name](listed), 3)
    path = file(model, before)
    live = OPTIMIZERS[name]([listed[0], listed[2], listed[1], listed[3]])
    found = {finding.code: set(finding.parameters) for finding in optstate.diagnose(path, model, against=live)}
    live.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
    parameters = dict(model.named_parameters())
    wrong = {
        each for each, tensor in parameters.items()
        if not all(same(live.state[tensor][key], value) for key, value in before.state[tensor].items())
    }  # fmt: skip
    assert found["M202"] == wrong == {"1.weight", "2.weight"}
    assert ("M206" in found) == named
    if named:
        assert live.param_groups[0]["param_names"] == ["0.weight", "1.weight", "2.weight", "3.weight"]


def four(name):
    """Four parameters of one shape, and an optimizer over them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    return model, OPTIMIZERS[name](model.parameters())


def same(one, other):
    return torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


def test_order_in_a_file_without_names(file):
    """Where a file tells nothing but positions, doctor claims nothing about the order."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer, bare=True)
    live = AdamW(list(model.parameters())[::-1])
    assert not {"M202", "M206", "M221"} & codes(optstate.diagnose(path, model, against=live))


def test_groups_in_another_order(file):
    """Groups that change places take their hyperparameters and state along."""
    model = nn.Linear(4, 4)
    decayed, bare = [("weight", model.weight)], [("bias", model.bias)]

    def build(*groups):
        return AdamW([{"params": members, "weight_decay": decay} for members, decay in groups])

    path = file(model, step(build((decayed, 0.1), (bare, 0.0)), 3))
    live = build((bare, 0.0), (decayed, 0.1))
    assert {"M221", "M203"} <= codes(optstate.diagnose(path, model, against=live))
    _, raised = loaded(live, path)
    assert raised == "step"
    assert (live.param_groups[0]["weight_decay"], live.state[model.bias]["exp_avg"].shape) == (0.1, (4, 4))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "network.0."])
def test_prefix(prefix, file):
    """Names with a prefix are the same names: the prefix is reported, and the order is still checked."""
    model, optimizer = trained("AdamW")
    renamed = {prefix + name: tensor for name, tensor in model.state_dict().items()}

    class Renamed:
        def state_dict(self):
            return renamed

    path = file(Renamed(), optimizer)
    assert codes(optstate.diagnose(path, model, against=AdamW(model.parameters()))) == {"M204"}
    swapped = AdamW(list(model.parameters())[::-1])
    assert codes(optstate.diagnose(path, model, against=swapped)) == {"M202", "M204"}


@pytest.mark.parametrize("regroup", [lambda a, _b: [a], lambda a, b: [{"params": [a]}, {"params": [b]}]])
def test_counts(regroup, file):
    """Other numbers of groups or parameters are said to be refused, and are."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = AdamW(regroup(*model.parameters()))
    assert codes(optstate.diagnose(path, model, against=live)) - {"M117"} == {"M205"}
    with pytest.raises(ValueError, match="parameter group"):
        live.load_state_dict(torch.load(path)["optimizer"])


# --- hyperparameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters(name, file):
    """Every hyperparameter that loading would replace is in the evidence, and no other."""
    model, optimizer = trained(name)
    path = file(model, optimizer)
    skipped = {"foreach", "fused", "capturable", "differentiable", "amsgrad", "maximize", "nesterov", "centered"}
    for key, value in optimizer.defaults.items():
        if key in skipped or key == "decoupled_weight_decay" or not isinstance(value, (int, float)):
            continue
        live = OPTIMIZERS[name](model.parameters())
        live.param_groups[0][key] = value + 1
        found = optstate.diagnose(path, model, against=live)
        said = [each.evidence for each in found if each.code == "M401" and each.evidence.startswith("loading")]
        live.load_state_dict(torch.load(path, weights_only=False)["optimizer"])
        assert (len(said), f"{key} " in said[0], live.param_groups[0][key]) == (1, True, value)
    assert "M401" not in codes(optstate.diagnose(path, model, against=OPTIMIZERS[name](model.parameters())))


@pytest.mark.parametrize(
    ("flag", "code"), [("maximize", "M402"), ("amsgrad", "M402"), ("capturable", "M402"), ("differentiable", "M402")]
)
@pytest.mark.parametrize("on", [True, False], ids=["in the file", "in the program"])
def test_flags(flag, code, on, file):
    """A flag of the file replaces that of the program, on or off."""
    model, optimizer = trained("Adam")
    optimizer.param_groups[0][flag] = on
    path = file(model, optimizer)
    live = Adam(model.parameters())
    live.param_groups[0][flag] = not on
    assert code in codes(optstate.diagnose(path, model, against=live))
    live.load_state_dict(torch.load(path)["optimizer"])
    assert live.param_groups[0][flag] is on


def test_decoupled_decay_leaks(file):
    """A file of AdamW makes Adam decay as AdamW does; one of Adam leaves AdamW as it is."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = Adam(model.parameters())
    assert "M403" in codes(optstate.diagnose(path, model, against=live))
    live.load_state_dict(torch.load(path)["optimizer"])
    assert live.param_groups[0]["decoupled_weight_decay"] is True
    path = file(model, trained("Adam", model)[1])
    assert "M403" not in codes(optstate.diagnose(path, model, against=AdamW(model.parameters())))


def test_fused_is_lost(file):
    """An optimizer that was built fused no longer is, and GradScaler then fails."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = AdamW(model.parameters(), fused=True)
    assert "M404" in codes(optstate.diagnose(path, model, against=live))
    live.load_state_dict(torch.load(path)["optimizer"])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    with pytest.raises(AssertionError):
        scaler.step(live)


def test_scheduler_keys_are_lost(file):
    """A file from before there was a scheduler takes its keys out of the groups."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = AdamW(model.parameters())
    scheduler = OneCycleLR(live, 1.0, 10)
    assert "M410" in codes(optstate.diagnose(path, model, against=live, scheduler=scheduler))
    live.load_state_dict(torch.load(path)["optimizer"])
    step(live)
    with pytest.raises(KeyError, match="initial_lr"):
        scheduler.step()


def test_initial_lr_is_lost(file):
    """Without initial_lr in the file no scheduler can be built at a later epoch."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = AdamW(model.parameters())
    StepLR(live, 1)
    assert "M405" in codes(optstate.diagnose(path, model, against=live))
    live.load_state_dict(torch.load(path)["optimizer"])
    with pytest.raises(KeyError, match="initial_lr"):
        StepLR(live, 1, last_epoch=3)


def test_rate_that_a_scheduler_moved(file):
    """A rate that differs because the saved run was further in its schedule is no finding; another peak is."""
    model, optimizer = trained("AdamW")
    scheduler = StepLR(optimizer, 1, 0.5)
    for _ in range(3):
        step(optimizer)
        scheduler.step()
    path = file(model, optimizer)
    assert codes(optstate.diagnose(path, model, against=AdamW(model.parameters()))) == set()
    assert codes(optstate.diagnose(path, model, against=AdamW(model.parameters(), lr=0.5))) == {"M401"}


# --- by name --------------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_dropped(file):
    """What is frozen in the program does not get its state from a dict by name."""
    model, optimizer = trained("AdamW")
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    path = file(model, state)
    model[0].weight.requires_grad_(False)
    live = AdamW(model.parameters())
    found = {finding.code: finding.parameters for finding in optstate.diagnose(path, model, against=live)}
    set_optimizer_state_dict(model, live, state)
    assert found["M104"] == ("0.weight",)
    assert (model[0].weight in live.state, model[1].weight in live.state) == (False, True)


def test_group_that_is_split(file):
    """One saved group over two live ones: the first is left without hyperparameters."""
    model, optimizer = trained("AdamW")
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    path = file(model, state)
    live = AdamW([{"params": [model[0].weight]}, {"params": [model[1].weight]}])
    assert "M503" in codes(optstate.diagnose(path, model, against=live))
    set_optimizer_state_dict(model, live, state)
    with pytest.raises(KeyError):
        step(live)


def test_groups_that_are_merged(file):
    """Two saved groups into one: one of the two rates wins."""
    model = matrices()
    rates = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[1].weight], "lr": 0.2}]
    state = copy.deepcopy(get_optimizer_state_dict(model, step(AdamW(rates), 3)))
    path = file(model, state)
    live = AdamW(model.parameters(), lr=0.1)
    found = {finding.code: finding.evidence for finding in optstate.diagnose(path, model, against=live)}
    set_optimizer_state_dict(model, live, state)
    assert "lr" in found["M504"]
    assert f"lr 0.1 → {live.param_groups[0]['lr']}" in found["M401"]


def test_names_that_one_side_lacks(file):
    """A parameter without a counterpart is named, on whichever side it is."""
    model, optimizer = trained("AdamW")
    path = file(model, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    grown = nn.Sequential(model[0], model[1], nn.Linear(4, 4, bias=False))
    (found,) = [
        each for each in optstate.diagnose(path, grown, against=AdamW(grown.parameters())) if each.code == "M205"
    ]
    assert found.parameters == ("2.weight",)
    (found,) = [
        each for each in optstate.diagnose(path, model, against=AdamW([model[0].weight])) if each.code == "M205"
    ]
    assert "1.weight of the file" in found.evidence


# --- nothing at all, and afterwards -----------------------------------------------------------------------------------


def test_empty_state(file):
    """A file without state is said to leave nothing behind, and does."""
    model, optimizer = trained("AdamW")
    path = file(model, AdamW(model.parameters()))
    assert "M102" in codes(optstate.diagnose(path, model, against=optimizer))
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_good_file(name, file):
    """A file of the same program is said to load well, from a fresh optimizer and from one that has stepped."""
    model, optimizer = trained(name)
    path = file(model, optimizer)
    for live in (OPTIMIZERS[name](model.parameters()), optimizer):
        found = optstate.diagnose(path, model, against=live)
        assert [str(each) for each in found.reaching("warning")] == []


def test_afterwards(file):
    """A program that has loaded a file holds what the file has, for the right parameters or for the wrong ones."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    named = dict(model.named_parameters())
    good, bad, partly = AdamW(named.values()), AdamW(list(named.values())[::-1]), AdamW(named.values())
    for live in (good, bad, partly):
        live.load_state_dict(torch.load(path)["optimizer"])
    del partly.state[named["1.weight"]]
    assert codes(optstate.diagnose(path, model, against=good)) == set()
    assert "M202" in codes(optstate.diagnose(path, model, against=bad))
    found = {each.code: each.parameters for each in optstate.diagnose(path, model, against=partly)}
    assert found["M506"] == ("1.weight",)


def test_own_way_of_loading(file):
    """Where load_state_dict is overridden or hooked, doctor says that it cannot foretell instead of guessing."""
    model, optimizer = trained("AdamW")
    path = file(model, optimizer)
    live = AdamW(list(model.parameters())[::-1])
    live.register_load_state_dict_pre_hook(lambda *_: None)
    found = optstate.diagnose(path, model, against=live)
    assert (codes(found), found.ok) == (set(), False)
    assert "hooked" in found.left_out[0]


def test_our_own_file(tmp_path):
    """Our own checkpoints are restored by name in their own types: neither order nor casts are foretold for them."""
    model, optimizer = trained("AdamW")
    optstate.save(tmp_path / "step-3", model=model, optimizer=optimizer, step=3)
    live = AdamW(list(model.parameters())[::-1], lr=0.5)
    assert codes(optstate.diagnose(tmp_path / "step-3", model, against=live)) == {"M401"}


def test_class_that_fills_nothing_in(file):
    """Muon fills in no key that an older file lacks."""
    model, optimizer = trained("Muon")
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["ns_steps"]
    found = {
        each.code: each.evidence
        for each in optstate.diagnose(file(model, state), model, against=Muon(model.parameters()))
    }
    assert "ns_steps" in found["M411"]


def test_several_optimizers(tmp_path):
    """Optimizers are paired by name, or in order where the file only numbers them; another number is a finding."""
    model = matrices()
    one, other = (step(SGD([each.weight], 0.1, 0.9), 3) for each in model)
    path = tmp_path / "two.pt"
    torch.save({"model": model.state_dict(), "optimizers": [one.state_dict(), other.state_dict()]}, path)
    live = {"a": SGD([model[0].weight], 0.5, 0.9), "b": SGD([model[1].weight], 0.1, 0.9)}
    (found,) = optstate.diagnose(path, model, against=live).reaching("warning")
    assert (found.code, found.where, "0.5 → 0.1" in found.evidence) == ("M401", "optimizer a", True)
    assert "M205" in codes(optstate.diagnose(path, model, against=live["a"]))

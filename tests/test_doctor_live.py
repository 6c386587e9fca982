"""A running program, diagnosed: nothing in it changes, a healthy one is called clean, and words name what is meant.

That each fault is found is shown by the zoo, `tests/test_zoo.py`.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import optstate
from optstate.doctor.catalogue.codes import CODES
from optstate.doctor.rules.every import RULES
from optstate.errors import BindError
from optstate.live.examine import examine
from tests.programs import OPTIMIZERS, matrices, step, trained


def codes(diagnosis):
    """The codes of all errors and warnings."""
    return {finding.code for finding in diagnosis.reaching("warning")}


def fingerprint(model, optimizer, scheduler=None):
    """Everything of a program that a look must not change: values, identities, order, entries, random numbers."""
    state = [
        (id(key), [(slot, id(value), raw(value)) for slot, value in entry.items()])
        for key, entry in optimizer.state.items()
    ]
    groups = [(id(group), {key: id(value) for key, value in group.items()}) for group in optimizer.param_groups]
    weights = [
        (name, id(each), raw(each), each.grad is None, each.requires_grad) for name, each in model.named_parameters()
    ]
    driven = {key: repr(value) for key, value in vars(scheduler).items()} if scheduler else None
    return state, groups, weights, driven, torch.get_rng_state().tolist(), repr(optimizer.defaults)


def raw(value):
    """The bits of a slot."""
    if isinstance(value, torch.Tensor):
        return value.detach().flatten().view(torch.uint8).tolist() if value.numel() else []
    return repr(value)


# --- what a look changes: nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_changes(name, tmp_path):
    """A diagnosis leaves optimizer, model, scheduler and random numbers as they are, bit by bit and object by object."""
    model, optimizer = trained(name)
    scheduler = StepLR(optimizer, 1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    model[0].weight.grad = torch.ones(4, 4)
    before = fingerprint(model, optimizer, scheduler)
    optstate.diagnose(optimizer, model, scheduler=scheduler)
    optstate.diagnose(tmp_path / "checkpoint.pt", model, against=optimizer, scheduler=scheduler)
    assert fingerprint(model, optimizer, scheduler) == before


def test_next_steps_are_the_same():
    """A run that is diagnosed after each step is the run that is not."""
    runs = []
    for watched in (False, True):
        model, optimizer = trained("NAdam")
        for _ in range(3):
            step(optimizer)
            if watched:
                optstate.diagnose(optimizer, model)
        runs.append([each.detach().clone() for each in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_fresh_optimizer_stays_fresh():
    """Looking at an optimizer that never stepped creates no entry in its state."""
    model = matrices()
    optimizer = AdamW(model.parameters())
    assert [finding.code for finding in optstate.diagnose(optimizer, model)] == ["M111"]
    assert (len(optimizer.state), type(optimizer.state)) == (0, defaultdict)


# --- a healthy program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_healthy_program_is_clean(name):
    """Fresh, stepped, and resumed from its own file, every optimizer of torch is called clean."""
    model = matrices()
    optimizer = OPTIMIZERS[name](model.named_parameters() if name == "AdamW" else model.parameters())
    assert codes(optstate.diagnose(optimizer, model)) == set()
    step(optimizer, 3)
    assert optstate.diagnose(optimizer, model).ok
    resumed = OPTIMIZERS[name](model.named_parameters() if name == "AdamW" else model.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optstate.diagnose(resumed, model).ok
    step(resumed)
    assert optstate.diagnose(resumed, model).ok


SCHEDULERS = {
    "StepLR": lambda optimizer: StepLR(optimizer, 1),
    "Cosine": lambda optimizer: CosineAnnealingLR(optimizer, 10),
    "Cyclic": lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False),
    "OneCycle": lambda optimizer: OneCycleLR(optimizer, 1.0, 10, cycle_momentum=False),
    "Plateau": ReduceLROnPlateau,
    "Chained": lambda optimizer: ChainedScheduler([LinearLR(optimizer), StepLR(optimizer, 2)]),
    "Sequential": lambda optimizer: SequentialLR(optimizer, [LinearLR(optimizer), StepLR(optimizer, 2)], [2]),
}


@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*epoch parameter in.*:UserWarning")
def test_healthy_schedule_is_clean(build):
    """A scheduler that drives this optimizer, over several steps and groups, is called clean."""
    model = matrices()
    optimizer = AdamW([{"params": [model[0].weight], "lr": 0.1}, {"params": [model[1].weight]}])
    scheduler = build(optimizer)
    for _ in range(4):
        step(optimizer)
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        assert optstate.diagnose(optimizer, model, scheduler=scheduler).ok


def test_two_schedulers_over_one_optimizer():
    """Where two schedulers write in turn, the rate in the groups is that of one of them, and none is blamed."""
    model, optimizer = trained("AdamW")
    warmup, plateau = LinearLR(optimizer, total_iters=2), ReduceLROnPlateau(optimizer, patience=0)
    for loss in (1.0, 2.0, 3.0):
        step(optimizer)
        warmup.step()
        plateau.step(loss)
    assert optstate.diagnose(optimizer, model, scheduler=[warmup, plateau]).ok


def test_usual_programs_are_clean():
    """What people do on purpose is no fault: rates set by hand, rates and decay by group, frozen layers, fused, tensors."""
    model = matrices()
    groups = [{"params": [model[0].weight], "lr": 0.1, "weight_decay": 0.0}, {"params": [model[1].weight], "lr": 0.2}]
    by_hand = step(AdamW(groups, lr=0.3))
    by_hand.param_groups[0]["lr"] = by_hand.param_groups[1]["lr"] = 1e-5
    assert optstate.diagnose(by_hand, model).ok
    model[0].weight.requires_grad_(False)
    only_one = AdamW([each for each in model.parameters() if each.requires_grad])
    assert optstate.diagnose(step(only_one), model).ok
    tensors = step(Adam(matrices().parameters(), torch.tensor(0.1), foreach=False))
    assert "M416" not in codes(optstate.diagnose(tensors, model))


class Tabled(torch.optim.Optimizer):
    """An optimizer that looks numbers up in one table for all parameters, as 8-bit ones do."""

    table = torch.linspace(-1, 1, 256)

    def step(self, closure=None):
        for group in self.param_groups:
            for each in group["params"]:
                self.state[each].update(codes=torch.zeros_like(each, dtype=torch.uint8), table=self.table)


def test_shared_table_is_no_shared_buffer():
    """What all parameters only look up is not taken for a buffer that two of them write to."""
    model = matrices()
    optimizer = Tabled(model.parameters(), {"lr": 0.1})
    optimizer.step()
    assert optstate.diagnose(optimizer, model).ok


def test_subclass_with_own_defaults():
    """A class that hands its own defaults on is not taken for one whose arguments were overwritten."""

    class Ours(AdamW):
        def __init__(self, parameters, **more):
            super().__init__(parameters, **{"weight_decay": 0.2, **more})

    model = matrices()
    groups = [{"params": [each], "weight_decay": 0.0} for each in model.parameters()]
    assert optstate.diagnose(step(Ours(groups)), model).ok
    assert optstate.diagnose(step(Ours(model.parameters())), model).ok


# --- what is seen through, and what is not ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of a library that accelerate imports
def test_wrappers_are_seen_through():
    """A compiled model and an accelerated optimizer with its scheduler are those that they wrap."""
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    inner = matrices()
    model, optimizer = torch.compile(inner), AdamW(inner.parameters())
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped, scheduler = accelerator.prepare(optimizer, StepLR(optimizer, 1))
    step(optimizer)
    scheduler.step()
    assert optstate.diagnose(wrapped, model, scheduler=scheduler).ok


def test_several_optimizers():
    """Optimizers of one model are diagnosed together, and a finding says which one it is about."""
    model = matrices()
    one, other = AdamW([model[0].weight]), AdamW([model[1].weight])
    other.param_groups[0]["maximize"] = True
    (found,) = optstate.diagnose({"one": step(one), "other": step(other)}, model).reaching("warning")
    assert (found.code, found.where) == ("M402", "optimizer other")


def test_two_optimizers_of_one_mapping_share_buffers():
    """Buffers that two of the diagnosed optimizers share are found, though no other optimizer is alive."""
    model, optimizer = trained("SGD")
    other = nn.Linear(4, 4, bias=False)
    copy_of = SGD(other.parameters(), 0.1, 0.9)
    copy_of.state[other.weight] = optimizer.state[model[0].weight]
    both = nn.ModuleList([model, other])
    assert "M223" in codes(optstate.diagnose({"one": optimizer, "other": copy_of}, both))


def test_dropped_optimizer_shares_nothing():
    """An optimizer that is gone, but not yet collected because its scheduler holds it, is not blamed."""
    model, first = trained("AdamW")
    scheduler = StepLR(first, 1)
    second = AdamW(model.parameters())
    second.load_state_dict(first.state_dict())
    assert "M223" in codes(optstate.diagnose(second, model))
    del first, scheduler
    assert "M223" not in codes(optstate.diagnose(second, model))


def test_user_defined_state_under_text_keys():
    """What an optimizer keeps for itself under a key that is neither tensor nor number is left alone."""
    model, optimizer = trained("AdamW")
    optimizer.state["shared"] = {"count": 3}
    assert optstate.diagnose(optimizer, model).ok


def test_genuine_name_that_looks_like_a_wrapper():
    """A layer that is really called `module` does not make the recorded names wrong."""
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    assert optstate.diagnose(step(AdamW(model.named_parameters())), model).ok


def test_hostile_names_are_harmless():
    """A parameter's name reaches the page without anything that a terminal would act on."""
    model = nn.ModuleDict({"evil\x1b[2J": nn.Linear(2, 2), "good": nn.Linear(2, 2)})
    page = str(optstate.diagnose(step(AdamW(model["good"].parameters())), model))
    assert "M117" in page
    assert "\x1b" not in page


# --- how it is asked ---------------------------------------------------------------------------------------------------


def test_either_way_round(tmp_path):
    """A file against an optimizer and an optimizer against a file are the same question."""
    model, optimizer = trained("AdamW")
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    live = AdamW(model.parameters(), lr=0.5)
    asked = [
        optstate.diagnose(path, model, against=live),
        optstate.diagnose(live, model, against=path),
        optstate.diagnose(optstate.open(path), model, against=live),
    ]
    assert [codes(each) for each in asked] == [{"M401"}] * 3


def test_combinations_without_sense(tmp_path):
    """A model alone, a scheduler without optimizer, two programs: each is told what is missing."""
    model, optimizer = trained("AdamW")
    path = tmp_path / "checkpoint.pt"
    torch.save(optimizer.state_dict(), path)
    with pytest.raises(BindError, match="model without an optimizer"):
        optstate.diagnose(path, model)
    with pytest.raises(BindError, match="scheduler without an optimizer"):
        optstate.diagnose(path, scheduler=StepLR(optimizer, 1))
    with pytest.raises(BindError, match="two running programs"):
        optstate.diagnose(optimizer, model, against=optimizer)
    with pytest.raises(BindError, match="not a model"):
        optstate.diagnose(optimizer)
    with pytest.raises(BindError, match="not a scheduler"):
        optstate.diagnose(optimizer, model, scheduler=3)
    with pytest.raises(BindError, match="not an optimizer"):
        optstate.diagnose(3, model)


def test_values_are_left_out_when_asked():
    """Without values no tensor is read, and that they were not looked at is said."""
    model, optimizer = trained("AdamW")
    optimizer.state[model[0].weight]["exp_avg"].fill_(float("nan"))
    assert codes(optstate.diagnose(optimizer, model)) == {"M301"}
    blind = optstate.diagnose(optimizer, model, values=False)
    assert (codes(blind), blind.ok, len(blind.left_out)) == (set(), False, 1)


def test_page_in_a_notebook():
    """A diagnosis renders itself for a notebook, escaped."""
    model, optimizer = trained("AdamW")
    model[0] = nn.Linear(4, 4, bias=False)
    assert "M106" in optstate.diagnose(optimizer, model)._repr_html_()


@pytest.mark.slow
def test_file_is_diagnosed_without_torch(tmp_path):
    """`diagnose` on a file needs no torch."""
    _, optimizer = trained("AdamW")
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint.pt")
    block = "import sys; sys.modules['torch'] = None; import optstate; "
    code = f"{block}print([f.code for f in optstate.diagnose({str(tmp_path / 'checkpoint.pt')!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("['M201']", 0), done.stderr


def test_rules_cover_what_the_catalogue_promises():
    """Each code that the catalogue calls visible in a program, or in a file against one, has a rule that looks for it."""
    needs = {"live": {"live", "state"}, "file and live": {"file and live"}}
    for shown_by, enough in needs.items():
        asked = {code for rule in RULES if rule.needs in enough for code in rule.codes}
        assert {each.code for each in CODES.values() if shown_by in each.shown_by} - asked == set(), shown_by


# --- evidence in detail --------------------------------------------------------------------------------------------------


def test_evidence_is_plain():
    """What is known of a program outlives it as plain values, without a reference to any of its tensors."""
    model, optimizer = trained("AdamW")
    found = examine(optimizer, model, scheduler=OneCycleLR(optimizer, 1.0, 10))
    (scheduler,) = found.schedulers
    assert (scheduler.drives, scheduler.cycles, scheduler.groups) == ("", "betas[0]", 1)
    assert found.parameters["0.weight"].shape == (4, 4)
    assert [slot.key for slot in found.slots if slot.parameter == "0.weight"] == ["step", "exp_avg", "exp_avg_sq"]
    assert found.optimizers[""].chosen == set()


def test_replaced_parameters_are_paired_by_shape():
    """Of two layers that no optimizer has, the one of the shape of a dead tensor replaces it; the other is forgotten."""
    model, optimizer = trained("AdamW")
    model[0] = nn.Linear(4, 4, bias=False)
    model.append(nn.Linear(4, 2, bias=False))
    found = {finding.code: finding.parameters for finding in optstate.diagnose(optimizer, model)}
    assert (found["M106"], found["M117"]) == (("0.weight",), ("2.weight",))


@pytest.mark.parametrize(
    "name", [each for each in OPTIMIZERS if each not in ("LBFGS", "SGD without momentum", "SparseAdam")]
)
def test_drifted_types(name):
    """After a conversion of the model doctor knows which optimizers go on and which raise."""
    model, optimizer = trained(name)
    model.bfloat16()
    found = codes(optstate.diagnose(optimizer, model)) & {"M214", "M231"}
    try:
        step(optimizer)
    except RuntimeError:
        assert found == {"M214"}
    else:
        assert found == {"M231"}

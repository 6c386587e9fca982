"""Editing a checkpoint: the verbs of a live state, block by block, into another checkpoint; all else bit for bit."""

from __future__ import annotations

import copy
import os
import resource
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch

import optstate
from optstate.errors import (
    EditError,
    EditRefused,
    MissingSlot,
    NoSuchParameter,
    NothingSelected,
    OptstateError,
    TargetExists,
    Unsaveable,
    WriteFailed,
)
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.state.tensors import is_tensor
from optstate.store.edit import edit
from tests.test_registry import EXPORTED

CLASSES = [cls for cls in EXPORTED if cls is not torch.optim.LBFGS]
OPTIONS: dict[Any, dict[str, Any]] = {
    torch.optim.SGD: {"momentum": 0.9, "lr": 0.1},
    torch.optim.RMSprop: {"momentum": 0.9, "centered": True},
    torch.optim.Adam: {"amsgrad": True},
}


def trained(cls=torch.optim.AdamW, steps=20, dtype=torch.float32, **options):
    """A model of two layers and its optimizer after some steps."""
    torch.manual_seed(0)
    bias = cls is not torch.optim.Muon
    model = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=bias), torch.nn.Linear(7, 3, bias=bias)).to(dtype)
    optimizer = cls(model.parameters(), **{**OPTIONS.get(cls, {}), **options})
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.grad = gradient.to_sparse() if cls is torch.optim.SparseAdam else gradient
        optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of ours of an AdamW after 20 steps."""
    model, optimizer = trained()
    return optstate.save(tmp_path / "a", model=model, optimizer=optimizer, step=20)


def values(path):
    """Every slot and weight of a checkpoint: numbers as they are, tensors as bytes."""
    opened = optstate.open(path)
    slots = {
        (slot.parameter, slot.key): slot.value
        for parameter in opened.state.values()
        for slot in parameter.slots.values()
    }
    every = {**slots, **{(name, ""): ref for name, ref in opened.weights.items()}}
    return {
        place: (value.dtype, value.shape, np.ascontiguousarray(value.array()).tobytes()) if is_tensor(value) else value
        for place, value in every.items()
    }


def tree(folder):
    """Every file in a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the same verbs ---------------------------------------------------------------------------------------

VERBS = {
    "scale": lambda target: target.momentum.scale_(0.375),  # a number that every type has
    "turn": lambda target: target.momentum.scale_(-0.5),
    "zero": lambda target: target.momentum.zero_(),
    "clamp": lambda target: target.momentum.clamp_(-0.01, 0.02),
    "clamp one end": lambda target: target.momentum.clamp_(max=0.005),
    "set": lambda target: target.momentum.set_(0.001),
    "clip each": lambda target: target.momentum.clip_norm_(0.05, per_parameter=True),
    "rows scaled": lambda target: target.rows([0, 2]).momentum.scale_(0.5),
    "rows zeroed": lambda target: target.rows(slice(1, 3)).momentum.zero_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_those_of_a_live_state(tmp_path, verb, dtype):
    """A verb on a file gives the very bits that it gives on the running optimizer."""
    if verb == "clip each" and dtype.itemsize == 2:
        pytest.skip("torch rounds the factor to 16 bits, a file's is not rounded")
    model, optimizer = trained(dtype=dtype)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with optstate.attach(optimizer, model).edit(force=True) as live:
        VERBS[verb](live.select("0.*"))
    optstate.save(tmp_path / "expected", model=model, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b", force=True) as file:
        VERBS[verb](file.select("0.*"))
    assert values(tmp_path / "b") == values(tmp_path / "expected")
    assert values(tmp_path / "b") != values(tmp_path / "a")
    (mine,), (theirs,) = file.change.entries, live.change.entries
    assert (mine.verb, mine.parameters, mine.slots, mine.elements, mine.step) == (
        theirs.verb,
        theirs.parameters,
        theirs.slots,
        theirs.elements,
        theirs.step,
    )
    assert mine.norms == {key: pytest.approx(pair, rel=1e-5, abs=1e-12) for key, pair in theirs.norms.items()}


def test_a_norm_of_all_is_clipped_together(saved, tmp_path):
    """Without `per_parameter` the norm is that of all that is selected."""
    with edit(saved, tmp_path / "b") as file:
        file.select("*").momentum.clip_norm_(0.5)
    arrays = [parameter.momentum.array() for parameter in optstate.open(tmp_path / "b").state.values()]
    assert np.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays)) == pytest.approx(0.5)
    with edit(saved, tmp_path / "c") as file:
        file.select("*").momentum.clip_norm_(1e6)
    assert values(tmp_path / "c") == values(saved)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("rows", [None, [0, 2]], ids=["whole", "rows"])
def test_reset_is_that_of_a_live_state(tmp_path, cls, rows):
    """Resetting in a file gives for every class of torch what resetting the running optimizer gives."""
    model, optimizer = trained(cls)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)

    def reset(edits):
        target = edits.select("0.*")
        (target if rows is None else target.rows(rows)).reset_()

    try:
        with optstate.attach(optimizer, model).edit(force=True) as live:
            reset(live)
    except EditError as error:
        with pytest.raises(type(error)), edit(tmp_path / "a", tmp_path / "b", force=True) as file:
            reset(file)
        return
    optstate.save(tmp_path / "expected", model=model, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b", force=True) as file:
        reset(file)
    mine, theirs = values(tmp_path / "b"), values(tmp_path / "expected")
    assert mine.keys() == theirs.keys()
    for place in theirs:
        if mine[place] != theirs[place]:  # a mean of rows may be added up in another order
            assert rows is not None
            assert mine[place][:2] == theirs[place][:2]
            np.testing.assert_allclose(
                *(np.frombuffer(each[place][2], np.float32) for each in (mine, theirs)), rtol=1e-5
            )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_restored_after_a_reset_it_starts_afresh(tmp_path, cls):
    """A file that was reset as a whole is, restored, an optimizer that has never stepped: the next steps are its steps."""
    model, optimizer = trained(cls)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*").reset_()
    twin = copy.deepcopy(model)
    fresh = cls(twin.parameters(), **OPTIONS.get(cls, {}))
    optstate.restore(tmp_path / "b", model=model, optimizer=optimizer)
    for net, each in ((model, optimizer), (twin, fresh)):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for parameter in net.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to_sparse() if cls is torch.optim.SparseAdam else gradient
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_what_is_removed_is_gone(tmp_path):
    """A damped buffer is fresh when it is not there: the file has none afterwards, and a later verb finds none."""
    model, optimizer = trained(torch.optim.SGD, dampening=0.5)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*").reset_()
        with pytest.raises(MissingSlot):
            file.select("*").momentum.zero_()
        file.select("*").reset_()
    state = optstate.open(tmp_path / "b").state
    assert not any(parameter.slots for parameter in state.values())
    assert state["0.weight"].absences["momentum"].value == "never-stepped"


def test_reset_can_keep_the_step(saved, tmp_path):
    """`keep` leaves what it names; what follows from that is looked at as ever."""
    with edit(saved, tmp_path / "b", force=True) as file:
        file.select("*").reset_(keep="step")
    state = optstate.open(tmp_path / "b").state
    assert {parameter.step.item() for parameter in state.values()} == {20.0}
    assert not any(parameter.momentum.array().any() for parameter in state.values())
    with pytest.raises(EditError, match="nothing called 'stpe' to keep"), edit(saved, dry_run=True) as file:
        file.select("*").reset_(keep="stpe")


def test_lerp_goes_towards_another_checkpoint(tmp_path):
    """Averages that are divided by 1-β^t are brought to this file's t first, so that what is blended is what they mean."""
    model, optimizer = trained(steps=5)
    optstate.save(tmp_path / "early", model=model, optimizer=optimizer)
    model, optimizer = trained(steps=20)
    optstate.save(tmp_path / "late", model=model, optimizer=optimizer)
    with optstate.attach(optimizer, model).edit(force=True) as live:
        live.select("*").momentum.lerp_(tmp_path / "early", 0.25)
    with edit(tmp_path / "late", tmp_path / "mixed", force=True) as file:
        file.select("*").momentum.lerp_(tmp_path / "early", 0.25)
    mixed = optstate.open(tmp_path / "mixed").state
    for name, parameter in mixed.items():
        torch.testing.assert_close(
            torch.tensor(parameter.momentum.array()), optstate.attach(optimizer, model)[name].momentum.tensor
        )
    assert file.change.entries[0].arguments == {"other": str(tmp_path / "early"), "weight": 0.25}
    with edit(tmp_path / "late", tmp_path / "same", force=True) as file:
        file.select("*").momentum.lerp_(tmp_path / "late", 1.0)
    assert values(tmp_path / "same") == values(tmp_path / "late")


def test_verbs_follow_each_other(saved, tmp_path):
    """Several verbs act in their order, on what the ones before left; each has its entry."""
    with edit(saved, tmp_path / "b", note="why") as file:
        file["0.weight"]["exp_avg"].scale_(0.5)
        file["0.weight"].momentum.scale_(0.5)
        file.select("1.*").reset_()
    with edit(saved, tmp_path / "c") as once:
        once["0.weight"].momentum.scale_(0.25)
        once.select("1.*").reset_()
    assert values(tmp_path / "b") == values(tmp_path / "c")
    first, second, _ = file.change.entries
    assert first.norms["exp_avg"][1] == second.norms["exp_avg"][0]
    assert {entry.note for entry in file.change.entries} == {"why"}


def test_sparse_buffers_are_scaled(tmp_path):
    """Of a sparse buffer the values are scaled; what is not exact there is refused."""
    table = torch.nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1, momentum=0.9)
    table(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    optstate.save(tmp_path / "a", model=table, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*").momentum.scale_(0.5)
    assert isinstance(optstate.open(tmp_path / "b").state["weight"].momentum.value, SparseRef)
    assert optstate.open(tmp_path / "b").state["weight"].momentum.array().sum() == 2.0
    with pytest.raises(EditError, match="it is sparse"), edit(tmp_path / "a", dry_run=True) as file:
        file.select("*").momentum.clamp_(max=0.1)


# --- what is left alone ------------------------------------------------------------------------------------


def test_all_else_has_the_digest_that_it_had(saved, tmp_path):
    """Whatever no verb touched is the same to the last bit, which both manifests say; so do the numbers of the edit."""
    with edit(saved, tmp_path / "b") as file:
        file.select("0.*").momentum.zero_()
    before, after = optstate.open(saved), optstate.open(tmp_path / "b")
    seen = 0
    for name, parameter in after.state.items():
        for key, slot in parameter.slots.items():
            assert isinstance(slot.value, OwnTensor)
            touched = (name[0], key) == ("0", "exp_avg")
            same: Any = before.state[name][key].value
            assert (slot.value.digests == same.digests) is not touched
            seen += not touched
    for name in after.weights:
        one, same = after.weights[name], before.weights[name]
        assert isinstance(one, OwnTensor)
        assert one.digests == same.digests
        seen += 1
    assert file.untouched == file.same_digests == seen == 14


def test_objects_and_groups_come_along(tmp_path):
    """A scheduler's state, the random state, the step, hyperparameters and their order are there again."""
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer, step=20, rng=True, scheduler=scheduler)
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*").momentum.scale_(0.5)
    differences = optstate.diff(tmp_path / "a", tmp_path / "b").differences
    assert len(differences) == 4
    assert all("exp_avg" in str(each) for each in differences)
    optstate.restore(tmp_path / "b", model=model, optimizer=optimizer, scheduler=scheduler, rng=True)


def test_the_source_is_never_changed(saved, tmp_path):
    """Not one byte of the source is another one afterwards, whatever happened."""
    before = tree(saved)
    with edit(saved, tmp_path / "b") as file:
        file.select("*").reset_()
    with pytest.raises(EditRefused), edit(saved, tmp_path / "c") as file:
        file.select("*").second_moment.zero_()
    assert tree(saved) == before


@pytest.mark.parametrize("place", ["", ".", "inside", "..", "link"])
def test_never_in_place(saved, tmp_path, place):
    """The source itself, a folder in it or around it, and a link to it are no targets, not even with replace."""
    if place == "link":
        (tmp_path / "link").symlink_to(saved)
    target = {"": saved, ".": saved / ".", "inside": saved / "new", "..": tmp_path, "link": tmp_path / "link"}[place]
    with pytest.raises(TargetExists):
        edit(saved, target, replace=True)


def test_a_target_that_is_there_stays(saved, tmp_path):
    """An existing checkpoint is replaced only when asked, and anything else never."""
    optstate.convert(saved, tmp_path / "b")
    with pytest.raises(TargetExists, match="exists already"):
        edit(saved, tmp_path / "b")
    (tmp_path / "mine").mkdir()
    with pytest.raises(TargetExists, match="is not replaced"):
        edit(saved, tmp_path / "mine", replace=True)
    with edit(saved, tmp_path / "b", replace=True) as file:
        file.select("*").momentum.zero_()
    assert not optstate.open(tmp_path / "b").state["0.weight"].momentum.array().any()


# --- formats -----------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path):
    """A file of `torch.save` with model, optimizer and an object."""
    model, optimizer = trained()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_what_counts_stays_whole(tmp_path):
    """A step count that is a Python integer takes whole numbers only, and nothing is written otherwise."""
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    torch.save({"model": embedding.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with (
        pytest.raises(EditError, match="weight/step counts"),
        optstate.edit(tmp_path / "a.pt", tmp_path / "b.pt") as edit,
    ):
        edit.select("*").step.set_(2.5)
    assert not (tmp_path / "b.pt").exists()
    with optstate.edit(tmp_path / "a.pt", tmp_path / "b.pt", force=True) as edit:
        edit.select("*").step.set_(3.0)
    step = torch.load(tmp_path / "b.pt")["optimizer"]["state"][0]["step"]
    assert (type(step), step) == (int, 3)


def test_pt_in_pt_out(theirs, tmp_path):
    """A file of torch.save becomes one again, which torch loads; only what was edited differs."""
    with edit(theirs, tmp_path / "b.pt") as file:
        file.select("0.*").momentum.zero_()
    one, other = (torch.load(path, weights_only=True) for path in (theirs, tmp_path / "b.pt"))
    assert other["epoch"] == 3
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    for number, entry in one["optimizer"]["state"].items():
        for key, value in entry.items():
            changed = number in (0, 1) and key == "exp_avg"
            assert torch.equal(value, other["optimizer"]["state"][number][key]) is not changed
    assert [entry.verb for entry in optstate.open(tmp_path / "b.pt").journal] == ["zero_"]


@pytest.mark.parametrize("target", ["b", "b.pt", "b.safetensors"])
def test_any_format_in_and_out(theirs, tmp_path, target):
    """Whatever the outcome is written as, it has the edit, the journal, and everything else as it was."""
    with edit(theirs, tmp_path / target) as file:
        file.select("*").momentum.scale_(0.5)
    opened, before = optstate.open(tmp_path / target), optstate.open(theirs)
    for name, parameter in opened.state.items():
        assert np.array_equal(parameter.momentum.array(), before.state[name].momentum.array() * np.float32(0.5))
        assert np.array_equal(parameter.second_moment.array(), before.state[name].second_moment.array())
    assert len(opened.journal) == 1
    assert file.untouched == 12


def test_strides_survive(tmp_path):
    """A buffer that lies in another order in memory lies so again."""
    model = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    for target in ("b.pt", "b"):
        with edit(tmp_path / f"a{target[1:]}", tmp_path / target) as file:
            file["weight"].momentum.scale_(2.0)
    buffer = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]["state"][0]["exp_avg"]
    assert buffer.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(buffer, optimizer.state[model.weight]["exp_avg"] * 2)
    assert np.array_equal(optstate.open(tmp_path / "b").state["weight"].momentum.array(), buffer.numpy())
    assert optstate.open(tmp_path / "b").state["weight"].momentum.value.stride == buffer.stride()


def test_positions_are_names_too(tmp_path):
    """A file without names is edited by positions; what a name would be is said."""
    torch.save(trained()[1].state_dict(), tmp_path / "bare.pt")
    with edit(tmp_path / "bare.pt", tmp_path / "b.pt") as file:
        file["#0"].momentum.zero_()
    state = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]["state"]
    assert not state[0]["exp_avg"].any()
    assert state[1]["exp_avg"].any()
    with pytest.raises(NothingSelected, match=r"0\.weight"):
        file.select("0.weight")


def test_a_guessed_optimizer_is_told(theirs):
    """Where a file does not say whose state it is, the change says what it was taken for."""
    with edit(theirs, dry_run=True) as file:
        file.select("*").reset_()
    assert file.change.notes == ["the file does not say which optimizer wrote it: taken for AdamW"]


def test_parts_that_cannot_be_read_are_not_dropped(saved, tmp_path):
    """A checkpoint with parts unread is refused, and the rest written when that is asked for."""
    opened = replace(optstate.open(saved), unread=("rank 3: the file is not there",))
    with pytest.raises(Unsaveable, match="1 part"), edit(opened, tmp_path / "b") as file:
        file.select("*").momentum.zero_()
    assert not (tmp_path / "b").exists()
    assert not file.change.made
    with edit(opened, tmp_path / "b", partial=True) as file:
        file.select("*").momentum.zero_()
    assert file.conversion.left_out == ("not read: rank 3: the file is not there",)


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """Three tensors of 33 MB each are edited, measured and written in pieces."""
    size = (4096, 2048)
    entry = {"step": torch.tensor(5.0), "exp_avg": torch.ones(size), "exp_avg_sq": torch.ones(size)}
    group = {**torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0], "params": [0]}
    content = {"model": {"w": torch.ones(size)}, "optimizer": {"state": {0: entry}, "param_groups": [group]}}
    torch.save(content, tmp_path / "a.pt")
    for target in ("warm.pt", "b.pt", "b"):
        tracemalloc.start()
        with edit(tmp_path / "a.pt", tmp_path / target) as file:
            file["w"].momentum.scale_(0.5)
            file["w"].second_moment.clamp_(max=2.0)
            file["w"].rows([3]).reset_()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40_000_000 or target == "warm.pt"


# --- what is refused -----------------------------------------------------------------------------------------


def test_too_large_an_update_is_refused(saved, tmp_path):
    """A second moment at zero is refused with the factor and the way out; `force` writes it, and the journal says so."""
    refused = pytest.raises(EditRefused, match=r"the next update of .* would be .* times as large")
    with refused as caught, edit(saved, tmp_path / "b") as file:
        file.select("0.*").second_moment.zero_()
    assert "reset_() of the whole parameter" in str(caught.value)
    assert caught.value.change is file.change
    assert not (tmp_path / "b").exists()
    with edit(saved, tmp_path / "b", force=True) as file:
        file.select("0.*").second_moment.zero_()
    (entry,) = optstate.open(tmp_path / "b").journal
    assert entry.forced
    before, after, fresh = entry.effect or (0.0, 0.0, 0.0)
    assert (after or 0) > 2 * max(before or 0, fresh or 0)


def test_one_bad_element_of_many_is_found(tmp_path):
    """A verb that treats elements differently is judged by all of them, not by a sample."""
    model = torch.nn.Linear(300, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    optimizer.state[model.weight]["exp_avg"][77, 123] = -5.0
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    optimizer.state[model.weight]["exp_avg"][77, 123] = 0.4
    optstate.save(tmp_path / "good", model=model, optimizer=optimizer)
    with pytest.raises(EditRefused, match="times as large"), edit(tmp_path / "good", tmp_path / "b") as file:
        file.select("weight").momentum.lerp_(tmp_path / "a", 1.0)


def test_values_that_no_update_can_use_are_refused(saved, tmp_path):
    """Infinite values and negative squares are never written, not even with force."""
    with pytest.raises(EditRefused, match="NaN or infinite"), edit(saved, tmp_path / "b", force=True) as file:
        file.select("*").momentum.scale_(1e300)
    with pytest.raises(EditRefused, match="squares are not negative"), edit(saved, tmp_path / "b", force=True) as file:
        file.select("*").second_moment.set_(-1.0)
    with edit(saved, dry_run=True) as file:
        file.select("*").momentum.scale_(1e300)
    assert len(file.change.refusals) == 4
    assert not (tmp_path / "b").exists()


def test_a_dry_run_writes_nothing_and_tells_all(saved, tmp_path):
    """A dry run says what would change and what would be refused; there is nothing new on the disk."""
    before = tree(tmp_path)
    with edit(saved, tmp_path / "b", dry_run=True) as file:
        file.select("*").second_moment.zero_()
    assert tree(tmp_path) == before
    assert not file.change.made
    assert len(file.change.refusals) == 4
    assert file.change.entries[0].norms["exp_avg_sq"][1] == 0.0
    assert file.conversion is None


MISTAKES = {
    "a typo in a name": (lambda e: e["0.wieght"].momentum.zero_(), NoSuchParameter, "0.wieght"),
    "a typo in a pattern": (lambda e: e.select("0.wieght*").momentum.zero_(), NothingSelected, "matches nothing"),
    "a typo in a key": (lambda e: e.select("*")["exp_avgs"].zero_(), MissingSlot, "no slot 'exp_avgs'"),
    "no such role": (lambda e: e.select("*").role("momentun"), EditError, "no role"),
    "a role that it lacks": (lambda e: e.select("*").role("infinity_norm").zero_(), MissingSlot, "infinity norm"),
    "no slot named": (lambda e: e.select("*").scale_(0.5), EditError, "needs to know which slot"),
    "not a number": (lambda e: e.select("*").momentum.scale_(nan), EditError, "not finite"),
    "infinite": (lambda e: e.select("*").momentum.set_(inf), EditError, "not finite"),
    "text": (lambda e: e.select("*").momentum.scale_("half"), EditError, "not a number"),
    "a step scaled": (lambda e: e.select("*").step.scale_(0.5), EditError, "it counts"),
    "squares turned": (lambda e: e.select("*").second_moment.scale_(-1.0), EditError, "cannot become negative"),
    "no limits": (lambda e: e.select("*").momentum.clamp_(), EditError, "neither min nor max"),
    "limits crossed": (lambda e: e.select("*").momentum.clamp_(1, -1), EditError, "min above its max"),
    "a negative norm": (lambda e: e.select("*").momentum.clip_norm_(-1.0), EditError, "not negative"),
    "a weight beyond": (lambda e: e.select("*").momentum.lerp_("x", 1.5), EditError, "between 0 and 1"),
    "no state": (lambda e: e.select("*").momentum.lerp_(3, 0.5), EditError, "no state to move towards"),
    "a row too many": (lambda e: e["0.weight"].rows([99]).momentum.zero_(), EditError, "do not fit"),
    "a mask too short": (lambda e: e["0.weight"].rows([True]).momentum.zero_(), EditError, "do not fit"),
    "no rows": (lambda e: e["0.weight"].rows("all").momentum.zero_(), EditError, "no rows"),
    "rows in halves": (lambda e: e["0.weight"].rows([0.5]).momentum.zero_(), EditError, "no rows"),
    "nothing at all": (lambda e: None, EditError, "nothing to edit"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_nothing(saved, tmp_path, mistake):
    """Each has an error that says how to go on, and nothing is written."""
    act, kind, match = MISTAKES[mistake]
    with pytest.raises(kind, match=match) as caught, edit(saved, tmp_path / "b") as file:
        act(file)
    assert isinstance(caught.value, OptstateError)
    assert os.listdir(tmp_path) == ["a"]


def test_a_mistake_that_is_caught_leaves_no_trace(saved, tmp_path):
    """A verb that fails half-way, caught inside of the block, has done nothing; the others still do."""
    with edit(saved, tmp_path / "b") as file:
        file["0.weight"].momentum.scale_(0.5)
        with pytest.raises(EditError):
            file.select("*").rows([6]).momentum.zero_()
    with edit(saved, tmp_path / "c") as once:
        once["0.weight"].momentum.scale_(0.5)
    assert values(tmp_path / "b") == values(tmp_path / "c")


def test_an_unknown_optimizer_is_edited_by_key(tmp_path):
    """State that the registry does not know can be scaled by its key; what fresh means nobody can say."""

    class Own(torch.optim.SGD):
        """Steps in a way of its own."""

        def step(self, closure=None):
            return super().step(closure)

    model, optimizer = trained(Own, momentum=0.9, lr=0.1)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*")["momentum_buffer"].scale_(0.5)
    assert file.change.entries[0].effect is None
    with pytest.raises(EditError, match="nobody said"), edit(tmp_path / "a", dry_run=True) as file:
        file.select("*").reset_()


def test_history_is_reset_as_a_whole(tmp_path):
    """State that is laid out over all parameters is reset for all of them, or not at all."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.LBFGS(model.parameters())

    def loss():
        optimizer.zero_grad()
        value = model(torch.ones(1, 3)).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with pytest.raises(EditError, match="laid out over all"), edit(tmp_path / "a", dry_run=True) as file:
        file["weight"].reset_()
    with edit(tmp_path / "a", tmp_path / "b") as file:
        file.select("*").reset_()
    assert not any(parameter.slots for parameter in optstate.open(tmp_path / "b").state.values())
    optstate.restore(tmp_path / "b", model=model, optimizer=optimizer)


def test_a_closed_edit_stays_closed(saved, tmp_path):
    """A target that was kept from the block does nothing afterwards, and what is not known yet is not told."""
    with edit(saved, tmp_path / "b") as file:
        with pytest.raises(EditError, match="when it is over"):
            file.change  # noqa: B018 - looking is the test
        target = file.select("*").momentum
        target.zero_()
    with pytest.raises(EditError, match="is over"):
        target.scale_(2.0)


def test_a_target_is_needed(saved):
    """Only a dry run does without."""
    with pytest.raises(EditError, match="no target"):
        edit(saved)


# --- failures while writing ----------------------------------------------------------------------------------


@contextmanager
def no_room(nbytes):
    """Files cannot grow beyond some size."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("target", ["b", "b.pt", "b.safetensors"])
def test_a_full_disk_leaves_nothing(saved, tmp_path, target):
    """When the system takes no more, the error says so, no part of the target is there, and the source is whole."""
    before = tree(tmp_path)
    with pytest.raises(WriteFailed), no_room(512), edit(saved, tmp_path / target) as file:
        file.select("*").momentum.zero_()
    assert tree(tmp_path) == before
    assert not file.change.made


@pytest.mark.parametrize("target", ["b", "b.pt", "b.safetensors"])
def test_an_interrupt_leaves_nothing(saved, tmp_path, target):
    """Ctrl-C in the middle of writing: no target, no temporary file."""
    before = tree(tmp_path)
    opened = optstate.open(saved)
    momentum = opened.state["1.bias"].momentum.value
    reads = []

    class Cut:
        """A tensor that is interrupted when it is read to be written; before that it was looked at."""

        dtype, shape = momentum.dtype, momentum.shape

        def blocks(self):
            reads.append(1)
            if len(reads) > 4:
                raise KeyboardInterrupt
            return momentum.blocks()

        def array(self):
            return next(iter(self.blocks())).reshape(self.shape)

    slots = opened.state.source.slots("1.bias")
    slots["exp_avg"] = replace(slots["exp_avg"], value=Cut())
    with pytest.raises(KeyboardInterrupt), edit(opened, tmp_path / target) as file:
        file.select("*").momentum.scale_(0.5)
    assert len(reads) > 4
    assert tree(tmp_path) == before

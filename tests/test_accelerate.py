"""Folders of Accelerate's `save_state`: genuine ones, with one and several models and optimizers, and incomplete."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

import optstate
from tests.hf import Live, library, quietly
from tests.truth import assert_is, same_bits

pytestmark = pytest.mark.slow


def layers(*sizes):
    torch.manual_seed(sum(sizes))
    return nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))


def run(folder, pairs, *, safe=True, registered=()):
    """Train each pair of model and optimizer for three steps and save all of them; returns the folder."""
    accelerate = library("accelerate")
    with quietly():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        prepared = [accelerator.prepare(*pair) for pair in pairs]
        scheduler = accelerator.prepare(torch.optim.lr_scheduler.ConstantLR(prepared[0][1]))
        for each in registered:
            accelerator.register_for_checkpointing(each)
        for _ in range(3):
            for model, optimizer in prepared:
                optimizer.zero_grad()
                accelerator.backward(model(torch.rand(2, next(model.parameters()).shape[1])).square().sum())
                optimizer.step()
            scheduler.step()
        accelerator.save_state(str(folder), safe_serialization=safe)
    return folder


class Counter:
    """An object of the user's own that is saved as well."""

    def __init__(self):
        self.seen = 5

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One model and one optimizer, and an object."""
    model = layers(4, 3, 3, 3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return run(tmp_path_factory.mktemp("one"), [(model, optimizer)], registered=[Counter()]), model, optimizer


@pytest.fixture
def copy(one, tmp_path):
    """A copy of that folder, to be harmed."""
    return shutil.copytree(one[0], tmp_path / "copy")


def test_one(one):
    """Names, slots and values are those of the optimizer that ran; whatever else was saved is there."""
    folder, model, optimizer = one
    opened = optstate.open(folder)
    assert (opened.format, opened.unread) == ("Accelerate", ())
    assert_is(opened, optimizer, model, certainty="rule")
    assert {"scheduler", "random_states_0", "custom_checkpoint_0"} <= {*opened.objects}
    assert opened.objects["custom_checkpoint_0"] == {"seen": 5}
    assert "M201" in {clue.code for clue in opened.clues}  # the order is most programs', not one that the file tells


def test_torch_files(tmp_path):
    """Weights that `torch.save` wrote are read as well."""
    model = layers(4, 3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    opened = optstate.open(run(tmp_path, [(model, optimizer)], safe=False))
    assert_is(opened, optimizer, model, certainty="rule")


def test_reversed(tmp_path):
    """An order that is not the model's is not told as if it were."""
    model = layers(4, 3, 3, 2)
    optimizer = torch.optim.AdamW([*model.parameters()][::-1], lr=0.01)
    opened = optstate.open(run(tmp_path, [(model, optimizer)]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(each)] for each in optimizer.param_groups[0]["params"]]
    for name, parameter in zip(order, opened.state.values(), strict=True):
        assert parameter.facts.certainty != "rule"
        assert parameter.name == name or name in parameter.facts.candidates


@pytest.mark.parametrize("sizes", [((4, 3, 2), (5, 6, 2)), ((4, 3, 2), (4, 3, 2))])
def test_two(tmp_path, sizes):
    """Each of two optimizers has the parameters of its model, by shapes, or by their numbers where both are alike."""
    models = [layers(*each) for each in sizes]
    optimizers = [
        torch.optim.AdamW(models[0].parameters(), lr=0.01),
        torch.optim.SGD(models[1].parameters(), lr=0.01, momentum=0.9),
    ]
    opened = optstate.open(run(tmp_path, list(zip(models, optimizers, strict=True))))
    assert sorted(opened.state.optimizers) == ["optimizer", "optimizer_1"]
    for label, model, optimizer in zip(("model", "model_1"), models, optimizers, strict=True):
        for name, parameter in model.named_parameters():
            found = opened.state[f"{label}.{name}"]
            assert found.facts.certainty == "rule"
            for key, value in optimizer.state[parameter].items():
                assert same_bits(found.slots[key].value, Live(value)), (label, name, key)


def test_optimizer_that_was_not_prepared(tmp_path):
    """Without an optimizer in the folder it is said how one gets there."""
    accelerate = library("accelerate")
    with quietly():
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.prepare(layers(4, 2))
        accelerator.save_state(str(tmp_path))
    opened = optstate.open(tmp_path)
    assert (opened.state.optimizers, [clue.code for clue in opened.clues]) == ({}, ["M118"])
    assert "prepare" in opened.clues[0].fix


def test_full_state_of_fsdp(tmp_path, one):
    """What FSDP writes with a full state dict has names (layout_from_source: `accelerate.utils.fsdp_utils`)."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    folder, model, optimizer = one
    torch.save(model.state_dict(), tmp_path / "pytorch_model_fsdp.bin")
    torch.save(get_optimizer_state_dict(model, optimizer), tmp_path / "optimizer.bin")
    shutil.copy(folder / "random_states_0.pkl", tmp_path)
    assert_is(optstate.open(tmp_path), optimizer, model, certainty="file")


def test_sharded_state_of_fsdp(tmp_path, one):
    """The DCP folders that FSDP writes are read as such (layout_from_source: `accelerate.utils.fsdp_utils`)."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    folder, model, optimizer = one
    weights, state = get_state_dict(model, optimizer)
    with quietly():
        save({"model": weights}, checkpoint_id=str(tmp_path / "pytorch_model_fsdp_0"))
        save({"optimizer": state}, checkpoint_id=str(tmp_path / "optimizer_0"))
    shutil.copy(folder / "random_states_0.pkl", tmp_path)
    opened = optstate.open(tmp_path)
    assert_is(opened, optimizer, model, certainty="file")
    (tmp_path / "optimizer_0" / "__0_0.distcp").unlink()
    opened = optstate.open(tmp_path)
    assert opened.unread


def test_deleted(copy, one):
    """Whichever file is deleted, the rest opens, and the lack of the optimizer or of the weights shows."""
    for name in sorted(path.name for path in one[0].iterdir() if path.name != "random_states_0.pkl"):
        (copy / name).unlink()
        opened = optstate.open(copy)
        if name == "optimizer.bin":
            assert [clue.code for clue in opened.clues] == ["M118"]
        elif name == "model.safetensors":
            assert {parameter.facts.certainty for parameter in opened.state.values()} == {"position"}
        else:
            assert_is(opened, one[2], one[1], certainty="rule")
        shutil.copy(one[0] / name, copy)


def test_truncated(copy, one):
    """A file that is cut short is named with its reason, random states too; the others are read."""
    for name in sorted(path.name for path in one[0].iterdir()):
        whole = (one[0] / name).read_bytes()
        for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
            (copy / name).write_bytes(whole[:length])
            opened = optstate.open(copy)
            assert any(line.startswith(name) for line in opened.unread), (name, length)
            assert len(opened.state) == (0 if name == "optimizer.bin" else 8)
        (copy / name).write_bytes(whole)
    assert optstate.open(copy).unread == ()


def test_without_torch(one):
    """Neither torch nor Accelerate is needed."""
    program = (
        "import sys; sys.modules.update(torch=None, accelerate=None, safetensors=None); import optstate; "
        f"print(len(optstate.open({str(one[0])!r}).state))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr

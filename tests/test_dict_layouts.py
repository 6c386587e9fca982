"""Dicts that programs give to `torch.save`: found wherever their parts lie, named by the order of the program.

Libraries that are installed for a whole run write their files themselves (`tests/rare/dict_writers.py`). Where a
program cannot run here its own rule of grouping, copied from its source, lays out a real optimizer: layout_from_source.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optstate.errors import ReadError
from optstate.formats.layouts.writers import WRITERS
from optstate.formats.opening import open_checkpoint
from optstate.live.view import attach
from tests.truth import assert_is, assert_state_is, same_bits

ROOT = Path(__file__).parents[1]
NOT_HERE = 77


def stepped(model, optimizer, steps=3):
    """Steps with gradients of its own for each parameter."""
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    return optimizer


def opened(path, value):
    torch.save(value, path)
    return open_checkpoint(path)


def net(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(one, other) for one, other in pairwise(sizes)))


def sgd(model):
    return stepped(model, torch.optim.SGD(model.parameters(), 0.1, 0.9))


# --- libraries that write their own files ---------------------------------------------------------------------------


def written(library, tmp_path_factory):
    """The folder in which a library saved, in a process of its own."""
    if find_spec({"composer": "composer"}.get(library, library)) is None:
        pytest.skip(f"{library} is not installed")
    folder = tmp_path_factory.mktemp(library)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "rare" / "dict_writers.py"), library, str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def truth_of(path):
    """What the running optimizer held."""
    return open_checkpoint(path.with_name(f"{path.name}.truth")).state


@pytest.fixture(scope="module")
def timm(tmp_path_factory):
    return written("timm", tmp_path_factory)


@pytest.fixture(scope="module")
def mmengine(tmp_path_factory):
    return written("mmengine", tmp_path_factory)


@pytest.fixture(scope="module")
def fastai(tmp_path_factory):
    return written("fastai", tmp_path_factory)


@pytest.fixture(scope="module")
def composer(tmp_path_factory):
    return written("composer", tmp_path_factory)


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    return written("ultralytics", tmp_path_factory)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "plain", "vit"])
def test_timm(kind, timm):
    """Groups with those without decay first, one group without decay, and a model with a list of its own."""
    path = timm / kind / "last.pth.tar"
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "timm"
    assert_state_is(checkpoint.state, truth_of(path), certainty="rule")
    assert checkpoint.clues == ()
    if kind == "vit":
        assert "state_dict_ema" in checkpoint.objects
        assert any("no momentum belongs: state_dict_ema" in note for note in checkpoint.notes)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "average", "each"])
def test_mmengine(kind, mmengine):
    """One group, one group for each parameter, and with an average of the weights, which the file has swapped with them."""
    path = mmengine / kind / "epoch_1.pth"
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.step) == ("MMEngine", 4)
    assert_state_is(checkpoint.state, truth_of(path), certainty="rule")
    for name, weight in open_checkpoint(mmengine / kind / "trained.pt").weights.items():
        assert same_bits(checkpoint.weights[name], weight), f"{name} is not the weight that was trained"
    best = open_checkpoint(mmengine / kind / "best_loss.pth")
    assert [clue.code for clue in best.clues if clue.code == "M103"] == ["M103"]


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adam", "sgd", "groups", "wrapped"])
def test_fastai(kind, fastai):
    """fastai's own optimizers keep a list; their slots have roles, and one of torch in a wrapper is one of torch."""
    path = fastai / f"{kind}.pth"
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "fastai"
    if kind == "wrapped":
        assert_state_is(checkpoint.state, truth_of(path), certainty="rule")
        return
    true = open_checkpoint(path.with_name(f"{path.name}.truth")).objects or {}
    saved = torch.load(path.with_name(f"{path.name}.truth"))
    assert [*checkpoint.state] == [*saved], true
    for name, entry in saved.items():
        parameter = checkpoint.state[name]
        assert parameter.facts.certainty == "rule"
        assert sorted(parameter.slots) == sorted(entry)
        for key, value in entry.items():
            found = parameter[key].value
            if isinstance(value, torch.Tensor):
                np.testing.assert_array_equal(found.array(), value.numpy(), strict=True)
            else:
                assert found == value
        assert parameter.momentum.key == "grad_avg"
    info = checkpoint.state.optimizers[""]
    assert info.class_name == f"fastai.optimizer.{'SGD' if kind == 'sgd' else 'Adam'}"
    if kind == "groups":
        assert info.groups[0].hyperparameters["lr"] == (0.01, 0.1)
        assert any("which of 2 groups" in note for note in checkpoint.notes)


@pytest.mark.whole
@pytest.mark.slow
def test_composer(composer):
    """Composer names its parameters itself; with weights alone it says so."""
    path = composer / "whole" / "latest-rank0.pt"
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.step) == ("Composer", 3)
    assert_state_is(checkpoint.state, truth_of(path), certainty="file")
    assert set(checkpoint.state) == set(checkpoint.weights)
    alone = open_checkpoint(composer / "weights" / "latest-rank0.pt")
    assert alone.format == "Composer"
    assert [clue.code for clue in alone.clues] == ["M103"]


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "MuSGD"])
def test_ultralytics(kind, ultralytics):
    """Names from the pickled model, groups by kind of tensor; values as the file has them, in half precision."""
    path = ultralytics / f"{kind}.pt"
    checkpoint, true = open_checkpoint(path), truth_of(path)
    assert checkpoint.format == "Ultralytics"
    assert [*checkpoint.state] == [*true]
    assert {parameter.facts.certainty for parameter in checkpoint.state.values()} == {"rule"}
    for name, parameter in true.items():
        mine = checkpoint.state[name].slots
        assert sorted(mine) == sorted(parameter.slots)
        for key, slot in parameter.slots.items():
            half = mine[key].dtype == "float16"
            expected = slot.array().astype(np.float16) if half else slot.array()
            np.testing.assert_array_equal(mine[key].array(), expected, strict=True)
    assert any("the only weights are averages (ema)" in note for note in checkpoint.notes)


@pytest.mark.whole
@pytest.mark.slow
def test_ultralytics_after_a_run(ultralytics):
    """A finished run's file was stripped: that is told, with the way to keep the optimizer."""
    checkpoint = open_checkpoint(ultralytics / "finished.pt")
    assert checkpoint.format == "Ultralytics"
    assert len(checkpoint.state) == 0
    assert len(checkpoint.weights) > 184
    (clue,) = checkpoint.clues
    assert clue.code == "M103"
    assert "stripped" in clue.evidence


# --- programs whose rule of grouping is in their source -------------------------------------------------------


class Block(nn.Module):
    """A layer of which there are several."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(8), nn.Linear(8, 24)
        self.ln_2, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)


class Gpt(nn.Module):
    """A language model with a tied head, equal layers, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(16, 8),
                "wpe": nn.Embedding(4, 8),
                "h": nn.ModuleList([Block(), Block()]),
                "ln_f": nn.LayerNorm(8),
            }
        )
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        self.register_buffer("mask", torch.ones(4, 4))


def test_nanogpt(tmp_path):
    """nanoGPT's own grouping on a real model (layout_from_source): every name by rule, none in doubt."""
    model = Gpt()
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    groups = [
        {"params": [each for each in named.values() if each.dim() >= 2], "weight_decay": 0.1},
        {"params": [each for each in named.values() if each.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = stepped(model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95)))
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2},
        "iter_num": 7,
        "best_val_loss": 1.0,
        "config": {},
    }
    checkpoint = opened(tmp_path / "ckpt.pt", saved)
    assert (checkpoint.format, checkpoint.step) == ("nanoGPT", 7)
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.clues == ()
    assert checkpoint.aliases == {"transformer.wte.weight": ("lm_head.weight",)}
    weights_alone = opened(tmp_path / "w.pt", {key: value for key, value in saved.items() if key != "optimizer"})
    assert [clue.code for clue in weights_alone.clues] == ["M103"]


def test_openclip(tmp_path):
    """OpenCLIP puts gains and biases first (layout_from_source, `open_clip_train/main.py`)."""
    model = nn.ModuleDict({"visual": Block(), "text": Block()})
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(1.0)))
    named = list(model.named_parameters())

    def exclude(name, each):
        return each.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name

    groups = [
        {"params": [each for name, each in named if exclude(name, each)], "weight_decay": 0.0},
        {"params": [each for name, each in named if not exclude(name, each)], "weight_decay": 0.2},
    ]
    optimizer = stepped(model, torch.optim.AdamW(groups))
    checkpoint = opened(
        tmp_path / "epoch_1.pt",
        {"epoch": 1, "name": "run", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()},
    )
    assert checkpoint.format == "OpenCLIP"
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.clues == ()


def test_yolov5(tmp_path):
    """YOLOv5 begins with the biases and adds weights and norms (layout_from_source, `utils/torch_utils.py`)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    bias = [each.bias for each in model if each.bias is not None]
    norm = [model[1].weight, model[3].weight]
    optimizer = torch.optim.SGD(bias, 0.01, 0.937, nesterov=True)
    optimizer.add_param_group({"params": [model[0].weight, model[2].weight], "weight_decay": 5e-4})
    optimizer.add_param_group({"params": norm, "weight_decay": 0.0})
    stepped(model, optimizer)
    saved = {
        "epoch": 3,
        "best_fitness": 0.1,
        "model": model,
        "ema": None,
        "optimizer": optimizer.state_dict(),
        "date": "",
    }
    checkpoint = opened(tmp_path / "last.pt", saved)
    assert checkpoint.format == "YOLOv5"
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.clues == ()


def test_torchtune(tmp_path):
    """torchtune's recipe state has names; with the optimizer in the backward pass, one optimizer for each of them."""
    model = net(4, 3, 2)
    fused = {name: torch.optim.AdamW([each]) for name, each in model.named_parameters()}
    for optimizer in fused.values():
        stepped(model, optimizer)
    rest = {"seed": 1, "epochs_run": 1, "total_epochs": 3, "max_steps_per_epoch": None, "steps_run": 12}
    states = {name: optimizer.state_dict() for name, optimizer in fused.items()}
    checkpoint = opened(tmp_path / "recipe_state.pt", {"optimizer": states, **rest})
    assert (checkpoint.format, checkpoint.step) == ("torchtune", 12)
    assert len(checkpoint.state.groups) == 1
    for name, optimizer in fused.items():
        (parameter,) = attach(optimizer, model).values()
        assert checkpoint.state[name].facts.certainty == "file"
        assert all(same_bits(checkpoint.state[name][key].value, slot.value) for key, slot in parameter.slots.items())


@pytest.mark.parametrize("home", ["", "recipe_state"])
def test_torchtune_folder(home, tmp_path):
    """The recipe's state with the weights of its own epoch, of several; names are the recipe's (layout_from_source)."""
    model = net(4, 3, 2)
    names = [name for name, _ in model.named_parameters()]
    optimizer = sgd(model)
    plain = optimizer.state_dict()
    by_name = {
        "state": {names[key]: entry for key, entry in plain["state"].items()},
        "param_groups": [{**plain["param_groups"][0], "params": names}],
    }
    (tmp_path / home).mkdir(exist_ok=True)
    rest = {"seed": 1, "epochs_run": 2, "total_epochs": 3, "max_steps_per_epoch": None}
    torch.save({"optimizer": by_name, **rest}, tmp_path / home / "recipe_state.pt")
    for epoch in range(3):
        (tmp_path / f"epoch_{epoch}").mkdir()
        weights = {name: torch.full_like(each, epoch) for name, each in model.state_dict().items()}
        torch.save(weights, tmp_path / f"epoch_{epoch}" / "ft-model-00001-of-00001.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "torchtune"
    assert_is(checkpoint, optimizer, model, certainty="file")
    assert "the weights are those of epoch_1" in checkpoint.notes
    assert checkpoint.weights["0.bias"].array().tolist() == [1.0, 1.0, 1.0]
    (tmp_path / "epoch_1" / "ft-model-00001-of-00001.bin").write_bytes(b"no")
    assert len(open_checkpoint(tmp_path).unread) == 1


@pytest.mark.parametrize("old", [False, True])
def test_detectron2(old, tmp_path):
    """detectron2 keeps the optimizer inside its trainer, and did not always (layout_from_source, `engine/train_loop.py`)."""
    model = net(4, 3, 2)
    groups = [{"params": [each], "weight_decay": float(each.ndim > 1)} for each in model.parameters()]
    optimizer = stepped(model, torch.optim.SGD(groups, 0.1, 0.9))
    inner = {"iteration": 9, "optimizer": optimizer.state_dict()}
    trainer = {"trainer": {"iteration": 9, "hooks": {}, "_trainer": inner}}
    saved = {"model": model.state_dict(), "iteration": 9}
    saved |= {"optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 9}} if old else trainer
    checkpoint = opened(tmp_path / "model_0000009.pth", saved)
    assert (checkpoint.format, checkpoint.step) == ("detectron2", 9)
    assert_is(checkpoint, optimizer, model, certainty="rule")


def test_mmcv(tmp_path):
    """MMCV's files of before MMEngine (layout_from_source, `mmcv/runner/checkpoint.py`)."""
    model = net(4, 3, 2)
    optimizer = sgd(model)
    saved = {
        "meta": {"iter": 40, "mmcv_version": "1.7"},
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    checkpoint = opened(tmp_path / "iter_40.pth", saved)
    assert (checkpoint.format, checkpoint.step) == ("MMCV", 40)
    assert_is(checkpoint, optimizer, model, certainty="rule")


# --- anybody's -----------------------------------------------------------------------------------------------------


def test_wherever_it_lies(tmp_path):
    """An optimizer deep inside dicts and lists is found, and what stands around it stays among the objects."""
    model = net(4, 3, 2)
    optimizer = sgd(model)
    saved = {
        "run": {
            "agents": [{"name": "a", "learner": {"opt": optimizer.state_dict(), "lr": 3}}],
            "policy": {"network": model.state_dict()},
        },
        "epoch": 2,
    }
    checkpoint = opened(tmp_path / "ck.pt", saved)
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.objects == {"run": {"agents": {"[0]": {"name": "a", "learner": {"lr": 3}}}}, "epoch": 2}


@pytest.mark.parametrize("keys", [("G", "D", "optG", "optD"), ("netD", "netG", "optimizer_D", "optimizer_G")])
def test_models_that_train_each_other(keys, tmp_path):
    """Several models under keys of their own: weights of each with its key in front, each optimizer with its model."""
    one, other = net(4, 3, 4), net(4, 3, 1)
    first, second = (
        stepped(one, torch.optim.Adam(one.parameters())),
        stepped(other, torch.optim.Adam(other.parameters())),
    )
    model = nn.ModuleDict({keys[0]: one, keys[1]: other})
    saved = {
        keys[0]: one.state_dict(),
        keys[1]: other.state_dict(),
        keys[3]: second.state_dict(),
        keys[2]: first.state_dict(),
    }
    checkpoint = opened(tmp_path / "gan.pt", saved)
    assert set(checkpoint.weights) == set(model.state_dict())
    assert_is(checkpoint, {keys[3]: second, keys[2]: first}, model, certainty="rule")


def test_models_under_one_key(tmp_path):
    """Models in a dict of models are told apart by their keys in it."""
    one, other = net(4, 3), net(4, 2)
    saved = {
        "models": {"actor": one.state_dict(), "critic": other.state_dict()},
        "optims": [sgd(one).state_dict(), sgd(other).state_dict()],
    }
    checkpoint = opened(tmp_path / "ck.pt", saved)
    assert [*checkpoint.weights] == ["actor.0.weight", "actor.0.bias", "critic.0.weight", "critic.0.bias"]
    assert [*checkpoint.state] == [*checkpoint.weights]


def test_only_the_model_that_is_trained(tmp_path):
    """Beside the model's weights other tensors are objects, and no name changes because of them."""
    model = net(4, 3)
    optimizer = sgd(model)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stats": {"input.mean": torch.ones(4)}}
    checkpoint = opened(tmp_path / "ck.pt", saved)
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert set(checkpoint.objects) == {"stats"}


@pytest.mark.parametrize(
    "key", ["ema", "model_ema", "state_dict_ema", "ema_model", "teacher", "target_network", "shadow_params"]
)
def test_averages_are_not_what_momentum_belongs_to(key, tmp_path):
    """Averages of weights, teachers and targets beside a model are told apart from it, whatever comes first."""
    model, average = net(4, 3), net(4, 3)
    optimizer = sgd(model)
    saved = {key: average.state_dict(), "student": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint = opened(tmp_path / "ck.pt", saved)
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert same_bits(checkpoint.weights["0.weight"].array().tolist(), model[0].weight.tolist())
    assert key in checkpoint.objects
    assert any(f"no momentum belongs: {key}" in note for note in checkpoint.notes)


def test_only_an_average(tmp_path):
    """Where an average is all there is, it names and shapes what was trained, and that is said."""
    model = net(4, 3)
    optimizer = sgd(model)
    checkpoint = opened(tmp_path / "ck.pt", {"ema": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert any("the only weights are averages (ema)" in note for note in checkpoint.notes)


def test_what_stands_beside_state_and_groups(tmp_path):
    """What a program put into the optimizer's own dict is an object, not lost."""
    model = net(4, 3)
    optimizer = sgd(model)
    checkpoint = opened(tmp_path / "ck.pt", {"optimizer": {**optimizer.state_dict(), "loss_scaler": {"scale": 8.0}}})
    assert checkpoint.objects == {"optimizer": {"loss_scaler": {"scale": 8.0}}}
    assert len(checkpoint.state) == 2


def test_a_model_and_an_optimizer_pickled_inside_an_object(tmp_path):
    """A whole trainer that was pickled: model and optimizer in it are found."""
    model = net(4, 3)
    optimizer = sgd(model)
    checkpoint = opened(tmp_path / "ck.pt", Trainer(model, optimizer))
    assert_is(checkpoint, optimizer, model, certainty="file")


class Trainer:
    """What some programs pickle as a whole."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer


def test_names_of_full_state_dicts(tmp_path):
    """FSDP's full state dict names its parameters itself: by file, whatever the model's order."""
    model = net(4, 3, 2)
    optimizer = sgd(model)
    names = [name for name, _ in model.named_parameters()]
    plain = optimizer.state_dict()
    by_name = {
        "state": {names[key]: entry for key, entry in plain["state"].items()},
        "param_groups": [{**plain["param_groups"][0], "params": names}],
    }
    checkpoint = opened(tmp_path / "ck.pt", {"model": model.state_dict(), "optim": by_name})
    assert_is(checkpoint, optimizer, model, certainty="file")


@pytest.mark.parametrize("depth", [5, 60])
def test_search_is_bounded(depth, tmp_path):
    """What lies deeper than anybody's optimizer is an object; finding nothing takes no longer for it."""
    optimizer = sgd(net(4, 3))
    tree = optimizer.state_dict()
    for _ in range(depth):
        tree = {"inner": tree}
    checkpoint = opened(tmp_path / "ck.pt", tree)
    assert len(checkpoint.state) == (2 if depth == 5 else 0)
    assert ("inner" in checkpoint.objects) == (depth != 5)


class Odd:
    """An object whose attributes are those of a module, and are not."""

    def __init__(self):
        self._modules, self._parameters, self._buffers = {"a": 3}, {"b": 4}, {}
        self.state, self.param_groups = {}, [{"params": [[1]]}]


ODD: list[object] = [
    None,
    3,
    "x",
    [],
    {},
    {"state": {}},
    {"iter": "x"},
    [{"state": {}, "param_groups": []}],
    torch.ones(2),
    Odd(),
]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.format)
def test_nothing_is_as_it_should_be(writer, tmp_path):
    """The keys of a program over values that no program writes: opened as far as they make sense, or refused in words."""
    for odd in ODD:
        saved = dict.fromkeys([*writer.keys, *writer.among], odd)
        for value in (
            saved,
            {**saved, "meta": {"iter": odd}, "state": {"timestamp": odd, "integrations": 1, "metadata": 1}},
        ):
            try:
                checkpoint = opened(tmp_path / "ck.pt", value)
            except ReadError:
                continue
            assert isinstance(checkpoint.step, int | None)
            assert str(checkpoint.state)


@pytest.mark.parametrize(
    "odd",
    [
        {"a.b": {"state": {}, "param_groups": [{"params": [[1]]}]}},
        {"a.b": {"state": {}, "param_groups": [{"params": 3}]}},
        {"a.b": {"state": {}, "param_groups": []}},
        {"opt": {"state": [1, {"grad_avg": 3}], "hypers": [{}]}},
        {"opt": {"state": [{}], "hypers": [3]}},
        {"opt": {"state": [], "hypers": []}},
        {"optimizer": {"state": {0: 3, 1: {2: torch.ones(1)}, (1, 2): {}}, "param_groups": [{"params": [0, 1]}]}},
    ],
)
def test_almost_an_optimizer(odd, tmp_path):
    """What looks like an optimizer and is none does not end in a fault of ours, and nothing in it is lost."""
    try:
        checkpoint = opened(tmp_path / "ck.pt", {"model": net(2, 2).state_dict(), **odd})
    except ReadError:
        return
    assert checkpoint.objects or checkpoint.state.optimizers
    if "optimizer" in odd:
        assert [*checkpoint.unplaced] == ["optimizer.state[0]", "optimizer.state[1]['2']", "optimizer.state['(1, 2)']"]

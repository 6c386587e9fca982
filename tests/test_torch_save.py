"""Files that torch.save wrote: everything in them comes back by name, bit for bit, without torch."""

from __future__ import annotations

import argparse
import os
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, ReadError, Refused
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.opening import open_checkpoint
from optstate.live.named import named_state_dict
from optstate.state.absence import Absence
from optstate.state.tensors import BLOCK, DTYPES
from tests.forged import Member, archive, members, pickled, storage, tensor, torch_file
from tests.truth import assert_is


def open_saved(path, value, **options):
    torch.save(value, path, **options)
    return open_checkpoint(path)


def assert_same(found, expected):
    """The same type, shape and bits, read in all three ways."""
    assert (found.dtype, found.shape) == (str(expected.dtype).removeprefix("torch."), tuple(expected.shape))
    flat = expected.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = bytes(flat.view(torch.uint8).numpy())
    assert np.ascontiguousarray(found.array()).tobytes() == raw
    assert b"".join(block.tobytes() for block in found.blocks()) == raw
    if expected.numel() == 1:
        item = np.array(found.item(), dtype=found.array().dtype)
        assert item.tobytes() == raw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def trained(make, model=None, steps=3, batch=None):
    model = model or mlp()
    optimizer = make(model)
    for index in range(steps):
        torch.manual_seed(index)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4) if batch is None else batch).abs().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return model, optimizer


OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), amsgrad=True),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.01)),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "Muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2]),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters()),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), momentum=0.9, centered=True),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_each_optimizer(name, tmp_path):
    """Every slot of a real optimizer comes back with its type, shape and bits, and its class is recognised."""
    model, optimizer = trained(OPTIMIZERS[name])
    checkpoint = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    (info,) = checkpoint.state.optimizers.values()
    assert name in info.short_name
    assert info.known
    assert info.inferred
    saved = optimizer.state_dict()["state"]
    for index, parameter in enumerate(checkpoint.state.values()):
        entry = saved.get(index, {})
        assert list(parameter.slots) == [key for key, value in entry.items() if value is not None]
        for key, slot in parameter.slots.items():
            compare(slot.value, entry[key])
    for key, weight in model.state_dict().items():
        assert_same(checkpoint.weights[key], weight)


def compare(found, expected):
    if isinstance(expected, torch.Tensor):
        assert_same(found, expected)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    else:
        assert (type(found), found) == (type(expected), expected)


def test_sparse_adam(tmp_path):
    """SparseAdam keeps its step as a plain number, and it is shown as one."""
    embedding = nn.Embedding(10, 3, sparse=True)
    _, optimizer = trained(lambda m: torch.optim.SparseAdam(m.parameters()), embedding, batch=torch.tensor([1, 2]))
    (parameter,) = open_saved(tmp_path / "ck.pt", optimizer.state_dict()).state.values()
    assert parameter.step.item() == 3
    assert_same(parameter.momentum.value, optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("dtype", [name for name in DTYPES if hasattr(torch, name)])
def test_every_element_type(dtype, tmp_path):
    """Every element type that torch stores comes back with its own bits."""
    raw = torch.arange(1, 97, dtype=torch.uint8)
    value = raw.remainder(2).view(torch.bool) if dtype == "bool" else raw.view(getattr(torch, dtype))
    checkpoint = open_saved(tmp_path / "ck.pt", {"flat": value, "one": value[1], "matrix": value.reshape(2, -1).t()})
    for key, expected in {"flat": value, "one": value[1], "matrix": value.reshape(2, -1).t()}.items():
        assert_same(checkpoint.weights[key], expected)


def test_views_and_layouts(tmp_path):
    """Views into a larger storage, transposed, expanded, conjugated and empty tensors mean what torch means."""
    base = torch.arange(24.0)
    wave = torch.complex(base[:6], base[6:12])
    turned = wave.clone()
    saved = {
        "slice": base[3:9],
        "steps": base[::5],
        "transposed": base.reshape(4, 6).t(),
        "last": nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        "expanded": base[2:3].expand(4, 1),
        "conj": wave.conj(),
        "neg": turned.conj().imag,
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    checkpoint = open_saved(tmp_path / "ck.pt", saved)
    for key, expected in saved.items():
        assert_same(checkpoint.weights[key], expected)


def test_blocks_of_a_long_tensor(tmp_path):
    """A tensor longer than a block is read in blocks, whether it is its storage or a part of it."""
    long = torch.arange(float(2 * BLOCK + 10))
    checkpoint = open_saved(tmp_path / "ck.pt", {"whole": long, "part": long[5:]})
    assert [block.size for block in checkpoint.weights["whole"].blocks()] == [BLOCK, BLOCK, 10]
    assert [block.size for block in checkpoint.weights["part"].blocks()] == [BLOCK, BLOCK, 5]
    assert_same(checkpoint.weights["part"], long[5:])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol, tmp_path):
    """Whatever protocol the writer chose, the checkpoint is the same."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    checkpoint = open_saved(tmp_path / "ck.pt", saved, pickle_protocol=protocol)
    assert list(checkpoint.state) == list(model.state_dict())
    assert checkpoint.step == 3
    for index, parameter in enumerate(checkpoint.state.values()):
        assert_same(parameter.momentum.value, optimizer.state_dict()["state"][index]["exp_avg"])


def test_tensors_with_attributes(tmp_path):
    """A plain tensor that carries attributes is still a tensor; a subclass stays a record and is named."""
    marked = torch.arange(3.0)
    vars(marked)["is_special"] = True
    checkpoint = open_saved(tmp_path / "ck.pt", {"w": marked, "p": nn.Parameter(torch.ones(2))})
    assert_same(checkpoint.weights["w"], marked)
    assert checkpoint.weights["p"].array().tolist() == [1.0, 1.0]


def test_tensors_of_other_kinds(tmp_path):
    """Quantized and sparse tensors are weights like the others, each of its own kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these; files that hold them stay
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    checkpoint = open_saved(tmp_path / "ck.pt", {"q": quantized, "s": torch.eye(2).to_sparse(), "w": torch.ones(2)})
    assert {name: weight.shape for name, weight in checkpoint.weights.items()} == {"q": (3,), "s": (2, 2), "w": (2,)}
    assert_same(checkpoint.weights["w"], torch.ones(2))


# --- names ------------------------------------------------------------------------------------------------


def certainties(state):
    return {name: parameter.facts.certainty for name, parameter in state.items()}


def test_recorded_names(tmp_path):
    """torch's param_names are names, with the certainty that they deserve; the weights give shape and type."""
    model, optimizer = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    saved = {"model": model.bfloat16().state_dict(), "optimizer": optimizer.state_dict()}
    state = open_saved(tmp_path / "ck.pt", saved).state
    assert certainties(state) == dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], "recorded")
    assert (state["0.weight"].facts.shape, state["0.weight"].facts.dtype) == ((8, 4), "bfloat16")
    assert state["0.weight"].momentum.dtype == "float32"


def test_recorded_names_without_weights(tmp_path):
    """A bare state dict has names too; shape and type then come from the slots that mirror the parameter."""
    _, optimizer = trained(lambda m: torch.optim.Adafactor(m.named_parameters()))
    checkpoint = open_saved(tmp_path / "ck.pt", optimizer.state_dict())
    assert checkpoint.weights == {}
    assert checkpoint.state["0.bias"].facts.shape == (8,)
    assert checkpoint.state["0.weight"].facts.shape is None  # only factored slots, which do not tell


def test_names_that_lie(tmp_path):
    """Recorded names that are those of another order are not used, and that is told with the code for it."""
    model, optimizer = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["param_names"].reverse()
    checkpoint = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": state_dict})
    assert_is(checkpoint, optimizer, model, certainty="rule")
    (clue,) = checkpoint.clues
    assert clue.code == "M206"
    assert "2.bias, 2.weight, 0.bias, 0.weight" in clue.evidence


def test_names_by_the_order_of_the_model(tmp_path):
    """An optimizer over `model.parameters()`, every shape of which agrees with that order, has the model's names."""
    model, optimizer = trained(OPTIMIZERS["AdamW"], nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)))
    state = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}).state
    assert certainties(state) == {name: "rule" for name, _ in model.named_parameters()}


def test_names_by_shape(tmp_path):
    """Where a shape belongs to one weight and one position, that is the name; other positions stay positions."""
    model, _ = trained(OPTIMIZERS["AdamW"], nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)))
    optimizer = torch.optim.AdamW(list(model.parameters())[::-1])
    optimizer.step()
    state = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}).state
    assert certainties(state) == {
        "2.bias": "shapes", "2.weight": "shapes", "#2": "position", "1.weight": "shapes", "#4": "position",
        "0.weight": "shapes",
    }  # fmt: skip
    assert state["#2"].facts.shape == (8,)


def test_weights_of_another_model(tmp_path):
    """Weights that lack one of the shapes are not the optimizer's, so no name is taken from them."""
    _, optimizer = trained(OPTIMIZERS["AdamW"])
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    state = open_saved(tmp_path / "ck.pt", {"model": other.state_dict(), "optimizer": optimizer.state_dict()}).state
    assert set(certainties(state).values()) == {"position"}


def test_tied_weights(tmp_path):
    """A tied weight is one tensor with two names, and its shape is matched once."""
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False)))
    model.b.weight = model.a.weight
    _, optimizer = trained(OPTIMIZERS["AdamW"], model)
    checkpoint = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert (list(checkpoint.weights), checkpoint.aliases) == (["a.weight"], {"a.weight": ("b.weight",)})
    facts = checkpoint.state["a.weight"].facts
    assert (facts.certainty, facts.aliases) == ("rule", ("b.weight",))


def test_names_as_keys(tmp_path):
    """State that its writer keyed by name, as FSDP does, has names that the file vouches for."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    names = [name for name, _ in model.named_parameters()]
    plain = optimizer.state_dict()
    group = {**plain["param_groups"][0], "params": names}
    by_name = {"state": {names[index]: entry for index, entry in plain["state"].items()}, "param_groups": [group]}
    state = open_saved(tmp_path / "ck.pt", {"optimizer": by_name}).state
    assert certainties(state) == dict.fromkeys(names, "file")


def test_several_optimizers(tmp_path):
    """Several optimizers keep their names apart: as a dict, as a list, or under keys of their own."""
    _, first = trained(OPTIMIZERS["AdamW"])
    _, second = trained(OPTIMIZERS["SGD"])
    both = {"muon": first.state_dict(), "adamw": second.state_dict()}
    for saved in ({"optimizers": both}, {"optimizer_states": list(both.values())}, both):
        state = open_saved(tmp_path / "ck.pt", saved).state
        one, other = ("0", "1") if "optimizer_states" in saved else ("muon", "adamw")
        assert list(state.optimizers) == [one, other]
        assert list(state)[:5] == [f"{one}#0", f"{one}#1", f"{one}#2", f"{one}#3", f"{other}#0"]
        assert state.optimizers[other].short_name == "SGD?"


def test_two_models_with_the_same_names(tmp_path):
    """Two models whose parameters have the same names get their optimizer's name in front."""
    _, one = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    _, other = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    state = open_saved(tmp_path / "ck.pt", {"optimizer_g": one.state_dict(), "optimizer_d": other.state_dict()}).state
    assert list(state.select("optimizer_g.*").names) == [f"optimizer_g.{key}" for key in mlp().state_dict()]
    assert len(state) == 8


def test_parameters_twice_in_one_group(tmp_path):
    """torch counts a parameter once that is twice in a group, and so does the reader."""
    model = nn.Linear(2, 2, bias=False)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.SGD([model.weight, model.weight], lr=0.1, momentum=0.9)
    assert list(open_saved(tmp_path / "ck.pt", optimizer.state_dict()).state) == ["#1"]


# --- what is not there ------------------------------------------------------------------------------------


def test_momentum_that_is_off(tmp_path):
    """SGD without momentum keeps none, and that is the reason given, not a loss."""
    _, optimizer = trained(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    checkpoint = open_saved(tmp_path / "ck.pt", optimizer.state_dict())
    assert {p.absences["momentum"] for p in checkpoint.state.values()} == {Absence.COEFFICIENT_ZERO}
    assert checkpoint.notes == ()


def test_optimizer_that_never_stepped(tmp_path):
    """Groups without state are told, with what the file cannot tell."""
    optimizer = OPTIMIZERS["AdamW"](mlp())
    checkpoint = open_saved(tmp_path / "ck.pt", optimizer.state_dict())
    assert {p.absences["momentum"] for p in checkpoint.state.values()} == {Absence.NOT_SAVED}
    assert any("the file does not say which" in note for note in checkpoint.notes)


def test_parameter_without_gradient_and_entry_in_part(tmp_path):
    """One parameter without state never had a gradient; one without one of its slots had it dropped."""
    model = mlp()
    model[0].bias.requires_grad_(False)
    _, optimizer = trained(lambda m: torch.optim.AdamW(m.named_parameters()), model)
    state_dict = optimizer.state_dict()
    del state_dict["state"][0]["exp_avg"]
    state = open_saved(tmp_path / "ck.pt", state_dict).state
    assert state["0.bias"].absences["momentum"] is Absence.NO_GRADIENT
    assert state["0.weight"].absences == {"momentum": Absence.DROPPED}
    assert state["2.bias"].absences == {}


def test_momentum_that_is_none(tmp_path):
    """Old torch wrote None for a momentum that is off; that is no slot."""
    group = {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [0]}
    (parameter,) = open_saved(
        tmp_path / "ck.pt", {"state": {0: {"momentum_buffer": None}}, "param_groups": [group]}
    ).state.values()
    assert parameter.slots == {}
    assert parameter.absences["momentum"] is Absence.COEFFICIENT_ZERO


def test_orphaned_state(tmp_path):
    """State under keys that no group lists is reported, and there under its raw path."""
    _, optimizer = trained(OPTIMIZERS["AdamW"])
    state_dict = optimizer.state_dict()
    entry = state_dict["state"][99] = state_dict["state"][0]
    state_dict["state"][1] = {**state_dict["state"][1], 7: torch.ones(2)}
    state_dict["state"]["gone"] = 3
    checkpoint = open_saved(tmp_path / "ck.pt", {"run": {"optimizer": state_dict}})
    front = "run.optimizer.state"
    assert [*checkpoint.unplaced] == [
        f"{front}[1]['7']", f"{front}[99].step", f"{front}[99].exp_avg", f"{front}[99].exp_avg_sq", f"{front}['gone']",
    ]  # fmt: skip
    assert_same(checkpoint.unplaced[f"{front}[99].exp_avg"], entry["exp_avg"])
    assert [(clue.code, "99, 'gone'" in clue.evidence) for clue in checkpoint.clues] == [("M219", True)]


def test_state_under_text_keys(tmp_path):
    """State whose numbers a conversion turned into text is shown where it belongs, and what torch makes of it is told."""
    model, optimizer = trained(OPTIMIZERS["SGD"])
    state_dict = optimizer.state_dict()
    state_dict["state"] = {str(key): entry for key, entry in state_dict["state"].items()}
    checkpoint = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": state_dict})
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.unplaced == {}
    (clue,) = checkpoint.clues
    assert clue.code == "M219"
    assert "for 4 parameters" in clue.evidence
    other = OPTIMIZERS["SGD"](mlp())
    other.load_state_dict(state_dict)
    assert not any(isinstance(key, torch.Tensor) for key in other.state), "as the clue says"


def test_text_keys_beside_numbers(tmp_path):
    """A file that was saved again after such a load has both: the numbers are the state, the text is of no parameter."""
    _, optimizer = trained(OPTIMIZERS["SGD"])
    state_dict = optimizer.state_dict()
    state_dict["state"] |= {str(key): entry for key, entry in state_dict["state"].items()}
    checkpoint = open_saved(tmp_path / "ck.pt", state_dict)
    assert [*checkpoint.unplaced] == [f"optimizer.state['{number}'].momentum_buffer" for number in range(4)]
    assert [len(parameter.slots) for parameter in checkpoint.state.values()] == [1, 1, 1, 1]


def test_weights_only(tmp_path):
    """A file with weights alone has them by name, and says that there is no optimizer state."""
    model = mlp()
    for saved in (model.state_dict(), {"state_dict": model.state_dict(), "epoch": 3}):
        checkpoint = open_saved(tmp_path / "ck.pt", saved)
        assert list(checkpoint.weights) == list(model.state_dict())
        assert len(checkpoint.state) == 0
        assert "no optimizer state in it" in checkpoint.notes


def test_optimizer_key_without_an_optimizer(tmp_path):
    """What stands under the usual key and is no optimizer is named: empty, or an object."""
    model = mlp()
    empty = open_saved(tmp_path / "ck.pt", {"model": model.state_dict(), "optimizer": {}})
    assert "optimizer is empty, not an optimizer's state_dict" in empty.notes
    other = open_saved(tmp_path / "ck.pt", {"optimizer": argparse.Namespace(lr=0.1)})
    assert "optimizer is an object (<argparse.Namespace>), not an optimizer's state_dict" in other.notes


def test_whole_objects(tmp_path):
    """A model and an optimizer that were pickled whole: the parameters are the same tensors, so their names are sure."""
    model, optimizer = trained(OPTIMIZERS["SGD"], nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    checkpoint = open_saved(tmp_path / "ck.pt", {"model": model, "optimizer": optimizer})
    assert_is(checkpoint, optimizer, model, certainty="file")
    assert set(checkpoint.weights) == set(model.state_dict())
    mixed = open_saved(tmp_path / "ck.pt", {"model": model, "optimizer": optimizer.state_dict()})
    assert_is(mixed, optimizer, model, certainty="rule")


def test_unknown_optimizer(tmp_path):
    """An optimizer that is not described is shown slot by slot, and nothing is claimed about it."""
    group = {"lr": 0.1, "sharpness": 3, "params": [0]}
    saved = {"state": {0: {"cloud": torch.ones(2, 2)}}, "param_groups": [group]}
    state = open_saved(tmp_path / "ck.pt", saved).state
    assert state.optimizers[""].short_name == "unknown"
    assert state["#0"]["cloud"].role == "other"
    assert state["#0"].facts.shape is None
    assert state["#0"].absences["momentum"] is Absence.UNKNOWN_OPTIMIZER


# --- everything else --------------------------------------------------------------------------------------


def test_what_is_in_the_file_besides(tmp_path):
    """Step, scheduler, generators and arguments come back as plain values, tensors as references."""
    model, optimizer = trained(OPTIMIZERS["SGD"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    saved = {
        "state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "global_step": torch.tensor(12),
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
        "args": argparse.Namespace(lr=0.1),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
    }
    checkpoint = open_saved(tmp_path / "ck.pt", saved)
    assert checkpoint.step == 12
    assert set(checkpoint.objects) == {"scheduler", "rng", "args", "size", "device"}
    assert checkpoint.objects["scheduler"]["T_max"] == 10
    assert_same(checkpoint.objects["rng"]["torch"], saved["rng"]["torch"])
    assert checkpoint.objects["rng"]["python"] == saved["rng"]["python"]
    name, keys, *rest = checkpoint.objects["rng"]["numpy"]
    assert (name, rest) == ("MT19937", list(saved["rng"]["numpy"][2:]))
    np.testing.assert_array_equal(keys.array(), saved["rng"]["numpy"][1], strict=True)
    assert (checkpoint.objects["size"], checkpoint.objects["device"]) == ((2, 3), "cuda:1")
    assert checkpoint.notes == ()


@pytest.mark.parametrize("value", [torch.ones(2), [1, 2], "text", nn.Linear(2, 2), {3: torch.ones(1)}, {}, None])
def test_strange_content(value, tmp_path):
    """Whatever was saved, the file opens and says that there is no optimizer state."""
    checkpoint = open_saved(tmp_path / "ck.pt", value)
    assert len(checkpoint.state) == 0
    assert "no optimizer state in it" in checkpoint.notes


def test_extra_state_beside_weights(tmp_path):
    """What a model keeps beside its tensors is no weight, and not lost."""
    saved = {"model": {"w": torch.ones(2), "w._extra_state": {"scale": 3}}}
    checkpoint = open_saved(tmp_path / "ck.pt", saved)
    assert list(checkpoint.weights) == ["w"]
    assert checkpoint.objects == {"model": {"w._extra_state": {"scale": 3}}}


def test_what_cannot_be_walked(tmp_path):
    """An entry that is too deep to be walked is left out, and said to be; the others are there."""
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    checkpoint = open_saved(tmp_path / "ck.pt", {"deep": deep, "shallow": [[1]]})
    assert checkpoint.objects["shallow"] == [[1]]
    assert str(checkpoint.objects["deep"]).startswith("(a list that contains itself, or is too deep")
    assert "left out: deep, which contains itself, or is too deep or too large to be walked" in checkpoint.notes


def test_keys_that_are_no_text(tmp_path):
    """Entries under keys of any kind are there, told apart even where their keys look alike."""
    kinds = {torch.device("cpu"): 1, 3: 2, (1, "a"): 3, argparse.Namespace: 4, None: 5}
    checkpoint = open_saved(tmp_path / "ck.pt", kinds)
    assert checkpoint.objects == {"cpu": 1, "[3]": 2, "[(1, 'a')]": 3, "[argparse.Namespace]": 4, "[None]": 5}


def test_list_of_model_and_optimizer(tmp_path):
    """A list of state dicts is recognised by what is in it."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    checkpoint = open_saved(tmp_path / "ck.pt", [model.state_dict(), optimizer.state_dict()])
    assert list(checkpoint.weights) == list(checkpoint.state) == list(model.state_dict())


def test_by_name_dict(tmp_path):
    """`named_state_dict` in anyone's torch.save has its names from the file, its class and its groups."""
    model = mlp()
    model[0].bias.requires_grad_(False)
    _, optimizer = trained(OPTIMIZERS["AdamW"], model)
    named = named_state_dict(optimizer, model)
    for saved in (named, {"model": model.state_dict(), "optimizer": named, "step": 5}):
        checkpoint = open_saved(tmp_path / "ck.pt", saved)
        assert checkpoint.format == "optstate.named/1"
        assert certainties(checkpoint.state) == dict.fromkeys(model.state_dict(), "file")
        assert (checkpoint.state.optimizers[""].class_name, checkpoint.state.optimizers[""].inferred) == (
            "torch.optim.adamw.AdamW", False,
        )  # fmt: skip
        assert checkpoint.state["0.bias"].facts.trainable is False
        assert checkpoint.state["0.bias"].absences["momentum"] is Absence.FROZEN
        assert_same(checkpoint.state["2.weight"].momentum.value, optimizer.state[model[2].weight]["exp_avg"])
    assert checkpoint.step == 5


def test_by_name_dict_that_is_not_one(tmp_path):
    """A newer by-name dict and one that someone changed are refused, with the place."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    named = named_state_dict(optimizer, model)
    with pytest.raises(NewerFormat, match="newer optstate"):
        open_saved(tmp_path / "ck.pt", {**named, "format": "optstate.named/2"})
    group = {"hyperparameters": {}, "parameters": ["w"]}
    for optimizers, place in (
        ({"": {"class": None, "groups": [3]}}, r"optimizer\.optimizers\.\.groups\[0\]"),
        ({"": {"class": None, "groups": [group, group]}}, "in two groups"),
        ({"": {"class": None, "groups": [{**group, "parameters": [3]}]}}, "a name that is no text"),
        ({3: {}}, "a name that is no text"),
        ([], r"optimizer\.optimizers[\s\S]*expected  a dict"),
    ):
        with pytest.raises(Refused, match=rf"ck\.pt: [\s\S]*{place}|{place}[\s\S]*ck\.pt: "):
            open_saved(tmp_path / "ck.pt", {**named, "optimizers": optimizers})


def test_by_name_dict_with_state_of_no_parameter(tmp_path):
    """State under a name that no group has is there under its raw path, and told."""
    model, optimizer = trained(OPTIMIZERS["SGD"])
    named = named_state_dict(optimizer, model)
    named["state"]["gone.weight"] = {"momentum_buffer": torch.ones(3)}
    checkpoint = open_saved(tmp_path / "ck.pt", {"opt": named})
    assert_same(checkpoint.unplaced["opt.state['gone.weight'].momentum_buffer"], torch.ones(3))
    assert [clue.code for clue in checkpoint.clues] == ["M219"]


def test_by_name_dict_before_the_first_step(tmp_path):
    """A by-name dict without state was made before the first step: nothing was dropped."""
    model = mlp()
    state = open_saved(tmp_path / "ck.pt", named_state_dict(OPTIMIZERS["AdamW"](model), model)).state
    assert {p.absences["momentum"] for p in state.values()} == {Absence.NEVER_STEPPED}


# --- damage -----------------------------------------------------------------------------------------------


def flipped(raw, position, bit=1):
    return raw[:position] + bytes([raw[position] ^ bit]) + raw[position + 1 :]


def test_a_flipped_bit_is_reported_by_name(tmp_path):
    """A bit that changed in a tensor is damage, and the message names the parameter and its slot."""
    model, optimizer = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    path = tmp_path / "ck.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    entry = optimizer.state_dict()["state"][2]
    for key, read in {
        "exp_avg": lambda slot: slot.array(),
        "exp_avg_sq": lambda slot: list(slot.value.blocks()),
        "step": lambda slot: slot.item(),
    }.items():
        raw = path.read_bytes()
        content = bytes(entry[key].reshape(-1).view(torch.uint8).numpy())
        # Steps are equal in all parameters, so the last one of a kind is the one that is taken.
        (tmp_path / "bad.pt").write_bytes(flipped(raw, raw.rfind(content)))
        name = "2.bias" if key == "step" else "2.weight"
        slot = open_checkpoint(tmp_path / "bad.pt").state[name][key]
        with pytest.raises(Damaged, match=rf"{name}/{key} is damaged[\s\S]*CRC-32"):
            read(slot)


def test_part_of_a_damaged_storage(tmp_path):
    """A view is checked together with the storage that it looks into, and a good storage only once."""
    base = torch.arange(100.0)
    path = tmp_path / "ck.pt"
    torch.save({"view": base[:3]}, path)
    raw = path.read_bytes()
    path.write_bytes(flipped(raw, raw.index(struct.pack("<f", 99.0))))
    view = open_checkpoint(path).weights["view"]
    for read in (view.array, lambda: list(view.blocks())):
        with pytest.raises(Damaged, match="view is damaged"):
            read()


def test_archive_without_checksums(tmp_path):
    """Checksums that torch was told not to compute are not taken for damage, and the file says so."""
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint = open_saved(tmp_path / "ck.pt", {"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert checkpoint.weights["w"].array().tolist() == [1.0, 1.0, 1.0]
    assert any("no checksum on" in note for note in checkpoint.notes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A genuine file of a few kilobytes, and what is in it."""
    path = tmp_path_factory.mktemp("small") / "ck.pt"
    parameter = nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.SGD([("w", parameter)], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    torch.save({"model": {"w": parameter.detach()}, "optimizer": optimizer.state_dict(), "step": 1}, path)
    return path.read_bytes(), content(path)


def content(path):
    checkpoint = open_checkpoint(path)
    state = checkpoint.state
    return (
        checkpoint.step,
        {name: (weight.dtype, weight.array().tobytes()) for name, weight in checkpoint.weights.items()},
        {
            (name, key): (slot.role, slot.dtype, slot.array().tobytes())
            for name, parameter in state.items()
            for key, slot in parameter.slots.items()
        },
        [(group.parameters, dict(group.hyperparameters)) for group in state.groups],
        checkpoint.objects,
    )


def test_every_truncation(small, tmp_path):
    """A file that is cut short at any length is refused."""
    raw, _ = small
    path = tmp_path / "ck.pt"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(ReadError):
            open_checkpoint(path)


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_flipped_byte(bit, small, tmp_path):
    """A changed byte anywhere is an error, or changes nothing that the file says."""
    raw, expected = small
    path = tmp_path / "ck.pt"
    refused = 0
    for position in range(len(raw)):
        path.write_bytes(flipped(raw, position, bit))
        try:
            found = content(path)
        except ReadError:
            refused += 1
        else:
            assert found == expected, position
    assert refused > len(raw) // 2


# --- what torch can write and this machine does not -------------------------------------------------------------


def test_big_endian(tmp_path):
    """A file from a big-endian machine has the same values."""
    raw = struct.pack(">6f", *range(6))
    good = members(pickled(tensor()), {"0": raw})
    path = tmp_path / "ck.pt"
    path.write_bytes(archive([*good[:2], Member("archive/byteorder", b"big"), *good[3:]]))
    expected = torch.load(path)["x"]
    assert expected.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert_same(open_checkpoint(path).weights["x"], expected)
    one = archive(
        [Member("archive/data.pkl", pickled(tensor(None, 4, (), ()))), Member("archive/byteorder", b"big"), good[3]]
    )
    path.write_bytes(one)
    assert open_checkpoint(path).weights["x"].item() == 4.0


def test_expanded_tensor_is_not_materialised(tmp_path):
    """A tensor that claims more memory than its file explains is described, and not read."""
    path = tmp_path / "ck.pt"
    path.write_bytes(torch_file(pickled(tensor(None, 0, (1 << 31, 1 << 31), (0, 0)))))
    weight = open_checkpoint(path).weights["x"]
    assert weight.shape == (1 << 31, 1 << 31)
    with pytest.raises(Refused, match="stored as 4 B and stands for"):
        weight.array()
    with pytest.raises(Refused, match="stands for"):
        next(weight.blocks())
    with pytest.raises(Refused, match="is not a single number"):
        weight.item()


def test_member_that_contradicts_its_directory(tmp_path):
    """A member whose own header says something else than the directory is damage when it is read."""
    path = tmp_path / "ck.pt"
    odd = [
        Member("archive/data/0", b"\0" * 24, local_name="archive/data/1"),
        Member("archive/data/0", b"\0" * 24, local_flags=0x0008),
        Member("archive/data/0", b"\0" * 24, local=(1, 2, 3)),
        Member("archive/data/0", b"\0" * 24, descriptor=b"PK\7\10" + bytes(12)),
        Member("archive/data/0", b"\0" * 24, flags=0x0800, local=(0, 24, 24)),
    ]
    for member in odd:
        path.write_bytes(archive([*members(pickled(tensor()))[:3], member]))
        weight = open_checkpoint(path).weights["x"]
        with pytest.raises(Damaged, match="contradicts the directory"):
            weight.array()


def test_archive_by_another_program(tmp_path):
    """A checkpoint that was unpacked and zipped again without compression is read as well."""
    model, optimizer = trained(lambda m: torch.optim.AdamW(m.parameters()))
    original, again = tmp_path / "ck.pt", tmp_path / "again.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, original)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(again, "w") as target:
        target.mkdir("ck")
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert content(again) == content(original)


def test_larger_than_four_gigabytes(tmp_path):
    """Sizes and offsets beyond 32 bits, as torch writes them, lead to the right bytes."""
    path = tmp_path / "ck.pt"
    with torch.serialization.skip_data():
        torch.save({"long": torch.empty((1 << 32) + 5, dtype=torch.uint8), "short": torch.zeros(3)}, path)
    assert path.stat().st_blocks * 512 < 1 << 24  # a sparse file
    checkpoint = open_checkpoint(path)
    assert checkpoint.weights["long"].shape == ((1 << 32) + 5,)
    assert checkpoint.weights["short"].array().tolist() == [0.0, 0.0, 0.0]


# --- the process ------------------------------------------------------------------------------------------------


def test_neither_torch_nor_numpy_is_imported(tmp_path):
    """Opening and printing a checkpoint, steps included, imports neither torch nor numpy."""
    model, optimizer = trained(lambda m: torch.optim.AdamW(m.named_parameters()))
    path = tmp_path / "ck.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    script = (
        "import sys; from optstate.formats.opening import open_checkpoint as o; c = o(sys.argv[1]); print(c.state); "
        "print([m for m in ('torch', 'numpy', 'ml_dtypes') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent / "src"
    shown = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "0.weight" in shown
    assert "exp_avg" in shown
    assert shown.endswith("[]\n")


def test_names_that_would_harm_a_terminal(tmp_path):
    """A parameter name with control characters is usable as it is, and printed harmless."""
    name = "w\x1b[2J\n\u202e"
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([(name, parameter)], lr=0.1, momentum=0.9)
    checkpoint = open_saved(
        tmp_path / "ck.pt", {"model": {name: parameter.detach()}, "optimizer": optimizer.state_dict()}
    )
    assert list(checkpoint.state) == [name]
    shown = f"{checkpoint.state}{checkpoint.state[name]}{checkpoint.notes}"
    assert not {"\x1b", "\u202e"} & set(shown)


def test_closed_with_the_checkpoint(tmp_path):
    """A checkpoint that nobody holds any more has closed its file."""
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    checkpoint = open_saved(tmp_path / "ck.pt", {"w": torch.ones(2)})
    weight = checkpoint.weights["w"]
    del checkpoint
    assert isinstance(weight, StoredTensor)
    assert weight.array().tolist() == [1.0, 1.0]  # one tensor is enough to keep it open
    del weight
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_not_a_checkpoint_inside_a_zip(tmp_path):
    """A zip archive of something else is told apart, by what is in it."""
    path = tmp_path / "ck.pt"
    path.write_bytes(archive([Member("word/document.xml", b"<x/>")]))
    with pytest.raises(NotACheckpoint, match=r"zip archive of something else[\s\S]*word/document\.xml"):
        open_checkpoint(path)


def test_storage_without_a_tensor(tmp_path):
    """A bare storage in the pickle is shown for what it is."""
    path = tmp_path / "ck.pt"
    path.write_bytes(torch_file(pickled(storage())))
    assert str(open_checkpoint(path).objects["x"]).startswith("float32 storage in ")

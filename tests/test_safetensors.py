"""safetensors: single files, shards with an index, and what programs put into them besides weights."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import optstate
from optstate.errors import Damaged, ReadError, Refused
from tests.forged import safetensors

TORCH = {
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "complex64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
}  # fmt: skip


def trained(make=torch.optim.AdamW, steps=3):
    """A small model and its optimizer after a few steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = make(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def slots(model, optimizer):
    """Every slot by the name of its parameter and its own."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {(names[each], key): value for each, entry in optimizer.state.items() for key, value in entry.items()}


def same(ref, tensor):
    return ref.array().tobytes() == tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- one file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_every_type(tmp_path, dtype):
    """Values of every element type that the library writes are those that were saved."""
    tensor = torch.arange(24, dtype=torch.uint8).view(torch.uint8).reshape(2, 3, 4)
    tensor = (tensor % 2 == 0) if dtype == "bool" else tensor.to(torch.float32).to(getattr(torch, dtype))
    save_file({"a": tensor, "scalar": tensor[0, 0, 1].clone(), "empty": tensor[:0].clone()}, tmp_path / "x.safetensors")
    weights = optstate.open(tmp_path / "x.safetensors").weights
    for name, true in (("a", tensor), ("scalar", tensor[0, 0, 1]), ("empty", tensor[:0])):
        assert (weights[name].dtype, weights[name].shape) == (dtype, tuple(true.shape))
        assert same(weights[name], true.reshape(-1) if true.ndim == 0 else true)
    blocks = np.concatenate(list(weights["a"].blocks()))
    assert blocks.tobytes() == weights["a"].array().tobytes()


@pytest.mark.parametrize(("kind", "shape", "nbytes"), [("F4", [2, 4], 4), ("F6_E2M3", [8], 6), ("F8_E8M0", [3], 3)])
def test_types_without_values(tmp_path, kind, shape, nbytes):
    """A type that no array has is shown by its name; asking for its values says so."""
    header = {"w": {"dtype": kind, "shape": shape, "data_offsets": [0, nbytes]}}
    (tmp_path / "x").write_bytes(safetensors(json.dumps(header).encode(), bytes(nbytes)))
    weight = optstate.open(tmp_path / "x").weights["w"]
    assert (weight.dtype, list(weight.shape)) == (kind, shape)
    with pytest.raises(Refused, match=kind):
        weight.array()


def test_says_what_it_is(tmp_path):
    """A file of weights says that the momentum is gone and why, and that nothing vouches for its bytes."""
    model, _ = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt", "note": "a"})
    opened = optstate.open(tmp_path / "model.safetensors")
    assert (opened.format, sorted(opened.weights), opened.state.optimizers) == (
        "safetensors",
        sorted(model.state_dict()),
        {},
    )
    assert opened.objects["metadata"] == {"format": "pt", "note": "a"}
    assert [clue.code for clue in opened.clues] == ["M103"]
    assert [note for note in opened.notes if "no checksums" in note]


@pytest.mark.parametrize("cut", [1, 7, 8, 40, -1])
def test_truncated(tmp_path, cut):
    """A file that is cut short anywhere is reported as such, before any value is read."""
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(5)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ReadError):
        optstate.open(path)


def test_flipped_bit_in_the_header(tmp_path):
    """No single flipped bit of a header makes a tensor another one unnoticed, but for its name and its type."""
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    true = {"float32 [2, 3]", "float32 [3]"}
    length = 8 + struct.unpack("<Q", whole[:8])[0]
    for bit in range(8 * length):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        try:
            found = {f"{each.dtype} {list(each.shape)}" for each in optstate.open(path).weights.values()}
        except ReadError:
            continue
        assert found == true or {each.partition(" ")[2] for each in found} == {"[2, 3]", "[3]"}


# --- shards ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    """A model in two files and their index, and its tensors."""
    tensors = {f"layers.{number}.weight": torch.full((2, 2), float(number)) for number in range(4)}
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 64}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path, tensors


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_shards(sharded, name):
    """The index and the folder both open as the whole model."""
    folder, tensors = sharded
    opened = optstate.open(folder / name)
    assert {key: same(opened.weights[key], tensors[key]) for key in tensors} == dict.fromkeys(tensors, True)
    assert (len(opened.weights), opened.unread) == (4, ())


def test_one_shard(sharded):
    """A shard by itself opens, and says that it is one of several."""
    folder, _ = sharded
    opened = optstate.open(folder / "model-00001-of-00002.safetensors")
    assert len(opened.weights) == 2
    assert "one file of several" in opened.notes[0]


@pytest.mark.parametrize("harm", ["delete", "truncate"])
def test_missing_shard(sharded, harm):
    """What a missing or damaged shard holds is listed; the rest opens."""
    folder, _ = sharded
    file = folder / "model-00002-of-00002.safetensors"
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    opened = optstate.open(folder)
    assert sorted(opened.weights) == ["layers.0.weight", "layers.1.weight"]
    assert any("layers.2.weight, layers.3.weight" in line for line in opened.unread)


def test_very_many_missing_shards(tmp_path):
    """Of shards that are not there a hundred are named, and the others are counted."""
    index = {"weight_map": {f"w{number}": f"{number:03}.safetensors" for number in range(150)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    *named, last = optstate.open(tmp_path).unread
    assert sum(line.startswith("1 tensor of ") for line in named) == 100
    assert last.startswith("50 tensors of 50 more files that model.safetensors.index.json names")


def test_link_out_of_the_folder(sharded, tmp_path_factory):
    """A shard that is a link to elsewhere is not followed."""
    folder, _ = sharded
    file = folder / "model-00002-of-00002.safetensors"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    opened = optstate.open(folder)
    assert len(opened.weights) == 2
    assert any("symbolic link" in line for line in opened.unread)


# --- optimizer state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{0}/{1}", "optimizer.state.{0}.{1}", "optim.state.{0}.{1}", "{0}.{1}"])
def test_slots(tmp_path, form):
    """Slots under the names that programs give them are shown with their parameters, bit by bit."""
    model, optimizer = trained()
    true = slots(model, optimizer)
    tensors = {form.format(name, key): value.clone() for (name, key), value in true.items()}
    save_file({**model.state_dict(), **tensors}, tmp_path / "x.safetensors")
    opened = optstate.open(tmp_path / "x.safetensors")
    assert sorted(opened.weights) == sorted(model.state_dict())
    assert {(name, key) for name in opened.state for key in opened.state[name].slots} == set(true)
    assert {opened.state[name].facts.certainty for name in opened.state} == {"file"}
    assert all(same(opened.state[name].slots[key].value, value.reshape(-1)) for (name, key), value in true.items())
    assert opened.clues == ()


def test_numbered_parameters(tmp_path):
    """Slots under the numbers of parameters keep the numbers."""
    _, optimizer = trained()
    tensors = {
        f"optimizer.state.{number}.{key}": value.clone()
        for number, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert sorted(optstate.open(tmp_path / "x.safetensors").state) == ["#0", "#1", "#2", "#3"]


def test_ours(tmp_path):
    """The data files of a checkpoint of our own open by themselves."""
    model, optimizer = trained()
    optstate.save(tmp_path / "own", model=model, optimizer=optimizer, step=3)
    weights = optstate.open(tmp_path / "own" / "weights.safetensors").weights
    assert {name: same(weights[name], tensor) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        weights, True
    )
    state = optstate.open(tmp_path / "own" / "optimizer.safetensors").state
    true = slots(model, optimizer)
    assert all(same(state[name].slots[key].value, value.reshape(-1)) for (name, key), value in true.items())


@pytest.fixture(scope="module")
def dcp(tmp_path_factory):
    """What torch DCP writes through its safetensors writer: whole, and as the shards of one rank."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = tmp_path_factory.mktemp("dcp")
    model, optimizer = trained()
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    weights, state = get_state_dict(model, optimizer, options=flat)
    tensors = {"model": weights, "optimizer": {key: value for key, value in state.items() if torch.is_tensor(value)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder / "whole")))
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder / "shards"), save_distributed=True))
    return folder, model, optimizer


@pytest.mark.parametrize("form", ["whole", "shards"])
def test_torch_dcp_as_safetensors(dcp, form):
    """Flattened state that torch DCP wrote as safetensors is shown by name, bit by bit."""
    folder, model, optimizer = dcp
    opened = optstate.open(folder / form)
    true = slots(model, optimizer)
    assert {(name, key) for name in opened.state for key in opened.state[name].slots} == set(true)
    for (name, key), value in true.items():
        assert same(opened.state[name].slots[key].value, value.reshape(-1)), (name, key)
    assert opened.unread == ()


def test_pieces_of_ranks(tmp_path):
    """The shards of two ranks make one tensor; without one of them the hole is named when values are asked for."""
    whole = torch.arange(12.0).reshape(6, 2)
    for rank, start in enumerate((0, 4), 1):
        info = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [start, 0]}})}
        piece = whole[start : start + (4 if rank == 1 else 2)].clone()
        save_file({"w": piece}, tmp_path / f"shard-{rank:05}-model-00001-of-00001.safetensors", metadata=info)
    assert np.array_equal(optstate.open(tmp_path).weights["w"].array(), whole.numpy())
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").unlink()
    opened = optstate.open(tmp_path)
    assert "shard-00001" in opened.unread[0]
    with pytest.raises(Damaged, match="not whole"):
        opened.weights["w"].array()


@pytest.mark.slow
def test_without_torch(sharded):
    """Nothing of torch is needed, nor the library that wrote the file."""
    folder, _ = sharded
    program = (
        "import sys; sys.modules.update(torch=None, safetensors=None); import optstate; "
        f"print(float(optstate.open({str(folder)!r}).weights['layers.3.weight'].array().sum()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "12.0\n"), done.stderr

"""Saving: everything comes back bit for bit, other readers see the same values, and live objects stay as they were."""

from __future__ import annotations

import copy
import json
import os
import random
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import optstate
from optstate.errors import BindError, RestoreError, TargetExists, Unsaveable, WriteFailed
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours import nodes
from optstate.formats.ours.directory import open_directory, read_manifest
from optstate.formats.ours.manifest import MANIFEST, fingerprint_positions
from optstate.formats.ours.tree import ArrayRef
from optstate.formats.ours.verify import verify
from optstate.live.tensors import to_array
from optstate.state.tensors import DTYPES
from optstate.store.objects import RandomState
from optstate.store.save import save
from optstate.store.tensors import fingerprint
from optstate.store.writer import GATHER, PIECE
from tests.checkpoints import content, write


def small_model():
    """A model with a buffer that training changes, and an AdamW that has stepped over it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def back(ref):
    """A tensor again, from a reference in a file."""
    array = np.array(ref.array(), order="K", copy=True)
    if not DTYPES[ref.dtype][1].startswith("ml_dtypes."):
        return torch.from_numpy(array)
    carrier = {1: np.uint8, 2: np.int16}[array.itemsize]
    return torch.from_numpy(array.view(carrier)).view(getattr(torch, ref.dtype))


def bits(tensor):
    """What makes two tensors the same: type, shape, strides and the bytes of each element in row-major order."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), raw


def state_of(*things):
    """A deep copy of everything that saving must leave alone."""
    return copy.deepcopy([thing.state_dict() for thing in things]), random.getstate(), torch.get_rng_state().tolist()


class Box:
    """An object whose state is what it is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def opened(tmp_path, **objects):
    """Objects, saved and opened again."""
    return open_directory(save(tmp_path / "ck", **objects))


# --- model and optimizer ------------------------------------------------------------------------------------


def test_save_returns_a_whole_checkpoint(tmp_path):
    """The first example: weights, buffers, slots, hyperparameters and step come back as they are."""
    model, optimizer = small_model()
    path = save(tmp_path / "runs" / "step-3", model=model, optimizer=optimizer, step=3)
    assert path == tmp_path / "runs" / "step-3"
    found = open_directory(path)
    assert (found.step, found.format, verify(path).ok) == (3, "optstate/1", True)
    assert {name: bits(back(ref)) for name, ref in found.weights.items()} == {
        name: bits(tensor) for name, tensor in model.state_dict().items()
    }
    live = optstate.attach(optimizer, model)
    assert list(found.state) == list(live)
    for name, parameter in live.items():
        saved = found.state[name]
        assert saved.facts.shape == parameter.facts.shape
        assert dict(saved.absences) == dict(parameter.absences)
        for key, slot in parameter.slots.items():
            assert bits(back(saved[key].value)) == bits(slot.tensor)
            assert (saved[key].role, saved[key].convention, saved[key].of) == (slot.role, slot.convention, slot.of)
    assert found.state.groups[0].hyperparameters == live.groups[0].hyperparameters
    assert found.state["0.weight"].step.item() == 3.0


def test_saving_leaves_everything_as_it_was(tmp_path):
    """No entry of `optimizer.state` appears, no number is drawn, no bit changes, and no tensor is replaced."""
    model, optimizer = small_model()
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    optimizer.add_param_group({"params": [unused]})
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    before, addresses = state_of(model, optimizer, scheduler), [p.data_ptr() for p in model.parameters()]
    save(tmp_path / "ck", model=model, optimizer=optimizer, rng=True, scheduler=scheduler)
    after = state_of(model, optimizer, scheduler)
    assert repr(before[0]) == repr(after[0])
    assert before[1:] == after[1:]
    assert unused not in optimizer.state
    assert addresses == [p.data_ptr() for p in model.parameters()]


def test_tied_weights_are_stored_once(tmp_path):
    """A tensor with two names, and two parameters on one storage, take their room once; aliases are recorded."""
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False), "twin": nn.Embedding(4, 2)}
    )
    model["head"].weight = model["embed"].weight
    model["twin"].weight.data = model["embed"].weight.data
    found = opened(tmp_path, model=model, optimizer=torch.optim.SGD(model.parameters()))
    assert list(found.weights) == ["embed.weight", "twin.weight"]
    assert found.weights["embed.weight"].weight.aliases == ("head.weight",)
    assert found.state["embed.weight"].facts.aliases == ("head.weight",)
    assert bits(back(found.weights["twin.weight"])) == bits(model["embed"].weight)
    assert len(read_manifest(tmp_path / "ck").tensors) == 1


def test_views_of_one_storage_are_stored_once_each(tmp_path):
    """Parameters that are pieces of one flat tensor take the room of their own elements, not of the whole, and come back."""
    flat = torch.arange(1000.0)
    model = nn.ParameterList(list(flat.split([10, 990])))
    path = save(tmp_path / "ck", model=model)
    assert sum(chunk.nbytes for entry in read_manifest(path).tensors.values() for chunk in entry.chunks) == 4000
    fresh = nn.ParameterList([torch.zeros(10), torch.zeros(990)])
    optstate.restore(path, model=fresh)
    assert torch.equal(torch.cat(list(fresh)), flat)


def test_one_memory_read_in_several_ways(tmp_path):
    """The same address as another type, shape or order of elements is another tensor, with values of its own."""
    base = torch.arange(6.0).reshape(2, 3)
    values = {"plain": base, "again": base.detach(), "flat": base.flatten(), "turned": base.t(), "first": base[0]}
    values["bits"] = base.view(torch.int32)
    found = opened(tmp_path, box=Box(values)).objects["box"]
    assert {name: bits(back(found[name])) for name in values} == {name: bits(values[name]) for name in values}
    assert len(read_manifest(tmp_path / "ck").tensors) == len(values) - 1  # the first two are one


def test_slots_that_are_one_tensor(tmp_path):
    """Two slots on one memory are stored once, and a restore gives each its values."""
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    shared = torch.rand(2, 3)
    optimizer.state[model.weight] = {"step": torch.tensor(1.0), "exp_avg": shared, "exp_avg_sq": shared}
    path = save(tmp_path / "ck", model=model, optimizer=optimizer)
    assert len(read_manifest(path).tensors) == 3
    fresh = nn.Linear(3, 2, bias=False)
    other = torch.optim.Adam(fresh.parameters())
    optstate.restore(path, model=fresh, optimizer=other)
    assert torch.equal(other.state[fresh.weight]["exp_avg"], shared)
    assert torch.equal(other.state[fresh.weight]["exp_avg_sq"], shared)
    assert other.state[fresh.weight]["exp_avg"].data_ptr() != other.state[fresh.weight]["exp_avg_sq"].data_ptr()


def test_an_expanded_buffer_comes_back(tmp_path):
    """A tensor whose elements share memory is saved with all its values, and restored over one that has its own."""
    model, fresh = nn.Module(), nn.Module()
    model.register_buffer("mask", torch.tensor([[1.0], [2.0]]).expand(2, 5))
    fresh.register_buffer("mask", torch.zeros(2, 5))
    optstate.restore(save(tmp_path / "ck", model=model), model=fresh)
    assert torch.equal(fresh.mask, model.mask)


def test_temporary_tensors_are_not_taken_for_one_another(tmp_path):
    """Tensors that objects make on the fly may reuse an address; each keeps its own values."""

    class Fresh(Box):
        def state_dict(self):
            return {"value": torch.full((64,), float(self.state))}

    found = opened(tmp_path, **{f"box{number}": Fresh(number) for number in range(50)})
    assert [found.objects[f"box{number}"]["value"].array()[0] for number in range(50)] == list(range(50))


def test_several_optimizers_and_what_is_in_none(tmp_path):
    """Each parameter knows its optimizer, and what no optimizer steps is listed with the reason."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
    outside = nn.Parameter(torch.zeros(1))
    optimizers = {
        "sgd": torch.optim.SGD([*model[0].parameters(), outside], lr=torch.tensor(0.5)),
        "adam": torch.optim.Adam(model[1].parameters()),
    }
    found = opened(tmp_path, model=model, optimizer=optimizers)
    assert found.state["1.bias"].facts.optimizer == "adam"
    assert found.state["sgd#2"].facts.certainty == "position"
    assert back(found.state.optimizers["sgd"].groups[0].hyperparameters["lr"]) == 0.5
    assert found.state.left_out == {
        "in the model, but in no optimizer": ("2.weight", "2.bias"),
        "in an optimizer, but not in the model": ("sgd#2",),
    }


def test_lbfgs_state_comes_back(tmp_path):
    """Lists of tensors, numbers, None: what LBFGS keeps is a tree, and keys whose value is None are there too."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), history_size=3)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    entry = optimizer.state[model.weight]
    entry["nothing"] = None
    slots = opened(tmp_path, model=model, optimizer=optimizer).state["weight"].slots
    assert list(slots) == list(entry)
    assert (slots["nothing"].value, slots["nothing"].primary) == (None, False)
    for key, value in entry.items():
        assert same(slots[key].value, value), key


def same(saved, live):
    """Whether a value from a file is a live one, types and bits."""
    if isinstance(live, torch.Tensor):
        return bits(back(saved)) == bits(live)
    if isinstance(live, (list, tuple)):
        return type(saved) is type(live) and len(saved) == len(live) and all(map(same, saved, live))
    if isinstance(live, dict):
        return type(saved) is type(live) and list(saved) == list(live) and all(same(saved[k], live[k]) for k in live)
    return type(saved) is type(live) and repr(saved) == repr(live)


def test_sparse_momentum_comes_back(tmp_path):
    """SGD keeps a sparse buffer for sparse gradients: indices, values and whether they are coalesced."""
    model = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.tensor([1, 4, 4])).sum().backward()
        optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    saved = opened(tmp_path, model=model, optimizer=optimizer).state["weight"].momentum.value
    assert isinstance(saved, SparseRef)
    assert (saved.shape, saved.coalesced) == (tuple(buffer.shape), buffer.is_coalesced())
    assert torch.equal(back(saved.indices), buffer._indices())
    assert torch.equal(back(saved.values), buffer._values())
    assert torch.equal(torch.from_numpy(saved.array()), buffer.to_dense())


# --- tensors ------------------------------------------------------------------------------------------------


def every_dtype():
    """A tensor of each element type, with every byte pattern that its width and a few elements allow."""
    for name in DTYPES:
        dtype = getattr(torch, name)
        raw = torch.randint(
            0, 256, (6 * DTYPES[name][0],), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        yield name, (raw % 2).view(dtype) if dtype is torch.bool else raw.view(dtype)


LAYOUTS = {
    "plain": lambda t: t.reshape(2, 3),
    "scalar": lambda t: t[0],
    "empty": lambda t: t[:0],
    "transposed": lambda t: t.reshape(2, 3).t(),
    "channels last": lambda t: t.reshape(1, 2, 3, 1).to(memory_format=torch.channels_last),
    "every other": lambda t: t[::2],
    "expanded": lambda t: t[:1].expand(2, 3, 1),
    "permuted": lambda t: t.reshape(1, 2, 3).permute(2, 0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_type_and_layout_comes_back(layout, tmp_path):
    """All bit patterns, NaNs among them; dense layouts keep their strides, others become row-major."""
    tensors = {name: LAYOUTS[layout](tensor) for name, tensor in every_dtype()}
    found = opened(tmp_path, box=Box(tensors)).objects["box"]
    for name, tensor in tensors.items():
        expected = tensor.contiguous() if layout in ("every other", "expanded") else tensor
        dtype, shape, stride, raw = bits(back(found[name]))
        assert (dtype, shape, raw) == (tensor.dtype, tuple(tensor.shape), bits(tensor)[3]), name
        if tensor.numel() > 1:
            kept = [step for step, length in zip(expected.stride(), shape, strict=True) if length > 1]
            assert [step for step, length in zip(stride, shape, strict=True) if length > 1] == kept, name
        assert np.concatenate([*found[name].blocks(), to_array(tensor).reshape(-1)[:0]]).tobytes() == raw


def test_lazy_views_are_resolved(tmp_path):
    """torch keeps a conjugate and a negative imaginary part as a flag; the values are what is saved."""
    made = torch.tensor([1 + 2j, 3 - 4j])
    found = opened(tmp_path, box=Box({"conj": made.conj(), "neg": made.conj().imag, "plain": made})).objects["box"]
    assert found["conj"].array().tolist() == [1 - 2j, 3 + 4j]
    assert found["neg"].array().tolist() == [-2, 4]
    assert found["plain"].array().tolist() == [1 + 2j, 3 - 4j]


SIZES = [GATHER // 4 - 1, GATHER // 4, PIECE // 4, PIECE // 4 + 1, 2 * PIECE // 4 + 3]


def test_sizes_around_the_limits_of_writing(tmp_path):
    """Gathered, written at once, written in pieces, contiguous and not: the bytes are the same."""
    tensors = {}
    for number, size in enumerate(SIZES):
        tensors[f"plain {size}"] = torch.arange(size, dtype=torch.int32) + number
        tensors[f"strided {size}"] = (torch.arange(2 * size, dtype=torch.int32) + number)[::2]
    tensors["rows"] = torch.arange(2 * PIECE // 4, dtype=torch.int32).reshape(1, -1, 64).transpose(1, 2)
    found = opened(tmp_path, box=Box(tensors)).objects["box"]
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].array(), tensor.numpy()), name


def test_memory_for_saving_is_bounded(tmp_path):
    """A tensor that is not contiguous is saved a piece at a time."""
    tensor = torch.zeros(4096, 8192).t()  # 128 MB
    tracemalloc.start()
    try:
        save(tmp_path / "ck", box=Box({"tensor": tensor}))
        assert tracemalloc.get_traced_memory()[1] < 3 * PIECE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fingerprint_is_elements_at_fixed_positions(layout):
    """The same for every layout and type: the bytes of elements at positions in row-major order."""
    for name, tensor in every_dtype():
        shaped = LAYOUTS[layout](tensor)
        flat = bits(shaped)[3]
        width = DTYPES[name][0]
        expected = b"".join(flat[at * width : (at + 1) * width] for at in fingerprint_positions(shaped.numel()))
        assert fingerprint(shaped) == expected.hex(), name
    long = torch.arange(1000)
    assert fingerprint(long) == fingerprint(torch.stack([long, long], 1)[:, 0])


# --- other readers ------------------------------------------------------------------------------------------


def test_safetensors_reads_every_file(tmp_path):
    """Each file is plain safetensors: names and values are the same; what it lacks has its stated form."""
    model, optimizer = small_model()
    values = {name: tensor.reshape(2, 3) for name, tensor in every_dtype()}
    path = save(tmp_path / "ck", model=model, optimizer=optimizer, box=Box(values))
    weights = safetensors.torch.load_file(path / "weights.safetensors")
    assert {name: bits(tensor) for name, tensor in weights.items()} == {
        name: bits(tensor) for name, tensor in model.state_dict().items()
    }
    slots = safetensors.torch.load_file(path / "optimizer.safetensors")
    assert bits(slots["2.bias/exp_avg"]) == bits(optimizer.state[model[2].bias]["exp_avg"])
    others = safetensors.torch.load_file(path / "objects.safetensors")
    for name, tensor in values.items():
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        elif name.endswith("fnuz"):
            tensor = tensor.view(torch.uint8)
        assert bits(others[f"box/{name}"]) == bits(tensor), name
    with safetensors.safe_open(path / "weights.safetensors", "np") as file:
        assert file.metadata() == {"format": "optstate/1", "save_id": read_manifest(path).save_id}


def test_tensors_are_aligned(tmp_path):
    """Data begins at a multiple of 64 bytes, every tensor at one of its element's size, large ones at 64."""
    shapes = [(3,), (64,), (5, 7), (1024,), ()]
    tensors = {f"{name} {shape}": torch.zeros(shape, dtype=getattr(torch, name)) for name in DTYPES for shape in shapes}
    path = save(tmp_path / "ck", box=Box(tensors))
    for entry in read_manifest(path).tensors.values():
        (chunk,) = entry.chunks
        assert chunk.offset % DTYPES[entry.dtype][0] == 0
        assert chunk.offset % 64 == 0 or chunk.nbytes % 64
    for file in read_manifest(path).files.values():
        assert file.header_nbytes % 64 == 0


def test_names_with_slashes_and_percents(tmp_path):
    """A weight keeps its name for other readers; a slot's name comes apart into parameter and slot."""
    model = nn.Module()
    for name in ("a/b", "a", "100%", "ü\u2028", "__metadata__"):
        model.register_parameter(name, nn.Parameter(torch.ones(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number, parameter in enumerate(model.parameters()):
        optimizer.state[parameter] = {"momentum_buffer": torch.full((2,), float(number)), "b/c%": 1, "b": torch.ones(1)}
    path = save(tmp_path / "ck", model=model, optimizer=optimizer)
    weights = {"a/b", "a", "100%", "ü\u2028", "__metadata__~2"}  # the last is a name that safetensors keeps for itself
    assert set(safetensors.torch.load_file(path / "weights.safetensors")) == weights
    assert "a%2Fb/momentum_buffer" in safetensors.torch.load_file(path / "optimizer.safetensors")
    found = open_directory(path).state
    assert [found[name].momentum.array()[0] for name in found] == [0, 1, 2, 3, 4]
    assert found["a/b"]["b/c%"].value == 1
    assert open_directory(path).weights["__metadata__"].array().tolist() == [1, 1]


def test_long_headers_are_split(tmp_path):
    """Where a header would grow past the limit a family gets several files, each of which any reader opens."""
    write(tmp_path / "whole", 1, tensors=20)
    write(tmp_path / "split", 1, tensors=20, header_limit=1000)
    files = sorted(file.name for file in (tmp_path / "split").glob("weights*"))
    assert len(files) > 2
    assert files[0] == f"weights-00001-of-{len(files):05}.safetensors"
    names = [name for file in files for name in safetensors.torch.load_file(tmp_path / "split" / file)]
    assert len(names) == len(set(names)) == 20
    for file in (tmp_path / "split").glob("*.safetensors"):
        assert int.from_bytes(file.read_bytes()[:8], "little") < 1200
    assert content(tmp_path / "split") == content(tmp_path / "whole")


# --- objects ------------------------------------------------------------------------------------------------


def test_schedulers_come_back(tmp_path):
    """The state of a scheduler, with its Counter, its nested schedulers and its floats."""
    _, optimizer = small_model()
    module = torch.optim.lr_scheduler
    multi = module.MultiStepLR(optimizer, [30, 30, 80])
    chain = module.SequentialLR(optimizer, [module.ConstantLR(optimizer), module.CosineAnnealingLR(optimizer, 9)], [4])
    found = opened(tmp_path, multi=multi, chain=chain).objects
    assert same(found["multi"], multi.state_dict())
    assert same(found["chain"], chain.state_dict())


def test_numpy_and_torch_values_keep_their_kind(tmp_path):
    """Arrays come back as arrays, scalars as scalars, sizes, types and devices as themselves."""
    state: dict[Any, Any] = {
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "fortran": np.asfortranarray(np.eye(3)),
        "view": np.arange(10)[::-3],
        "bool": np.array([True, False]),
        "scalar": np.float32(0.1),
        "int": np.int64(2**62),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "parameter": nn.Parameter(torch.ones(1)),
        1: torch.tensor(1),
        "1": torch.tensor(2),
        "\ud800": torch.tensor(3),
    }
    found = opened(tmp_path, box=Box(state)).objects["box"]
    for key in ("array", "fortran", "view", "bool"):
        assert isinstance(found[key], ArrayRef)
        array = found[key].tensor.array()
        assert (array.dtype, array.tolist()) == (state[key].dtype, state[key].tolist())
        assert array.strides == state[key].strides or key == "view"
    assert (found["scalar"].value(), type(found["scalar"].value())) == (np.float32(0.1), np.float32)
    assert found["int"].value() == 2**62
    assert found["size"] == nodes.Size((2, 3))
    assert (found["dtype"], found["device"]) == (nodes.Dtype("bfloat16"), nodes.Device("cuda:1"))
    assert [found[key].item() for key in (1, "1", "\ud800", "parameter")] == [1, 2, 3, 1.0]


def test_module_state_as_an_object(tmp_path):
    """An averaged model saved as an object: its tensors, in order, and torch's note of versions."""
    averaged = torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(2))
    found: Any = opened(tmp_path, averaged=averaged).objects["averaged"]
    live: Any = averaged.state_dict()
    assert type(found) is OrderedDict
    assert {name: bits(back(ref)) for name, ref in found.items()} == {name: bits(live[name]) for name in live}
    assert vars(found) == vars(live)


def test_extra_state_of_modules(tmp_path):
    """What a module gives by `get_extra_state` is saved under the model's name."""

    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3, "scale": torch.tensor(0.5)}

    found = opened(tmp_path, model=nn.Sequential(Counting(1, 1), nn.Linear(1, 1))).objects
    extra = found["model"]["0._extra_state"]
    assert (list(found), extra["calls"], extra["scale"].item()) == (["model"], 3, 0.5)


def test_random_state_comes_back(tmp_path):
    """python, numpy and torch go on with the very numbers that would have come."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    random.gauss(0, 1), np.random.normal()  # both keep a spare number now
    save(tmp_path / "ck", rng=True)
    expected = draws()
    found = open_directory(tmp_path / "ck").objects["rng"]
    numpy_state = found["numpy"]
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tensor.array()
    RandomState().load_state_dict({"python": found["python"], "numpy": numpy_state, "torch": back(found["torch"])})
    assert draws() == expected


def test_random_state_of_absent_devices_is_not_dropped():
    """Where there are fewer CUDA devices than were saved, that is said before any generator changes."""
    state = RandomState().state_dict() | {
        "cuda": [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    }
    before = random.getstate(), torch.get_rng_state().tolist()
    random.seed(4)
    state["python"] = random.getstate()
    random.setstate(before[0])
    with pytest.raises(RestoreError, match="no device to go to"):
        RandomState().load_state_dict(state)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def draws():
    """Numbers from all generators."""
    return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(1).item()]


# --- what is refused ----------------------------------------------------------------------------------------


class Marked(torch.Tensor):
    """A tensor subclass."""


def quantized():
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def sparse_rows():
    return torch.eye(2).to_sparse_csr()


UNSAVEABLE = {
    "subclass": (
        lambda: torch.ones(2).as_subclass(Marked),
        r"box\.state\[0\]: a .*Marked, a kind of tensor that is more",
    ),
    "quantized": (quantized, r"box\.state\[0\]: a tensor of type qint8"),
    "meta": (lambda: torch.ones(2, device="meta"), r"box\.state\[0\]: a tensor on the meta device"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1)]), r"box\.state\[0\]: a nested tensor"),
    "other layout": (sparse_rows, r"box\.state\[0\]: a tensor of layout torch\.sparse_csr"),
    "lazy": (lambda: nn.LazyLinear(2).weight, r"box\.state\[0\]: a lazy parameter"),
    "function": (lambda: len, r"box\.state\[0\]: a function"),
    "numpy text": (lambda: np.array(["a"]), r"box\.state\[0\]: a numpy array of <U1"),
    "numpy objects": (lambda: np.array([{}]), r"box\.state\[0\]: a numpy array of object"),
    "swapped bytes": (lambda: np.ones(1, ">f4"), r"box\.state\[0\]: a numpy array of >f4"),
    "numpy date": (lambda: np.datetime64("2026-01-01"), r"box\.state\[0\]: a numpy\.datetime64"),
    "masked": (lambda: np.ma.ones(2), r"box\.state\[0\]: a numpy\.ma\.MaskedArray"),
    "other dtype": (lambda: torch.qint8, r"box\.state\[0\]: a torch\.dtype cannot"),
    "generator": (torch.Generator, r"box\.state\[0\]: a torch\._C\.Generator"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of these layouts experimental
@pytest.mark.parametrize(("make", "message"), UNSAVEABLE.values(), ids=UNSAVEABLE)
def test_unsaveable_is_refused_with_its_path(make, message, tmp_path):
    """A value without a place in the format: the error names it, and nothing is written."""
    with pytest.raises(Unsaveable, match=message):
        save(tmp_path / "ck", box=Box({"state": [make()]}))
    assert os.listdir(tmp_path) == []


def test_unsaveable_parameter_and_slot_are_named(tmp_path):
    """For a model and an optimizer the name is that of the parameter and of the slot."""
    model = nn.ModuleDict({"layer": nn.Linear(2, 2, device="meta")})
    with pytest.raises(Unsaveable, match=r"^layer\.weight: a tensor on the meta device"):
        save(tmp_path / "ck", model=model)
    sparse = nn.Module()
    sparse.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(Unsaveable, match=r"^graph: a sparse weight"):
        save(tmp_path / "ck", model=sparse)
    model, optimizer = small_model()
    optimizer.state[model[0].bias]["callback"] = print
    with pytest.raises(Unsaveable, match=r"^0\.bias\.callback: a function"):
        save(tmp_path / "ck", model=model, optimizer=optimizer)
    del optimizer.state[model[0].bias]["callback"]
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(Unsaveable, match=r"^optimizer\.param_groups\[0\]\.hook: a function"):
        save(tmp_path / "ck", model=model, optimizer=optimizer)
    del optimizer.param_groups[0]["hook"]
    optimizer.state["callback"] = print
    with pytest.raises(Unsaveable, match=r"^optimizer\[''\]\.state\.callback: a function"):
        save(tmp_path / "ck", model=model, optimizer=optimizer)
    assert os.listdir(tmp_path) == []


def test_names_that_no_file_can_hold_are_refused(tmp_path):
    """A name that is no Unicode text, or no text at all."""
    model = nn.Module()
    model.register_parameter("a\ud800", nn.Parameter(torch.ones(1)))
    with pytest.raises(Unsaveable, match="valid Unicode"):
        save(tmp_path / "ck", model=model)
    model, optimizer = small_model()
    optimizer.state[model[0].bias][7] = 1
    with pytest.raises(Unsaveable, match="'7' cannot be a name"):
        save(tmp_path / "ck", model=model, optimizer=optimizer)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, BindError, "nothing to save"),
        ({"optimizer": small_model()[1]}, BindError, "without its model"),
        ({"model": small_model()[1]}, BindError, "not a model"),
        ({"model": small_model()[0], "optimizer": small_model()[0]}, BindError, "not an optimizer"),
        ({"model": small_model()[0], "step": 1.5}, Unsaveable, "step is no whole number"),
        ({"scheduler": None}, Unsaveable, "scheduler cannot be saved"),
        ({"loader": [1]}, Unsaveable, "loader cannot be saved"),
        ({"policy": Box({})}, Unsaveable, "cannot be named policy"),
    ],
)
def test_wrong_arguments_are_told(arguments, error, message, tmp_path):
    """Mistakes in the call, before anything is written."""
    with pytest.raises(error, match=message):
        save(tmp_path / "ck", **arguments)
    assert os.listdir(tmp_path) == []


# --- where it goes ------------------------------------------------------------------------------------------


def test_existing_checkpoint_is_kept_unless_asked(tmp_path):
    """Saving to a path where something is needs `replace=True`, which takes the new one whole."""
    path = save(tmp_path / "ck", box=Box({"value": 1}))
    with pytest.raises(TargetExists, match="exists already"):
        save(path, box=Box({"value": 2}))
    assert open_directory(path).objects["box"] == {"value": 1}
    save(path, box=Box({"value": 3}), replace=True)
    assert open_directory(path).objects["box"] == {"value": 3}
    assert os.listdir(tmp_path) == ["ck"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link", "dangling link"])
def test_what_is_no_checkpoint_is_never_replaced(kind, replace, tmp_path):
    """A file, somebody's folder, a link: refused, replace or not, and left as it is."""
    target = tmp_path / "target"
    save(tmp_path / "ck", box=Box({}))
    make = {
        "file": lambda: target.write_text("mine"),
        "folder": lambda: (target.mkdir(), (target / "thesis.tex").write_text("mine")),
        "empty folder": target.mkdir,
        "link": lambda: target.symlink_to(tmp_path / "ck"),
        "dangling link": lambda: target.symlink_to(tmp_path / "nowhere"),
    }[kind]
    make()
    with pytest.raises(TargetExists):
        save(target, box=Box({}), replace=replace)
    assert target.is_symlink() == ("link" in kind)
    assert sorted(os.listdir(tmp_path)) == ["ck", "target"]
    assert not (tmp_path / "nowhere").exists()


def test_newer_checkpoint_can_be_replaced(tmp_path):
    """A checkpoint of a later version is one of ours all the same."""
    path = save(tmp_path / "ck", box=Box({}))
    (path / MANIFEST).write_text('{"format":"optstate/7","what":"ever"}')
    save(path, box=Box({"value": 1}), replace=True)
    assert open_directory(path).objects["box"] == {"value": 1}


def test_files_have_the_usual_mode(tmp_path):
    """New files and folders have the mode that the umask leaves, as any other file of the user."""
    before = os.umask(0o027)
    try:
        path = save(tmp_path / "runs" / "ck", box=Box({"tensor": torch.ones(1)}))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o750


def test_place_that_cannot_be_written(tmp_path):
    """A folder that is a file: told with its errno."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(WriteFailed, match="ck was not saved: Not a directory") as caught:
        save(tmp_path / "runs" / "ck", box=Box({}))
    assert caught.value.errno == 20


def test_manifest_says_what_wrote_it_and_not_where(tmp_path):
    """Versions and the kind of system are recorded; no host, no user, no path."""
    model, optimizer = small_model()
    path = save(tmp_path / "ck", model=model, optimizer=optimizer)
    environment = json.loads((path / MANIFEST).read_bytes())["body"]["environment"]
    assert set(environment) == {"python", "torch", "optstate", "platform"}
    assert environment["torch"] == torch.__version__
    raw = (path / MANIFEST).read_text()
    assert not [word for word in (os.uname().nodename, str(tmp_path), str(Path.home())) if word in raw]

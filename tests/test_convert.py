"""`convert`: a checkpoint of any program in another format, bit for bit, whole or not at all, and without torch."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import optstate
from optstate.errors import Damaged, TargetExists, Unsaveable, WriteFailed
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.stored_tensor import MemoryRecord, StoredTensor, row_major
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.state.tensors import DTYPES
from optstate.store.convert import TARGETS
from optstate.store.files import RealFiles
from optstate.store.torch_writer import write_torch
from tests.disk import Disk, crashes


def model_of(seed=0):
    """A small model; the seed makes its weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def train(model, optimizer, steps, start=0):
    """The same steps for the same start."""
    for step in range(start, start + steps):
        data = torch.sin(torch.arange(8.0).reshape(2, 4) + step)

        def closure(data=data):
            optimizer.zero_grad()
            loss = model(data).pow(2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)


def saved(path, model, optimizer, **more):
    """What most programs save."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}, path)
    return path


@pytest.fixture
def theirs(tmp_path):
    """A file as most programs write it, after three steps of AdamW with a scheduler."""
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    train(model, optimizer, 3)
    return saved(tmp_path / "theirs.pt", model, optimizer, scheduler=scheduler.state_dict(), step=3)


def leftovers(folder):
    """What a conversion left beside its target."""
    return [name for name in os.listdir(folder) if name.startswith(".")]


# --- the writer of torch files ----------------------------------------------------------------------------


def reread(path, value):
    """A value through `torch.save`, our reader, our writer, and `torch.load` with `weights_only`."""
    torch.save(value, path / "in.pt")
    root = read_torch_zip(ZipArchive(open_regular(path / "in.pt"))).root
    write_torch(path / "out.pt", root, RealFiles())
    return torch.load(path / "out.pt", weights_only=True)


def raw(tensor):
    """The bytes of a tensor in row-major order."""
    return (
        tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_type_is_read_back_by_torch(tmp_path, dtype):
    """All bits of every type that torch has come back, NaN payloads and negative zeros too; also from an odd shape."""
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    bits = torch.randint(0, 2 if dtype == "bool" else 256, (48 * DTYPES[dtype][0],), dtype=torch.uint8)
    tensor = bits.view(kind).reshape(3, 16)
    found = reread(tmp_path, {"t": tensor, "scalar": tensor[1, 2].clone(), "empty": tensor[:0].clone()})
    for name, true in {"t": tensor, "scalar": tensor[1, 2], "empty": tensor[:0]}.items():
        assert (found[name].dtype, found[name].shape, raw(found[name])) == (kind, true.shape, raw(true)), name


LAYOUTS = {
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "slice": torch.arange(20.0)[3:9],
    "every other": torch.arange(20.0)[1:9:2],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "column": torch.arange(12.0).reshape(3, 4)[:, 1:2],
    "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "parameter": nn.Parameter(torch.arange(3.0)),
}


@pytest.mark.parametrize("tensor", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_back_by_torch(tmp_path, tensor):
    """Values, and strides of what is stored as it is in memory."""
    found = reread(tmp_path, {"t": tensor})["t"]
    assert torch.equal(found, tensor.detach())
    if not (tensor.is_conj() or tensor.is_neg()):
        assert found.stride() == tensor.stride()


def test_shared_memory_stays_shared(tmp_path):
    """Tied weights and views that overlap are one storage; parts of one buffer that do not overlap are cut apart."""
    base = torch.arange(100.0)
    tied = torch.ones(2, 3)
    found = reread(tmp_path, {"a": tied, "b": tied, "t": tied.t(), "x": base[:30], "y": base[20:50], "z": base[60:61]})
    assert found["a"].data_ptr() == found["b"].data_ptr() == found["t"].data_ptr()
    assert found["x"].untyped_storage().data_ptr() == found["y"].untyped_storage().data_ptr()
    assert found["z"].untyped_storage().nbytes() == 4, "a view does not drag its whole base along"
    assert torch.equal(found["y"], base[20:50])


def test_plain_values_are_read_back_by_torch(tmp_path):
    """Numbers of any size, text of any kind, and the containers that `weights_only` allows, with their types."""
    value = {
        "numbers": [0, 255, 256, -1, -(2**31), 2**31, 2**63, -(2**100), 1.5, float("inf"), 1 + 2j],
        "text": ["", "é", "日本", "\ud800", "x" * 70_000],
        "rest": (None, True, False, b"\x00\xff", (), [], {}, {1: {2: 3}}, {("a", 1): 2}),
    }
    found = reread(tmp_path, value)
    assert found == value
    assert list(map(type, found["rest"])) == list(map(type, value["rest"]))


def test_file_is_as_torch_writes_it(tmp_path):
    """Contents start at multiples of 64 bytes, every member has its CRC, torch maps it, and two writes give equal bytes."""
    value = {f"w{index}": torch.randn(index + 1) for index in range(20)}
    reread(tmp_path, value)
    archive = ZipArchive(open_regular(tmp_path / "out.pt"))
    assert archive.unchecked == 0
    with zipfile.ZipFile(tmp_path / "out.pt") as other:
        assert other.testzip() is None
        names = [info.filename.partition("/")[2] for info in other.infolist()]
    assert names[:4] == ["data.pkl", ".format_version", ".storage_alignment", "byteorder"]
    assert all(
        (tmp_path / "out.pt").read_bytes().index(w.numpy().tobytes()) % 64 == 0 for w in value.values() if w.numel() > 1
    )
    mapped = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)
    assert all(torch.equal(mapped[name], value[name]) for name in value)
    first = (tmp_path / "out.pt").read_bytes()
    (tmp_path / "out.pt").unlink()
    reread(tmp_path, value)
    assert (tmp_path / "out.pt").read_bytes() == first


class Zeros:
    """A tensor of zeros of any size that takes no memory."""

    dtype = "float32"

    def __init__(self, elements):
        self.shape = (elements,)

    def blocks(self):
        block = np.zeros(1 << 22, np.float32)
        for start in range(0, self.shape[0], block.size):
            yield block[: min(block.size, self.shape[0] - start)]


@pytest.mark.whole
@pytest.mark.slow
def test_more_than_four_gigabytes(tmp_path):
    """Beyond 32 bits, sizes and offsets go where zip64 has them: torch, Python and our reader agree."""
    small = StoredTensor(MemoryRecord(np.arange(5, dtype=np.float32).tobytes(), ""), "float32", 0, (5,), (1,))
    path = tmp_path / "large.pt"
    write_torch(path, {"large": Zeros((1 << 30) + 10), "small": small}, RealFiles())
    assert path.stat().st_size > 1 << 32
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert mapped["large"].numel() == (1 << 30) + 10
    assert mapped["small"].tolist() == [0, 1, 2, 3, 4]
    opened = read_torch_zip(ZipArchive(open_regular(path))).root
    assert opened["small"].array().tolist() == [0, 1, 2, 3, 4]
    opened["large"].record.verify()
    with zipfile.ZipFile(path) as archive:
        assert archive.read("archive/data/1") == np.arange(5, dtype=np.float32).tobytes()


# --- there and back ---------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam with a tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "way", [("theirs", "ours", "torch"), ("theirs", "safetensors", "ours", "torch")], ids=lambda way: way[1]
)
def test_training_goes_on_exactly_after_there_and_back(tmp_path, make, way):
    """Theirs → ours (or safetensors) → torch by position → `load_state_dict`: the next steps are those of the original."""
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    path = saved(tmp_path / "theirs", model, optimizer)
    for index, name in enumerate(way[1:]):
        # What safetensors names is by name: the order of the program is in it, for it was in the source.
        target = tmp_path / f"{index}{'.safetensors' if name == 'safetensors' else '.pt' if name == 'torch' else ''}"
        path = optstate.convert(path, target).path
        assert optstate.diff(tmp_path / "theirs", path).ok
    loaded = torch.load(path, weights_only=True)
    other = model_of(seed=1)
    again = make(other.parameters())
    other.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train(model, optimizer, 3, start=3)
    train(other, again, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("to", TARGETS)
def test_every_format_keeps_everything(theirs, tmp_path, to):
    """Weights, slots, groups, hyperparameters, objects and the step are the same in each format."""
    done = optstate.convert(theirs, tmp_path / "target", to=to)
    assert (done.to, done.left_out, done.tensors) == (to, (), 16)
    found = optstate.diff(theirs, tmp_path / "target")
    assert found.ok, found
    assert leftovers(tmp_path) == []


def test_suffix_chooses_the_format(theirs, tmp_path):
    """`.pt` is torch's, `.safetensors` is that, a name without a suffix is a directory of ours."""
    named = ("a.pt", "b.ckpt", "c.safetensors", "d")
    assert [optstate.convert(theirs, tmp_path / name).to for name in named] == [
        "torch",
        "torch",
        "safetensors",
        "optstate",
    ]
    with pytest.raises(optstate.OptstateError, match="no such format"):
        optstate.convert(theirs, tmp_path / "e", to="pickle")


def test_ours_from_theirs_restores_a_live_run(theirs, tmp_path):
    """What was converted is a checkpoint like any that was saved: intact, and restored by name."""
    optstate.convert(theirs, tmp_path / "ours")
    assert optstate.verify(tmp_path / "ours").ok
    model = model_of(seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optstate.restore(tmp_path / "ours", model=model, optimizer=optimizer)
    assert optstate.diff(theirs, optstate.attach(optimizer, model), only="slots").ok


def test_ours_says_no_more_than_the_source_did(tmp_path):
    """Names by position, their candidates, and a class that was only deduced, stay what they were."""
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "bare.pt")
    optstate.convert(tmp_path / "bare.pt", tmp_path / "ours")
    a, b = optstate.open(tmp_path / "bare.pt").state, optstate.open(tmp_path / "ours").state
    assert [replace(each.facts, position=None) for each in a.values()] == [each.facts for each in b.values()]
    assert [(i.class_name, i.inferred, i.alternatives) for i in a.optimizers.values()] == [
        (i.class_name, i.inferred, i.alternatives) for i in b.optimizers.values()
    ]


def test_several_optimizers(tmp_path):
    """Each keeps its name, its groups and its state."""
    model = model_of()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.AdamW([{"params": [model[2].weight]}, {"params": [model[2].bias], "lr": 0.5}])
    model(torch.ones(2, 4)).sum().backward()
    first.step()
    second.step()
    states = {"first": first.state_dict(), "second": second.state_dict()}
    torch.save({"model": model.state_dict(), "optimizers": states}, tmp_path / "a.pt")
    optstate.convert(tmp_path / "a.pt", tmp_path / "ours")
    optstate.convert(tmp_path / "ours", tmp_path / "b.pt")
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)["optimizers"]
    assert str(loaded) == str(states)


def test_tied_weights_and_what_is_no_tensor_in_a_model(tmp_path):
    """Tied weights share their memory again, and extra state of modules is back where `load_state_dict` expects it."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optstate.save(tmp_path / "ours", model=model, optimizer=optimizer)
    for way in ("a.pt", "a.safetensors"):
        optstate.convert(tmp_path / "ours", tmp_path / way)
    optstate.convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    for way in ("a.pt", "b.pt"):
        loaded = torch.load(tmp_path / way, weights_only=True)["model"]
        assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()
        model.load_state_dict(loaded)


def test_weights_alone(theirs, tmp_path):
    """A plain dict that `load_state_dict` takes, with not a byte of the optimizer in it."""
    optstate.convert(theirs, tmp_path / "w.pt", weights_only=True)
    model_of().load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    optstate.convert(theirs, tmp_path / "w.safetensors", weights_only=True)
    assert safetensors.torch.load_file(tmp_path / "w.safetensors").keys() == model_of().state_dict().keys()
    optstate.convert(theirs, tmp_path / "w", weights_only=True)
    momentum = optstate.open(theirs).state["0.weight"].momentum.array().tobytes()
    for name in ("w.pt", "w.safetensors", "w/weights.safetensors"):
        assert momentum not in (tmp_path / name).read_bytes()
    assert not optstate.open(tmp_path / "w").state.optimizers


def test_safetensors_are_those_of_the_library(theirs, tmp_path):
    """Any reader finds weights under their names and slots as `<parameter>/<slot>`."""
    optstate.convert(theirs, tmp_path / "s.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "s.safetensors")
    source = torch.load(theirs, weights_only=True)
    assert torch.equal(loaded["2.weight"], source["model"]["2.weight"])
    assert torch.equal(loaded["0.bias/exp_avg"], source["optimizer"]["state"][1]["exp_avg"])


def test_objects_of_a_run_come_through(tmp_path):
    """All containers and numbers that our format holds go into safetensors as they are, into torch as the closest."""

    class Kept:
        def __init__(self, state):
            self.state = state

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    state = {
        "plain": (1, 2.5, "x", b"y", None, OrderedDict(a=1), Counter("ab"), {1, 2}),
        "deque": deque([1, 2], maxlen=5),
        "default": defaultdict(int, a=1),
        "array": np.arange(3),
        "number": np.float64(2.5),
        "tensor": torch.ones(2),
    }
    optstate.save(tmp_path / "ours", kept=Kept(state), rng=True)
    flat = optstate.convert(tmp_path / "ours", tmp_path / "a.safetensors", partial=True)
    assert {line.partition(":")[0] for line in flat.left_out} == {"kept.array", "rng.numpy.state.key"}
    done = optstate.convert(tmp_path / "ours", tmp_path / "a.pt")
    assert [line.partition(":")[0] for line in done.changed] == [
        "kept.deque",
        "kept.default",
        "kept.array",
        "kept.number",
        "rng.numpy.state.key",
    ]
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["kept"]
    assert loaded["plain"] == state["plain"]
    assert list(map(type, loaded["plain"])) == list(map(type, state["plain"]))
    assert (loaded["deque"], loaded["default"], loaded["number"]) == ([1, 2], {"a": 1}, 2.5)
    assert loaded["array"].tolist() == [0, 1, 2]


def test_converting_needs_no_torch(theirs, tmp_path):
    """All formats are written where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\nimport optstate\n"
        f"for to in {TARGETS}: optstate.convert({str(theirs)!r}, {str(tmp_path)!r} + '/' + to, to=to)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert all(optstate.diff(theirs, tmp_path / to).ok for to in TARGETS)


# --- what would be lost or would lie ----------------------------------------------------------------------


class Custom:
    """An object of a program."""


@pytest.mark.parametrize("to", TARGETS)
def test_what_has_no_place_is_named_and_nothing_written(tmp_path, to):
    """An object that only code could rebuild is refused by its path; with `partial` the rest is written."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved(tmp_path / "a.pt", model, optimizer, args={"kept": 1, "custom": Custom()}, items=[1, Custom()])
    with pytest.raises(Unsaveable, match="would not be in the target") as caught:
        optstate.convert(tmp_path / "a.pt", tmp_path / "b", to=to)
    assert "args.custom" in str(caught.value)
    assert not (tmp_path / "b").exists()
    done = optstate.convert(tmp_path / "a.pt", tmp_path / "b", to=to, partial=True)
    assert len(done.left_out) == 2
    assert optstate.open(tmp_path / "b").objects == {"args": {"kept": 1}}


def test_part_that_cannot_be_read_is_named_and_nothing_written(theirs, tmp_path):
    """A checkpoint with a missing shard does not silently become a smaller one."""
    opened = replace(optstate.open(theirs), unread=("shard 2 of 3",))
    with pytest.raises(Unsaveable, match="would not be in the target"):
        optstate.convert(opened, tmp_path / "ours")
    assert optstate.convert(opened, tmp_path / "ours", partial=True).left_out == ("not read: shard 2 of 3",)


def test_complex_numbers_have_no_place_in_safetensors(tmp_path):
    """Rather than as pairs of reals, they are refused."""
    torch.save({"model": {"c": torch.ones(2, dtype=torch.complex64), "r": torch.ones(2)}}, tmp_path / "a.pt")
    with pytest.raises(Unsaveable, match="would not be in the target"):
        optstate.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")


def by_name_file(path):
    """A file of a program that keys state by name, in an order of its own."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 2)
    names = [name for name, _ in model.named_parameters()]
    state = {names[index]: entry for index, entry in optimizer.state_dict()["state"].items()}
    group = {**optimizer.state_dict()["param_groups"][0], "params": sorted(names, reverse=True)}
    torch.save({"model": model.state_dict(), "optimizer": {"state": state, "param_groups": [group]}}, path)
    return model, optimizer


def test_positions_are_not_made_up(tmp_path):
    """Names without numbers do not say in which order the optimizer was built: by position is refused, also by detours."""
    by_name_file(tmp_path / "a.pt")
    for to in ("torch-named", "optstate", "safetensors"):
        optstate.convert(tmp_path / "a.pt", tmp_path / to, to=to)
    for source in ("a.pt", "torch-named", "optstate", "safetensors"):
        with pytest.raises(Unsaveable, match="does not number them"):
            optstate.convert(tmp_path / source, tmp_path / "b.pt")
        assert not (tmp_path / "b.pt").exists()


def test_a_live_state_gives_the_order(tmp_path):
    """With the program's own optimizer at hand, by position means what it means there."""
    model, optimizer = by_name_file(tmp_path / "a.pt")
    optstate.convert(tmp_path / "a.pt", tmp_path / "b.pt", like=optstate.attach(optimizer, model))
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]
    assert str(loaded) == str(optimizer.state_dict())


def test_a_live_state_of_another_model_is_refused(tmp_path):
    """What the program does not have is named."""
    by_name_file(tmp_path / "a.pt")
    other = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(Unsaveable, match="does not have all parameters"):
        optstate.convert(
            tmp_path / "a.pt", tmp_path / "b.pt", like=optstate.attach(torch.optim.SGD(other.parameters()), other)
        )


@pytest.mark.parametrize("to", ["torch-named", "safetensors"])
def test_names_are_not_made_up(tmp_path, to):
    """A file of positions is not written by name; by position, and in our format as what it is, it is."""
    optimizer = torch.optim.SGD(model_of().parameters(), lr=0.1)
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    with pytest.raises(Unsaveable, match="does not say what its parameters are called"):
        optstate.convert(tmp_path / "a.pt", tmp_path / "b", to=to)
    optstate.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"] == optimizer.state_dict()


def test_recorded_names_stay_with_the_groups(tmp_path):
    """`param_names` is written where the source had it, and nowhere else."""
    model = model_of()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    optstate.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"] == optimizer.state_dict()


def test_two_tensors_of_one_name_are_refused(tmp_path):
    """A weight that is called like a slot in the file stops the conversion."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    content = {
        "model": {**model.state_dict(), "0.weight/momentum_buffer": torch.ones(2)},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Unsaveable, match="two tensors would be called"):
        optstate.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert leftovers(tmp_path) == []


# --- whole or not at all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_there_stays_unless_asked(theirs, tmp_path, to):
    """An existing target is refused; asked for, it is replaced by the new one."""
    target = tmp_path / "target"
    optstate.convert(theirs, target, to=to, weights_only=True)
    with pytest.raises(TargetExists):
        optstate.convert(theirs, target, to=to)
    assert not optstate.open(target).state.optimizers
    optstate.convert(theirs, target, to=to, replace=True)
    assert optstate.diff(theirs, target).ok


def test_only_a_target_of_its_kind_is_replaced(theirs, tmp_path):
    """Neither a folder of something else, nor a link, nor the source itself is ever replaced."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pt").symlink_to(theirs)
    for target in (tmp_path / "folder", tmp_path / "link.pt", theirs):
        with pytest.raises(TargetExists):
            optstate.convert(theirs, target, replace=True, to="torch")
    with pytest.raises(TargetExists):
        optstate.convert(theirs, tmp_path / "folder", to="optstate", replace=True)


@pytest.mark.parametrize("to", TARGETS)
def test_damaged_source_leaves_the_target_alone(theirs, tmp_path, to):
    """Damage that shows only while values are copied stops the conversion; the old target is there, and nothing else."""
    target = tmp_path / "target"
    optstate.convert(theirs, target, to=to)
    before = optstate.diff(theirs, target)
    content = bytearray(theirs.read_bytes())
    content[
        content.index(torch.load(theirs, weights_only=True)["optimizer"]["state"][0]["exp_avg"].numpy().tobytes())
    ] ^= 1
    bad = tmp_path / "bad.pt"
    bad.write_bytes(content)
    with pytest.raises(Damaged, match="exp_avg"):
        optstate.convert(bad, target, to=to, replace=True)
    assert before.ok
    assert optstate.diff(theirs, target).ok
    assert leftovers(tmp_path) == []


def tensor(*values):
    """A tensor in memory, as one in a file is."""
    record = MemoryRecord(np.array(values, np.float32).tobytes(), "memory")
    return StoredTensor(record, "float32", 0, (len(values),), row_major((len(values),)))


TREE = {"model": {"w": tensor(1, 2, 3)}, "optimizer": {"state": {0: {"momentum_buffer": tensor(4, 5, 6)}}}}
PLACE = Path("run.pt")


def whole():
    """The bytes of a finished file."""
    disk = Disk()
    write_torch(PLACE, TREE, disk)
    return disk.tree()["run.pt"]


def steps():
    """How many calls a write makes."""
    disk = Disk()
    write_torch(PLACE, TREE, disk)
    return len(disk.calls)


@pytest.mark.parametrize("number", range(steps()))
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_a_failure_at_any_step_leaves_the_old_or_the_new(number, old):
    """A full disk at any call: the target is what it was, or the whole new file, and it is said."""
    disk = Disk()
    if old:
        write_torch(PLACE, {"model": {"w": tensor(0)}}, disk)
    before, made = disk.tree(), len(disk.calls)
    disk.fault = lambda call, what: OSError(28, "No space left on device") if call == made + number else None
    with suppress(WriteFailed):
        write_torch(PLACE, TREE, disk, replace=old)
    after = disk.tree()
    assert after.get("run.pt") in (before.get("run.pt"), whole())


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_a_power_cut_leaves_the_old_or_the_new(old):
    """Whatever the disk kept of what was not synced, the target is absent, the old file, or the whole new one."""
    disk = Disk()
    if old:
        write_torch(PLACE, {"model": {"w": tensor(0)}}, disk)
    before, start = disk.tree().get("run.pt"), len(disk.log)
    write_torch(PLACE, TREE, disk, replace=old)
    allowed = (before, whole())
    seen = [tree.get("run.pt") for end in range(start, len(disk.log) + 1) for tree in crashes(disk.log, end, most=1)]
    assert set(seen) <= set(allowed)
    assert disk.tree()["run.pt"] == whole(), "and when it returns it is the new one"


def test_interrupt_leaves_nothing(theirs, tmp_path):
    """Ctrl-C while values are copied: no target, no temporary file."""

    class Interrupted(StoredTensor):
        def blocks(self):
            raise KeyboardInterrupt

    found = tensor(1, 2)
    weights = {"w": Interrupted(found.record, "float32", 0, (2,), (1,), swap=True)}
    opened = replace(optstate.open(theirs), weights=weights)
    for to in TARGETS:
        with pytest.raises(KeyboardInterrupt):
            optstate.convert(opened, tmp_path / "target", to=to)
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []


def test_source_is_never_touched(theirs, tmp_path):
    """The bytes of the source are those that were there."""
    before = theirs.read_bytes()
    for to in TARGETS:
        optstate.convert(theirs, tmp_path / to, to=to)
    assert theirs.read_bytes() == before


def test_parents_are_made(theirs, tmp_path):
    """Folders above the target appear where they are missing."""
    optstate.convert(theirs, tmp_path / "a" / "b" / "c.pt")
    assert torch.load(tmp_path / "a" / "b" / "c.pt", weights_only=True)["step"] == 3


def test_memory_is_bounded(tmp_path):
    """A large tensor passes through in pieces."""
    import tracemalloc

    torch.save({"model": {"w": torch.ones(1 << 24)}}, tmp_path / "a.pt")  # 67 MB
    optstate.convert(tmp_path / "a.pt", tmp_path / "warm.pt")
    for target in ("b.pt", "b.safetensors", "b"):
        tracemalloc.start()
        optstate.convert(tmp_path / "a.pt", tmp_path / target)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 45_000_000, target


def test_copying_what_was_converted_is_the_same_again(theirs, tmp_path):
    """Converting twice changes nothing more."""
    optstate.convert(theirs, tmp_path / "a.pt")
    optstate.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert copy.deepcopy(torch.load(tmp_path / "b.pt", weights_only=True))["step"] == 3

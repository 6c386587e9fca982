"""Files of torch before 1.6: read whole, by name and bit by bit, though nothing in them says where anything lies."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, ReadError, Refused
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.torch_stream import UNCHECKED, read_torch_stream
from optstate.formats.opening import open_checkpoint
from optstate.state.tensors import is_tensor
from tests.forged import (
    FLOATS,
    MACHINE,
    MAGIC,
    PROTOCOL_2,
    STOP,
    call,
    entries,
    items,
    name,
    number,
    pickled,
    stream,
    stream_storage,
    tensor,
    text,
)
from tests.truth import assert_is

OLD = {"_use_new_zipfile_serialization": False}
VERSION_2 = PROTOCOL_2 + number(1002) + STOP


def read(path, content):
    path.write_bytes(content)
    return read_torch_stream(open_regular(path))


def bits(value):
    return bytes(value.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_like_torch(path, found):
    """Every tensor of the file as torch itself loads it."""
    assert_same(found, torch.load(path, weights_only=False))


def assert_same(found, true):
    """Type, shape and bits of every tensor."""
    assert list(found) == list(true)
    for key, expected in true.items():
        assert (found[key].dtype, found[key].shape) == (str(expected.dtype)[6:], tuple(expected.shape))
        assert np.ascontiguousarray(found[key].array()).tobytes() == bits(expected)
        assert b"".join(block.tobytes() for block in found[key].blocks()) == bits(expected)


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("protocol", range(1, 6))
def test_optimizer_by_name(protocol, tmp_path):
    """The state of a model's optimizer comes back by name, in every protocol that torch itself can read."""
    model, optimizer = trained()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    torch.save(saved, tmp_path / "old.pt", pickle_protocol=protocol, **OLD)
    checkpoint = open_checkpoint(tmp_path / "old.pt")
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert checkpoint.step == 3
    assert [note for note in checkpoint.notes if "checksum" in note] == [UNCHECKED]


def test_every_kind_of_tensor(tmp_path):
    """Views, empty tensors, shared storages and element types are as saved, those too that torch cannot load again."""
    base = torch.arange(24.0)
    empty = torch.empty(0)
    saved = {
        "slice": base[3:9], "turned": base.reshape(4, 6).t(), "expanded": base[2:3].expand(4, 1),
        "half": torch.ones(3, dtype=torch.bfloat16), "wave": torch.complex(base[:3], base[3:6]).conj(),
        "bytes": torch.arange(5).to(torch.uint16), "eight": torch.ones(4).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False]), "number": torch.tensor(3.0), "parameter": nn.Parameter(torch.ones(2)),
        "nothing": empty, "nothing else": empty.view(torch.int32), "wide": torch.empty(0, 7),
    }  # fmt: skip
    torch.save(saved, tmp_path / "old.pt", **OLD)
    found = read_torch_stream(open_regular(tmp_path / "old.pt"))
    assert_same(found.root, saved)
    assert found.container == "torch stream"
    with pytest.raises(AttributeError, match="UntypedStorage"):
        torch.load(tmp_path / "old.pt")
    torch.save({key: saved[key] for key in saved if key not in ("bytes", "eight")}, tmp_path / "old.pt", **OLD)
    assert_like_torch(tmp_path / "old.pt", read_torch_stream(open_regular(tmp_path / "old.pt")).root)


def test_modules(tmp_path):
    """A whole module shows its tensors; its class is named with its source beside it, and neither is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Couldn't retrieve source code")
        torch.save({"model": nn.Linear(3, 2)}, tmp_path / "old.pt", **OLD)
    found = read_torch_stream(open_regular(tmp_path / "old.pt"))
    assert str(found.root["model"]) == "<torch.nn.modules.linear.Linear>"
    weight = found.root["model"].state["_parameters"]["weight"]
    assert weight.shape == (2, 3)
    assert "not called: torch.nn.modules.linear.Linear" in found.notes


def test_views_of_storages(tmp_path):
    """A storage that is part of another one, as the oldest files have, starts where the file says."""
    whole = stream_storage(elements=6)
    part = stream_storage(elements=6, view=items(text("9"), number(2), number(3)))
    nodes = entries(a=tensor(whole), b=tensor(part, 1, (2,), (1,)), c=tensor(part, 0, (3,), (1,)))
    path = tmp_path / "old.pt"
    found = read(path, stream(PROTOCOL_2 + nodes + STOP))
    assert found.root["b"].array().tolist() == [3.0, 4.0]
    assert_like_torch(path, found.root)
    assert found.root["b"].record is found.root["c"].record


def test_strings_of_python_2(tmp_path):
    """The strings in a file that Python 2 wrote are text where they can be."""

    def old(value):
        return b"U" + bytes([len(value)]) + value

    storage = items(old(b"storage"), name("torch", "FloatStorage"), old(b"0"), old(b"cpu"), number(6), b"N") + b"Q"
    keys = PROTOCOL_2 + b"]" + old(b"0") + b"a" + STOP
    pickle = PROTOCOL_2 + b"}(" + old(b"w") + tensor(storage) + old(b"\xff") + b"Nu" + STOP
    found = read(tmp_path / "old.pt", stream(pickle, keys=keys)).root
    assert found["w"].array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found[b"\xff"] is None


def test_byte_order(tmp_path):
    """What the file says of its machine's byte order does not matter: torch writes little-endian everywhere."""
    big = MAGIC + PROTOCOL_2 + b"M\xe9\x03" + STOP + PROTOCOL_2 + entries(little_endian=b"\x89") + STOP
    found = read(tmp_path / "old.pt", stream(pickled(tensor(stream_storage())), front=big))
    assert_like_torch(tmp_path / "old.pt", found.root)


def test_pickle_longer_than_the_first_look(tmp_path):
    """A pickle longer than what is read at first is read whole, and where it is damaged that is said."""
    saved = {f"layer {index} {'x' * 200}": torch.full((2,), float(index)) for index in range(6_000)}
    path = tmp_path / "old.pt"
    torch.save(saved, path, **OLD)
    raw = path.read_bytes()
    assert raw.index(b"layer 5999") > 1 << 20
    found = read_torch_stream(open_regular(path))
    assert list(found.root) == list(saved)
    assert all(found.root[key].array().tobytes() == bits(saved[key]) for key in saved)
    at = raw.index(b"layer 5999")
    with pytest.raises(Damaged, match=r"malformed[\s\S]*byte \d{7}"):
        read(tmp_path / "broken.pt", raw[:at] + b"\xff" * 300 + raw[at + 300 :])


def test_every_truncation(tmp_path):
    """A stream that is cut anywhere is refused, never read in part."""
    model, optimizer = trained()
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer, **OLD)
    raw = buffer.getvalue()
    path = tmp_path / "cut.pt"
    for length in (*range(1, 400), *range(400, len(raw), 31), *range(len(raw) - 40, len(raw))):
        path.write_bytes(raw[:length])
        with pytest.raises(ReadError) as caught:
            open_checkpoint(path)
        assert type(caught.value) in (Damaged, NotACheckpoint)


GOOD = pickled(tensor(stream_storage()))
TWO = PROTOCOL_2 + entries(a=tensor(stream_storage()), b=tensor(stream_storage("1"))) + STOP
VIEW = items(text("9"), number(2), number(3))
LIES = {
    "count of 2**33": (stream(pickled(tensor(stream_storage(elements=1 << 33))), {"0": (1 << 33, FLOATS)}), Damaged, "bytes in a file of"),
    "count of 2**62": (stream(GOOD, {"0": (1 << 62, FLOATS)}), Damaged, "storage 0 is not as long as its pickle says"),
    "negative count": (stream(GOOD, {"0": (-1, FLOATS)}), Damaged, "storage 0 is not as long as its pickle says"),
    "count of another": (stream(GOOD, {"0": (5, FLOATS)}), Damaged, "expected  6 elements"),
    "last storage cut": (stream(GOOD, {"0": (6, FLOATS[:-1])}), Damaged, "23 B behind them"),
    "no storage": (stream(GOOD, {}), Damaged, "its list of storages is not that of its pickle"),
    "storage of nobody": (stream(GOOD, {"0": (6, FLOATS), "1": (6, FLOATS)}), Damaged, "its list of storages"),
    "storage twice": (stream(TWO, keys=PROTOCOL_2 + b"](" + text("0") * 2 + b"e" + STOP), Damaged, "its list of storages"),
    "keys that are no list": (stream(GOOD, keys=PROTOCOL_2 + text("0") + STOP), Damaged, "its parts are not those"),
    "keys that are no text": (stream(GOOD, keys=PROTOCOL_2 + b"]" + number(0) + b"a" + STOP), Damaged, "its list of storages"),
    "keys that are lists": (stream(GOOD, keys=PROTOCOL_2 + b"]]a" + STOP), Damaged, "its list of storages"),
    "call among the keys": (stream(GOOD, keys=PROTOCOL_2 + call(name("os", "system"), text("x")) + STOP), Damaged, "its parts are not those"),
    "bytes behind": (stream(GOOD) + b"x", Refused, "hides behind the end of the last storage"),
    "another file behind": (stream(GOOD) * 2, Refused, "hides behind the end of the last storage"),
    "another version": (stream(GOOD, front=MAGIC + VERSION_2 + MACHINE), NewerFormat, "expected  1001"),
    "no description": (stream(GOOD, front=MAGIC + PROTOCOL_2 + b"M\xe9\x03" + STOP + PROTOCOL_2 + b"N" + STOP), Damaged, "its parts are not those"),
    "view outside": (stream(pickled(tensor(stream_storage(view=items(text("9"), number(5), number(3)))))), Damaged, "a view of elements 5 to 8 of a storage that has 6"),
    "view before": (stream(pickled(tensor(stream_storage(view=items(text("9"), number(-1), number(3)))))), Damaged, "a view of elements -1 to 2"),
    "view in two places": (
        stream(PROTOCOL_2 + entries(a=stream_storage(view=VIEW), b=stream_storage(view=items(text("9"), number(1), number(3)))) + STOP),
        Damaged, "view 9 in two places",
    ),
    "tensor outside its view": (stream(pickled(tensor(stream_storage(view=VIEW), 0, (4,), (1,)))), Damaged, "of a storage that has 3"),
    "view that is none": (stream(pickled(tensor(stream_storage(view=number(1))))), Damaged, "a persistent id that is no storage"),
    "module that is none": (stream(pickled(items(text("module"), *[number(0)] * 3) + b"Q")), Damaged, "a persistent id that is no storage"),
    "storage of a class of its own": (stream(pickled(stream_storage(kind="EvilStorage"))), Damaged, "no size that is known"),
    "two types": (stream(pickled(items(stream_storage(), stream_storage(kind="IntStorage")))), Damaged, "with two types or lengths"),
    "persistent id among the keys": (stream(GOOD, keys=PROTOCOL_2 + stream_storage() + STOP), Damaged, "outside of what was saved"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_lies(case, tmp_path):
    """A stream that contradicts itself is refused for that, before anything is allocated for what it claims."""
    content, error, message = LIES[case]
    with pytest.raises(error) as caught:
        read(tmp_path / "old.pt", content)
    assert message in str(caught.value)


def test_good_one_reads(tmp_path):
    """The forged stream that the lies are made from is one that torch reads, with the same values."""
    found = read(tmp_path / "old.pt", stream(GOOD))
    assert_like_torch(tmp_path / "old.pt", found.root)
    assert is_tensor(found.root["x"])


def test_protocol_0(tmp_path):
    """torch writes tensors in protocol 0 that it cannot read itself; the message says what to do."""
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", pickle_protocol=0, **OLD)
    with pytest.raises(Refused, match="not even torch can read back"):
        open_checkpoint(tmp_path / "old.pt")
    torch.save({"lr": 0.5}, tmp_path / "plain.pt", pickle_protocol=0, **OLD)
    assert open_checkpoint(tmp_path / "plain.pt").objects == {"lr": 0.5}

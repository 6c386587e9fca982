"""Our format: what goes into a checkpoint comes out bit for bit, and a changed byte is always noticed."""

from __future__ import annotations

import enum
import json
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, ReadError, Refused, Unsaveable
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours import nodes
from optstate.formats.ours.directory import open_directory, read_manifest
from optstate.formats.ours.manifest import (
    FORMAT,
    MANIFEST,
    decode_manifest,
    digest_of,
    encode_manifest,
    fingerprint_positions,
    join_key,
    schema,
    split_key,
)
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.formats.ours.tree import DEPTH, decode, encode, path_text
from optstate.formats.ours.verify import verify
from optstate.state.tensors import is_tensor
from optstate.store.files import RealFiles
from optstate.store.writer import Payload, write_checkpoint
from tests.checkpoints import content, described, sample, write

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "optstate-1"


# --- typed trees --------------------------------------------------------------------------------------------


def refuse(value, path):
    """The callback for a tree without tensors."""


def through_json(value):
    """A value encoded, written as JSON, read as strictly as a manifest is, and decoded."""
    raw = msgspec.json.encode(encode(value, ("object",), refuse))
    return decode(msgspec.json.decode(raw, type=nodes.Tree), no_tensor)


def no_tensor(key):
    """There are none."""
    raise KeyError(key)


def same(a, b):
    """Whether two values are of the same types and have the same bits, in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        extras = (getattr(a, "default_factory", None), vars(a) if hasattr(a, "__dict__") else {})
        others = (getattr(b, "default_factory", None), vars(b) if hasattr(b, "__dict__") else {})
        return extras == others and same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return same(sorted(a, key=repr), sorted(b, key=repr))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and getattr(a, "maxlen", None) == getattr(b, "maxlen", None) and all(map(same, a, b))
    return a == b


every_float = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    every_float,
    st.floats(),
    st.text(st.characters(categories=None)),  # lone surrogates too
    st.binary(),
    st.builds(complex, every_float, every_float),
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)


def containers(inner):
    pairs = st.lists(st.tuples(keys, inner), max_size=4)
    lists = st.lists(inner, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        st.builds(deque, lists, st.none() | st.integers(0, 9)),
        st.lists(keys, max_size=4).map(set),
        st.lists(keys, max_size=4).map(frozenset),
        pairs.map(dict),
        pairs.map(OrderedDict),
        st.lists(st.tuples(keys, st.integers()), max_size=4).map(lambda items: Counter(dict(items))),
        st.builds(defaultdict, st.sampled_from([None, int, float, list, dict, set, str, bool, tuple]), pairs),
    )


@given(st.recursive(scalars, containers, max_leaves=30))
def test_tree_comes_back_bit_for_bit(value):
    """Any value that the format has a place for, with its types, order, NaN payloads and signs of zero."""
    assert same(through_json(value), value)


NASTY = {
    "": -0.0,
    0: [math.nan, math.inf, -math.inf, 5e-324, 1e308, 1e22, 0.1 + 0.2],
    "0": (1, 1.0, True, None),
    (1, ("a", b"\xff")): {frozenset({1, "1"}), ()},
    -1.5: 10**5000,
    1e300: -(2**53) - 1,
    "\ud800/%2F": "a\ud800b\x00\u2028",
    None: deque([1, deque(maxlen=0)], maxlen=7),
    True: OrderedDict([("b", 1), ("a", Counter("hello"))]),
    b"": defaultdict(list, {3: complex(-0.0, math.nan)}),
}


def test_nasty_tree_comes_back():
    """One object with everything that formats usually lose, and what is written for it, as a literal in part."""
    assert same(through_json(NASTY), NASTY)
    tree = json.loads(msgspec.json.encode(encode({1: (True, math.inf), "1": [2**53, 2**53 + 1]}, ("x",), refuse)))
    assert tree == {
        "t": "dict",
        "v": [
            [1, {"t": "tuple", "v": [True, {"t": "float", "v": "7ff0000000000000"}]}],
            ["1", {"t": "list", "v": [9007199254740992, {"t": "int", "v": "0x20000000000001"}]}],
        ],
    }


def test_module_state_keeps_its_metadata():
    """torch hangs the versions of modules on their state dict; they come back."""
    state: Any = OrderedDict(weight=1)
    state._metadata = OrderedDict({"": {"version": 2}})
    back = through_json(state)
    assert same(back, state)
    assert back._metadata == {"": {"version": 2}}


class Point(NamedTuple):
    """A named tuple."""

    x: int
    y: int


Color = enum.IntEnum("Color", ["RED"])
Named: Any = type("Named", (dict,), {})
Attributed: Any = type("Attributed", (OrderedDict,), {})

cycle: list[object] = []
cycle.append(cycle)
marked: Any = OrderedDict()
marked.note = 1

REFUSED = {
    "function": ([0, lambda epoch: 1.0], r"scheduler\.lr_lambdas\[1\]: a function cannot"),
    "method": ([[].append], r"scheduler\.lr_lambdas\[0\]: a function cannot"),
    "class": ({"a b": int}, r"scheduler\.lr_lambdas\['a b'\]: a type cannot"),
    "int enum": ({"color": Color.RED}, r"scheduler\.lr_lambdas\.color: a .*Color cannot"),
    "named tuple": ((Point(1, 2),), r"scheduler\.lr_lambdas\[0\]: a .*Point cannot"),
    "dict subclass": (Named(), r"scheduler\.lr_lambdas: a .*Named cannot"),
    "ordered dict subclass": (Attributed(), r"scheduler\.lr_lambdas: a .*Attributed cannot"),
    "attributes": (marked, r"scheduler\.lr_lambdas: a OrderedDict with attributes"),
    "fraction": (Fraction(1, 3), r"a fractions\.Fraction cannot"),
    "bytearray": (bytearray(b"x"), r"a bytearray cannot"),
    "factory": ({"d": defaultdict(lambda: 0)}, r"scheduler\.lr_lambdas\.d\.default_factory: a function cannot"),
    "key": ({Color.RED: 1}, r"scheduler\.lr_lambdas\[<Color\.RED: 1>\]: a .*Color cannot"),
    "object": (object(), r"a object cannot"),
    "cycle": (cycle, r"nested too deeply, or contains itself"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused(value, message):
    """Nothing is pickled, flattened or dropped: the error says where the value is."""
    with pytest.raises(Unsaveable, match=message):
        encode(value, ("scheduler", "lr_lambdas"), refuse)


def test_depth_has_a_limit_that_reading_shares():
    """The deepest tree that can be written can be read."""
    value: list[object] = []
    for _ in range(DEPTH - 1):
        value = [value]
    assert same(through_json(value), value)
    with pytest.raises(Unsaveable, match="too deeply"):
        encode([value], ("object",), refuse)


def test_paths_print_as_python_and_stay_on_one_line():
    """A path reads as one would type it, and no key can forge a second line."""
    assert path_text(("ema", "state", 0, "a.b")) == "ema.state[0]['a.b']"
    assert "\n" not in path_text(("ema", "x\ny\x1b[2J"))


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_names_join_and_split(parts):
    """One escape rule: whatever is in the parts, they come apart as they were put together."""
    key = join_key(parts)
    assert split_key(key) == parts
    assert key.count("/") == len(parts) - 1


@given(st.lists(st.lists(st.text("%/25F", max_size=4), min_size=1, max_size=3), unique_by=tuple, max_size=6))
def test_different_names_have_different_keys(names):
    """No two paths share a key, least of all those that look escaped already."""
    assert len({join_key(parts) for parts in names}) == len(names)


@given(st.integers(0, 10**9))
def test_fingerprint_positions_are_inside(elements):
    """At most sixteen, increasing, from the first element to the last."""
    positions = fingerprint_positions(elements)
    assert positions == sorted(set(positions))
    assert len(positions) == min(elements, 16)
    assert not positions or (positions[0], positions[-1]) == (0, elements - 1)


# --- the manifest -------------------------------------------------------------------------------------------


def test_schema_is_published_as_it_is():
    """docs/schema holds the schema of the types that read manifests."""
    published = json.loads((ROOT / "docs" / "schema" / "optstate-1.json").read_text())
    assert published == json.loads(json.dumps(schema()))


def test_manifest_round_trip():
    """What is encoded decodes to equal types."""
    body, _ = sample(7)
    assert decode_manifest(b"".join(encode_manifest(body)), "manifest.json") == body


def changed(raw, **fields):
    """A manifest with other fields in its body, and a digest that fits."""
    body = json.loads(raw)["body"] | fields
    text = json.dumps(body).encode()
    return b'{"format":"optstate/1","digest":"%s","body":%s}' % (digest_of(text).encode(), text)


ENVELOPES = {
    "newer": (b'{"format":"optstate/2","digest":"sha-9:00","body":[1]}', NewerFormat, "optstate/2"),
    "much newer": (b'{"anything":[],"format":"optstate/10"}', NewerFormat, "upgrade optstate"),
    "another program's": (b'{"format":"other/1","body":{}}', NotACheckpoint, "no manifest of optstate"),
    "not a number": (b'{"format":"optstate/x"}', Damaged, "changed or cut"),
    "a list": (b"[1, 2]", NotACheckpoint, "no manifest"),
    "cut": (b'{"format":"optstate/1","digest":"xxh3-1', Damaged, "changed or cut"),
    "byte order mark": (b'\xef\xbb\xbf{"format":"optstate/1"}', NotACheckpoint, "no manifest"),
    "deep": (b'{"format":"optstate/1","body":' + b"[" * 100_000, ReadError, "manifest.json"),
    "unknown envelope field": (
        b'{"format":"optstate/1","digest":"xxh3-128:%s","body":{},"more":1}' % (b"0" * 32),
        Damaged,
        "more",
    ),
    "no digest": (b'{"format":"optstate/1","body":{}}', Damaged, "digest"),
}


@pytest.mark.parametrize(("raw", "error", "message"), ENVELOPES.values(), ids=ENVELOPES)
def test_envelope_is_judged_before_the_body(raw, error, message):
    """A newer version is recognised whatever its body is; everything else says what it is not."""
    with pytest.raises(error, match=message):
        decode_manifest(raw, "manifest.json")


BODIES = {
    "unknown field": {"surprise": 1},
    "wrong type": {"step": "four"},
    "unknown role": {"parameters": [{"name": "a", "certainty": "identity", "optimizer": "", "group": 0,
                                     "slots": [{"key": "k", "role": "magic", "value": 1}]}]},
    "negative offset": {"files": {"weights.safetensors": {"nbytes": -1, "header_nbytes": 0, "header_digest": ""}}},
    "path as file name": {"files": {"../weights.safetensors": {"nbytes": 1, "header_nbytes": 0, "header_digest": ""}}},
    "unknown node": {"objects": {"x": {"class": "X", "state": {"t": "pickle", "v": ""}}}},
}  # fmt: skip


@pytest.mark.parametrize("fields", BODIES.values(), ids=BODIES)
def test_body_is_read_strictly(fields):
    """Well-formed, with a digest that fits, and yet not as the format is: refused, with the path of the fault."""
    raw = b"".join(encode_manifest(sample(1)[0]))
    assert decode_manifest(changed(raw), "manifest.json").step == 1
    with pytest.raises(Refused, match="not as optstate/1 is defined"):
        decode_manifest(changed(raw, **fields), "manifest.json")


# --- a checkpoint on disk -----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of one parameter, about 2 kB in three files."""
    write(tmp_path / "ck", 1, tensors=1)
    return tmp_path / "ck"


def test_opening_reads_headers_only(checkpoint):
    """Opening and printing a checkpoint imports neither numpy nor torch."""
    code = (
        "import sys; from optstate.formats.ours.directory import open_directory; c = open_directory(sys.argv[1]);"
        "print(c.state, c.weights, c.objects, c.step); print(sorted({'torch', 'numpy', 'ml_dtypes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, checkpoint], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert "layers.0.weight" in done.stdout


def test_opened_checkpoint_says_what_was_saved(checkpoint):
    """Names, certainty, group, slots with meaning, step, objects: all from the manifest."""
    opened = open_directory(checkpoint)
    parameter = opened.state["layers.0.weight"]
    assert (opened.format, opened.step, opened.objects) == (FORMAT, 1, {"scheduler": {"last_epoch": 1}})
    assert (parameter.facts.certainty, parameter.facts.shape, parameter.facts.dtype) == ("file", (5,), "float32")
    assert (parameter.momentum.convention, parameter.momentum.of) == ("accumulate", "gradient")
    assert opened.state.groups[0].hyperparameters == {"lr": 0.1, "momentum": 0.9}
    assert opened.state.optimizers[""].short_name == "SGD"
    weight = opened.weights["layers.0.weight"]
    assert is_tensor(weight)
    assert isinstance(weight, OwnTensor)
    assert weight.weight is not None
    assert (weight.weight.kind, weight.device, weight.stride) == ("parameter", "cpu", None)
    weight.verify()


def read(path):
    """Everything in a checkpoint, or the error that reading it gives."""
    try:
        return content(path)
    except ReadError as error:
        return error


def flips(path, every):
    """The bytes of a file with one bit changed, for each byte, or for each bit of it."""
    raw = path.read_bytes()
    for position in range(len(raw)):
        for bit in range(8) if every else (position % 8,):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            yield position, bytes(changed)


def test_flipped_bit_is_noticed(checkpoint, whole):
    """Any bit of any file: an error, which names the tensor where it is one that is hit; never a wrong value."""
    intact = content(checkpoint)
    counted: Counter[str] = Counter()
    header = {name: entry.header_nbytes for name, entry in read_manifest(checkpoint).files.items()}
    for file in sorted(checkpoint.iterdir()):
        raw = file.read_bytes()
        for position, changed in flips(file, every=whole):
            file.write_bytes(changed)
            found = read(checkpoint)
            assert isinstance(found, ReadError), (file.name, position)
            if position >= header.get(file.name, len(raw)):
                assert isinstance(found, Damaged)
                assert "layers.0.weight" in found.what
                assert str(file) in found.where
            counted[type(found).__name__] += 1
        file.write_bytes(raw)
    assert read(checkpoint) == intact
    assert counted["Damaged"] > 1500


def test_cut_file_is_noticed(checkpoint):
    """Every file cut at every length, and made longer: an error each time."""
    intact = content(checkpoint)
    for file in sorted(checkpoint.iterdir()):
        raw = file.read_bytes()
        for length in range(len(raw)):
            os.truncate(file, length)
            assert isinstance(read(checkpoint), ReadError), (file.name, length)
            file.write_bytes(raw)
        for longer in (raw + b"\0", raw + bytes(4096), raw + raw):
            file.write_bytes(longer)
            assert isinstance(read(checkpoint), ReadError), file.name
        file.write_bytes(raw)
    assert read(checkpoint) == intact


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_missing_file_is_named(checkpoint, name):
    """A data file that is gone: which, and which tensors it held."""
    (checkpoint / name).unlink()
    with pytest.raises(Damaged, match=rf"{name} is missing.*\n.*layers\.0\.weight"):
        open_directory(checkpoint)


def test_missing_manifest_is_no_checkpoint(checkpoint):
    """Without its manifest a directory is an unfinished save, and not damaged data."""
    (checkpoint / MANIFEST).unlink()
    with pytest.raises(NotACheckpoint, match=r"has no manifest\.json"):
        open_directory(checkpoint)
    with pytest.raises(NotACheckpoint, match="is not there"):
        open_directory(checkpoint / "nothing")
    with pytest.raises(NotACheckpoint, match="is a file"):
        verify(checkpoint / "weights.safetensors")


def test_files_of_two_saves_do_not_mix(tmp_path):
    """A file of another save of the same size is told from this one's, although each is intact."""
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 2)
    (tmp_path / "a" / "optimizer.safetensors").write_bytes((tmp_path / "b" / "optimizer.safetensors").read_bytes())
    with pytest.raises(Damaged, match=r"optimizer\.safetensors belongs to another save"):
        open_directory(tmp_path / "a")


def test_stray_files_do_no_harm(checkpoint):
    """What others put into the directory is ignored."""
    intact = content(checkpoint)
    (checkpoint / "README.md").write_text("mine")
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    assert content(checkpoint) == intact
    assert verify(checkpoint).ok


@pytest.mark.parametrize("name", [MANIFEST, "weights.safetensors"])
def test_pipe_in_a_checkpoint_does_not_hang(checkpoint, name):
    """A file that is no file is refused at once."""
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(ReadError, match="pipe|missing"):
        open_directory(checkpoint)


def test_links_stay_within_the_checkpoint(checkpoint):
    """A link may stay inside, or lead to where a model hub's cache keeps its files; it may not leave."""
    intact, file = content(checkpoint), checkpoint / "weights.safetensors"
    outside = checkpoint.parent / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(Refused, match="symbolic link that leaves"):
        open_directory(checkpoint)
    file.unlink()
    blobs = checkpoint.parent / "blobs"
    blobs.mkdir()
    outside.rename(blobs / "0a1b")
    file.symlink_to("../blobs/0a1b")
    assert content(checkpoint) == intact


def rewritten(directory, **fields):
    """Give a checkpoint's manifest other fields, and a digest that fits: what only a program does, no accident."""
    manifest = directory / MANIFEST
    manifest.write_bytes(changed(manifest.read_bytes(), **fields))


def contradictions(body):
    """Bodies that are well-formed and make no sense, by what is wrong with them."""
    key = "weights/layers.0.weight"
    entry = body["tensors"][key]
    chunk = entry["chunks"][0]

    def tensors(**fields):
        return {"tensors": body["tensors"] | {key: entry | fields}}

    def chunks(**fields):
        return tensors(chunks=[chunk | fields])

    parameter = body["parameters"][0]
    return {
        "unknown dtype": tensors(dtype="float33"),
        "shape larger than chunks": tensors(shape=[6]),
        "chunk of another size": chunks(nbytes=24),
        "chunk behind the file": chunks(offset=10**6),
        "chunk outside the tensor": chunks(start=[1]),
        "chunk of another rank": chunks(start=[0, 0]),
        "chunk in no file": chunks(file="weights-00001-of-00002.safetensors"),
        "no chunk": tensors(chunks=[]),
        "strides with gaps": tensors(stride=[2]),
        "huge shape": tensors(shape=[2**62, 2**62], chunks=[chunk | {"shape": [2**62, 2**62], "start": [0, 0]}]),
        "tensor that is not there": {"weights": [body["weights"][0] | {"tensor": "weights/other"}]},
        "unknown group": {"parameters": [parameter | {"group": 3}]},
        "unknown optimizer": {"parameters": [parameter | {"optimizer": "muon"}]},
        "torch attribute as dtype": {"objects": {"x": {"class": "X", "state": {"t": "torch.dtype", "v": "load"}}}},
        "scalar of another size": {"objects": {"x": {"class": "X", "state": {"t": "numpy", "dtype": "int8", "v": ""}}}},
        "scalar of no type": {"objects": {"x": {"class": "X", "state": {"t": "numpy", "dtype": "str", "v": ""}}}},
        "list as a key": {"objects": {"x": {"class": "X", "state": {"t": "set", "v": [{"t": "list", "v": []}]}}}},
        "very deep": {"objects": {"x": {"class": "X", "state": json.loads('{"t":"list","v":[' * 120 + "]}" * 120)}}},
    }


CONTRADICTIONS = list(
    contradictions({"tensors": {"weights/layers.0.weight": {"chunks": [{}]}}, "parameters": [{}], "weights": [{}]})
)


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused(checkpoint, name):
    """A manifest that someone made up is refused when it is opened, before anything is allocated."""
    body = json.loads((checkpoint / MANIFEST).read_bytes())["body"]
    rewritten(checkpoint, **contradictions(body)[name])
    with pytest.raises(Refused, match="contradicts itself"):
        open_directory(checkpoint)


def test_tensor_in_several_chunks_is_put_together(tmp_path):
    """The format lets a tensor lie in blocks, as ranks write it: values, order of blocks and single items are right."""
    whole = np.arange(24, dtype="<i4").reshape(4, 6)
    blocks = {(0, 0): whole[:2, :4], (0, 4): whole[:2, 4:], (2, 0): whole[2:]}
    body, _ = sample(1, tensors=0)
    parts = [
        Payload(f"objects/{number}", "int32", block.shape, partial(repeat, block.tobytes(), 1))
        for number, block in enumerate(blocks.values())
    ]
    write_checkpoint(tmp_path / "ck", body, parts, RealFiles())
    raw = json.loads((tmp_path / "ck" / MANIFEST).read_bytes())["body"]
    chunks = [
        raw["tensors"][f"objects/{number}"]["chunks"][0] | {"start": list(start)} for number, start in enumerate(blocks)
    ]
    entry = {"dtype": "int32", "shape": [4, 6], "device": "cpu", "chunks": chunks}
    state = {"x": {"class": "X", "state": {"t": "tensor", "tensor": "objects/x"}}}
    rewritten(tmp_path / "ck", tensors={"objects/x": entry}, objects=state)
    tensor = open_directory(tmp_path / "ck").objects["x"]
    assert np.array_equal(tensor.array(), whole)
    assert np.array_equal(np.concatenate(list(tensor.blocks())), whole.reshape(-1))
    with pytest.raises(Refused, match="not a single number"):
        tensor.item()
    assert verify(tmp_path / "ck").ok


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_reference_gives_dense_values(coalesced):
    """A sparse tensor in a file reads as numpy; indices outside and absurd shapes are refused."""
    made = Held(np.array([[0, 2, 2], [1, 0, 0]])), Held(np.array([1.0, 2.0, 3.0]))
    dense = SparseRef(*made, shape=(3, 2), coalesced=coalesced).array()
    assert dense.tolist() == [[0, 1], [0, 0], [3 if coalesced else 5, 0]]
    with pytest.raises(Refused, match="outside its shape"):
        SparseRef(*made, shape=(2, 2), coalesced=True).array()
    with pytest.raises(Refused, match="at most 268 MB"):
        SparseRef(*made, shape=(10**9, 10**9), coalesced=True).array()


class Held:
    """An array as a reference."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape
        self.dtype = str(values.dtype)

    def array(self):
        return self.values


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_reports_all_damage_by_name(tmp_path):
    """Every damaged tensor is named with its file, the rest is read all the same, and progress is told."""
    write(tmp_path / "ck", 1)
    seen = []
    report = verify(tmp_path / "ck", lambda done, total: seen.append((done, total)))
    assert (report.ok, report.tensors, report.nbytes) == (True, 6, 120)
    assert (seen[-1], len(seen)) == ((120, 120), 6)
    assert "intact (6 tensors, 120 B" in str(report)
    for file, offset in (("weights.safetensors", -1), ("optimizer.safetensors", -21)):
        raw = bytearray((tmp_path / "ck" / file).read_bytes())
        raw[offset] ^= 1
        (tmp_path / "ck" / file).write_bytes(raw)
    report = verify(tmp_path / "ck")
    assert [(item.tensor, item.file) for item in report.damage] == [
        ("layers.1.weight/momentum_buffer", "optimizer.safetensors"),
        ("layers.2.weight", "weights.safetensors"),
    ]
    assert not report.ok
    assert "2 faults" in str(report)
    assert "layers.1.weight/momentum_buffer: xxh3-128:" in str(report)


def test_verify_names_what_is_lost_with_a_file(tmp_path):
    """A missing file, and one that is cut: the tensors that are gone, not those that are still there."""
    write(tmp_path / "ck", 1)
    (tmp_path / "ck" / "weights.safetensors").unlink()
    cut = tmp_path / "ck" / "optimizer.safetensors"
    os.truncate(cut, cut.stat().st_size - 1)
    report = verify(tmp_path / "ck")
    assert [item.tensor for item in report.damage] == [
        None,
        None,
        "layers.2.weight/momentum_buffer",
        "layers.0.weight",
        "layers.1.weight",
        "layers.2.weight",
    ]
    (tmp_path / "ck" / MANIFEST).unlink()
    with pytest.raises(NotACheckpoint):
        verify(tmp_path / "ck")


def test_verify_needs_little_memory(tmp_path):
    """A tensor of 64 MB is checked in a fraction of that."""
    body, _ = sample(1, tensors=0)
    big = Payload("objects/big", "uint8", (64_000_000,), partial(repeat, bytes(1_000_000), 64))
    write_checkpoint(tmp_path / "ck", body, [big], RealFiles())
    tracemalloc.start()
    try:
        assert verify(tmp_path / "ck").ok
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# --- for ever -----------------------------------------------------------------------------------------------


def test_golden_checkpoint_reads_for_ever():
    """A checkpoint that version 0.1 wrote: from now on every version reads these values out of it."""
    opened = open_directory(GOLDEN)
    expected = json.loads((GOLDEN.parent / "optstate-1.json").read_text())
    assert verify(GOLDEN).ok
    assert json.loads(json.dumps(described(opened))) == expected

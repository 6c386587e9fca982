"""The inert pickle machine reads what Python's own pickle writes, in every protocol."""

from __future__ import annotations

import argparse
import collections
import math
import pickle
import re
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optstate.errors import Damaged, Refused
from optstate.formats.containers.constructors import CONSTRUCTORS
from optstate.formats.containers.pickle_machine import CHOSEN_KEYS, Call, Global, Machine
from optstate.formats.containers.pickle_opcodes import run


def refuse(identity):
    raise ValueError("no persistent ids here")


def machine_for(raw):
    return Machine(refuse, CONSTRUCTORS, "a pickle", len(raw))


def read(raw):
    node, end = run(raw, machine_for(raw))
    assert end == len(raw)
    return node


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 200), 1 << 200), st.floats(allow_nan=False),
    st.text(max_size=20), st.binary(max_size=20),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=8), st.integers(-(1 << 62), 1 << 62), st.tuples(st.text(max_size=3), st.integers(0, 9))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.lists(inner, max_size=5).map(tuple), st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=30,
)


@given(TREES, st.integers(0, 5))
def test_plain_trees(tree, protocol):
    """Any tree of plain values comes back equal, and of the same types, from every protocol."""
    found = read(pickle.dumps(tree, protocol))
    assert repr(found) == repr(tree)


@pytest.mark.parametrize("protocol", range(6))
def test_known_values(protocol):
    """Collections, paths and numpy values, which training programs save, become plain values."""
    matrix = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    saved = {
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2], maxlen=5),
        "set": {7},
        "frozen": frozenset([7]),
        "complex": 1 - 2j,
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"\x00\xff"),
        "path": PurePosixPath("/a/b"),
        "shared": [matrix, matrix],
        "big": np.arange(3, dtype=">i4"),
        "scalar": np.float64(0.5),
        "int": np.int64(-3),
        "text": np.array(["a", "bc"]),
    }
    found = read(pickle.dumps(saved, protocol))
    plain = {key: found[key] for key in found if key not in ("shared", "big", "text")}
    assert plain == {
        "ordered": {"a": 1},
        "default": {"a": [1]},
        "counter": {"a": 2, "b": 1},
        "deque": [1, 2],
        "set": [7],
        "frozen": [7],
        "complex": 1 - 2j,
        "bytes": b"\x00\xff",
        "bytearray": b"\x00\xff",
        "path": "/a/b",
        "scalar": 0.5,
        "int": -3,
    }
    np.testing.assert_array_equal(found["shared"][1].array(), matrix, strict=True)
    assert found["shared"][0] is found["shared"][1]
    assert found["big"].array().tolist() == [0, 1, 2]
    assert (found["text"].dtype, found["text"].shape) == ("numpy U2", (2,))
    with pytest.raises(Refused, match="values of type numpy U2 cannot be read"):
        found["text"].array()


def test_unknown_calls_stay_records():
    """What is no plain value is a record that says what would have been called, with what."""
    raw = pickle.dumps({"args": argparse.Namespace(lr=0.1), "pattern": re.compile("a"), "class": Exception}, 2)
    machine = machine_for(raw)
    found, _ = run(raw, machine)
    assert isinstance(found["args"], Call)
    assert str(found["args"]) == "<argparse.Namespace>"
    assert found["args"].state == {"lr": 0.1}
    assert str(found["pattern"]) == "re._compile(…)"
    assert isinstance(found["class"], Global)
    assert [str(call.function) for call in machine.calls] == ["argparse.Namespace", "re._compile"]


class Settings(dict[str, float]):
    """A dict of someone's own."""


class Values(list[int]):
    """A list of someone's own."""


def test_subclasses_of_collections():
    """The items of a dict or list of someone's own class are beside its record."""
    found = read(pickle.dumps({"settings": Settings(lr=0.1), "values": Values([1, 2])}, 2))
    assert found["settings"].items == [("lr", 0.1)]
    assert found["values"].items == [1, 2]


@pytest.mark.parametrize("protocol", range(6))
def test_sharing_is_kept(protocol):
    """An object that is in two places is one node, and a list may hold itself, also through a tuple."""
    inner = [1]
    loop = [inner, inner]
    loop.append((loop,))
    found = read(pickle.dumps(loop, protocol))
    assert found[0] is found[1]
    assert found[2][0] is found
    around: tuple[list[object]] = ([],)
    around[0].append(around)
    found = read(pickle.dumps(around, protocol))
    assert found[0][0] is found


@pytest.mark.parametrize("protocol", [4, 5])
def test_several_frames(protocol):
    """A pickle longer than a frame, with long data between its frames, is read like any other."""
    tree = {"texts": [f"text {index}" for index in range(20_000)], "long": b"x" * 100_000, "end": 1}
    assert read(pickle.dumps(tree, protocol)) == tree


TYPE = b"cnumpy\ndtype\nU\x02f4\x89\x88\x87R"
SCALAR, BUFFER = b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n"
MALFORMED = {
    "global without text": (b"NN\x93", "a global whose name is no text"),
    "key without value": (b"}(Nu", "a key without a value"),
    "state for a list": (b"]Nb", "a state for a list"),
    "short stack": (b"N\x86", "a tuple of more than there is"),
    "text without quotes": (b"Sabc\n", "a text without quotes"),
    "integer line": (b"Iabc\n", "invalid literal"),
    "float line": (b"Fabc\n", "could not convert"),
    "bytes by another encoding": (b"c_codecs\nencode\nU\x01aU\x05rot13\x86R", "an encoding of bytes"),
    "set of a number": (b"cbuiltins\nset\nK\x01\x85R", "builtins.set with int where list is due"),
    "scalar of no type": (SCALAR + b"NC\x01a\x86R", "an element type that is none"),
    "scalar of wrong length": (SCALAR + TYPE + b"C\x01a\x86R", "1 bytes for one float32"),
    "array of no type": (BUFFER + b"(C\x00NK\x00\x85U\x01CtR", "an element type that is none"),
    "array of wrong length": (BUFFER + b"(C\x01a" + TYPE + b"K\x02\x85U\x01CtR", r"1 bytes for an array of shape \[2\]"),
    "array of no shape": (BUFFER + b"(C\x01a" + TYPE + b"J\xff\xff\xff\xff\x85U\x01CtR", "a shape that is none"),
    "tensor of no storage": (b"ctorch._utils\n_rebuild_tensor_v3\n(NNNNNNNtR", "a storage that is none"),
    "tensor of a type": (b"ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR", "a function, a class or arguments that are none"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case):
    """What no pickler writes is refused for what it is, at the byte where it stands."""
    raw, reason = MALFORMED[case]
    with pytest.raises(Damaged, match=rf"malformed: .*{reason}[\s\S]*byte \d+"):
        read(raw + b".")


def test_calls_that_are_left_alone():
    """Known functions with arguments beyond what is interpreted stay records."""
    for raw in (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nmatrix\nK\x00\x85U\x01b\x87R.",
        SCALAR + b"cnumpy\ndtype\nU\x02U1\x89\x88\x87RC\x04a\0\0\0\x86R.",
        b"cbuiltins\ntuple\n]\x85R.",
        b"ccollections\nOrderedDict\n]Na\x85R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\npath\n)NtR.",
    ):
        assert isinstance(read(raw), Call)


def test_second_pickle_in_one_stream():
    """A pickle that others follow is read to its own end, and the next one from there."""
    raw = pickle.dumps({"first": 1}, 2) + pickle.dumps({"second": 2}, 4)
    machine = machine_for(raw)
    first, end = run(raw, machine)
    second, last = run(raw, machine_for(raw), end)
    assert (first, second, last) == ({"first": 1}, {"second": 2}, len(raw))


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_truncation_is_damage(protocol):
    """A pickle that is cut anywhere is refused with the byte where it stops, never with another error."""
    raw = pickle.dumps({"a": [1.5, "text", (1, 1 << 70)], "b": collections.OrderedDict(x=b"bytes")}, protocol)
    for length in range(len(raw)):
        with pytest.raises(Damaged, match=r"malformed[\s\S]*byte \d+"):
            read(raw[:length])


def test_nan_keys_and_wide_keys():
    """Floats and wide integers may be keys, but only as many as cannot make a dict slow."""
    assert list(read(pickle.dumps({0.5: 1, 1 << 80: 2}, 2))) == [0.5, 1 << 80]
    assert math.isnan(next(iter(read(pickle.dumps({math.nan: 1}, 2)))))
    addresses = {140_000_000_000_000 + 64 * index: index for index in range(CHOSEN_KEYS)}
    assert read(pickle.dumps(addresses, 2)) == addresses
    with pytest.raises(Refused, match="more large numbers as keys"):
        read(pickle.dumps({index / 7: index for index in range(CHOSEN_KEYS)}, 2))


def test_python_2_strings():
    """Strings of Python 2 are text where they can be, and its modules have their names of today."""
    assert read(b"(dS'a\\x41'\nU\x02\xff\xfes.") == {"aA": b"\xff\xfe"}
    found = read(b"c__builtin__\nbytes\n)R.")
    assert found == b""


def test_unfinished_array_is_empty():
    """A numpy array that a forged pickle never fills is an empty array, not a trap for its reader."""
    raw = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R."
    found = read(raw)
    assert (found.shape, found.array().size) == ((0,), 0)

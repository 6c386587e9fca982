"""What the fuzz draws: pickles, zip archives and headers that are nearly right, and files that were hurt."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from optstate.formats.containers.constructors import CONSTRUCTORS
from tests.forged import (
    FLOATS,
    NO_HOOKS,
    PROTOCOL_2,
    STOP,
    Member,
    archive,
    call,
    entries,
    items,
    members,
    name,
    number,
    safetensors,
    storage,
    stream,
    stream_storage,
    tensor,
    text,
    torch_file,
    typed_tensor,
)
from tests.hostile_cases.optimizers import optimizer

# --- pickles ----------------------------------------------------------------------------------------------

_TEXTS = st.sampled_from(
    ["state", "param_groups", "params", "step", "exp_avg", "model", "0", "a.weight", "", "\x1b[2J"]
)
_NUMBERS = st.one_of(st.integers(-2, 7), st.sampled_from([1 << 31, -(1 << 63), 1 << 62, 1 << 80, 10**200]))
_LEAVES = st.one_of(
    _TEXTS.map(text),
    _NUMBERS.map(number),
    st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", NO_HOOKS]),
    st.floats(width=64).map(lambda value: b"G" + struct.pack(">d", value)),
    st.binary(max_size=8).map(lambda raw: b"C" + bytes([len(raw)]) + raw),
)
_GLOBALS = st.one_of(
    st.sampled_from(sorted(CONSTRUCTORS)).map(lambda key: name(*key)),
    st.sampled_from([("os", "system"), ("torch", "float32"), ("torch", "FloatStorage"), ("numpy", "ndarray")]).map(lambda key: name(*key)),
)  # fmt: skip
_SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 6, -1, 1 << 33, 1 << 62]), max_size=4).map(tuple)
_KINDS = st.sampled_from(["FloatStorage", "IntStorage", "UntypedStorage", "QInt8Storage", "EvilStorage"])
_TENSORS = st.one_of(
    st.builds(tensor, st.none(), st.integers(-1, 7), _SHAPES, _SHAPES),
    st.builds(tensor, st.builds(storage, st.sampled_from(["0", "1", "../0"]), _KINDS, st.sampled_from([6, 24, 1 << 33]))),
    st.builds(typed_tensor, st.sampled_from(["float32", "uint16", "float8_e4m3fn", "qint8"]), st.builds(storage, st.just("0"), st.just("UntypedStorage"), st.just(24)), _SHAPES, _SHAPES),
    st.just(tensor()),
)  # fmt: skip


def _inner(nodes: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    some = st.lists(nodes, max_size=4)
    pairs = st.lists(st.tuples(st.one_of(_TEXTS.map(text), _NUMBERS.map(number), nodes), nodes), max_size=4)
    return st.one_of(
        some.map(lambda parts: items(*parts)),
        some.map(lambda parts: b"](" + b"".join(parts) + b"e"),
        pairs.map(lambda parts: b"}(" + b"".join(key + value for key, value in parts) + b"u"),
        st.tuples(_GLOBALS, some).map(lambda parts: call(parts[0], *parts[1])),
        st.tuples(_GLOBALS, some, nodes).map(lambda parts: parts[0] + items(*parts[1]) + b"\x81" + parts[2] + b"b"),
        st.tuples(nodes, nodes).map(lambda parts: parts[0] + b"q\x00" + parts[1] + b"h\x00\x87"),
        st.tuples(some, some).map(lambda parts: optimizer(b"](" + b"".join(parts[0]) + b"e", items(*parts[1]))[2:-1]),
    )


NODES = st.recursive(st.one_of(_LEAVES, _TENSORS, _GLOBALS), _inner, max_leaves=12)

# Any opcode there is, with some argument behind it: whatever the stack holds by then.
_OPCODES = st.one_of(
    st.sampled_from([bytes([code]) for code in b"(012N)}]dlteasubRoQ"]),
    st.sampled_from([bytes([code]) for code in (*range(0x81, 0x95), 0x97, 0x98)]),
    st.tuples(st.sampled_from([bytes([code]) for code in b"KMJGILFXTUBCSVgpqrhj\x8a\x8b\x8c\x8d\x8e\x95\x96Pci"]), st.binary(max_size=10)).map(b"".join),
)  # fmt: skip
PROGRAMS = st.lists(st.one_of(NODES, _OPCODES), max_size=12).map(b"".join)


def _pickle(body: bytes) -> bytes:
    return PROTOCOL_2 + body + STOP


_CONTAINED: Sequence[Callable[[bytes], bytes]] = (
    lambda body: torch_file(_pickle(entries(x=body))),
    lambda body: torch_file(_pickle(body)),
    _pickle,
    lambda body: stream(_pickle(body), {}),
    lambda body: stream(_pickle(items(stream_storage(), body))),
)
PICKLES = st.tuples(st.sampled_from(_CONTAINED), st.one_of(NODES, PROGRAMS)).map(lambda drawn: drawn[0](drawn[1]))


# --- zip archives -----------------------------------------------------------------------------------------

_WORDS = st.sampled_from([0, 1, 4, 24, 0xFFFF, 0xFFFFFFFF])
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "local_name": st.sampled_from(["archive/data.pkl", "", "x"]),
        "flags": st.sampled_from([0, 0x0800, 0x0808, 0x0809, 0x2808]),
        "local_flags": st.sampled_from([0, 0x0808]),
        "method": st.sampled_from([0, 8, 99]),
        "crc": _WORDS,
        "local": st.tuples(_WORDS, _WORDS, _WORDS),
        "size": _WORDS,
        "stored_size": _WORDS,
        "attributes": st.sampled_from([0, 0o100644 << 16, 0o120777 << 16]),
        "extra": st.sampled_from([b"", struct.pack("<HHQ", 1, 8, 24), struct.pack("<HHQQ", 1, 16, 24, 24), b"\1\0\xff\xff"]),
        "offset": _WORDS,
        "descriptor": st.sampled_from([b"", struct.pack("<4sLQQ", b"PK\7\10", 0, 24, 24)]),
    },
)  # fmt: skip
_NAMES = st.sampled_from(["archive/data.pkl", "archive/data/0", "archive/DATA/0", "../x", "other/data.pkl", "archive/code/x.py", "archive/byteorder"])  # fmt: skip


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """An archive as torch writes it, a few of whose fields say something else."""
    parts = members(_pickle(entries(x=tensor())))
    for _ in range(draw(st.integers(0, 2))):
        index = draw(st.integers(0, len(parts) - 1))
        parts[index] = Member(parts[index].name, parts[index].data, **draw(_FIELDS))
    if draw(st.booleans()):
        parts.insert(
            draw(st.integers(0, len(parts))), Member(draw(_NAMES), draw(st.sampled_from([b"", FLOATS, _pickle(b"N")])))
        )
    return archive(
        parts,
        front=draw(st.sampled_from([b"", b"", b"", b"#!"])),
        behind=draw(st.sampled_from([b"", b"", b"", b"x"])),
        comment=draw(st.sampled_from([b"", b"", b"", b"PK\5\6"])),
        wide=draw(st.booleans()),
        count=draw(st.one_of(st.none(), st.none(), st.sampled_from([0, 4, 6, 65_535, 1 << 40]))),
    )  # fmt: skip


# --- headers of safetensors -------------------------------------------------------------------------------

_SIZES = st.one_of(st.integers(-1, 9), st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 70, 0.5, True, None, "1"]))
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "F4", "U8", "BOOL", "C64", "F99", 4, None]),
        "shape": st.lists(_SIZES, max_size=3),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 8), st.integers(0, 8)), st.lists(_SIZES, max_size=3)),
    },
    optional={"more": st.just(1)},
)


@st.composite
def _fitting(draw: st.DrawFn) -> tuple[object, int]:
    """Entries that lie behind each other, and the bytes that they take."""
    found, end = {}, 0
    for key in draw(
        st.lists(st.sampled_from(["a", "b", "optimizer.state.a.exp_avg", "a/exp_avg", "\x1b"]), unique=True)
    ):
        length = draw(st.integers(0, 3))
        found[key] = {"dtype": "F32", "shape": [length], "data_offsets": [end, end + 4 * length]}
        end += 4 * length
    return found, end


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A file whose header is JSON of the right form, or nearly."""
    if draw(st.booleans()):
        header, end = draw(_fitting())
        assert isinstance(header, dict)
        header |= draw(
            st.dictionaries(
                st.sampled_from(["c", "__metadata__"]),
                st.one_of(_ENTRY, st.dictionaries(_TEXTS, st.one_of(_TEXTS, st.integers()))),
                max_size=1,
            )
        )
    else:
        header, end = (
            draw(
                st.dictionaries(
                    st.sampled_from(["a", "b", "__metadata__"]), st.one_of(_ENTRY, st.integers(), st.none())
                )
            ),
            8,
        )
    raw = json.dumps(header).encode() + b" " * draw(st.integers(0, 3))
    return safetensors(raw, bytes(draw(st.sampled_from([end, end, end + 1]))))  # fmt: skip


# --- hurt files -------------------------------------------------------------------------------------------

_PLACES = st.floats(0, 1, exclude_max=True)
_HURTS = st.one_of(
    st.tuples(st.just("flip"), _PLACES, st.integers(0, 7)),
    st.tuples(st.just("set"), _PLACES, st.sampled_from([0, 1, 0x2E, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("cut"), _PLACES, st.integers(1, 64)),
    st.tuples(st.just("twice"), _PLACES, st.integers(1, 64)),
    st.tuples(st.just("end"), _PLACES, st.just(0)),
    st.tuples(st.just("wide"), _PLACES, st.sampled_from([0, 1 << 33, (1 << 64) - 1])),
)
HURTS = st.lists(_HURTS, min_size=1, max_size=3)


def hurt(raw: bytes, hurts: Sequence[tuple[str, float, int]]) -> bytes:
    """A file with a few bytes changed, taken out, put in, or all from some place on gone."""
    for how, place, value in hurts:
        at = int(place * len(raw))
        before, after = raw[:at], raw[at:]
        if how == "flip" and after:
            raw = before + bytes([after[0] ^ 1 << value]) + after[1:]
        elif how == "set":
            raw = before + bytes([value]) + after[1:]
        elif how == "cut":
            raw = before + after[value:]
        elif how == "twice":
            raw = before + after[:value] + after
        elif how == "end":
            raw = before
        elif how == "wide":
            raw = before + struct.pack("<Q", value) + after[8:]
    return raw

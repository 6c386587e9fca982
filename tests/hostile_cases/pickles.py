"""Pickles that would run something, that lie about their structure, or that ask for more than they hold."""

from __future__ import annotations

import struct

from optstate.errors import Damaged, Refused
from tests.forged import (
    PROTOCOL_2,
    REBUILD,
    Built,
    Cases,
    call,
    entries,
    items,
    name,
    number,
    numbers,
    pickled,
    tensor,
    text,
    torch_file,
)

TOUCH = text("touch forbidden")


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def stack_global(module: str, attribute: str) -> bytes:
    return short(module) + short(attribute) + b"\x93"


def _execution() -> Cases:
    system = name("os", "system")
    nodes: Built = {
        "1 GLOBAL and REDUCE": (call(system, TOUCH), "os.system"),
        "2 STACK_GLOBAL": (stack_global("posix", "system") + items(TOUCH) + b"R", "posix.system"),
        "3 INST": (b"(" + TOUCH + b"ios\nsystem\n", "os.system"),
        "4 OBJ": (b"(" + system + TOUCH + b"o", "os.system"),
        "5 OBJ and POP": (b"(" + system + TOUCH + b"o0N", "os.system"),
        "6 NEWOBJ": (name("subprocess", "Popen") + items(TOUCH) + b"\x81", "subprocess.Popen"),
        "7 NEWOBJ_EX and BUILD": (name("evil", "Class") + b")}\x92}b", "evil.Class"),
        "8 BUILD of a dict": (name("collections", "OrderedDict") + b")R" + entries(__class__=text("x")) + b"b", ""),
        "9 EXT1": (b"\x82\x01", Refused),
        "9 EXT2": (b"\x83\x01\x00", Refused),
        "9 EXT4": (b"\x84\x01\x00\x00\x00", Refused),
        "10 getattr chain": (call(call(name("builtins", "getattr"), name("os", "path"), text("os")), TOUCH), "os.path.os"),
        "10 attrgetter": (call(call(name("operator", "attrgetter"), text("system")), name("os", "path")), "operator.attrgetter"),
        "10 methodcaller": (call(call(name("operator", "methodcaller"), text("system"), TOUCH), name("posix", "x")), "operator.methodcaller"),
        "11 dotted name": (call(name("torch._utils", "_rebuild_tensor_v2.__globals__.clear")), "__globals__.clear"),
        "12 name from the memo": (short("os") + b"q\x000" + short("system") + b"q\x010h\x00h\x01\x93" + items(TOUCH) + b"R", "os.system"),
        "13 nested torch.load": (call(name("torch", "load"), text("x.pt")), "torch.load"),
        "13 hub": (call(name("torch.hub", "load"), text("x"), text("y")), "torch.hub.load"),
        "13 nested program": (call(name("torch.jit", "load"), text("x.pt")), "torch.jit.load"),
        "13 nested storage": (call(name("torch.storage", "_load_from_bytes"), b"C\x03abc"), "_load_from_bytes"),
        "14 pickle in bytes": (b"C\x04cos\n", ""),
        "15 device tensor": (call(name("torch._utils", "_rebuild_device_tensor_from_numpy"), b"N"), Damaged),
        "15 object array": (
            call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), numbers(0), b"C\x01b")
            + items(number(1), numbers(1), call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), b"\x89", b"]N" + b"a")
            + b"b",
            "",
        ),
        "16 too few arguments": (call(REBUILD, number(1), number(2)), Damaged),
        "16 wrong types": (call(REBUILD, *map(number, range(6))), Damaged),
        "16 OrderedDict of a number": (call(name("collections", "OrderedDict"), number(3)), Damaged),
        "16 call of a number": (number(3) + b")R", Damaged),
        "17 look-alike module": (call(name("t\u043erch._utils", "_rebuild_tensor_v2")), "t\\u043erch._utils"),
        "18 id that is no tuple": (text("storage") + b"Q", Damaged),
        "18 id that is no storage": (items(text("module"), *[number(0)] * 4) + b"Q", Damaged),
        "18 id as text": (b"Pabc\n", Refused),
    }  # fmt: skip
    return {key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()}


def _colliding_integers() -> bytes:
    # Python's hash of an integer is the integer modulo 2**61 - 1.
    keys = (number(index * ((1 << 61) - 1)) for index in range(20_000))
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


def _structure() -> Cases:
    laughs = (
        b"]q\x00("
        + b"K\x01" * 10
        + b"e0"
        + b"".join(
            b"](" + b"h" + bytes([n]) * 1 + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1]) + b"0" for n in range(10)
        )
        + b"h\x0a"
    )
    whole: Built = {
        "20 empty": (b"", Damaged),
        "20 only PROTO": (PROTOCOL_2, Damaged),
        "20 no STOP": (PROTOCOL_2 + b"}", Damaged),
        "21 second pickle": (pickled(b"N") + b"cos\nsystem\n" + items(TOUCH) + b"R.", Refused),
        "22 frame too long": (b"\x80\x04\x95" + struct.pack("<Q", 99) + b"}.", Damaged),
        "22 frame cuts an argument": (b"\x80\x04\x95" + struct.pack("<Q", 3) + b"}J\0\0\0\0a.", Damaged),
        "22 frame cuts a text": (b"\x80\x04\x95" + struct.pack("<Q", 4) + b"}\x8c\x05abcde0.", Damaged),
        "22 nested frame": (b"\x80\x04\x95" + struct.pack("<Q", 12) + b"}\x95" + struct.pack("<Q", 1) + b"N0.", Damaged),
        "22 empty frame": (b"\x80\x04\x95" + struct.pack("<Q", 0) + b"}.", Damaged),
        "23 unknown opcode": (PROTOCOL_2 + b"\xff.", Damaged),
        "23 protocol 6": (b"\x80\x06}.", Damaged),
        "24 TUPLE without MARK": (PROTOCOL_2 + b"t.", Damaged),
        "24 POP on empty": (PROTOCOL_2 + b"0.", Damaged),
        "24 DUP on empty": (PROTOCOL_2 + b"2.", Damaged),
        "24 get of nothing": (PROTOCOL_2 + b"h\x07.", Damaged),
        "24 get of a gap": (PROTOCOL_2 + b"}q\x050h\x02.", Damaged),
        "24 two values left": (PROTOCOL_2 + b"}}.", Damaged),
        "31 million-deep tuple": (PROTOCOL_2 + b"}" + text("x") + b"N" + b"\x85" * 1_000_000 + b"s.", Refused),
    }  # fmt: skip
    nodes: Built = {
        "25 text of 4 GiB": (b"X\xff\xff\xff\xffabc", Damaged),
        "26 text of 2**62": (b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc", Damaged),
        "26 bytes of 2**62": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc", Damaged),
        "26 bytearray of 2**62": (b"\x96" + struct.pack("<Q", 1 << 62) + b"abc", Damaged),
        "27 LONG4 of 2**31": (b"\x8b\xff\xff\xff\x7fabc", Damaged),
        "27 LONG4 of 100 kB": (b"\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000, Damaged),
        "27 a million digits": (b"I" + b"9" * 1_000_000 + b"\n", Damaged),
        "28 memo index 2**32-1": (b"Nr\xff\xff\xff\xff", Damaged),
        "29 billion laughs": (laughs, "contains itself, or is too deep or too large"),
        "30 DUP bomb": (b"N" + b"2\x86" * 60, "contains itself, or is too deep or too large"),
        "32 deep tuple as key": (b"}N" + b"\x85" * 200_000 + b"Ns", Damaged),
        "33 million marks": (b"(" * 1_000_000, Damaged),
        "34 list in itself": (b"]q\x00h\x00a", "contains itself"),
        "34 dict in itself": (b"}q\x00" + text("a") + b"h\x00s", "contains itself"),
        "34 OrderedDict in itself": (name("collections", "OrderedDict") + b")Rq\x00" + text("a") + b"h\x00s", "contains itself"),
        "35 colliding integer keys": (_colliding_integers(), Refused),
        "37 list as key": (b"}]Ns", Damaged),
        "38 duplicate key": (b"}" + (text("a") + b"Ns") * 2, Damaged),
        "39 SETITEM on a list": (b"]" + text("a") + b"Ns", Damaged),
        "39 SETITEM on a tensor": (tensor() + number(0) + b"Ns", Damaged),
        "40 APPEND to a dict": (b"}Na", Damaged),
        "41 lone surrogate": (text("\ud800"), ""),
        "44 many small integers": (b"](" + b"K\x01" * 2_000_000 + b"e", ""),
        "44 many empty dicts": (b"](" + b"}" * 2_000_000 + b"e", Refused),
        "44 one argument many times": (text("a" * 10_000) + b"q\x00" + (b"0" + name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 4_000, Refused),
    }  # fmt: skip
    return {
        **{key: (torch_file(raw), expected) for key, (raw, expected) in whole.items()},
        **{key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()},
    }


CASES: Cases = {**_execution(), **_structure()}

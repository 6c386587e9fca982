"""Hostile checkpoint files, and the program that opens them with every door watched.

`CASES` maps a name to (bytes, expected): the error class that opening must give, or text that a note must hold, or
"" for a file that opens. Run as a program, `python -m tests.hostile FOLDER` opens each file of FOLDER and prints one JSON
document: per file the outcome, seconds, and what Python's audit hooks saw; then the peak of memory.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.forged import (
    FLOATS,
    PROTOCOL_2,
    REBUILD,
    STOP,
    Member,
    archive,
    call,
    end,
    entries,
    items,
    members,
    name,
    number,
    numbers,
    pickled,
    storage,
    tensor,
    text,
    torch_file,
    typed_tensor,
)

DAMAGED, REFUSED, NOT_ONE, NEWER = "Damaged", "Refused", "NotACheckpoint", "NewerFormat"
TOUCH = text("touch forbidden")


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def stack_global(module: str, attribute: str) -> bytes:
    return short(module) + short(attribute) + b"\x93"


def _execution() -> dict[str, tuple[bytes, str]]:
    system = name("os", "system")
    nodes = {
        "1 GLOBAL and REDUCE": (call(system, TOUCH), "os.system"),
        "2 STACK_GLOBAL": (stack_global("posix", "system") + items(TOUCH) + b"R", "posix.system"),
        "3 INST": (b"(" + TOUCH + b"ios\nsystem\n", "os.system"),
        "4 OBJ": (b"(" + system + TOUCH + b"o", "os.system"),
        "5 OBJ and POP": (b"(" + system + TOUCH + b"o0N", "os.system"),
        "6 NEWOBJ": (name("subprocess", "Popen") + items(TOUCH) + b"\x81", "subprocess.Popen"),
        "7 NEWOBJ_EX and BUILD": (name("evil", "Class") + b")}\x92}b", "evil.Class"),
        "8 BUILD of a dict": (name("collections", "OrderedDict") + b")R" + entries(__class__=text("x")) + b"b", ""),
        "9 EXT1": (b"\x82\x01", REFUSED),
        "9 EXT2": (b"\x83\x01\x00", REFUSED),
        "9 EXT4": (b"\x84\x01\x00\x00\x00", REFUSED),
        "10 getattr chain": (call(call(name("builtins", "getattr"), name("os", "path"), text("os")), TOUCH), "builtins.getattr"),
        "11 dotted name": (call(name("torch._utils", "_rebuild_tensor_v2.__globals__.clear")), "__globals__.clear"),
        "12 name from the memo": (short("os") + b"q\x000" + short("system") + b"q\x010h\x00h\x01\x93" + items(TOUCH) + b"R", "os.system"),
        "13 nested torch.load": (call(name("torch", "load"), text("x.pt")), "torch.load"),
        "13 nested storage": (call(name("torch.storage", "_load_from_bytes"), b"C\x03abc"), "_load_from_bytes"),
        "14 pickle in bytes": (b"C\x04cos\n", ""),
        "15 device tensor": (call(name("torch._utils", "_rebuild_device_tensor_from_numpy"), b"N"), "_rebuild_device_tensor_from_numpy"),
        "15 object array": (
            call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), numbers(0), b"C\x01b")
            + items(number(1), numbers(1), call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), b"\x89", b"]N" + b"a")
            + b"b",
            "",
        ),
        "16 too few arguments": (call(REBUILD, number(1), number(2)), DAMAGED),
        "16 wrong types": (call(REBUILD, *map(number, range(6))), DAMAGED),
        "16 OrderedDict of a number": (call(name("collections", "OrderedDict"), number(3)), DAMAGED),
        "16 call of a number": (number(3) + b")R", DAMAGED),
        "17 look-alike module": (call(name("t\u043erch._utils", "_rebuild_tensor_v2")), "t\\u043erch._utils"),
        "18 id that is no tuple": (text("storage") + b"Q", DAMAGED),
        "18 id that is no storage": (items(text("module"), *[number(0)] * 4) + b"Q", DAMAGED),
        "18 id as text": (b"Pabc\n", REFUSED),
    }  # fmt: skip
    return {key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()}


def _colliding_integers() -> bytes:
    # Python's hash of an integer is the integer modulo 2**61 - 1.
    keys = (number(index * ((1 << 61) - 1)) for index in range(20_000))
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


def _structure() -> dict[str, tuple[bytes, str]]:
    laughs = (
        b"]q\x00("
        + b"K\x01" * 10
        + b"e0"
        + b"".join(
            b"](" + b"h" + bytes([n]) * 1 + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1]) + b"0" for n in range(10)
        )
        + b"h\x0a"
    )
    whole = {
        "20 empty": (b"", DAMAGED),
        "20 only PROTO": (PROTOCOL_2, DAMAGED),
        "20 no STOP": (PROTOCOL_2 + b"}", DAMAGED),
        "21 second pickle": (pickled(b"N") + b"cos\nsystem\n" + items(TOUCH) + b"R.", REFUSED),
        "22 frame too long": (b"\x80\x04\x95" + struct.pack("<Q", 99) + b"}.", DAMAGED),
        "22 frame cuts an argument": (b"\x80\x04\x95" + struct.pack("<Q", 3) + b"}J\0\0\0\0a.", DAMAGED),
        "22 frame cuts a text": (b"\x80\x04\x95" + struct.pack("<Q", 4) + b"}\x8c\x05abcde0.", DAMAGED),
        "22 nested frame": (b"\x80\x04\x95" + struct.pack("<Q", 12) + b"}\x95" + struct.pack("<Q", 1) + b"N0.", DAMAGED),
        "22 empty frame": (b"\x80\x04\x95" + struct.pack("<Q", 0) + b"}.", DAMAGED),
        "23 unknown opcode": (PROTOCOL_2 + b"\xff.", DAMAGED),
        "23 protocol 6": (b"\x80\x06}.", DAMAGED),
        "24 TUPLE without MARK": (PROTOCOL_2 + b"t.", DAMAGED),
        "24 POP on empty": (PROTOCOL_2 + b"0.", DAMAGED),
        "24 DUP on empty": (PROTOCOL_2 + b"2.", DAMAGED),
        "24 get of nothing": (PROTOCOL_2 + b"h\x07.", DAMAGED),
        "24 get of a gap": (PROTOCOL_2 + b"}q\x050h\x02.", DAMAGED),
        "24 two values left": (PROTOCOL_2 + b"}}.", DAMAGED),
        "31 million-deep tuple": (PROTOCOL_2 + b"}" + text("x") + b"N" + b"\x85" * 1_000_000 + b"s.", REFUSED),
    }  # fmt: skip
    nodes = {
        "25 text of 4 GiB": (b"X\xff\xff\xff\xffabc", DAMAGED),
        "26 text of 2**62": (b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc", DAMAGED),
        "26 bytes of 2**62": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc", DAMAGED),
        "26 bytearray of 2**62": (b"\x96" + struct.pack("<Q", 1 << 62) + b"abc", DAMAGED),
        "27 LONG4 of 2**31": (b"\x8b\xff\xff\xff\x7fabc", DAMAGED),
        "27 LONG4 of 100 kB": (b"\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000, DAMAGED),
        "27 a million digits": (b"I" + b"9" * 1_000_000 + b"\n", DAMAGED),
        "28 memo index 2**32-1": (b"Nr\xff\xff\xff\xff", DAMAGED),
        "29 billion laughs": (laughs, "contains itself, or is too deep or too large"),
        "30 DUP bomb": (b"N" + b"2\x86" * 60, "contains itself, or is too deep or too large"),
        "32 deep tuple as key": (b"}N" + b"\x85" * 200_000 + b"Ns", DAMAGED),
        "33 million marks": (b"(" * 1_000_000, DAMAGED),
        "34 list in itself": (b"]q\x00h\x00a", "contains itself"),
        "34 dict in itself": (b"}q\x00" + text("a") + b"h\x00s", "contains itself"),
        "34 OrderedDict in itself": (name("collections", "OrderedDict") + b")Rq\x00" + text("a") + b"h\x00s", "contains itself"),
        "35 colliding integer keys": (_colliding_integers(), REFUSED),
        "37 list as key": (b"}]Ns", DAMAGED),
        "38 duplicate key": (b"}" + (text("a") + b"Ns") * 2, DAMAGED),
        "39 SETITEM on a list": (b"]" + text("a") + b"Ns", DAMAGED),
        "39 SETITEM on a tensor": (tensor() + number(0) + b"Ns", DAMAGED),
        "40 APPEND to a dict": (b"}Na", DAMAGED),
        "41 lone surrogate": (text("\ud800"), ""),
        "44 many small integers": (b"](" + b"K\x01" * 2_000_000 + b"e", ""),
        "44 many empty dicts": (b"](" + b"}" * 2_000_000 + b"e", REFUSED),
        "44 one argument many times": (text("a" * 10_000) + b"q\x00" + (b"0" + name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 4_000, REFUSED),
    }  # fmt: skip
    return {
        **{key: (torch_file(raw), expected) for key, (raw, expected) in whole.items()},
        **{key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()},
    }


def optimizer(params: bytes, state: bytes = b"}", **more: bytes) -> bytes:
    """The pickle of a bare optimizer state dict with one group of SGD."""
    group = entries(
        lr=b"G" + struct.pack(">d", 0.1), momentum=b"G" + struct.pack(">d", 0.9), dampening=number(0),
        weight_decay=number(0), nesterov=b"\x89", params=params, **more,
    )  # fmt: skip
    return PROTOCOL_2 + entries(state=state, param_groups=b"]" + group + b"a") + STOP


def _optimizers() -> dict[str, tuple[bytes, str]]:
    return {
        "42 rate that is no number": (torch_file(optimizer(b"](" + number(0) + b"e", eps=b"G" + struct.pack(">d", float("nan")))), "group 0 eps"),
        "43 parameter that is a bool": (torch_file(optimizer(b"]\x88a")), REFUSED),
        "43 parameters that are no list": (torch_file(optimizer(b"N")), REFUSED),
        "45 parameter in two groups": (
            torch_file(PROTOCOL_2 + entries(state=b"}", param_groups=b"](" + entries(params=b"]K\x00a") * 2 + b"e") + STOP), REFUSED,
        ),
        "45 state of no parameter": (torch_file(optimizer(b"]K\x00a", b"}K\x07}s")), ""),
    }  # fmt: skip


def _tensors() -> dict[str, tuple[bytes, str]]:
    two = items(tensor(), tensor(storage(kind="IntStorage")))
    nodes = {
        "46 storage longer than its record": (tensor(storage(elements=7)), DAMAGED),
        "47 storage shorter than its record": (tensor(storage(elements=5)), DAMAGED),
        "48 storage of 2**33": (tensor(storage(elements=1 << 33)), DAMAGED),
        "49 element type that is not the storage's": (typed_tensor("int32", storage()), DAMAGED),
        "50 stride beyond the storage": (tensor(None, 0, (2, 3), (300, 1)), DAMAGED),
        "51 negative offset": (tensor(None, -1), DAMAGED),
        "51 negative size": (tensor(None, 0, (-2, 3)), DAMAGED),
        "51 negative stride": (tensor(None, 0, (2, 3), (-3, 1)), DAMAGED),
        "49 storage of no class": (items(text("storage"), b"N", text("0"), text("cpu"), number(6)) + b"Q", DAMAGED),
        "49 storage without a key": (items(text("storage"), name("torch", "FloatStorage"), b"N", text("cpu"), number(6)) + b"Q", DAMAGED),
        "49 storage of a class of its own": (tensor(storage(kind="EvilStorage")), "torch._utils._rebuild_tensor_v2"),
        "52 expanded to 2**31": (tensor(None, 0, ((1 << 31) - 1,), (0,)), ""),
        "53 product that overflows": (tensor(None, 0, (1 << 33, 1 << 33), (1 << 33, 1)), DAMAGED),
        "54 nothing times 2**62": (tensor(None, 0, (0, 1 << 62), (1, 1)), ""),
        "55 rank 100,000": (tensor(None, 0, (1,) * 100_000, (1,) * 100_000), DAMAGED),
        "55 rank 65": (tensor(None, 0, (1,) * 65, (1,) * 65), DAMAGED),
        "57 storage of two types": (two, DAMAGED),
        "58 sparse": (call(name("torch._utils", "_rebuild_sparse_tensor"), name("torch", "sparse_coo"), b"N"), "_rebuild_sparse_tensor"),
        "59 quantized": (call(name("torch._utils", "_rebuild_qtensor"), storage(), number(0), b"N"), "_rebuild_qtensor"),
        "60 nested": (call(name("torch._utils", "_rebuild_nested_tensor"), b"N"), "_rebuild_nested_tensor"),
        "61 device that does not exist": (tensor(items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cuda:99999999"), number(6)) + b"Q"), ""),
        "61 meta": (call(name("torch._utils", "_rebuild_meta_tensor_no_storage"), b"N"), "_rebuild_meta_tensor_no_storage"),
        "81 key that leaves the archive": (tensor(storage("../../../etc/x")), DAMAGED),
        "81 key of another member": (tensor(storage("../version", elements=0)), DAMAGED),
    }  # fmt: skip
    good = members(pickled(tensor()))
    return {
        **{key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()},
        "62 byte order": (archive([*good[:2], Member("archive/byteorder", b"middle"), *good[3:]]), DAMAGED),
        "62 format version": (archive([good[0], Member("archive/.format_version", b"99"), *good[2:]]), NEWER),
        "62 alignment": (archive([*good, Member("archive/.storage_alignment", str(1 << 40).encode())]), ""),
    }  # fmt: skip


def _zips() -> dict[str, tuple[bytes, str]]:
    good = members(pickled(tensor()))
    whole = archive(good)
    script = Member("archive/code/__torch__.py", b"print()")
    fields: dict[str, dict[str, Any]] = {
        "67 overlap": {"offset": 8},
        "68 deflated": {"method": 8},
        "70 encrypted": {"flags": 0x0809},
        "70 strongly encrypted": {"flags": 0x0848},
        "70 masked": {"flags": 0x2808},
        "70 patched": {"flags": 0x0828},
        "76 zip64 sizes that are not needed": {"extra": struct.pack("<HHQ", 1, 8, 24)},
        "76 zip64 size that is missing": {"size": 0xFFFFFFFF},
        "76 zip64 sizes twice": {"size": 0xFFFFFFFF, "extra": struct.pack("<HHQHHQ", 1, 8, 24, 1, 8, 24)},
        "79 symbolic link": {"attributes": 0o120777 << 16},
        "79 device": {"attributes": 0o020777 << 16},
    }
    odd = {
        key: archive([*good[:3], Member("archive/data/0", FLOATS, **changed), good[4]])
        for key, changed in fields.items()
    }
    refused = {
        **{
            f"78 name {bad!r}": archive([*good, Member(bad, b"")])
            for bad in ("../../x", "/abs", "C:\\x", "a\\..\\b", "a\0b", "")
        },
        "64 duplicate by case": archive([*good, Member("archive/DATA/0", FLOATS)]),
        "64 duplicate by NFC": archive([*good, Member("archive/\u00e9", b""), Member("archive/e\u0301", b"")]),
        "73 script in front": archive(good, front=b"#!/bin/sh\n"),
        "80 two roots": archive([*good, Member("other/data.pkl", pickled(b"N"))]),
        "80 two roots, the other first": archive([Member("other/data.pkl", pickled(b"N")), *good]),
        "80 pickle in an odd place": archive([Member("archive/sub/data.pkl", pickled(b"N"))]),
        "82 TorchScript": archive([*good, script]),
        "77 many members": archive(good, count=1_000_000),
    }
    return {
        **{key: (raw, DAMAGED if "76" in key else REFUSED) for key, raw in odd.items()},
        **{key: (raw, NOT_ONE if raw[:2] == b"#!" else REFUSED) for key, raw in refused.items()},
        "63 duplicate member": (archive([*good, Member("archive/data/0", b"other")]), REFUSED),
        "69 zip in a zip": (archive([*good, Member("archive/inner.zip", whole)]), ""),
        "72 no checksums": (archive([Member(each.name, each.data, crc=0) for each in good]), "no checksum on 5 of 5 members"),
        "74 bytes behind": (archive(good, behind=b"x"), DAMAGED),
        "75 comment with an end record": (archive(good, comment=end(0, 0, 0, wide=False)), DAMAGED),
        "75 comment": (archive(good, comment=b"hello"), DAMAGED),
        "76 end records that differ": (whole[:-12] + struct.pack("<H", 4) + whole[-10:], DAMAGED),
        "84 directory of more entries than it has": (archive(good, count=6), DAMAGED),
        "84 directory of fewer entries than it has": (archive(good, count=4), DAMAGED),
        "84 directory past the end": (archive(good, wide=False)[:-6] + struct.pack("<L", 1 << 30) + b"\0\0", DAMAGED),
        "84 directory into itself": (archive(good, wide=False)[:-6] + struct.pack("<L", len(whole) - 120) + b"\0\0", DAMAGED),
        "67 first member not at the start": (archive([Member("archive/data.pkl", pickled(b"N"), offset=4)]), REFUSED),
        "77 no member": (archive([]), NOT_ONE),
        "zip of something else": (archive([Member("word/document.xml", b"<x/>")]), NOT_ONE),
    }  # fmt: skip


CASES: dict[str, tuple[bytes, str]] = {**_execution(), **_structure(), **_optimizers(), **_tensors(), **_zips()}

HARMLESS = {"open", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "os.scandir"}
QUIET = ("gc.", "cpython.", "sys.", "weakref.", "builtins.id", "marshal.", "code.", "function.", "time.", "array.")


def watch(seen: list[str]) -> None:
    """Note down every event but opening for reading."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            if (mode and set(str(mode)) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append(f"open for writing {arguments[0]}")
        elif event not in HARMLESS and not event.startswith(QUIET):
            seen.append(f"{event} {arguments!r:.80}")

    sys.addaudithook(hook)


def _outcome(path: Path) -> str:
    from optstate.errors import OptstateError
    from optstate.formats.opening import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
        shown = {key: node for key, node in checkpoint.objects.items() if type(node) is not list}
        return f"opened {checkpoint.state} {shown} {' | '.join(checkpoint.notes)}"
    except OptstateError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - any other error is what the test looks for
        return f"crashed {traceback.format_exc()}"


def main(folder: Path) -> None:
    warm = folder / "warm"
    warm.write_bytes(torch_file(pickled(tensor())))
    _outcome(warm)
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: list[str] = []
    watch(seen)
    results = {}
    for path in sorted(folder.glob("*.pt")):
        started, before = time.process_time(), len(seen)
        outcome = _outcome(path).encode("utf-8", "backslashreplace").decode()
        results[path.stem] = {
            "outcome": outcome,
            "seconds": time.process_time() - started,
            "events": seen[before:],
            "grown_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline,
        }
    document = {"files": results, "modules": [module for module in ("torch", "numpy") if module in sys.modules]}
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

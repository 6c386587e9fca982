"""Zip archives that two readers would read as two different files, or that claim what is not there."""

from __future__ import annotations

import struct
from typing import Any

from optstate.errors import Damaged, NotACheckpoint, Refused
from tests.forged import FLOATS, Cases, Member, archive, end, members, pickled, tensor


def _cases() -> Cases:
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
    own = {
        "65 another name in the header": {"local_name": "archive/data.pkx"},
        "65 another method in the flags": {"local_flags": 0x0800},
        "66 another size in the header": {"local": (0, 5, 5)},
        "66 another checksum in the header": {"local": (99, 0, 0)},
        "66 another descriptor": {"descriptor": struct.pack("<4sLLL", b"PK\7\10", 1, 2, 3)},
        "66 no descriptor": {"descriptor": b""},
        "66 wrong sizes without a descriptor": {"flags": 0x0800, "local": (1, 2, 3)},
        "76 wide size that is missing": {"flags": 0x0800, "local": (0, 0xFFFFFFFF, 0xFFFFFFFF)},
    }
    return {
        **{key: (archive([Member("archive/data.pkl", good[0].data, **each), *good[1:]]), Damaged) for key, each in own.items()},
        "78 name of 64 KiB": (archive([*good, Member("archive/" + "x" * 65_000, b"")]), ""),
        "75 two end records": (archive(good) + end(0, 0, 0, wide=False), Damaged),
        **{key: (raw, Damaged if "76" in key else Refused) for key, raw in odd.items()},
        **{key: (raw, NotACheckpoint if raw[:2] == b"#!" else Refused) for key, raw in refused.items()},
        "63 duplicate member": (archive([*good, Member("archive/data/0", b"other")]), Refused),
        "69 zip in a zip": (archive([*good, Member("archive/inner.zip", whole)]), ""),
        "72 no checksums": (archive([Member(each.name, each.data, crc=0) for each in good]), "no checksum on 5 of 5 members"),
        "74 bytes behind": (archive(good, behind=b"x"), Damaged),
        "75 comment with an end record": (archive(good, comment=end(0, 0, 0, wide=False)), Damaged),
        "75 comment": (archive(good, comment=b"hello"), Damaged),
        "76 end records that differ": (whole[:-12] + struct.pack("<H", 4) + whole[-10:], Damaged),
        "84 directory of more entries than it has": (archive(good, count=6), Damaged),
        "84 directory of fewer entries than it has": (archive(good, count=4), Damaged),
        "84 directory past the end": (archive(good, wide=False)[:-6] + struct.pack("<L", 1 << 30) + b"\0\0", Damaged),
        "84 directory into itself": (archive(good, wide=False)[:-6] + struct.pack("<L", len(whole) - 120) + b"\0\0", Damaged),
        "67 first member not at the start": (archive([Member("archive/data.pkl", pickled(b"N"), offset=4)]), Refused),
        "77 no member": (archive([]), NotACheckpoint),
        "zip of something else": (archive([Member("word/document.xml", b"<x/>")]), NotACheckpoint),
    }  # fmt: skip


CASES = _cases()

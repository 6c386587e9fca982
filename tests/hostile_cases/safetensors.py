"""Headers of safetensors that lie about what follows them, or that two readers of JSON read differently."""

from __future__ import annotations

import struct
from typing import Any

from optstate.errors import Damaged, NotACheckpoint, Refused
from tests.forged import Cases, archive, members, pickled, safetensors, tensor

GOOD = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def one(dtype: Any = '"F32"', shape: Any = "[1]", offsets: Any = "[0,4]", more: str = "", name: str = '"w"') -> bytes:
    """A file with one tensor of four bytes, whose entry is the given JSON."""
    return safetensors(
        f'{{{name}:{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'.encode(), bytes(4)
    )


CASES: Cases = {
    "85 length 0": (struct.pack("<Q", 0), NotACheckpoint),
    "85 length 7": (struct.pack("<Q", 7) + GOOD, Damaged),
    "85 length 2**63": (struct.pack("<Q", 1 << 63) + GOOD, NotACheckpoint),
    "85 length 100,000,001": (struct.pack("<Q", 100_000_001) + GOOD, Refused),
    "85 shorter than a length": (b"\2\0\0\0", NotACheckpoint),
    "86 header beyond the file": (struct.pack("<Q", len(GOOD) + 1) + GOOD, Damaged),
    "87 nesting": (safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), Damaged),
    "88 name twice": (safetensors(b"{" + GOOD[1:-1] + b"," + GOOD[1:-1] + b"}", bytes(4)), Damaged),
    "88 name twice, other bytes": (
        safetensors(b"{" + GOOD[1:-1] + b"," + GOOD[1:-1].replace(b"[0,4]", b"[4,8]") + b"}", bytes(8)), Damaged,
    ),
    "89 field twice": (one(more=',"shape":[2]'), Damaged),
    "91 gap": (one(offsets="[4,8]"), Damaged),
    "91 bytes behind": (safetensors(GOOD, bytes(5)), Damaged),
    "91 overlap": (
        safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}', bytes(6)), Damaged,
    ),
    "91 negative": (one(offsets="[-4,0]"), Damaged),
    "91 backwards": (one(offsets="[4,0]"), Damaged),
    "91 float": (one(offsets="[0.0,4.0]"), Damaged),
    "91 bool": (one(shape="[true]"), Damaged),
    "91 text": (one(offsets='["0","4"]'), Damaged),
    "91 shape that is none": (one(shape="1"), Damaged),
    "91 negative shape": (one(shape="[-1]"), Damaged),
    "91 shape of another length": (one(shape="[2]"), Damaged),
    "92 NaN": (one(offsets="[0,NaN]"), Damaged),
    "92 Infinity": (one(offsets="[0,Infinity]"), Damaged),
    "92 1e999": (one(offsets="[0,1e999]"), Damaged),
    "92 5,000 digits": (one(offsets=f"[0,{'4' * 5000}]"), Damaged),
    "92 a shape of 2**200": (one(shape=f"[{1 << 200}]"), Damaged),
    "93 BOM": (safetensors(b"\xef\xbb\xbf" + GOOD, bytes(4)), NotACheckpoint),
    "93 UTF-16": (safetensors(GOOD.decode().encode("utf-16"), bytes(4)), NotACheckpoint),
    "94 spaces in front": (safetensors(b"   " + GOOD, bytes(4)), ""),
    "95 metadata that is no text": (safetensors(b'{"__metadata__":{"a":1},' + GOOD[1:], bytes(4)), Damaged),
    "95 metadata that is a list": (safetensors(b'{"__metadata__":[],' + GOOD[1:], bytes(4)), Damaged),
    "95 metadata of 10 MB": (safetensors(b'{"__metadata__":{"a":"' + b"x" * 10_000_000 + b'"},' + GOOD[1:], bytes(4)), ""),
    "96 300,000 empty tensors": (
        safetensors(b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % index for index in range(300_000)) + b"}"),
        Refused,
    ),
    "97 type of nobody": (one(dtype='"F99"'), Damaged),
    "97 type that is no text": (one(dtype="4"), Damaged),
    "97 half bytes": (one(dtype='"F4"', shape="[8]"), ""),
    "54 nothing times 2**62": (one(shape=f"[0,{1 << 62}]", offsets="[0,0]")[:-4], ""),
    "55 rank 100,000": (one(shape=f"[{','.join('1' * 100_000)}]"), Damaged),
    "99 zip inside a tensor": (
        safetensors(b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % ((len(archive(members(pickled(tensor())))),) * 2), archive(members(pickled(tensor())))),
        "",
    ),
    "100 invalid UTF-8": (safetensors(GOOD.replace(b"w", b"\xff"), bytes(4)), Damaged),
    "100 lone surrogate": (one(name='"\\ud800"'), Damaged),
    "list": (safetensors(b"[1]"), NotACheckpoint),
    "tensor that is a number": (safetensors(b'{"w":1}'), Damaged),
}  # fmt: skip

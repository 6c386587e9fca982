"""Tensors and storages that contradict each other or reach outside of what there is."""

from __future__ import annotations

import struct

from optstate.errors import Damaged, NewerFormat
from tests.forged import (
    NO_HOOKS,
    Built,
    Cases,
    Member,
    archive,
    call,
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

QUANTIZED = name("torch._utils", "_rebuild_qtensor")


def _quantized(stride: tuple[int, ...]) -> bytes:
    how = items(name("torch", "per_tensor_affine"), b"G" + struct.pack(">d", 0.5), number(0))
    bytes_ = storage(kind="QInt8Storage", elements=24)
    return call(QUANTIZED, bytes_, number(0), numbers(2, 3), numbers(*stride), how, b"\x89", NO_HOOKS)


def _sparse(index: int) -> bytes:
    """A vector of six elements of which one is there, at `index`."""
    indices = tensor(storage("0", "LongStorage", 1), 0, (1, 1), (1, 1))
    values = tensor(storage("1", "FloatStorage", 1), 0, (1,), (1,))
    node = call(SPARSE, name("torch", "sparse_coo"), items(indices, values, numbers(6), b"\x89"))
    return torch_file(pickled(node), {"0": struct.pack("<q", index), "1": struct.pack("<f", 1)})


SPARSE = name("torch._utils", "_rebuild_sparse_tensor")


def _cases() -> Cases:
    two = items(tensor(), tensor(storage(kind="IntStorage")))
    nodes: Built = {
        "46 storage longer than its record": (tensor(storage(elements=7)), Damaged),
        "47 storage shorter than its record": (tensor(storage(elements=5)), Damaged),
        "48 storage of 2**33": (tensor(storage(elements=1 << 33)), Damaged),
        "49 element type that is not the storage's": (typed_tensor("int32", storage()), Damaged),
        "50 stride beyond the storage": (tensor(None, 0, (2, 3), (300, 1)), Damaged),
        "51 negative offset": (tensor(None, -1), Damaged),
        "51 negative size": (tensor(None, 0, (-2, 3)), Damaged),
        "51 negative stride": (tensor(None, 0, (2, 3), (-3, 1)), Damaged),
        "49 storage of no class": (items(text("storage"), b"N", text("0"), text("cpu"), number(6)) + b"Q", Damaged),
        "49 storage without a key": (items(text("storage"), name("torch", "FloatStorage"), b"N", text("cpu"), number(6)) + b"Q", Damaged),
        "49 storage of a class of its own": (tensor(storage(kind="EvilStorage")), "torch._utils._rebuild_tensor_v2"),
        "52 expanded to 2**31": (tensor(None, 0, ((1 << 31) - 1,), (0,)), ""),
        "53 product that overflows": (tensor(None, 0, (1 << 33, 1 << 33), (1 << 33, 1)), Damaged),
        "54 nothing times 2**62": (tensor(None, 0, (0, 1 << 62), (1, 1)), ""),
        "54 2**62 times nothing": (tensor(None, 0, (1 << 62, 0, 5), (0, 5, 1)), ""),
        "55 rank 100,000": (tensor(None, 0, (1,) * 100_000, (1,) * 100_000), Damaged),
        "55 rank 65": (tensor(None, 0, (1,) * 65, (1,) * 65), Damaged),
        "56 overlapping views": (items(tensor(None, 0, (5,), (1,)), tensor(None, 1, (5,), (1,))), ""),
        "57 storage of two types": (two, Damaged),
        "58 sparse of nothing": (call(name("torch._utils", "_rebuild_sparse_tensor"), name("torch", "sparse_coo"), b"N"), Damaged),
        "59 quantized of nothing": (call(QUANTIZED, storage(), number(0), b"N"), Damaged),
        "59 quantized, stride beyond the storage": (_quantized((1 << 30, 1)), Damaged),
        "59 quantized": (_quantized((3, 1)), ""),
        "60 nested": (call(name("torch._utils", "_rebuild_nested_tensor"), b"N"), "_rebuild_nested_tensor"),
        "61 device that does not exist": (tensor(items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cuda:99999999"), number(6)) + b"Q"), ""),
        "61 meta": (call(name("torch._utils", "_rebuild_meta_tensor_no_storage"), b"N"), Damaged),
        "81 key that leaves the archive": (tensor(storage("../../../etc/x")), Damaged),
        "81 key of another member": (tensor(storage("../version", elements=0)), Damaged),
    }  # fmt: skip
    good = members(pickled(tensor()))
    return {
        **{key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()},
        "58 sparse": (_sparse(5), ""),
        "58 sparse, index outside": (_sparse(6), ""),
        "58 sparse, index below zero": (_sparse(-1), ""),
        "62 byte order": (archive([*good[:2], Member("archive/byteorder", b"middle"), *good[3:]]), Damaged),
        "62 format version": (archive([good[0], Member("archive/.format_version", b"99"), *good[2:]]), NewerFormat),
        "62 alignment": (archive([*good, Member("archive/.storage_alignment", str(1 << 40).encode())]), ""),
    }  # fmt: skip


CASES = _cases()

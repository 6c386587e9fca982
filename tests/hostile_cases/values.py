"""Tensors that are made of other tensors, and objects that hold values: claims that nothing in the file is behind."""

from __future__ import annotations

import struct

from optstate.errors import Damaged, Refused
from tests.forged import (
    Built,
    Cases,
    call,
    items,
    name,
    number,
    numbers,
    pickled,
    storage,
    tensor,
    text,
    torch_file,
)

SPARSE = name("torch._utils", "_rebuild_sparse_tensor")
SUBCLASS, WRAPPER = name("torch._tensor", "_rebuild_from_type_v2"), name("torch._utils", "_rebuild_wrapper_subclass")
SHARDED = name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")
CODED = name("torchao.optim.subclass_8bit", "OptimState8bit")


def _wrapped(kind: bytes, shape: tuple[int, ...], state: bytes) -> bytes:
    arguments = items(
        kind,
        name("torch", "float32"),
        numbers(*shape),
        numbers(*[1] * len(shape)),
        number(0),
        b"N",
        text("cpu"),
        b"\x89",
    )
    return call(SUBCLASS, WRAPPER, kind, arguments, state)


def _shard(start: int) -> bytes:
    place = name("a", "Metadata") + b")\x81}" + text("shard_offsets") + b"]" + number(start) + b"asb"
    return (
        name("a", "Shard")
        + b")\x81}("
        + text("tensor")
        + tensor(None, 0, (6,), (1,))
        + text("metadata")
        + place
        + b"ub"
    )


def _sharded(shape: tuple[int, ...], *shards: bytes) -> bytes:
    return _wrapped(SHARDED, shape, items(b"](" + b"".join(shards) + b"e"))


def _many_of_one_list() -> bytes:
    """20,000 sharded tensors that share one list of shards."""
    first = _sharded((96,), *(_shard(6 * index) for index in range(16)))
    arguments = first[len(SUBCLASS) : -1]
    return b"](" + SUBCLASS + arguments + b"q\x01R" + (SUBCLASS + b"h\x01R") * 20_000 + b"e"


def _compressed(*starts: int) -> bytes:
    parts = [tensor(storage(str(key), "LongStorage", 3), 0, (length,), (1,)) for key, length in enumerate((3, 2))]
    values = tensor(storage("2"), 0, (2,), (1,))
    node = call(SPARSE, name("torch", "sparse_csr"), items(*parts, values, numbers(2, 2)))
    longs = struct.pack("<3q", *starts), struct.pack("<3q", 0, 1, 0)
    return torch_file(pickled(node), {"0": longs[0], "1": longs[1], "2": struct.pack("<6f", *range(6))})


def _huge() -> bytes:
    """A sparse vector of 2**33 elements of which one is there."""
    indices = tensor(storage("0", "LongStorage", 1), 0, (1, 1), (1, 1))
    values = tensor(storage("1", "FloatStorage", 1), 0, (1,), (1,))
    node = call(SPARSE, name("torch", "sparse_coo"), items(indices, values, numbers(1 << 33), b"\x88"))
    return torch_file(pickled(node), {"0": bytes(8), "1": bytes(4)})


def _coded(codes: bytes, elements: int) -> bytes:
    floats = storage("0", "FloatStorage", 256)
    parts = {"codes": codes, "scale": tensor(floats, 0, (1,), (1,)), "qmap": tensor(floats, 0, (256,), (1,))}
    state = b"}(" + b"".join(text(key) + part for key, part in parts.items()) + b"u"
    return torch_file(pickled(_wrapped(CODED, (elements,), state)), {"0": bytes(1024), "1": b"\0"})


def _cases() -> Cases:
    expanded = tensor(storage("1", "ByteStorage", 1), 0, (1 << 30,), (0,))
    nodes: Built = {
        "60 shards that overlap": (_sharded((9,), _shard(0), _shard(3)), Damaged),
        "60 a shard outside": (_sharded((6,), _shard(1)), Damaged),
        "60 one shard of 2**50": (_sharded((1 << 50,), _shard(0)), ""),
        "60 a list of shards 20,000 times": (_many_of_one_list(), Refused),
        "10 getattr without end": (
            name("builtins", "getattr") + name("a", "b") + b"q\x010" + (name("builtins", "getattr") + b"h\x01" + text("x" * 50) + b"\x86Rq\x01") * 10, Damaged,
        ),
        "34 a configuration in itself": (
            name("omegaconf.dictconfig", "DictConfig") + b")\x81q\x01}" + text("_content") + b"}" + text("a") + b"h\x01ssb",
            "contains itself",
        ),
        "34 a module in itself": (
            name("a", "Module") + b")\x81q\x01}(" + text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules")
            + b"}" + text("a") + b"h\x01sub",
            "contains itself",
        ),
    }  # fmt: skip
    return {
        **{key: (torch_file(pickled(node)), expected) for key, (node, expected) in nodes.items()},
        "58 sparse of 2**33": (_huge(), ""),
        "58 compressed, rows that run back": (_compressed(0, 2, 1), ""),
        "59 codes that one byte stands for": (_coded(expanded, 1 << 30), Damaged),
        "59 codes for more than there are": (_coded(tensor(storage("1", "ByteStorage", 1), 0, (1,), (1,)), 1 << 40), Damaged),
    }  # fmt: skip


CASES = _cases()

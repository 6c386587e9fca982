"""Directories of `torch.distributed.checkpoint` whose metadata lead away, lie, or carry a call."""

from __future__ import annotations

from optstate.errors import Damaged, Refused
from tests.forged import (
    PROTOCOL_2,
    STOP,
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

METADATA = "torch.distributed.checkpoint.metadata"
SHARD = "__0_0.distcp"
TOUCH = text("touch forbidden")


def thing(kind: str, state: bytes, module: str = METADATA) -> bytes:
    """An object of one of torch's classes, filled with a state."""
    return name(module, kind) + b")\x81" + state + b"b"


def size(*lengths: int) -> bytes:
    return call(name("torch", "Size"), numbers(*lengths))


def mapping(*pairs: bytes) -> bytes:
    return b"}(" + b"".join(pairs) + b"u"


def chunk(start: tuple[int, ...] = (0, 0), shape: tuple[int, ...] = (2, 3)) -> bytes:
    return thing("ChunkStorageMetadata", entries(offsets=size(*start), sizes=size(*shape)))


def stored(shape: tuple[int, ...] = (2, 3), chunks: bytes | None = None, dtype: str = "float32") -> bytes:
    properties = thing("TensorProperties", items(name("torch", dtype), b"N", b"\x89", b"N", b"\x89"))
    listed = b"](" + chunk() + b"e" if chunks is None else chunks
    return thing("TensorStorageMetadata", entries(properties=properties, size=size(*shape), chunks=listed))


def index(key: str = "w", start: tuple[int, ...] | None = (0, 0)) -> bytes:
    return thing("MetadataIndex", entries(fqn=text(key), offset=b"N" if start is None else size(*start)))


def place(file: str | bytes = SHARD, offset: int = 0, length: int = 10, **more: bytes) -> bytes:
    where = file if isinstance(file, bytes) else text(file)
    state = entries(relative_path=where, offset=number(offset), length=number(length), **more)
    return thing("_StorageInfo", state, "torch.distributed.checkpoint.filesystem")


def directory(
    described: bytes | None = None,
    storage: bytes | None = None,
    paths: bytes = b"N",
    shard: bytes = bytes(10),
    **more: bytes,
) -> dict[str, bytes]:
    """A directory with one tensor `w` of shape (2, 3), unless something else is given."""
    root = entries(
        state_dict_metadata=mapping(text("w"), stored()) if described is None else described,
        storage_data=mapping(index(), place()) if storage is None else storage,
        planner_data=paths,
        **more,
    )
    return {".metadata": PROTOCOL_2 + thing("Metadata", root) + STOP, SHARD: shard}


def _object(shard: bytes) -> dict[str, bytes]:
    """A directory with one value `w` that is no tensor."""
    described = mapping(text("w"), thing("BytesStorageMetadata", b"N"))
    return directory(described, mapping(index(start=None), place(length=len(shard))), shard=shard)


def _repeated(times: int) -> bytes:
    """A list that has one chunk many times, which takes two bytes for each."""
    return b"](" + chunk() + b"q\x00" + b"h\x00" * times + b"e"


def _many(number_of_chunks: int) -> dict[str, bytes]:
    """Chunks of one element each that lie on one another, each with a place of its own."""
    chunks = b"](" + b"".join(chunk((0, 0), (1, 1)) for _ in range(number_of_chunks)) + b"e"
    places = mapping(*(index(start=(0, each)) + place() for each in range(number_of_chunks)))
    return directory(mapping(text("w"), stored((1, number_of_chunks), chunks)), places)


SYSTEM = call(name("os", "system"), TOUCH)
GOOD = torch_file(PROTOCOL_2 + tensor() + STOP)

CASES: Cases = {
    "101 a call beside the metadata": (directory(storage_meta=SYSTEM), "not called: os.system"),
    "101 a call as path": (directory(paths=mapping(text("w"), SYSTEM)), "not called: os.system"),
    "101 a call as key": (directory(mapping(SYSTEM, stored())), Refused),
    "101 a call as size": (
        directory(mapping(text("w"), thing("TensorStorageMetadata", entries(size=SYSTEM, properties=b"N", chunks=b"]")))), Refused,
    ),
    "101 a call instead of everything": ({".metadata": PROTOCOL_2 + SYSTEM + STOP}, Refused),
    "101 metadata of nothing": ({".metadata": PROTOCOL_2 + b"N" + STOP}, Refused),
    "101 a torch file for metadata": ({".metadata": GOOD}, Refused),
    "101 metadata with something behind": ({".metadata": directory()[".metadata"] + b"x", SHARD: b"x"}, Refused),
    "102 up": (directory(storage=mapping(index(), place("../../etc/passwd"))), Refused),
    "102 absolute": (directory(storage=mapping(index(), place("/etc/passwd"))), Refused),
    "102 the directory itself": (directory(storage=mapping(index(), place("."))), Refused),
    "102 up, behind NUL": (directory(storage=mapping(index(), place(f"{SHARD}\0/../x"))), Refused),
    "102 a name that is no text": (directory(storage=mapping(index(), place(number(1)))), Refused),
    "102 the metadata as shard": (directory(storage=mapping(index(), place(".metadata"))), ""),
    "102 offset past the end": (directory(storage=mapping(index(), place(offset=1 << 40))), "ends too early"),
    "102 length past the end": (directory(storage=mapping(index(), place(length=1 << 62))), "ends too early"),
    "102 negative offset": (directory(storage=mapping(index(), place(offset=-1))), Refused),
    "102 length of 2**200": (directory(storage=mapping(index(), place(length=1 << 200))), Refused),
    "102 a length that is a truth": (directory(storage=mapping(index(), name("x", "y"))), Refused),
    "102 no such shard": (directory(storage=mapping(index(), place("__7_0.distcp"))), "__7_0.distcp is missing"),
    "102 shard that is a name to escape": (directory(storage=mapping(index(), place("\x1b[2J"))), "\\x1b[2J is missing"),
    "102 overlapping chunks": (
        directory(
            mapping(text("w"), stored((4, 3), b"](" + chunk() + chunk((1, 0), (3, 3)) + b"e")),
            mapping(index(), place(), index(start=(1, 0)), place()),
        ),
        Refused,
    ),
    "102 chunk outside": (directory(mapping(text("w"), stored((1, 3)))), Refused),
    "102 chunk of 2**62 rows": (
        directory(mapping(text("w"), stored((1 << 62, 3), b"](" + chunk((0, 0), (1 << 62, 3)) + b"e"))), Refused,
    ),
    "102 size of 2**64": (directory(mapping(text("w"), stored((1 << 64, 3)))), Refused),
    "102 negative size": (directory(mapping(text("w"), stored((-2, 3)))), Refused),
    "102 rank 100": (directory(mapping(text("w"), stored((1,) * 100))), Refused),
    "102 cut along 64 dimensions": (
        directory(mapping(text("w"), stored((2,) * 64, b"](" + chunk((0,) * 64, (1,) * 64) + b"e")), mapping(index(start=(0,) * 64), place())),
        Refused,
    ),
    "102 a hole": (directory(mapping(text("w"), stored((4, 3)))), "parts that no shard has"),
    "102 ten million chunks": (directory(mapping(text("w"), stored(chunks=_repeated(10_000_000)))), Refused),
    "102 chunks on one another": (_many(3_000), Refused),
    "102 two places for one chunk": (directory(storage=mapping(index(), place(), index(), place())), Refused),
    "102 element type of no one": (directory(mapping(text("w"), stored(dtype="float3"))), ""),
    "102 element type to escape": (directory(mapping(text("w"), stored(dtype="\x1b[2J"))), ""),
    "102 a path to two values": (
        directory(
            mapping(text("v"), stored(), text("w"), stored()), mapping(index("v"), place(), index(), place()),
            mapping(text("v"), items(text("x")), text("w"), items(text("x"))),
        ), Refused,
    ),
    "102 a path through a value": (
        directory(
            mapping(text("v"), stored(), text("w"), stored()), mapping(index("v"), place(), index(), place()),
            mapping(text("v"), items(text("x")), text("w"), items(text("x"), text("y"))),
        ), Refused,
    ),
    "102 a path of ten thousand": (directory(paths=mapping(text("w"), items(*[text("a")] * 10_000))), ""),
    "102 a path of a hundred": (directory(paths=mapping(text("w"), items(*[text("a")] * 100))), ""),
    "102 a list of two thousand million": (directory(paths=mapping(text("w"), items(text("x"), number((1 << 31) - 1)))), ""),
    "102 an index beyond": (directory(paths=mapping(text("w"), items(text("x"), number(1 << 62)))), ""),
    "102 another class": (directory(mapping(text("w"), thing("TensorMetadata", b"}"))), Refused),
    "102 ranks that disagree": (
        {
            "__0.metadata": directory()[".metadata"],
            "__1.metadata": directory(mapping(text("w"), stored((4, 3))))[".metadata"],
            SHARD: b"x",
        },
        Refused,
    ),
    "102 coded": (directory(storage=mapping(index(), place(transform_descriptors=b"]" + text("stream.zstd") + b"a"))), "coded as stream.zstd"),
    "103 an item that is a pickle": (_object(pickled(b"N")), "w"),
    "103 an item that calls": (_object(torch_file(PROTOCOL_2 + SYSTEM + STOP)), "os.system"),
    "103 an item that is cut short": (_object(GOOD[:-9]), "w"),
    "103 an item that contains itself": (_object(torch_file(PROTOCOL_2 + b"]q\x00h\x00a" + STOP)), "contains itself"),
    "103 a hundred thousand levels": (_object(torch_file(PROTOCOL_2 + b"N" + b"\x85" * 100_000 + STOP)), "too deep"),
    "103 a tensor that is another": (directory(mapping(text("w"), stored((3, 2), b"](" + chunk((0, 0), (3, 2)) + b"e")), mapping(index(), place(length=len(GOOD))), shard=GOOD), ""),
    "103 nothing but shards": ({SHARD: GOOD}, Damaged),
    "103 an optimizer that is a number": (
        directory(mapping(text("w"), stored()), mapping(index(), place()), mapping(text("w"), items(text("optimizer"), text("state"), text("w")))), "",
    ),
}  # fmt: skip

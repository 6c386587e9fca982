"""Streams of the oldest torch, which have no checksum and whose every number is the writer's."""

from __future__ import annotations

from optstate.errors import Damaged, NotACheckpoint, Refused
from tests.forged import (
    FLOATS,
    MAGIC,
    PROTOCOL_2,
    STOP,
    Cases,
    call,
    items,
    name,
    number,
    pickled,
    stream,
    stream_storage,
    tensor,
    text,
)

GOOD = pickled(tensor(stream_storage()))
RUN = call(name("os", "system"), text("touch forbidden"))


def _tar(first: str) -> bytes:
    """The first block of a tar file, whose name leads outside."""
    fields = (
        first.encode().ljust(100, b"\0"),
        b"0000777\0" * 3,
        b"00000000010\0" * 2,
        b"        ",
        b"2",
        b"/etc/passwd".ljust(100, b"\0"),
    )
    return (b"".join(fields) + b"ustar\x0000").ljust(1024, b"\0")


CASES: Cases = {
    "1 stream that calls": (stream(pickled(RUN), {}), "os.system"),
    "21 call where the storages are listed": (stream(GOOD, keys=PROTOCOL_2 + RUN + STOP), Damaged),
    "21 call behind the storages": (stream(GOOD) + PROTOCOL_2 + RUN + STOP, Refused),
    "21 call in front": (stream(GOOD, front=MAGIC + PROTOCOL_2 + RUN + STOP), Damaged),
    "48 storage of 2**33": (stream(pickled(tensor(stream_storage(elements=1 << 33))), {"0": (1 << 33, FLOATS)}), Damaged),
    "48 count of 2**33": (stream(GOOD, {"0": (1 << 33, FLOATS)}), Damaged),
    "48 count below zero": (stream(GOOD, {"0": (-1, FLOATS)}), Damaged),
    "48 view of 2**62": (stream(pickled(tensor(stream_storage(view=items(text("1"), number(0), number(1 << 62)))))), Damaged),
    "105 tar of torch, a link in it": (_tar("storages"), Refused),
    "105 tar that leads elsewhere": (_tar("../../storages"), NotACheckpoint),
    "protocol 0 pickle that calls": (b"cos\nsystem\n(S'touch forbidden'\ntR.", "os.system"),
    "bare pickle that calls": (PROTOCOL_2 + RUN + STOP, "os.system"),
    "bare pickle with a persistent id": (PROTOCOL_2 + stream_storage() + STOP, Damaged),
}  # fmt: skip

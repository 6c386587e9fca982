"""Files in the zip layout of `torch.save`, written without torch, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

from zlib_ng.zlib_ng import crc32

from optstate.state.tensors import ALIGNMENT
from optstate.store.commit import new_file
from optstate.store.files import Buffer, Files
from optstate.store.pipeline import Output, Pipeline
from optstate.store.runs import lay_out, tensors_in
from optstate.store.torch_pickle import pickled

ROOT = "archive"
"""The folder in the file; torch takes it from the file's name and reads any."""

_FULL = 0xFFFFFFFF
_FLAGS = 0x0808  # names in UTF-8, the checksum behind the data
_LOCAL = 30  # bytes of a header without its name


def write_torch(path: Path, tree: Any, files: Files, *, replace: bool = False) -> int:
    """Write a tree of plain values and references to tensors as `torch.save` would; returns the bytes of the tensors.

    Every value is one that `torch_pickle` holds. `torch.load(path, weights_only=True)` gives it back, tensors bit for
    bit, with their strides, sharing what they shared. The file appears whole and durable, or not at all. Raises
    `WriteFailed` and `TargetExists` as `new_file` does, and what reading the tensors raises.
    """
    runs, views = lay_out(tensors_in(tree))
    content = pickled(tree, runs, views)
    total = sum(run.nbytes for run in runs)
    with (
        new_file(path, files, replace=replace, nbytes=total + len(content)) as temporary,
        Pipeline(files) as pipeline,
        pipeline.file(temporary) as output,
    ):
        archive = _Archive(output)
        archive.add("data.pkl", len(content), iter([content]))
        for name, text in ((".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little")):
            archive.add(name, len(text), iter([text]))
        for number, run in enumerate(runs):
            archive.add(f"data/{number}", run.nbytes, run.pieces())
        archive.add("version", 2, iter([b"3\n"]))
        archive.finish()
    return total


class _Member(NamedTuple):
    name: bytes
    start: int
    nbytes: int
    crc: int


class _Archive:
    """A zip archive that stores its members as they are, aligned, each with its CRC-32; zip64 where it takes that."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._members: list[_Member] = []

    def add(self, name: str, nbytes: int, pieces: Iterator[Buffer]) -> None:
        """Write a member of `nbytes` bytes."""
        full, start = f"{ROOT}/{name}".encode(), self._output.position
        self._output.write(_local_header(full, nbytes, start))
        crc = written = 0
        for piece in pieces:
            crc = crc32(piece, crc)
            written += len(piece)
            self._output.write(piece)
        if written != nbytes:
            raise ValueError(f"{written} bytes for a member of {nbytes}")
        large = nbytes >= _FULL
        self._output.write(pack("<4sLQQ" if large else "<4sLLL", b"PK\x07\x08", crc, nbytes, nbytes))
        self._members.append(_Member(full, start, nbytes, crc))

    def finish(self) -> None:
        """Write the directory and the records behind it."""
        start = self._output.position
        for member in self._members:
            self._output.write(_entry(member))
        end, number = self._output.position, len(self._members)
        length = end - start
        self._output.write(pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, length, start))
        self._output.write(pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        few = min(number, 0xFFFF)
        self._output.write(pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(length, _FULL), min(start, _FULL), 0))


def _local_header(name: bytes, nbytes: int, start: int) -> bytes:
    """A member's own header, filled up so that its content starts aligned."""
    wide = pack("<2H2Q", 1, 16, nbytes, nbytes) if nbytes >= _FULL else b""
    filler = -(start + _LOCAL + len(name) + len(wide) + 4) % ALIGNMENT
    extra = wide + pack("<2sH", b"FB", filler) + b"Z" * filler
    size = min(nbytes, _FULL)
    head = pack("<4s5H3L2H", b"PK\x03\x04", 45 if wide else 20, _FLAGS, 0, 0, 0, 0, size, size, len(name), len(extra))
    return head + name + extra


def _entry(member: _Member) -> bytes:
    """A member in the directory; what needs more than 32 bits stands in an extra field."""
    name, start, nbytes, crc = member
    wide = [value for value in (nbytes, nbytes, start) if value >= _FULL]
    extra = pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version, size = 45 if wide else 20, min(nbytes, _FULL)
    head = pack(
        "<4s6H3L5H2L",
        b"PK\x01\x02", version, version, _FLAGS, 0, 0, 0, crc, size, size,
        len(name), len(extra), 0, 0, 0, 0, min(start, _FULL),
    )  # fmt: skip
    return head + name + extra

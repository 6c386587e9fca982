"""Reading every byte of a checkpoint and comparing it with its digest, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from optstate.errors import Damaged, ReadError
from optstate.formats.containers.regular import ByteSource
from optstate.formats.ours.directory import check_file, open_file, read_manifest, settled
from optstate.formats.ours.manifest import Body, Chunk
from optstate.formats.ours.own_tensors import ChunkRecord
from optstate.text import count, safe_text, size


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was written.

    `tensor` is the name of the tensor that is lost (a weight, `parameter/slot`, or a path in an object), None
    where only a file's header is; `file` is the file it is in, `what` what is wrong.
    """

    tensor: str | None
    file: str
    what: str

    def __str__(self) -> str:
        return f"{safe_text(self.tensor or self.file)}: {self.what} ({safe_text(self.file)})"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found: how many tensors and bytes it read, and everything that is damaged or missing.

    >>> report = optstate.verify(checkpoint)
    >>> report.ok, report.damage
    (True, ())
    """

    path: Path
    tensors: int
    nbytes: int
    damage: tuple[Damage, ...] = ()

    SHOWN = 20

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.damage

    def __str__(self) -> str:
        """A verdict, and a line for each of the first twenty faults."""
        read = f"{count(self.tensors, 'tensor')}, {size(self.nbytes)}"
        if self.ok:
            return f"{safe_text(self.path)}: intact ({read}, each byte as it was written)"
        lines = [f"  {item}" for item in self.damage[: self.SHOWN]]
        if len(self.damage) > self.SHOWN:
            lines.append(f"  … and {len(self.damage) - self.SHOWN:,} more (all of them: report.damage)")
        return "\n".join([f"{safe_text(self.path)}: {count(len(self.damage), 'fault')} ({read} read)", *lines])


Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, after each tensor."""


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> VerifyReport:
    """Read a whole checkpoint of ours and compare every byte with its digest; damage is reported, not raised.

    `progress` is called with the number of bytes done and in all. Raises `ReadError` when there is no manifest
    to compare with: `NotACheckpoint`, `NewerFormat`, or `Damaged` for the manifest itself.

    >>> report = optstate.verify(checkpoint)
    >>> report.ok, report.tensors
    (True, 16)
    """
    path = Path(path)
    directory = settled(path)
    body = read_manifest(directory)
    found: list[Damage] = []
    sources: dict[str, ByteSource] = {}
    for name, entry in body.files.items():
        try:
            sources[name] = open_file(directory, name, body)
            check_file(sources[name], entry, body.save_id)
        except ReadError as error:
            found.append(Damage(None, name, _short(error)))
    done, total = 0, sum(chunk.nbytes for _, chunk in _chunks(body))
    tensors = set()
    for key, chunk in _chunks(body):
        fault = _fault(sources, key, chunk)
        if fault is not None:
            found.append(Damage(key.partition("/")[2], chunk.file, fault))
        tensors.add(key)
        done += chunk.nbytes
        if progress is not None:
            progress(done, total)
    return VerifyReport(path, len(tensors), done, tuple(found))


def _chunks(body: Body) -> Iterator[tuple[str, Chunk]]:
    """Every chunk with its tensor's key, in the order of the files."""
    every = [(key, chunk) for key, entry in body.tensors.items() for chunk in entry.chunks]
    every.sort(key=lambda item: (item[1].file, item[1].offset))
    return iter(every)


def _fault(sources: Mapping[str, ByteSource], key: str, chunk: Chunk) -> str | None:
    """What is wrong with a chunk, None when it is as it was written."""
    if chunk.file not in sources:
        return "lost with its file"
    try:
        ChunkRecord(sources[chunk.file], chunk, key.partition("/")[2]).verify()
    except ReadError as error:
        return _short(error)
    return None


def _short(error: ReadError) -> str:
    if isinstance(error, Damaged) and error.expected and error.found:
        return f"{error.found}, expected {error.expected}"
    return error.what

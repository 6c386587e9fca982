"""Tensors of our own checkpoints: in one piece or several, each piece with its digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import xxhash

from optstate.errors import Damaged, Refused
from optstate.formats.containers.assembled import Assembled, Piece, uncovered
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.stored_tensor import MAX_RANK, StoredTensor, row_major
from optstate.formats.ours.manifest import Chunk, TensorEntry, WeightEntry, digest_of
from optstate.state.tensors import DTYPES, new_bytes
from optstate.text import safe_text

if TYPE_CHECKING:
    import numpy as np


class ChunkRecord:
    """The bytes of one chunk; satisfies `optstate.formats.containers.stored_tensor.Record`."""

    def __init__(self, source: ByteSource, chunk: Chunk, owner: str) -> None:
        self.source = source
        self.chunk = chunk
        self.owner = owner
        self.nbytes = chunk.nbytes
        self._intact = False

    @property
    def where(self) -> str:
        return f"{self.source.name}, byte {self.chunk.offset:,}"

    def read(self, offset: int, length: int) -> bytes:
        raw = self.source.read(self.chunk.offset + offset, length)
        if length == self.nbytes:
            self._check(digest_of(raw))
        return raw

    def into(self, memory: memoryview) -> None:
        digest = xxhash.xxh3_128()
        self.source.into(self.chunk.offset, memory, digest.update)
        self._check(f"xxh3-128:{digest.hexdigest()}")

    def pieces(self, piece: int) -> Iterator[bytes]:
        digest = xxhash.xxh3_128()
        for start in range(0, self.nbytes, piece):
            raw = self.source.read(self.chunk.offset + start, min(piece, self.nbytes - start))
            digest.update(raw)
            yield raw
        self._check(f"xxh3-128:{digest.hexdigest()}")

    def verify(self) -> None:
        if not self._intact:
            digest = xxhash.xxh3_128()
            self.source.scan(self.chunk.offset, self.nbytes, digest.update)
            self._check(f"xxh3-128:{digest.hexdigest()}")

    def _check(self, found: str) -> None:
        if found != self.chunk.digest:
            raise Damaged(
                f"{safe_text(self.owner)} was changed since it was written",
                where=f"{self.where}, {self.nbytes:,} bytes",
                expected=self.chunk.digest,
                found=found,
                todo="use another checkpoint; `optstate verify` names everything that is damaged in this one",
            )
        self._intact = True


class OwnTensor:
    """A tensor of our own checkpoints; satisfies `optstate.state.tensors.TensorRef`.

    name
        Whose it is: a weight's name, `parameter/slot`, or the path within an object.
    device
        Where it was when it was saved, such as `cuda:0`.
    stride
        In elements, what it had in memory; None for row-major order. `array` gives it back.
    weight
        What the manifest says of a weight; None for everything else.
    """

    __slots__ = ("_entry", "_sources", "device", "dtype", "name", "shape", "stride", "weight")

    def __init__(self, name: str, entry: TensorEntry, sources: Mapping[str, ByteSource]) -> None:
        _check_geometry(name, entry, sources)
        self.name = name
        self.dtype = entry.dtype
        self.shape = entry.shape
        self.device = entry.device
        self.stride = entry.stride
        self.weight: WeightEntry | None = None
        self._entry = entry
        self._sources = sources

    @property
    def place(self) -> tuple[str, int]:
        """Where its first byte is: who reads tensors in this order reads their files from start to end."""
        return min(((chunk.file, chunk.offset) for chunk in self._entry.chunks), default=("", 0))

    @property
    def digests(self) -> tuple[str, ...]:
        """What the manifest says of the bytes of its pieces, in their order."""
        return tuple(chunk.digest for chunk in self._entry.chunks)

    def array(self) -> np.ndarray[Any, Any]:
        """The values, with the strides that they were saved with. Raises `Damaged`, which names this tensor."""
        whole = self._whole().array()
        if self.stride is None:
            return whole
        import numpy as np

        strides = [step * whole.itemsize for step in self.stride]
        memory = new_bytes(whole.nbytes).data
        laid_out: np.ndarray[Any, Any] = np.ndarray(self.shape, whole.dtype, memory, strides=strides)
        laid_out[...] = whole
        return laid_out

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order. Raises as `array` does."""
        return self._whole().blocks()

    def into(self, memory: memoryview) -> None:
        """All values, in row-major order, into memory of their length.

        Raises as `array` does; then anything may be in there.
        """
        whole = self._whole()
        if isinstance(whole, StoredTensor):
            whole.record.into(memory)
            return
        at = 0
        for block in whole.blocks():
            memory[at : at + block.nbytes] = block.view("u1").data
            at += block.nbytes

    def item(self) -> bool | int | float | complex:
        """The value of a tensor with a single element. Raises `Refused` for any other."""
        if prod(self.shape) != 1:
            raise Refused(f"{safe_text(self.name)} is not a single number", found=f"shape {list(self.shape)}")
        return self._whole().item()

    def verify(self) -> None:
        """Read every byte without keeping any. Raises `Damaged`, which names this tensor."""
        for piece in self._pieces():
            piece.record.verify()

    def _pieces(self) -> list[StoredTensor]:
        records = [ChunkRecord(self._sources[chunk.file], chunk, self.name) for chunk in self._entry.chunks]
        return [
            StoredTensor(record, self.dtype, 0, record.chunk.shape, row_major(record.chunk.shape)) for record in records
        ]

    def _whole(self) -> StoredTensor | Assembled:
        pieces = self._pieces()
        if len(pieces) == 1:
            return pieces[0]
        starts = [chunk.start for chunk in self._entry.chunks]
        return Assembled(self.name, self.dtype, self.shape, map(Piece, starts, pieces))

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {safe_text(self.name)}"


def _check_geometry(name: str, entry: TensorEntry, sources: Mapping[str, ByteSource]) -> None:
    """Raise `ValueError` or `KeyError` for a tensor that its chunks and files cannot make up."""
    shape = entry.shape
    if entry.dtype not in DTYPES or len(shape) > MAX_RANK:
        raise ValueError(f"{safe_text(name)} is of type {safe_text(entry.dtype)} and has {len(shape)} dimensions")
    for chunk in entry.chunks:
        if not len(chunk.start) == len(chunk.shape) == len(shape) or any(
            start + length > whole for start, length, whole in zip(chunk.start, chunk.shape, shape, strict=True)
        ):
            raise ValueError(f"a chunk of {safe_text(name)} is outside its shape {list(shape)}")
        if chunk.nbytes != prod(chunk.shape) * DTYPES[entry.dtype][0]:
            raise ValueError(f"a chunk of {safe_text(name)} has {chunk.nbytes} bytes for shape {list(chunk.shape)}")
        if chunk.offset + chunk.nbytes > sources[chunk.file].size:
            raise ValueError(f"a chunk of {safe_text(name)} ends behind its file")
    try:
        missing = uncovered(shape, [(chunk.start, chunk.shape) for chunk in entry.chunks if prod(chunk.shape)])
    except ValueError as error:
        missing = str(error)
    if missing:
        raise ValueError(f"the chunks of {safe_text(name)} do not add up to its shape {list(shape)}: {missing}")
    if entry.stride is not None and not is_dense(shape, entry.stride):
        raise ValueError(f"strides {list(entry.stride)} of {safe_text(name)} do not fit its shape {list(shape)}")


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether strides are those of row-major order with its dimensions permuted: no gap, no overlap."""
    if len(shape) != len(stride):
        return False
    expected = 1
    for step, length in sorted((step, length) for length, step in zip(shape, stride, strict=True) if length != 1):
        if step != expected:
            return False
        expected *= length
    return True

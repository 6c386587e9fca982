"""Tensors as runs of elements to be written: what shares memory in the source shares it in the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from optstate.formats.compare import bits
from optstate.formats.containers.stored_tensor import Record, StoredTensor, row_major
from optstate.state.tensors import DTYPES, TensorRef
from optstate.store.files import Buffer
from optstate.store.table import kept_stride
from optstate.store.writer import PIECE

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Run:
    """Elements of one type that lie one behind the other; `pieces` gives their bytes, little-endian."""

    dtype: str
    elements: int
    pieces: Callable[[], Iterator[Buffer]]

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPES[self.dtype][0]


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in a run; offset and stride count elements."""

    run: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def lay_out(refs: Iterable[TensorRef]) -> tuple[list[Run], dict[int, View]]:
    """The runs that hold all these tensors, and where each is, by the `id` of its reference.

    Tensors of one record whose elements overlap, as tied weights do, are in one run, as they lie in the source.
    Any other has a run of its own: permuted dimensions stay permuted, all else is in row-major order. The element
    types must be in `DTYPES`.
    """
    runs: list[Run] = []
    views: dict[int, View] = {}
    records: dict[tuple[int, str], list[StoredTensor]] = {}
    every: dict[int, TensorRef] = {id(ref): ref for ref in refs}
    for ref in every.values():
        if isinstance(ref, StoredTensor) and not (ref.swap or ref.conj or ref.neg) and 0 not in ref.shape:
            records.setdefault((id(ref.record), ref.dtype), []).append(ref)
            continue
        stride = dense_stride(ref)
        views[id(ref)] = View(len(runs), 0, ref.shape, stride or row_major(ref.shape))
        runs.append(Run(ref.dtype, prod(ref.shape), partial(_values, ref, stride)))
    for tensors in records.values():
        for start, stop, members in _clusters(tensors):
            for ref in members:
                views[id(ref)] = View(len(runs), ref.offset - start, ref.shape, ref.stride)
            first = members[0]
            runs.append(Run(first.dtype, stop - start, partial(_stored, first.record, first.dtype, start, stop)))
    return runs, views


def dense_stride(ref: TensorRef) -> tuple[int, ...] | None:
    """The strides of a tensor whose dimensions are permuted; None for one in row-major order, or with gaps."""
    stride: tuple[int, ...] | None = getattr(ref, "stride", None)
    return None if stride is None else kept_stride(ref.shape, stride)


def _clusters(tensors: Iterable[StoredTensor]) -> Iterator[tuple[int, int, list[StoredTensor]]]:
    """Tensors of one record in groups that overlap: the first element, the one after the last, and the group."""
    group: list[StoredTensor] = []
    start = stop = 0
    for ref in sorted(tensors, key=lambda ref: ref.offset):
        end = ref.offset + 1 + sum((length - 1) * step for length, step in zip(ref.shape, ref.stride, strict=True))
        if group and ref.offset >= stop:
            yield start, stop, group
            group = []
        start, stop = (start, max(stop, end)) if group else (ref.offset, end)
        group.append(ref)
    yield start, stop, group


def _stored(record: Record, dtype: str, start: int, stop: int) -> Iterator[Buffer]:
    """A range of a record's bytes as they are; the record is checked, also where it holds more."""
    width = DTYPES[dtype][0]
    if (stop - start) * width == record.nbytes:
        yield from record.pieces(PIECE)
        return
    record.verify()
    for offset in range(start * width, stop * width, PIECE):
        yield record.read(offset, min(PIECE, stop * width - offset))


def _values(ref: TensorRef, stride: tuple[int, ...] | None) -> Iterator[Buffer]:
    """The bytes of a tensor's values: in row-major order, or in the order of its permuted dimensions."""
    if not prod(ref.shape):
        return
    if stride is None:
        for block in ref.blocks():
            yield bits(_flat(block)).data.cast("B")
        return
    order = sorted(range(len(stride)), key=lambda axis: -stride[axis])
    whole = bits(_flat(ref.array().transpose(order).reshape(-1))).data.cast("B")
    yield from (whole[start : start + PIECE] for start in range(0, len(whole), PIECE))


def _flat(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.ascontiguousarray(block)


def row_major_pieces(ref: TensorRef) -> Iterator[Buffer]:
    """The bytes of a tensor in row-major order, in bounded memory where it lies so."""
    return _values(ref, None)


def tensors_in(tree: Any) -> Iterator[TensorRef]:
    """Every reference to a tensor in a plain tree, in order."""
    if hasattr(type(tree), "blocks"):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors_in(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)

"""Reading what a restore will write: first all of it, to verify it or into new memory; then some once more, in place.

A tensor that is written in place is never in memory twice: the first pass only takes its digest, the second reads it again
into the live tensor, and takes its digest again, so that nothing that changed in between goes unnoticed. Both passes read
the files from start to end with two threads, a piece at a time that stays in a processor's cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from optstate.formats.containers.quantised import Affine, Blockwise
from optstate.formats.containers.sparse import CompressedRef, SparseRef
from optstate.formats.containers.stored_tensor import row_major
from optstate.formats.ours.own_tensors import OwnTensor, is_dense
from optstate.live.tensors import HeldTensor, dtype_name
from optstate.resume.materialise import materialise, to_tensor
from optstate.state.tensors import DTYPES, TensorRef, is_tensor, nbytes
from optstate.text import safe_text

READERS = 2
"""Threads that read and verify large tensors; more gain little, and a machine that trains has work of its own."""

LARGE = 1 << 20
"""Bytes from which a tensor is read by one of them: for small ones, threads only wait for the interpreter's lock."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """A saved tensor, and the live one of the same type and shape that takes its values; `name` is what messages call it."""

    name: str
    saved: TensorRef
    target: torch.Tensor

    def verify(self) -> None:
        """Read all of it and keep nothing. Raises `ReadError`."""
        if isinstance(self.saved, OwnTensor):
            self.saved.verify()
        else:
            deque(self.saved.blocks(), maxlen=0)

    def announce(self) -> None:
        """Raise the counter by which torch sees writes. Raises `RuntimeError` where the target cannot be written to now."""
        target = self.target.detach()
        if (dtype_name(target), target.shape) != (self.saved.dtype, self.saved.shape):
            raise RuntimeError(f"{safe_text(self.name)} is {dtype_name(target)} {list(target.shape)} by now")
        target[None].narrow(0, 0, 0).zero_()  # none of its elements

    def write(self) -> None:
        """Read it again, into the target. Raises `ReadError`, after which anything may be in there."""
        target = self.target.detach()
        if target.device.type != "cpu" or not target.is_contiguous() or target.is_conj() or target.is_neg():
            target.copy_(to_tensor(self.saved))
            return
        memory = target.view(-1).view(torch.uint8).numpy()
        if isinstance(self.saved, OwnTensor):
            self.saved.into(memory.data)
            return
        at = 0
        for block in self.saved.blocks():
            memory[at : at + block.nbytes] = block.view("u1")
            at += block.nbytes


def form_of(saved: Any) -> torch.Tensor | None:
    """What reading a value will give, without its elements; None where that is no plain tensor from a file."""
    if not is_tensor(saved) or isinstance(saved, _OTHERS) or saved.dtype not in DTYPES:
        return None
    stride = getattr(saved, "stride", None) or row_major(saved.shape)
    if not is_dense(saved.shape, stride):
        return None
    return torch.empty_strided(saved.shape, stride, dtype=getattr(torch, saved.dtype), device="meta")


_OTHERS = (HeldTensor, SparseRef, CompressedRef, Blockwise, Affine)
"""What is in memory already, or is more than its elements."""


# --- the two passes ---------------------------------------------------------------------------------------------


def read_all(values: Sequence[Any]) -> list[Any]:
    """The first pass: each value in new memory, or for an `InPlace` its target, once it is verified. Raises `ReadError`."""
    found: dict[int, Any] = {}

    def read(numbers: Iterable[int]) -> None:
        found.update((number, _first(values[number])) for number in numbers)

    large = [number for number, value in enumerate(values) if isinstance(value, InPlace) or _nbytes(value) >= LARGE]
    with ThreadPoolExecutor(READERS) as readers:
        try:
            jobs = [readers.submit(read, batch) for batch in _batches(large, values)]
            read(sorted(set(range(len(values))).difference(large)))
            for job in jobs:
                job.result()
        except BaseException:
            readers.shutdown(cancel_futures=True)
            raise
    return [found[number] for number in range(len(values))]


def _first(value: Any) -> Any:
    if not isinstance(value, InPlace):
        return materialise(value)
    value.verify()
    return value.target


def write_all(items: Sequence[InPlace]) -> tuple[dict[str, Exception], BaseException | None]:
    """The second pass. Returns what could not be read, by name, and the interrupt that came meanwhile, if one did."""
    turns: SimpleQueue[list[int]] = SimpleQueue()
    for batch in _batches(range(len(items)), items):
        turns.put(batch)
    failed: dict[str, Exception] = {}
    with ThreadPoolExecutor(READERS) as readers:
        interrupt = _end_of([readers.submit(_write, turns, items, failed) for _ in range(READERS)])
    return {item.name: failed[item.name] for item in items if item.name in failed}, interrupt


def _write(turns: SimpleQueue[list[int]], items: Sequence[InPlace], failed: dict[str, Exception]) -> None:
    while True:
        try:
            batch = turns.get_nowait()
        except Empty:
            return
        for number in batch:
            try:
                items[number].write()
            except Exception as error:  # noqa: BLE001  # what is wrong with one must not stop the others
                failed[items[number].name] = error


def _end_of(jobs: Sequence[Future[None]]) -> BaseException | None:
    """Wait until all is done, whatever comes; returns the interrupt that came, for half a state would be worse than to wait."""
    interrupt: BaseException | None = None
    while not all(job.done() for job in jobs):
        try:
            wait(jobs)
        except BaseException as error:  # noqa: BLE001  # whoever asked for the restore raises it
            interrupt = error
    return interrupt


def _place(value: Any) -> tuple[str, int]:
    """Where a value is in our files; those of others are read in the order in which they come."""
    saved = value.saved if isinstance(value, InPlace) else value
    return saved.place if isinstance(saved, OwnTensor) else ("", 0)


def _nbytes(value: Any) -> int:
    if isinstance(value, InPlace):
        return nbytes(value.saved)
    return nbytes(value) if is_tensor(value) else 0


def _batches(numbers: Iterable[int], values: Sequence[Any]) -> Iterator[list[int]]:
    """Numbers of values in the order of the files, in runs that are worth a thread's turn."""
    batch: list[int] = []
    size = 0
    for number in sorted(numbers, key=lambda number: _place(values[number])):
        batch.append(number)
        size += _nbytes(values[number])
        if size >= LARGE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

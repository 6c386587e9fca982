"""Collecting differences: what headers tell at once, values later and all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple, TypeAlias

from optstate.errors import ReadError
from optstate.formats.compare import Change, compare
from optstate.formats.difference import Difference
from optstate.formats.trees import ABSENT, walk
from optstate.state.parallel import in_threads
from optstate.state.tensors import TensorRef, nbytes
from optstate.text import safe_text

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, after each tensor; of each pair, both count."""


class Job(NamedTuple):
    """Two tensors of one place; `told` is the difference to report should their values differ."""

    a: TensorRef
    b: TensorRef
    told: Difference


@dataclass(slots=True)
class Found:
    """Differences that are known, and pairs of tensors whose values are still to be compared."""

    differences: list[Difference] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: int = 0
    nbytes: int = 0

    def add(self, difference: Difference) -> None:
        """Note a difference."""
        self.differences.append(difference)

    def tensor(self, a: TensorRef, b: TensorRef, told: Difference) -> None:
        """Compare two tensors: what their headers tell now, their values later."""
        self.tensors += 1
        if a.shape != b.shape:
            self.add(replace(told, kind="shape", a=a.shape, b=b.shape))
            return
        if a.dtype != b.dtype:
            self.add(replace(told, kind="dtype", a=a.dtype, b=b.dtype))
            if a.dtype.startswith("complex") != b.dtype.startswith("complex"):
                return
        if prod(a.shape):
            self.jobs.append(Job(a, b, told))

    def tree(self, a: Any, b: Any, told: Difference) -> None:
        """Compare two values of any kind; `told.key` is where they are."""
        found = walk(a, b)
        key = told.key or ""
        for path, x, y in found.differing:
            place = f"{key}{path}".removeprefix(".") or None
            self.add(replace(told, key=place, a=None if x is ABSENT else x, b=None if y is ABSENT else y))
        for path, x, y in found.tensors:
            self.tensor(x, y, replace(told, key=f"{key}{path}".removeprefix(".") or None))
        for path in found.unknown:
            place = f"{told.name}.{key}{path}" if key else f"{told.name}{path}"
            self.add(Difference("unread", place, a="cannot be walked", b="cannot be walked"))

    def resolve(self, progress: Progress | None) -> None:
        """Compare the values of all tensors, several at a time."""
        total = sum(map(_weight, self.jobs))
        for job, change in zip(self.jobs, in_threads(_compared, self.jobs, _weight), strict=True):
            self.nbytes += _weight(job)
            if isinstance(change, ReadError):
                place = f"{job.told.name}/{job.told.key}" if job.told.key else job.told.name
                self.add(Difference("unread", safe_text(place), a=change.what, b=change.what))
            elif change is not None and (change.differing or job.a.dtype == job.b.dtype):
                self.add(_as_told(job, change))
            if progress is not None:
                progress(self.nbytes, total)


def _weight(job: Job) -> int:
    return nbytes(job.a) + nbytes(job.b)


def _compared(job: Job) -> Change | ReadError | None:
    try:
        return compare(job.a, job.b)
    except ReadError as error:
        return error


def _as_told(job: Job, change: Change) -> Difference:
    """A difference of values; of a single number, what it was and is."""
    if prod(job.a.shape) == 1:
        return replace(job.told, a=job.a.item(), b=job.b.item(), change=change)
    return replace(job.told, change=change)

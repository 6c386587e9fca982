"""Backups of tensors in flat memory that one edit after the other reuses: fresh memory costs ten times a copy."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate, count

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

CHUNK = 1 << 20
"""Elements that are worked on together: they stay in a processor's cache from the backup to the last norm."""

_LARGE = 1 << 15
"""Elements from which a tensor is worked on alone: joining it with others would cost a copy and save nothing."""

_SEGMENT = 1 << 22
"""Elements that are taken from the system at once, or as many as the largest tensor has."""


def chunks(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type and device, small ones together up to `CHUNK` elements, each large one alone."""
    chunk: list[torch.Tensor] = []
    elements = 0
    for tensor in tensors:
        size = tensor.numel()
        if chunk and (elements + size > CHUNK or size >= _LARGE):
            yield chunk
            chunk, elements = [], 0
        chunk.append(tensor)
        elements += size
        if size >= _LARGE:
            yield chunk
            chunk, elements = [], 0
    if chunk:
        yield chunk


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The elements of a chunk one after the other: of a single dense tensor the memory itself, else a copy."""
    if len(tensors) == 1:
        (tensor,) = tensors
        return tensor if tensor.dim() == 1 and not tensor.requires_grad else tensor.detach().reshape(-1)
    if _rows_alike(tensors):  # four times as fast as what takes any shapes
        return torch.cat(list(tensors)).detach().reshape(-1)
    return _flatten_dense_tensors(tensors)  # type: ignore[no-any-return]


def apart(elements: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """What `flat` made of such tensors, as views in their shapes."""
    if _rows_alike(tensors):
        rows = [tensor.shape[0] for tensor in tensors]
        return elements.view(-1, *tensors[0].shape[1:]).split_with_sizes(rows)
    return _unflatten_dense_tensors(elements, tensors)  # type: ignore[no-any-return]


def _rows_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are rows of one shape, some of them in each."""
    shapes = {tensor.shape for tensor in tensors}
    rows = {shape[1:] for shape in shapes}
    return torch.Size() not in shapes and len(rows) == 1 and rows.pop().numel() > 0


class Buffers:
    """Flat memory by element type and device. What was taken stays untouched until `clear`."""

    def __init__(self) -> None:
        self._segments: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        self._used: dict[tuple[torch.dtype, torch.device], tuple[int, int]] = {}

    def clear(self) -> None:
        """Give all of it back for use by the next edit."""
        self._used.clear()

    def take(self, like: torch.Tensor, elements: int) -> torch.Tensor:
        """So many elements of the type of `like` on its device, of any content."""
        key = (like.dtype, like.device)
        segments = self._segments.setdefault(key, [])
        place, offset = self._used.get(key, (0, 0))
        while place < len(segments) and offset + elements > segments[place].numel():
            place, offset = place + 1, 0
        if place == len(segments):
            segments.append(torch.empty(max(elements, _SEGMENT), dtype=like.dtype, device=like.device))
        self._used[key] = (place, offset + elements)
        return segments[place].narrow(0, offset, elements)


class Backup:
    """What tensors held before they were written to first."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._copies: list[tuple[list[torch.Tensor], torch.Tensor]] = []
        self._starts: list[int] = []  # how many tensors were kept before each copy
        self._offsets: dict[int, list[int]] = {}  # where the tensors of a copy begin, for those that were asked for
        self._numbers: dict[int, int] = {}  # id of a tensor → its number among all that are kept

    def keep(self, chunk: list[torch.Tensor]) -> torch.Tensor:
        """Copy the elements of a chunk of tensors of which none is kept yet; returns the copy."""
        elements = flat(chunk)
        copy = self._buffers.take(elements, elements.numel()).copy_(elements)
        self._starts.append(len(self._numbers))
        self._numbers.update(zip(map(id, chunk), count(len(self._numbers)), strict=False))
        self._copies.append((chunk, copy))
        return copy

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._numbers

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What `tensor` held before, in its shape; itself where it was not kept, for then nothing wrote to it."""
        number = self._numbers.get(id(tensor))
        if number is None:
            return tensor
        place = bisect(self._starts, number) - 1
        chunk, copy = self._copies[place]
        offsets = self._offsets.setdefault(place, [])
        if not offsets:
            offsets.extend(accumulate(map(torch.Tensor.numel, chunk), initial=0))
        return copy.narrow(0, offsets[number - self._starts[place]], tensor.numel()).view(tensor.shape)

    def put_back(self) -> None:
        """Write everything that was kept back to where it came from."""
        for chunk, copy in self._copies:
            torch._foreach_copy_(chunk, list(apart(copy, chunk)))

"""Tensors that are written while the program goes on: what is copied at once, and whether the rest stayed as it was.

Weights and slots change inside `optimizer.step()`, which waits until they were read. Where a program writes to them by
another way, a save must not become something that never was: of every tensor that is not copied at once a digest is
taken when the save begins, and it must be that of the bytes that were written. On an accelerator, whose memory is far
from where digests are taken, the device takes a checksum before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import xxhash

from optstate.errors import SaveError
from optstate.formats.ours.manifest import TensorEntry
from optstate.state.parallel import in_threads
from optstate.store.device import Beside, checksum
from optstate.store.files import Buffer
from optstate.store.tensors import array_pieces, pieces
from optstate.text import safe_text

Mode: TypeAlias = Literal["stream", "copy"]

SMALL = 1 << 16
"""Bytes below which a tensor is copied at once: step counts among them, which programs also change outside a step."""


class Streaming:
    """Takes the tensors of one save; satisfies `optstate.store.tensors.Taking`.

    In mode `"copy"` all of them are copied at once; in mode `"stream"` small ones are, and those that something else than
    steps may change.
    """

    def __init__(self, mode: Mode) -> None:
        self._copies_all = mode == "copy"
        self._streamed: dict[str, _Streamed] = {}
        self._copied: set[torch.device] = set()
        self._beside = Beside()

    def tensor(self, key: str, tensor: torch.Tensor, *, in_steps: bool) -> Callable[[], Iterable[Buffer]]:
        if self._copies_all or not in_steps or tensor.nbytes < SMALL:
            copy = _copy(tensor)
            self._copied.add(copy.device)
            return partial(self._beside.pieces, copy)
        # Another tensor of the same memory: one that is given other memory, as by `.data =`, leaves it alone.
        streamed = self._streamed[key] = _Streamed(key, tensor.detach(), tensor.data_ptr(), self._beside)
        return streamed.pieces

    def array(self, array: np.ndarray[Any, Any]) -> Callable[[], Iterable[Buffer]]:
        return partial(array_pieces, array.copy())

    def begin(self) -> bool:
        """Note what every tensor holds: once the last was taken, and before anything changes. Whether any is still to be read."""
        streamed = list(self._streamed.values())
        # In a thread of its own a device would not wait for what it was asked in this one.
        marks = in_threads(_Streamed.held, streamed, lambda each: each.tensor.nbytes * (not each.on_device))
        for each, mark in zip(streamed, marks, strict=True):
            each.mark = mark
        self._beside.begin(self._copied | {each.tensor.device for each in streamed})
        return bool(streamed)

    def moved(self, written: Mapping[str, TensorEntry]) -> list[str]:
        """The names of tensors that did not hold, when the save began, the bytes that were written."""
        return [each.name for key, each in self._streamed.items() if not each.stayed(written[key])]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy; what is small stays on its device, so that nobody waits for it now."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.nbytes < SMALL else tensor.to("cpu", copy=True)


@dataclass(slots=True, eq=False)
class _Streamed:
    """A tensor that is read later: where it lies, and what it held."""

    key: str
    tensor: torch.Tensor
    address: int
    beside: Beside
    mark: str | torch.Tensor = ""

    @property
    def name(self) -> str:
        return safe_text(self.key.partition("/")[2])

    @property
    def on_device(self) -> bool:
        return self.tensor.device.type != "cpu"

    def pieces(self) -> Iterable[Buffer]:
        """Its bytes. Raises `SaveError` where the memory was given back, which must not be read."""
        if self.tensor.data_ptr() != self.address:
            raise SaveError(f"the memory of {self.name} was given back before it was written")
        return self.beside.pieces(self.tensor)

    def held(self) -> str | torch.Tensor:
        """A digest of what it holds now, or the checksum, which its device is still about to take."""
        if self.on_device:
            return checksum(self.tensor)
        digest = xxhash.xxh3_128()
        for piece in pieces(self.tensor):
            digest.update(piece)
        return f"xxh3-128:{digest.hexdigest()}"

    def stayed(self, written: TensorEntry) -> bool:
        """Whether what was written is what it held."""
        if isinstance(self.mark, str):
            return [self.mark] == [chunk.digest for chunk in written.chunks]
        with self.beside.on(self.tensor.device):
            return bool(self.mark == checksum(self.tensor))

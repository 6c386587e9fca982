"""Tensors on an accelerator: copied out, and looked at, beside what the program does there meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from optstate.store.files import Buffer
from optstate.store.tensors import CARRIERS, pieces
from optstate.store.writer import PIECE


class Beside:
    """A stream of a save's own on each accelerator: after all that was asked of the device until `begin`, and beside the rest."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def begin(self, devices: Iterable[torch.device]) -> None:
        """Begin here, on these devices; those that have no streams do everything in turn."""
        for device in set(devices):
            module = torch.get_device_module(device)
            if device.type != "cpu" and hasattr(module, "Stream"):
                self._streams[device] = module.Stream(device)
                self._streams[device].wait_stream(module.current_stream(device))

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Have what is asked of a device done beside the program's work."""
        stream = self._streams.get(device)
        return nullcontext() if stream is None else torch.get_device_module(device).stream(stream)

    def pieces(self, tensor: torch.Tensor) -> Iterable[Buffer]:
        """The bytes of a tensor in row-major order: while one piece is used, the next is on its way to pinned memory."""
        stream = self._streams.get(tensor.device)
        return pieces(tensor) if stream is None else self._fetched(tensor, stream)

    def _fetched(self, tensor: torch.Tensor, stream: Any) -> Iterator[Buffer]:
        buffers = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        parts, number, ahead = _parts(tensor), 0, None
        while True:
            with self.on(tensor.device):
                part = next(parts, None)  # within, for it may have to be made contiguous
                following = None
                if part is not None:
                    target = buffers[number % 2][: len(part)]
                    target.copy_(part, non_blocking=True)
                    following = target, part, stream.record_event()
            if ahead is not None:
                here, _, arrived = ahead
                arrived.synchronize()
                yield here.numpy().data
            if following is None:
                return
            ahead, number = following, number + 1


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """A number, on the tensor's own device, that is another one where an element has other bits or two changed places."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in _parts(tensor):
        words = part.view(CARRIERS[min(tensor.element_size(), 8)]).to(torch.int64)
        odd = torch.arange(1, 2 * len(words), 2, device=tensor.device)
        total = total * 31 + (words * odd).sum()  # modulo 2^64, in which every odd number has an inverse
    return total


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor as bytes in row-major order, at most `PIECE` at a time; it is copied where it does not lie so."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        yield from tensor.reshape(-1).view(torch.uint8).split(PIECE) if tensor.numel() else ()
    elif tensor.nbytes <= PIECE:
        yield from _parts(tensor.contiguous())
    elif len(tensor) == 1:
        yield from _parts(tensor[0])
    else:
        for rows in tensor.split(max(1, PIECE * len(tensor) // tensor.nbytes)):
            yield from _parts(rows)

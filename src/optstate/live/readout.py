"""Numbers that are still on a device: asked for one after the other, fetched all together."""

from __future__ import annotations

from itertools import islice

import torch


class Readout:
    """Collects tensors and reads them with one wait per device, which is one in all on most machines."""

    def __init__(self) -> None:
        self._asked: list[torch.Tensor] = []
        self._read: list[list[float]] = []

    def ask(self, numbers: torch.Tensor) -> int:
        """Note a tensor of real numbers; returns its place in `fetch`."""
        self._asked.append(numbers.detach().reshape(-1))
        return len(self._asked) - 1

    def fetch(self) -> list[list[float]]:
        """The numbers of every tensor asked for, in order; those that came with an earlier call are not read again."""
        devices: dict[torch.device, list[int]] = {}
        for place in range(len(self._read), len(self._asked)):
            devices.setdefault(self._asked[place].device, []).append(place)
        found: dict[int, list[float]] = {}
        for places in devices.values():
            numbers = iter(torch.cat([self._asked[place].to(torch.float64) for place in places]).tolist())
            for place in places:
                found[place] = list(islice(numbers, self._asked[place].numel()))
        self._read.extend(found[place] for place in sorted(found))
        return self._read

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
        self._asked.append(numbers)
        return len(self._asked) - 1

    def fetch(self) -> list[list[float]]:
        """The numbers of every tensor asked for, in order; those that came with an earlier call are not read again."""
        kinds: dict[tuple[torch.device, torch.dtype, torch.Size], list[int]] = {}
        for place in range(len(self._read), len(self._asked)):
            asked = self._asked[place]
            kinds.setdefault((asked.device, asked.dtype, asked.shape), []).append(place)
        devices: dict[torch.device, list[torch.Tensor]] = {}
        for (device, _, _), places in kinds.items():  # each call of torch takes longer than all of this
            together = torch.stack([self._asked[place] for place in places])
            devices.setdefault(device, []).append(together.detach().reshape(-1).to(torch.float64))
        numbers = iter([number for parts in devices.values() for number in torch.cat(parts).tolist()])
        order = [place for device in devices for kind, places in kinds.items() if kind[0] == device for place in places]
        found = {place: list(islice(numbers, self._asked[place].numel())) for place in order}
        self._read.extend(found[place] for place in sorted(found))
        return self._read

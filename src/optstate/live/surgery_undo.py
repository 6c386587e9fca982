"""A surgery that was kept: what something else changed since, and taking it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optstate.live.backup import Buffers
from optstate.live.transaction import Transaction
from optstate.live.undo import groups_now, same_groups, same_items
from optstate.live.writing import Writer
from optstate.state.journal import JournalEntry
from optstate.text import safe_text


class KeptSurgery:
    """Remembers how a surgery left every parameter that it touched, and holds what was there before it.

    Tensors are recognised by the counter that torch raises at each write in place, everything else by identity.
    """

    def __init__(
        self,
        transaction: Transaction,
        buffers: Buffers,
        touched: Sequence[tuple[torch.optim.Optimizer, torch.Tensor, str]],
        entries: list[JournalEntry],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.entries = entries
        self.buffers = buffers
        self._transaction = transaction
        self._optimizers = optimizers
        self._groups = [groups_now(optimizer) for optimizer in optimizers]
        self._keys = [list(map(id, optimizer.state)) for optimizer in optimizers]
        self._touched = [(*each, dict(each[0].state.get(each[1], {}))) for each in touched]
        self._versions = {id(tensor): (tensor, tensor._version) for tensor in self._tensors()}

    def _tensors(self) -> list[torch.Tensor]:
        slots = [value for *_, entry in self._touched for value in entry.values() if isinstance(value, torch.Tensor)]
        return [*(parameter for _, parameter, *_ in self._touched), *slots]

    def take_back(self) -> None:
        """Put everything back as it was before the surgery: the very objects."""
        self._transaction.rollback()
        self.buffers.clear()

    def changed(self) -> str | None:
        """What is no longer as the surgery left it, in words; None where everything is."""
        for optimizer, parameter, name, entry in self._touched:
            live: Mapping[str, Any] = optimizer.state.get(parameter, {})
            tensors = [parameter, *(value for value in entry.values() if isinstance(value, torch.Tensor))]
            if not same_items(entry, live):
                return f"the slots of {safe_text(name)} are others now"
            if any(self._versions[id(tensor)][1] != tensor._version for tensor in tensors):
                return f"{safe_text(name)} was written to since, as by a step"
        if self._keys != [list(map(id, optimizer.state)) for optimizer in self._optimizers]:
            return "other parameters have state since, as after a step"
        if not all(map(same_groups, self._groups, map(groups_now, self._optimizers))):
            return "param groups have changed since"
        return None

    def excuse(self, writer: Writer) -> None:
        """An edit wrote to the same tensors and took it back: their counters rose, their values are the same."""
        for key, (tensor, version) in self._versions.items():
            if writer.seen.get(key) == version:
                self._versions[key] = (tensor, tensor._version)

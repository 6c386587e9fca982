"""An edit that was kept: what something else changed since, and taking it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optstate.live.backup import Buffers
from optstate.live.deeds import Deed
from optstate.live.writing import Writer
from optstate.state.journal import JournalEntry
from optstate.text import safe_text


class Kept:
    """Remembers how an edit left everything that it wrote to.

    Tensors are recognised by the counter that torch raises at each write in place, everything else by identity.
    """

    def __init__(
        self,
        deeds: Sequence[Deed],
        writer: Writer,
        buffers: Buffers,
        entries: list[JournalEntry],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.entries = entries
        self.buffers = buffers
        self._deeds = deeds
        self._writer = writer
        self._rewritten = [(*each, dict(each[0].state.get(each[1], {}))) for each in writer.rewritten]
        self._groups = [groups_now(optimizer) for optimizer in optimizers] if writer.regrouped else []
        self._optimizers = optimizers

    def take_back(self) -> None:
        """Put everything back as it was before the edit."""
        with torch.no_grad():
            self._writer.transaction.rollback()
        self.buffers.clear()

    def changed(self) -> str | None:
        """What is no longer as the edit left it, in words; None where everything is."""
        for deed in self._deeds:
            for mark in deed.marks:
                moved = mark.moved()
                if moved is not None:
                    return f"{moved} is another tensor now"
                for number, tensor, version in zip(mark.chunk, mark.tensors, mark.versions, strict=True):
                    if tensor._version != version:
                        return f"{mark.batch.path(number)} was written to since, as by a step"
        for optimizer, parameter, name, entry in self._rewritten:
            if not same_items(entry, optimizer.state.get(parameter, {})):
                return f"the slots of {safe_text(name)} are others now"
        if self._groups and not all(map(same_groups, self._groups, map(groups_now, self._optimizers))):
            return "param groups have changed since"
        return None

    def excuse(self, writer: Writer) -> None:
        """Another edit wrote to the same tensors and took it back: their counters rose, their values are the same."""
        for mark in (mark for deed in self._deeds for mark in deed.marks):
            for place, tensor in enumerate(mark.tensors):
                if writer.seen.get(id(tensor)) == mark.versions[place]:
                    mark.versions[place] = tensor._version


Groups = list[tuple[Mapping[str, Any], list[torch.Tensor]]]


def groups_now(optimizer: torch.optim.Optimizer) -> Groups:
    """The param groups as they are: what is in them, and their parameters."""
    return [(dict(group), list(group["params"])) for group in optimizer.param_groups]


def same_groups(one: Groups, other: Groups) -> bool:
    """Whether these are the same groups of the very same objects."""
    return len(one) == len(other) and all(
        same_items(ours, theirs) and [*map(id, our_tensors)] == [*map(id, their_tensors)]
        for (ours, our_tensors), (theirs, their_tensors) in zip(one, other, strict=True)
    )


def same_items(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two mappings hold the very same objects under the same keys, in the same order."""
    return list(one) == list(other) and all(one[key] is other[key] for key in one)

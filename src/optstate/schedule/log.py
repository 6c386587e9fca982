"""What the journal says of a schedule: one entry for all changes of slots that it makes, not one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optstate.live.coupling import Work
from optstate.live.journals import journal_of
from optstate.state.journal import JournalEntry


class Log:
    """Writes when a schedule first changed slots, how often it has, and until when. Hyperparameters alone are not written."""

    def __init__(
        self, name: str, optimizer: torch.optim.Optimizer, arguments: Mapping[str, Any], selection: str = "*"
    ) -> None:
        self._name = name
        self._optimizer = optimizer
        self._arguments = dict(arguments)
        self._selection = selection
        self._entry: JournalEntry | None = None

    def count(self, works: Sequence[Work], steps: int) -> None:
        """Note what was done to slots, after so many steps."""
        done = [work for work in works if work]
        if not done:
            return
        journal = journal_of({self._name: self._optimizer})
        last = self._entry
        if last is not None and any(entry is last for entry in reversed(journal)):
            self._entry = journal.amend(last, times=last.times + 1, arguments={**self._arguments, "until": steps})
        else:
            self._entry = journal.append(self._first(done, steps))

    def _first(self, works: Sequence[Work], steps: int) -> JournalEntry:
        return JournalEntry(
            verb="schedule",
            arguments=self._arguments,
            step=steps,
            selection=self._selection,
            parameters=sum(work.parameters for work in works),
            slots=sum(work.slots for work in works),
            elements=sum(tensor.numel() for work in works for tensor in work.tensors),
            backup=False,
            optimizer=self._name,
        )

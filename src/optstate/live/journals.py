"""The journals of running optimizers: one for all that are edited together, for as long as they live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from optstate.state.journal import Journal, JournalEntry

_JOURNALS: WeakKeyDictionary[torch.optim.Optimizer, Journal] = WeakKeyDictionary()


def journal_of(optimizers: Mapping[str, torch.optim.Optimizer]) -> Journal:
    """The journal of these optimizers, always the same one; optimizers that are attached together share theirs."""
    known = [_JOURNALS[optimizer] for optimizer in optimizers.values() if optimizer in _JOURNALS]
    journal = known[0] if known else Journal()
    for other in known[1:]:
        journal.join(other)
    _JOURNALS.update(dict.fromkeys(optimizers.values(), journal))
    return journal


class Restored(NamedTuple):
    """What a restore did to a journal: what was in it before, and the entry that tells of it."""

    before: list[JournalEntry]
    entry: JournalEntry


def restored(journal: Journal, saved: Journal | None, entry: JournalEntry) -> Restored:
    """Go on from the journal of a checkpoint (None: it has none), once its state is live; `entry` tells of the restore.

    What was done since the checkpoint stays in the journal, as undone: the restore took it back.
    """
    before = list(journal)
    if saved is not None:
        known = Counter(map(_mark, saved))
        since = []
        for each in journal:
            known[_mark(each)] -= 1
            since += [replace(each, undone=True)] if known[_mark(each)] < 0 else []
        journal.put([*saved, *since])
    return Restored(before, journal.append(entry))


def reverted(journal: Journal, restore: Restored, entry: JournalEntry) -> None:
    """Go on from the journal as it was before a restore, once that was taken back; `entry` tells of it.

    The restore, and what was done since, stays in the journal, as undone.
    """
    mark = _mark(restore.entry)
    place = next((place for place, each in enumerate(journal) if _mark(each) == mark), len(journal))
    journal.put([*restore.before, *(replace(each, undone=True) for each in journal[place:])])
    journal.append(entry)


def _mark(entry: JournalEntry) -> str:
    """What tells an entry from others, whatever was written of it later."""
    document = entry.document()
    return repr([document[key] for key in ("when", "verb", "note", "selection", "arguments", "optimizer")])

"""What an edit changed, or would: a value that prints itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optstate.state.journal import JournalEntry, journal_table
from optstate.state.table import Table
from optstate.text import count, safe_text


@dataclass(frozen=True, slots=True)
class Change:
    """The outcome of an edit: one entry for each verb, as the journal has it or would have.

    `made` is False for a dry run and for what was refused; `refusals` are the reasons why it cannot be made, `notes` what
    could not be told of it.

    >>> with state.edit(dry_run=True) as edit:
    ...     edit.select("*.weight").momentum.scale_(0.5)
    >>> edit.change.made, edit.change.entries[0].parameters, edit.change.refusals
    (False, 2, ())
    """

    entries: Sequence[JournalEntry]
    made: bool
    refusals: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return self._table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        table = journal_table([replace(entry, note="", when="") for entry in self.entries])  # one note, one time
        done = "made" if self.made else "not made"
        notes = {entry.note: f": {safe_text(entry.note, 80)}" for entry in self.entries if entry.note}
        return Table(
            title=[f"{count(len(self.entries), 'change')}, {done}{''.join(notes.values())}"],
            header=table.header,
            rows=table.rows,
            notes=[*(f"refused: {reason}" for reason in self.refusals), *self.notes],
            right=table.right,
        )

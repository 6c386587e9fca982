"""The journal: every edit of optimizer state, in order, as plain values that print, save and load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from math import inf, isfinite
from typing import Any, overload

from optstate.state.table import Table
from optstate.text import count, safe_text

SCHEMA = "optstate.journal/1"


def utc_now() -> str:
    """The time in UTC, ISO 8601, in whole seconds: `2026-01-02T03:04:05Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One change of optimizer state.

    verb, arguments
        What was done: `scale_` with `{"factor": 0.5}`. Arguments are values of JSON, a tensor among them its shape.
    when
        UTC in ISO 8601; the journal writes it where it is "".
    step
        Steps that the optimizer had taken; None where it does not say.
    note
        Why, in the words of whoever did it.
    selection
        What it was done to, as `Selection.description` says it.
    parameters, slots, elements
        How many it touched.
    norms
        Slot key → its L2 norm over all that was touched, before and after; None where none was measured.
    effect
        The size of the next update before, after, and of a fresh start; None where none is known.
    forced, undone, backup
        Whether it was refused and forced; whether it has been taken back; whether it could be.
    optimizer
        The optimizer's name, "" of a single one.
    times
        How often the same was done, where one entry stands for many changes, as of a schedule.

    >>> state.select("*").momentum.scale_(0.5)
    >>> entry = state.journal[-1]
    >>> entry.verb, dict(entry.arguments), entry.parameters
    ('scale_', {'factor': 0.5}, 4)
    """

    verb: str
    arguments: Mapping[str, Any]
    when: str = ""
    step: int | None = None
    note: str = ""
    selection: str = ""
    parameters: int = 0
    slots: int = 0
    elements: int = 0
    norms: Mapping[str, tuple[float | None, float | None]] | None = None
    effect: tuple[float | None, float | None, float | None] | None = None
    forced: bool = False
    undone: bool = False
    backup: bool = True
    optimizer: str = ""
    times: int = 1

    def document(self) -> dict[str, Any]:
        """All fields in JSON's own types; a number that JSON lacks is text, `"Infinity"` or `"NaN"`.

        So is any other value of `arguments` that JSON does not have, and what Unicode lacks is escaped: a journal can
        always be saved.
        """
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> JournalEntry:
        """The entry that `document()` wrote."""
        norms, effect = document.get("norms"), document.get("effect")
        return cls(
            **{
                **document,
                "norms": None if norms is None else {key: _numbers(pair) for key, pair in norms.items()},
                "effect": None if effect is None else _numbers(effect),
            }
        )


class Journal(Sequence[JournalEntry]):
    """Every edit of a state, the oldest first: of a running optimizer, and what a checkpoint says of those before it.

    Prints as a table. `clock` gives the time of an entry that has none.

    >>> state.select("*").momentum.scale_(0.5)
    >>> state.journal[-1].verb, state.journal.document()["schema"]
    ('scale_', 'optstate.journal/1')
    """

    def __init__(self, entries: Iterable[JournalEntry] = (), *, clock: Callable[[], str] = utc_now) -> None:
        self.clock = clock
        self._entries = list(entries)

    def append(self, entry: JournalEntry) -> JournalEntry:
        """Write an entry, with the time where it has none; returns what was written."""
        written = entry if entry.when else replace(entry, when=self.clock())
        self._entries.append(written)
        return written

    def amend(self, entry: JournalEntry, **changes: Any) -> JournalEntry:
        """Write an entry of this journal anew with other fields, such as `undone=True`; returns what was written.

        Raises `ValueError` for an entry that is not in it.
        """
        for place in reversed(range(len(self._entries))):  # from the end: what is amended is nearly always new
            if self._entries[place] is entry:
                self._entries[place] = replace(entry, **changes)
                return self._entries[place]
        raise ValueError("this entry is not in the journal")

    def put(self, entries: Iterable[JournalEntry]) -> None:
        """Make these all that is in it."""
        self._entries[:] = entries

    def join(self, other: Journal) -> None:
        """Become one with another journal: from now on both hold the entries of both, by their times."""
        if other._entries is not self._entries:
            self._entries[:] = sorted((*self._entries, *other._entries), key=lambda entry: entry.when)
            other._entries = self._entries

    def document(self) -> dict[str, Any]:
        """The journal in JSON's own types, with its schema."""
        return {"schema": SCHEMA, "entries": [entry.document() for entry in self]}

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> JournalEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[JournalEntry]: ...
    def __getitem__(self, index: int | slice) -> JournalEntry | list[JournalEntry]:
        return self._entries[index]

    def __iter__(self) -> Iterator[JournalEntry]:
        return iter(self._entries)

    def __str__(self) -> str:
        return journal_table(self).text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return journal_table(self).html()


def journal_table(entries: Sequence[JournalEntry], limit: int | None = None) -> Table:
    """A journal as it is printed, the last `limit` entries (None: all); a column that would be empty is not there."""
    rows = [_cells(entry) for entry in entries[-limit if limit else 0 :]]
    last = f", the last {len(rows):,}" if len(rows) < len(entries) else ""
    header = [label for label in _HEADER if label == "EDIT" or any(row[label] for row in rows)]
    return Table(
        title=[f"journal: {len(entries):,} {'entry' if len(entries) == 1 else 'entries'}{last}"],
        header=header,
        rows=[[row[label] for label in header] for row in rows],
        right=frozenset({"STEP"}),
    )


_HEADER = ("WHEN", "STEP", "OPTIMIZER", "EDIT", "SELECTION", "TOUCHED", "NORM", "NEXT UPDATE", "BESIDES", "NOTE")


def _cells(entry: JournalEntry) -> dict[str, str]:
    arguments = ", ".join(f"{safe_text(key, 32)}={_argument(value)}" for key, value in entry.arguments.items())
    times = f" × {entry.times:,}" if entry.times > 1 else ""
    besides = {"undone": entry.undone, "forced": entry.forced, "no backup": not entry.backup}
    cells = (
        safe_text(entry.when, 32),
        "" if entry.step is None else f"{entry.step:,}",
        safe_text(entry.optimizer, 24),
        f"{safe_text(entry.verb, 40)}({arguments}){times}",
        safe_text(entry.selection, 60),
        _touched(entry),
        ", ".join(f"{safe_text(key, 40)} {_change(*pair)}" for key, pair in (entry.norms or {}).items()),
        "" if entry.effect is None else f"{_change(*entry.effect[:2])} (fresh {_number(entry.effect[2])})",
        ", ".join(word for word, holds in besides.items() if holds),
        safe_text(entry.note, 80),
    )
    return dict(zip(_HEADER, cells, strict=True))


def _touched(entry: JournalEntry) -> str:
    numbers = {"parameter": entry.parameters, "slot": entry.slots, "element": entry.elements}
    return ", ".join(count(number, noun) for noun, number in numbers.items() if number)


def _argument(value: Any) -> str:
    return repr(safe_text(value, 40)) if isinstance(value, str) else safe_text(value, 60)


def _change(before: float | None, after: float | None) -> str:
    return f"{_number(before)} → {_number(after)}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


# --- JSON -------------------------------------------------------------------------------------------------


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_json(str(key)): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else {inf: "Infinity", -inf: "-Infinity"}.get(value, "NaN")
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else safe_text(value)


def _numbers(values: Iterable[Any]) -> tuple[float | None, ...]:
    return tuple(None if value is None else float(value) for value in values)

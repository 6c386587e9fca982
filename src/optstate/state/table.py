"""How a state looks when it is printed: one table, rendered as text or as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeAlias

from optstate.errors import ReadError
from optstate.state.absence import Absence
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.parameter import ParamState
from optstate.state.roles import Certainty, Role
from optstate.state.slot import Slot, format_number
from optstate.state.stats import Stats, stats
from optstate.state.tensors import DTYPES, is_tensor
from optstate.text import count, elide, listing, safe_text

ROWS = 40
"""Rows that printing a state shows; more are elided in the middle, with a count."""

_NARROW = 24  # columns that a name keeps however narrow the terminal is


class Printable(Protocol):
    """What a table shows: an `OptimizerState`, said without importing it, for it imports its printer."""

    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str, /) -> ParamState: ...
    @property
    def optimizers(self) -> Mapping[str, OptimizerInfo]: ...
    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def left_out(self) -> Mapping[str, Sequence[str]]: ...


@dataclass(frozen=True, slots=True)
class Table:
    """Lines above, a header, rows and lines below; every string is already safe to print.

    `unread` are the numbers that could not be read, each with the reason; `UNREADABLE` stands in their cells.
    """

    title: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    right: frozenset[str] = field(default_factory=frozenset)
    unread: Sequence[str] = ()

    def text(self, width: int | None = None) -> str:
        """Plain text with aligned columns, no escape codes.

        Where the rows are longer than `width`, the first column gives way, elided in the middle.
        """
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        excess = sum(widths) + 2 * (len(widths) - 1) - width if width is not None else 0
        widths[0] = min(widths[0], max(_NARROW, widths[0] - excess))
        lines = [self._line(row, widths) for row in (self.header, *self.rows)] if self.rows else []
        return "\n".join([*self.title, *([""] if lines else []), *lines, *([""] if self.notes else []), *self.notes])

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            elide(cell, width).rjust(width) if label in self.right else elide(cell, width).ljust(width)
            for label, cell, width in zip(self.header, row, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    def html(self) -> str:
        """An HTML fragment without script or style sheet; every string is escaped here."""
        from html import escape

        head = "".join(f"<th>{escape(label)}</th>" for label in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td><code>{escape(cell)}</code></td>" for cell in row) + "</tr>" for row in self.rows
        )
        above = "".join(f"<p>{escape(line)}</p>" for line in self.title)
        below = "".join(f"<p>{escape(line)}</p>" for line in self.notes)
        return f"<div>{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"


Measured: TypeAlias = Mapping[tuple[str, str], Stats]
"""Statistics that were taken beforehand, by parameter and slot key."""


def state_table(
    state: Printable, names: Sequence[str] | None = None, limit: int | None = ROWS, measured: Measured | None = None
) -> Table:
    """The table of a state, or of the given names of it, at most `limit` rows (None: all).

    A tensor in memory shows its L2 norm. One in a file shows its key, since printing reads only headers,
    unless it is in `measured`.
    """
    every = list(state)
    chosen = [state[name] for name in (every if names is None else names)]
    shown, hidden = _elide(chosen, limit)
    unread: list[str] = []
    header = _header(chosen)
    rows = [[cell for label, cell in _row(parameter, measured or {}, unread) if label in header] for parameter in shown]
    if hidden:
        rows.insert(len(shown) * 2 // 3, [f"… {hidden:,} more", *[""] * (len(header) - 1)])
    return Table(
        title=[
            _headline(state, every),
            *([] if names is None else [f"selected: {count(len(chosen), 'parameter')}"]),
            *_certainty_line(chosen),
        ],
        header=header,
        rows=rows,
        notes=[
            *_absence_notes(chosen),
            *_group_notes(state.groups, limit, unread),
            *_left_out_notes(state.left_out),
        ],
        right=frozenset({_NUMBER, "GROUP", "STEP"}),
        unread=unread,
    )


UNREADABLE = "!"

_NUMBER = "#"  # a column only where a file numbers parameters and names are known besides
_NAME_BY = "NAME BY"  # only where some names are surer than others
_ONE_OF = "ONE OF"  # only where some parameters could each be one of several weights
_HEADER = (
    "PARAMETER", _NUMBER, _NAME_BY, "SHAPE", "DTYPE", "GROUP", "STEP", "MOMENTUM", "SECOND MOMENT", "OTHER SLOTS",
    _ONE_OF,
)  # fmt: skip
_SHOWN_BY_ROLE: tuple[Role, ...] = ("step", "momentum", "second_moment")


def _header(parameters: Sequence[ParamState]) -> Sequence[str]:
    """The columns that say something about these parameters."""
    facts = [parameter.facts for parameter in parameters]
    shown = {
        _NUMBER: any(each.position is not None and each.certainty != "position" for each in facts),
        _NAME_BY: len({each.certainty for each in facts}) > 1,
        _ONE_OF: any(each.candidates for each in facts),
    }
    return [label for label in _HEADER if shown.get(label, True)]


def _row(parameter: ParamState, measured: Measured, unread: list[str]) -> Iterator[tuple[str, str]]:
    facts, slots = parameter.facts, parameter.slots
    by_role = {slot.role: slot for slot in slots.values() if slot.primary and slot.role in _SHOWN_BY_ROLE}
    others = [slot for slot in slots.values() if by_role.get(slot.role) is not slot]
    cells = (
        safe_text(facts.name),
        "" if facts.position is None else f"#{facts.position}",
        facts.certainty,
        "?" if facts.shape is None else "×".join(map(str, facts.shape)) or "scalar",
        facts.dtype or "?",
        str(facts.group) if not facts.optimizer else f"{safe_text(facts.optimizer, 24)}:{facts.group}",
        _step(by_role.get("step"), unread),
        _moment(by_role.get("momentum"), measured),
        _moment(by_role.get("second_moment"), measured),
        ", ".join(_with_stats(slot, measured.get((slot.parameter, slot.key))) for slot in others),
        f"{len(facts.candidates)}: {listing(facts.candidates, 3)}" if facts.candidates else "",
    )
    return zip(_HEADER, cells, strict=True)


def _step(slot: Slot | None, unread: list[str]) -> str:
    if slot is None:
        return "–"
    value = slot.value
    try:
        number = value.item() if is_tensor(value) and prod(value.shape) == 1 else value
    except ReadError as error:
        unread.append(f"{slot.path}: {error.what}")
        return UNREADABLE
    return format_number(number) if isinstance(number, (int, float)) else "?"


def _moment(slot: Slot | None, measured: Measured) -> str:
    if slot is None:
        return "–"
    known = measured.get((slot.parameter, slot.key))
    if known is None and hasattr(slot.value, "tensor") and is_tensor(slot.value) and not _is_coded(slot.value.dtype):
        known = stats(slot.value)
    return _with_stats(slot, known)


def _is_coded(dtype: str) -> bool:
    """Whether the values of a moment are codes, of which a norm would mean nothing."""
    return dtype.startswith(("int", "uint"))


def _with_stats(slot: Slot, known: Stats | None) -> str:
    """The key, its norm, and what is remarkable: values that are no numbers, or zeros."""
    key = safe_text(slot.key, 40)
    if slot.dtype is not None and slot.dtype not in DTYPES:
        key = f"{key} ({safe_text(slot.dtype, 40)})"  # how it is quantised
    if known is None:
        return key
    parts = [key, f"‖{known.norm:.3g}‖"]
    if known.nonfinite:
        parts.append(f"! {known.nonfinite:,} non-finite")
    if known.zeros:
        parts.append("all zero" if known.zeros == known.elements else count(known.zeros, "zero"))
    return " ".join(parts)


def _headline(state: Printable, names: Sequence[str]) -> str:
    optimizers = " + ".join(
        f"{safe_text(info.name)}: {safe_text(info.short_name)}" if info.name else safe_text(info.short_name)
        for info in state.optimizers.values()
    )
    return f"{optimizers or 'no optimizer'} · {count(len(names), 'parameter')} · {count(len(state.groups), 'group')}"


def _absence_notes(parameters: Iterable[ParamState]) -> list[str]:
    """One line per reason and the roles that it explains, so that a column of dashes explains itself."""
    missing: dict[tuple[tuple[Role, ...], Absence], list[str]] = {}
    for parameter in parameters:
        reasons: dict[Absence, list[Role]] = {}
        for role, absence in parameter.absences.items():
            reasons.setdefault(absence, []).append(role)
        for absence, roles in reasons.items():
            missing.setdefault((tuple(roles), absence), []).append(parameter.name)
    return [
        f"no {_either(roles)} for {count(len(names), 'parameter')} ({listing(names, 3)}): {absence.sentence}"
        for (roles, absence), names in missing.items()
    ]


def _either(roles: Sequence[Role]) -> str:
    *first, last = (role.replace("_", " ") for role in roles)
    return f"{', '.join(first)} or {last}" if first else last


_LONG = 6  # hyperparameters shown per group, and values of one that is a list


def _group_notes(groups: Sequence[Group], limit: int | None, unread: list[str]) -> list[str]:
    notes = [_group_note(group, unread) for group in groups[:limit]]
    return [*notes, f"… {len(groups) - len(notes):,} more groups"] if len(groups) > len(notes) else notes


def _group_note(group: Group, unread: list[str]) -> str:
    label = f"{safe_text(group.optimizer, 24)}:{group.index}" if group.optimizer else str(group.index)
    shown = {key: value for key, value in group.hyperparameters.items() if value is not None and value is not False}
    values = []
    for key, value in list(shown.items())[:_LONG]:
        try:
            values.append(f"{safe_text(key, 32)} {format_value(value)}")
        except ReadError as error:
            values.append(f"{safe_text(key, 32)} {UNREADABLE}")
            unread.append(f"group {label}, {safe_text(key, 32)}: {error.what}")
    return f"group {label}: {count(len(group.parameters), 'parameter')} · {' · '.join(values)}"


def format_value(value: Any) -> str:
    """A hyperparameter as short text: numbers in six digits, a scalar tensor as its number."""
    if is_tensor(value):
        return format_number(value.item()) if prod(value.shape) == 1 else f"tensor {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join([*map(format_value, value[:_LONG]), *["…"] * (len(value) > _LONG)]) + ")"
    return format_number(value)


def _left_out_notes(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{reason}: {listing(names)}" for reason, names in left_out.items() if names]


def _elide(parameters: list[ParamState], limit: int | None) -> tuple[list[ParamState], int]:
    if limit is None or len(parameters) <= limit:
        return parameters, 0
    head = limit * 2 // 3
    return parameters[:head] + parameters[len(parameters) - (limit - head) :], len(parameters) - limit


_HOW_SURE: Mapping[Certainty, str] = {
    "identity": "by identity, from the live objects",
    "file": "written beside the state in the file",
    "recorded": "recorded by torch (param_names), evidence only",
    "rule": "by their order, every shape agrees",
    "shapes": "by their shapes alone",
    "position": "by position alone",
}


def _certainty_line(parameters: Sequence[ParamState]) -> list[str]:
    """How sure the names are; nothing where all are those of live objects."""
    certainties = Counter(parameter.facts.certainty for parameter in parameters)
    if set(certainties) <= {"identity"}:
        return []
    open_ = sum(bool(parameter.facts.candidates) for parameter in parameters)
    several = f", {open_:,} of them one of several weights (M201)" if open_ else ""
    return [
        "names: "
        + " · ".join(
            f"{number:,} {_HOW_SURE[how]}{several if how == 'position' else ''}"
            for how, number in certainties.most_common()
        )
    ]

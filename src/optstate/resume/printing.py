"""A plan as people read it: counts, then what is not exact, folded, then the verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple, get_args

from optstate.resume.decided import Decided
from optstate.resume.decisions import EXACT, Decision, EntryDecision, HyperparameterDecision, missing
from optstate.resume.objects import group_label
from optstate.state.table import ROWS, Table, format_value
from optstate.text import count, listing, safe_text

_SHOWN = 20
"""Lines of one kind, of faults or of what is left out, before the rest is only counted."""


def summary(plan: Decided) -> Table:
    """Counts of what is exact, and a row for each kind of thing that is not."""
    rows, reasons = _with_notes(_elided(_inexact(plan), ROWS))
    return Table(
        title=[_headline(plan), *_refusal(plan), "", *_counts(plan)],
        header=("PARAMETERS", "DECISION", "WHAT", "WHY"),
        rows=rows,
        notes=[*reasons, *_notes(plan)],
    )


def table(plan: Decided, limit: int | None = ROWS) -> Table:
    """One row for each parameter, at most `limit` of them (None: all)."""
    weights = {item.name: item for item in plan.weights}
    entries = {item.parameter: item for item in plan.entries}
    rows = [
        [safe_text(name), weights[name].decision if name in weights else "–", _slot_cell(entries.get(name))]
        for name in dict.fromkeys((*weights, *entries))
    ]
    return Table(
        title=[_headline(plan), *_refusal(plan)],
        header=("NAME", "WEIGHT", "SLOTS"),
        rows=_elided(rows, limit),
        notes=[*_counts(plan), *_notes(plan)],
    )


def _headline(plan: Decided) -> str:
    step = "" if plan.step is None else f" · step {plan.step:,}"
    return f"restore {plan.source}{step}"


def _elided(rows: list[list[str]], limit: int | None) -> list[list[str]]:
    if limit is None or len(rows) <= limit:
        return rows
    head = limit * 2 // 3
    more = [f"… {len(rows) - limit:,} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[:head], more, *rows[len(rows) - (limit - head) :]]


def _slot_cell(entry: EntryDecision | None) -> str:
    if entry is None:
        return "–"
    if not entry.fates:
        return f"{entry.fate.decision}: {entry.fate.reason}"
    keys: dict[str, list[str]] = {}
    for key, fate in entry.fates.items():
        keys.setdefault(fate.decision, []).append(safe_text(key, 40))
    return " · ".join(f"{decision}: {', '.join(those)}" for decision, those in keys.items())


# --- what cannot be ---------------------------------------------------------------------------------------------

_WAYS: Mapping[str, str] = {
    "rename": 'rename={"saved.": "live."}',
    "exclude": 'exclude=("head.*",)',
    "weights": 'weights="restore"',
    "hyperparameters": 'hyperparameters={"lr": "live" | "saved" | a value}',
    "overrides": 'overrides={"head.*": {"lr": a value}}',
    "missing": 'missing="fresh"',
    "unexpected": 'unexpected="leave"',
    "shape": 'shape="pad" | "slice" | "fresh" | a function',
    "dtype": 'dtype="param"',
    "optimizer_change": 'optimizer_change="convert" | "fresh"',
    "objects": 'objects={"scheduler": "live"}',
    "damaged": 'damaged="salvage"',
}
"""What a policy can say in each of its fields to a fault that names it."""

_NAMES_A_FIELD = re.compile(rf"\b({'|'.join(_WAYS)})=")


def _refusal(plan: Decided) -> list[str]:
    """First of all that the plan cannot be applied, why, and what a policy could say to that."""
    if not plan.faults:
        return []
    named = {field for fault in plan.faults for field in _NAMES_A_FIELD.findall(fault)}
    ways = [f"  {field + ':':<17} Policy({way})" for field, way in _WAYS.items() if field in named]
    return [
        f"cannot be applied, {count(len(plan.faults), 'fault')}:",
        *(f"  - {line}" for line in _some(_folded(plan.faults), "fault")),
        *(["what a policy could say to that:", *ways] if ways else []),
    ]


def _some(lines: Iterable[str], noun: str) -> list[str]:
    every = list(lines)
    more = [f"… and {count(len(every) - _SHOWN, f'more {noun}')}"] if len(every) > _SHOWN else []
    return [*every[:_SHOWN], *more]


# --- how much of what -------------------------------------------------------------------------------------------


def _counts(plan: Decided) -> list[str]:
    """A line each for weights, slots, groups and objects: how many of them come back how."""
    weights = Counter(item.decision for item in plan.weights)
    slots = Counter(fate.decision for item in plan.entries for fate in item.fates.values())
    without = Counter(item.fate.decision for item in plan.entries if not item.fates)
    lines = []
    if weights:
        lines.append(f"weights    {_numbers(weights)}")
    if slots or without:
        bare = [f"{count(number, 'parameter')} {decision}, without slots" for decision, number in without.items()]
        lines.append(f"slots      {' · '.join([*([_numbers(slots)] if slots else []), *bare])}")
    return [*lines, *_group_lines(plan), *_object_lines(plan)]


def _numbers(decisions: Mapping[Decision, int]) -> str:
    return " · ".join(f"{decisions[decision]:,} {decision}" for decision in _ORDER if decision in decisions)


def _group_lines(plan: Decided) -> list[str]:
    """The hyperparameters that are not the same on both sides; groups of which the same is said are said together."""
    said: dict[str, dict[str, list[str]]] = {}
    for item in plan.hyperparameters:
        if not item.same or item.winner == "given":
            said.setdefault(group_label(item), {}).setdefault(_change(item), []).append(safe_text(item.key))
    groups: dict[str, list[str]] = {}
    for label, changes in said.items():
        for change, keys in changes.items():
            groups.setdefault(f"{', '.join(keys)} {change}", []).append(label)
    every = len({(item.optimizer, item.group) for item in plan.hyperparameters})
    return [f"{_groups(labels, every):<10} {change}" for change, labels in groups.items()]


def _groups(labels: Sequence[str], every: int) -> str:
    if len(labels) == 1:
        return f"group {labels[0]}"
    return f"all {every:,} groups" if len(labels) == every else f"groups {listing(labels)}"


def _change(item: HyperparameterDecision) -> str:
    """What happens to a hyperparameter, without its name, so that those of which the same is said are said together."""
    live, saved, value = _value(item.live), _value(item.saved), _value(item.value)
    why = f"; {item.reason}" if item.reason else ""
    if item.winner == "live" and not item.changes and missing in (item.live, item.saved):
        return (
            f"not taken (the program has none{why})" if item.live is missing else f"kept (the checkpoint has none{why})"
        )
    moves = f"{live} → {value}" if value != live else f"stays {live}"
    return f"{moves} ({item.winner}{'' if item.winner == 'saved' else f'; the checkpoint has {saved}'}{why})"


def _value(value: object) -> str:
    return "none" if value is missing else format_value(value)


def _object_lines(plan: Decided) -> list[str]:
    names = listing((item.name for item in plan.objects), _SHOWN)
    return [
        *([f"objects    {names}"] if plan.objects else []),
        *(
            f"objects    {safe_text(item.name)} cannot be put back if a later step fails: its state cannot be copied"
            for item in plan.objects
            if not item.reversible
        ),
    ]


# --- what is not exact ------------------------------------------------------------------------------------------


class _Said(NamedTuple):
    """What is said of one parameter: a decision, of which parts of it, and why."""

    decision: Decision
    what: str
    why: str


def _inexact(plan: Decided) -> list[list[str]]:
    """A row for each decision, what it is about and why, with the parameters of which it is true."""
    rows: dict[tuple[Decision, str, str], dict[str, list[tuple[str, str]]]] = {}
    for name, said in _sayings(plan):
        shown = safe_text(name)
        alike = rows.setdefault((said.decision, said.what, _pattern(said.why)), {})
        alike.setdefault(_pattern(shown), []).append((shown, said.why))
    return [
        [_names(alike), decision, what, _reason(alike, why)]
        for (decision, what, why), alike in sorted(rows.items(), key=lambda row: _ORDER[row[0][0]])
    ]


_ORDER: Mapping[Decision, int] = {decision: place for place, decision in enumerate(get_args(Decision))}
"""From exact to what stays as it is."""


def _sayings(plan: Decided) -> Iterator[tuple[str, _Said]]:
    """All that is not exact; of a parameter at once what has one decision and one reason."""
    weights = {item.name: item for item in plan.weights if item.decision != "exact"}
    entries = {item.parameter: item for item in plan.entries}
    for name in dict.fromkeys((*weights, *entries)):
        parts: dict[tuple[Decision, str], list[str]] = {}
        if name in weights:
            parts.setdefault((weights[name].decision, weights[name].reason), []).append("weight")
        for slot in entries[name].slots() if name in entries else ():
            if slot.decision != "exact":
                part = "slots" if slot.key is None else safe_text(slot.key, 40)
                parts.setdefault((slot.decision, slot.reason), []).append(part)
        for (decision, why), what in parts.items():
            yield name, _Said(decision, ", ".join(what), why)


def _with_notes(rows: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """The rows with a number for each reason that is too long for a cell, and those reasons, each once."""
    numbers: dict[str, int] = {}
    for *_, why in rows:
        if len(why) > _LONG:
            numbers.setdefault(why, len(numbers) + 1)
    cut = [[*cells, f"({numbers[why]}) below" if why in numbers else why] for *cells, why in rows]
    return cut, [f"({number}) {why}" for why, number in numbers.items()]


_LONG = 72
"""Characters of a reason that a cell takes."""


def _names(alike: Mapping[str, list[tuple[str, str]]]) -> str:
    """The names of one row: those that differ by numbers alone as one pattern, many patterns as what they share."""
    shown = [f"{pattern} ({len(those):,})" if len(those) > 1 else those[0][0] for pattern, those in alike.items()]
    if len(shown) <= _APART:
        return ", ".join(shown)
    shared = _shared([pattern.split(".") for pattern in alike])
    number = sum(map(len, alike.values()))
    return f"{shared} ({number:,})" if shared else f"{shown[0]} and {number - len(alike[next(iter(alike))]):,} more"


_APART = 2
"""So many names or patterns are listed in a row; of more, what is common to them."""


def _shared(names: Sequence[list[str]]) -> str:
    """Names as one pattern: the first and the last parts that all of them have; "" where there are none."""
    head = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))]
    tail = [
        parts[0]
        for parts in takewhile(
            lambda parts: len(set(parts)) == 1, zip(*(name[len(head) :][::-1] for name in names), strict=False)
        )
    ]
    return ".".join([*head, "*", *tail[::-1]]) if head or tail else ""


def _reason(alike: Mapping[str, list[tuple[str, str]]], pattern: str) -> str:
    reasons = {why for those in alike.values() for _, why in those}
    return safe_text(reasons.pop() if len(reasons) == 1 else pattern, 600)


_DOTTED = re.compile(r"[\w-]+(?:\.[\w-]+)+")


def _pattern(text: str) -> str:
    """The same with `*` for each number that is a part of a dotted name: `layers.3.weight` is `layers.*.weight`."""
    return _DOTTED.sub(lambda found: _starred(found[0]), text)


def _starred(name: str) -> str:
    parts = name.split(".")
    if all(part.isdecimal() for part in parts):
        return name  # a number, not a name
    return ".".join("*" if part.isdecimal() else part for part in parts)


def _folded(lines: Iterable[str]) -> Iterator[str]:
    """Lines that differ by numbers in names alone as one, with their count."""
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(_pattern(line), []).append(line)
    for pattern, those in alike.items():
        yield f"{pattern} ({len(those):,} like this)" if len(those) > 1 else those[0]


# --- below ------------------------------------------------------------------------------------------------------


def _notes(plan: Decided) -> list[str]:
    return [
        *(f"left out   {line}" for line in _some(_folded(plan.left_out), "line")),
        *plan.notes,
        *(f"warning    {line}" for line in _some(_folded(plan.warnings), "warning")),
        _verdict(plan),
    ]


def _verdict(plan: Decided) -> str:
    if plan.faults:
        return f"cannot be applied: {count(len(plan.faults), 'fault')}, see above"
    if plan.exact:
        return "exact: everything in the checkpoint, bit for bit"
    changed = Counter(item.decision for item in plan.weights) + Counter(slot.decision for slot in plan.slots)
    kinds = {decision: number for decision, number in changed.items() if decision not in EXACT}
    reasons = [
        *([_numbers(kinds)] if kinds else []),
        *(["something is left out"] if plan.left_out else []),
        *(
            ["some live values stay"]
            if any(item.winner == "live" and not item.same for item in plan.hyperparameters)
            else []
        ),
        *(["some values are given"] if any(item.winner == "given" for item in plan.hyperparameters) else []),
    ]
    return f"{'not exact' if kinds else 'exact for what is restored'}: {'; '.join(reasons)}"

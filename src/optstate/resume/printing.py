"""A plan as people read it: a table, then what is not exact, then the verdict."""

from __future__ import annotations

from collections import Counter

from optstate.resume.decided import Decided
from optstate.resume.decisions import EntryDecision, HyperparameterDecision
from optstate.resume.objects import group_label
from optstate.state.table import ROWS, Table, format_value
from optstate.text import count, listing, safe_text


def table(plan: Decided, limit: int | None = ROWS) -> Table:
    """One row per parameter, at most `limit` of them (None: all)."""
    return Table(
        title=[_headline(plan)],
        header=("NAME", "WEIGHT", "SLOTS"),
        rows=_rows(plan, limit),
        notes=[*_notes(plan), _verdict(plan)],
    )


def _headline(plan: Decided) -> str:
    step = "" if plan.step is None else f" · step {plan.step:,}"
    return f"restore {plan.source}{step}"


def _rows(plan: Decided, limit: int | None) -> list[list[str]]:
    weights = {item.name: item.decision for item in plan.weights}
    entries = {item.parameter: item for item in plan.entries}
    names = list(dict.fromkeys((*weights, *entries)))
    rows = [[safe_text(name), weights.get(name, "–"), _slot_cell(entries.get(name))] for name in names]
    if limit is None or len(rows) <= limit:
        return rows
    head = limit * 2 // 3
    return [*rows[:head], [f"… {len(rows) - limit:,} more", "", ""], *rows[len(rows) - (limit - head) :]]


def _slot_cell(entry: EntryDecision | None) -> str:
    if entry is None:
        return "–"
    if not entry.fates:
        return f"{entry.fate.decision}: {entry.fate.reason}"
    by_decision = {
        decision: ", ".join(safe_text(key, 40) for key, fate in entry.fates.items() if fate.decision == decision)
        for decision in dict.fromkeys(fate.decision for fate in entry.fates.values())
    }
    return " · ".join(f"{decision}: {keys}" for decision, keys in by_decision.items())


def _notes(plan: Decided) -> list[str]:
    counts = Counter(fate.decision for entry in plan.entries for fate in entry.fates.values())
    lines = []
    if plan.weights:
        lines.append(f"weights    {count(len(plan.weights), 'tensor')} exact")
    if plan.entries:
        fresh = sum(not entry.fates for entry in plan.entries)
        parts = [f"{number:,} {decision}" for decision, number in counts.items()]
        parts += [f"{count(fresh, 'parameter')} fresh"] if fresh else []
        lines.append(f"slots      {', '.join(parts)}")
    lines += [f"group {group_label(item)}    {_change(item)}" for item in plan.hyperparameters if not item.same]
    if plan.objects:
        lines.append(f"objects    {listing((item.name for item in plan.objects), 20)}")
    lines += [
        f"objects    {safe_text(item.name)} cannot be put back if a later step fails: its state cannot be copied"
        for item in plan.objects
        if not item.reversible
    ]
    lines += [f"left out   {line}" for line in plan.left_out]
    lines += plan.notes
    lines += [f"warning    {line}" for line in plan.warnings]
    return lines


def _change(item: HyperparameterDecision) -> str:
    live, saved = format_value(item.live), format_value(item.saved)
    if item.winner == "saved":
        return f"{safe_text(item.key)} {live} → {saved} (saved)"
    return f"{safe_text(item.key)} stays {live} (live; the checkpoint has {saved})"


def _verdict(plan: Decided) -> str:
    if plan.faults:
        lines = [f"  - {fault}" for fault in plan.faults]
        return "\n".join([f"cannot be applied, {count(len(plan.faults), 'fault')}:", *lines])
    if plan.exact:
        return "exact: everything in the checkpoint, bit for bit"
    overruled = any(item.winner == "live" and not item.same for item in plan.hyperparameters)
    reasons = [*(["something is left out"] if plan.left_out else []), *(["some live values stay"] if overruled else [])]
    return f"exact for what is restored; {' and '.join(reasons)}"

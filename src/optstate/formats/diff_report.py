"""What a comparison found, and how it is said: a verdict, counts, and the gravest differences first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from optstate.formats.compare import Change
from optstate.formats.difference import KINDS, Difference, Kind, Part, Side
from optstate.state.slot import format_number
from optstate.state.table import format_value
from optstate.text import count, listing, safe_text, size


@dataclass(frozen=True)
class Diff:
    """What is different between a and b, the gravest first; prints itself.

    >>> found = optstate.diff(checkpoint, checkpoint)
    >>> found.ok, found.differences
    (True, ())
    """

    a: Side
    b: Side
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    tensors: int = 0
    nbytes: int = 0
    only: Part | None = None
    values: bool = True

    @property
    def ok(self) -> bool:
        """Whether both are the same, as far as they were compared: everything was read, and nothing differs."""
        return not self.differences

    def counts(self) -> dict[Kind, int]:
        """How many differences of each kind there are."""
        found = Counter(difference.kind for difference in self.differences)
        return {kind: found[kind] for kind in KINDS if kind in found}

    def text(self, limit: int | None = 20) -> str:
        """A verdict, and at most `limit` lines; None: all."""
        return _text(self, limit)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


# --- as text ----------------------------------------------------------------------------------------------

_NOUNS: dict[Kind, str] = {
    "unread": "part not read",
    "parameter": "parameter on one side only",
    "weight": "weight on one side only",
    "slot": "slot on one side only",
    "shape": "other shape",
    "dtype": "other element type",
    "optimizer": "other optimizer",
    "step": "other step",
    "values": "tensor of other values",
    "renamed": "other name",
    "group": "other group",
    "order": "other order",
    "hyperparameter": "other hyperparameter",
    "object": "difference in objects",
}
_PLURALS: dict[Kind, str] = {
    "unread": "parts not read",
    "parameter": "parameters on one side only",
    "weight": "weights on one side only",
    "slot": "slots on one side only",
    "values": "tensors of other values",
    "object": "differences in objects",
}


def _text(diff: Diff, limit: int | None) -> str:
    """The page; at most `limit` lines of differences, None: all."""
    lines = [f"a  {_about(diff, 'a')}", f"b  {_about(diff, 'b')}", "", _verdict(diff)]
    lines += [f"note: {safe_text(note, 1000)}" for note in diff.notes]
    found = list(_lines(diff))
    shown = found if limit is None else found[:limit]
    if shown:
        width = max(len(label) for label, _ in shown)
        lines += ["", *(f"{label:<{width}}  {what}" for label, what in shown)]
    if len(shown) < len(found):
        lines.append(f"… and {len(found) - len(shown):,} more lines")
    return "\n".join(lines)


def _about(diff: Diff, which: str) -> str:
    side = diff.a if which == "a" else diff.b
    classes = " + ".join(dict.fromkeys(safe_text(info.short_name) for info in side.state.optimizers.values()))
    parts = [
        side.label,
        *([safe_text(side.format)] if side.format else []),
        *([f"step {side.step:,}"] if side.step is not None else []),
        *([classes] if classes else ["no optimizer state"]),
        count(len(side.state), "parameter"),
    ]
    return " · ".join(parts)


def _verdict(diff: Diff) -> str:
    scope = f"{diff.only}: " if diff.only else ""
    read = f"{count(diff.tensors, 'tensor')}, {size(diff.nbytes)} compared"
    if diff.values is False:
        read = f"{count(diff.tensors, 'header')} compared, no values"
    if diff.ok:
        same = "the same, to the last bit" if diff.values else "the same as far as headers tell"
        return f"{scope}{same} ({read})"
    counts = [
        f"{number:,} {_NOUNS[kind] if number == 1 else _PLURALS.get(kind, _NOUNS[kind] + 's')}"
        for kind, number in diff.counts().items()
    ]
    return f"{scope}different: {', '.join(counts)} ({read})"


def _lines(diff: Diff) -> Iterator[tuple[str, str]]:
    """One line for each difference; for those that say the same of several names, one for all of them."""
    for (label, detail), same in groupby(diff.differences, key=_said):
        names = [difference.name for difference in same]
        yield label, listing(names, 3) + detail


def _said(difference: Difference) -> tuple[str, str]:
    """What is said of a difference, but for its name."""
    kind, a, b = difference.kind, difference.a, difference.b
    key = f"/{safe_text(difference.key, 100)}" if difference.key else ""
    if kind == "unread":
        where = "" if None not in (a, b) else " in a" if b is None else " in b"
        return kind, f"{where}  {safe_text(b if a is None else a, 400)}"
    if kind in ("parameter", "weight", "slot", "group") and None in (a, b):
        return f"only in {'a' if b is None else 'b'}", f"{key}  {kind}"
    if kind == "renamed":
        return kind, f" → {safe_text(b)}"
    if difference.change is not None and a is None:
        return kind, f"{key}  {_change(difference.change)}"
    return kind, f"{key}  {_shown(a)} → {_shown(b)}"


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, str):
        return safe_text(value, 80)
    if isinstance(value, (bool, int, float, tuple, list)) or hasattr(type(value), "blocks"):
        return format_value(value)
    return safe_text(value, 80)


def _change(change: Change) -> str:
    """By how much, in words and six digits."""
    if change.max_abs == 0 and not any(change.nonfinite):
        return f"{change.differing:,} of {count(change.elements, 'element')}: only signs of zeros"
    parts = [
        f"{change.differing:,} of {count(change.elements, 'element')}",
        f"max |a-b| {format_number(change.max_abs)}",
        "relative ?" if change.relative is None else f"relative {change.relative:.3g}",
        *([] if change.cosine is None else [f"cosine {change.cosine:.6g}"]),
        *([f"non-finite: {change.nonfinite[0]:,} in a, {change.nonfinite[1]:,} in b"] if any(change.nonfinite) else []),
    ]
    return " · ".join(parts)

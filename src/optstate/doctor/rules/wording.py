"""Words that several rules answer in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optstate.doctor.finding import Finding
from optstate.text import count, listing, safe_text


def about(
    code: str, names: Sequence[str], says: str, *, of: int = 0, where: str = "", fix: str | None = None
) -> Finding:
    """A finding about parameters: how many of how many, what is said of them in the plural, and which they are."""
    number = f"{len(names):,} of {count(of, 'parameter')}" if of else count(len(names), "parameter")
    if len(names) == 1:
        verb, space, rest = says.partition(" ")
        says = f"{_SINGULAR.get(verb, verb)}{space}{rest}"
    return Finding(code, f"{number} {says}: {listing(names)}", tuple(names), where, fix)


_SINGULAR = {"have": "has", "are": "is", "count": "counts", "hold": "holds", "apply": "applies", "were": "was"}


def places(slots: Iterable[tuple[str, str]]) -> str:
    """The first few slots by `parameter/key`, and how many more there are."""
    return listing(f"{parameter}/{key}" for parameter, key in slots)


def called(optimizer: str) -> str:
    """An optimizer as the place of a finding: "" for the only one."""
    return f"optimizer {safe_text(optimizer)}" if optimizer else ""


def at_group(optimizer: str, index: int) -> str:
    """A group as the place of a finding."""
    return f"{called(optimizer)} group {index}".strip()

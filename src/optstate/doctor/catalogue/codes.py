"""The catalogue: every code, found by its number or its name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from optstate.doctor.catalogue import m1, m2, m3, m4, m5
from optstate.doctor.catalogue.code import Code
from optstate.errors import OptstateError
from optstate.text import safe_text

CODES: Mapping[str, Code] = MappingProxyType(
    {each.code: each for family in (m1, m2, m3, m4, m5) for each in family.CODES}
)
"""Code → what is known of it, in the order of their numbers."""

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "M1": "missing",
        "M2": "mismatch",
        "M3": "values",
        "M4": "hyperparameters and schedulers",
        "M5": "distributed and store",
    }
)


def find(word: str) -> Code:
    """The code with this number or name, whatever its case. Raises `OptstateError`, with the nearest, for any other."""
    by_name = {each.name: each for each in CODES.values()}
    found = CODES.get(word.upper()) or by_name.get(word.lower())
    if found is not None:
        return found
    near = get_close_matches(word.upper(), CODES, n=3) + get_close_matches(word.lower(), by_name, n=2, cutoff=0.5)
    raise OptstateError(
        f"there is no code {safe_text(word, 40)!r}",
        expected=f"one of {len(CODES)}, {min(CODES)} to {max(CODES)}, or its name",
        todo=f"did you mean {' or '.join(near)}? " * bool(near) + "`optstate explain` lists them all",
    )

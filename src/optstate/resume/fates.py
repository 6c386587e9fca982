"""Fates that meet: where several things are done to what was saved, the farthest from exact names all of them."""

from __future__ import annotations

from collections.abc import Mapping

from optstate.resume.decisions import Decision, Fate

_FARTHER: Mapping[Decision, int] = {"exact": 0, "renamed": 1, "cast": 2, "scaled": 3, "resized": 4, "converted": 5}


def both(one: Fate, other: Fate) -> Fate:
    """What becomes of a slot to which two things are done, one after the other.

    >>> both(Fate("renamed", "renamed by 'a.' → 'b.'"), Fate("cast", "float32 → bfloat16"))
    Fate(decision='cast', reason="renamed by 'a.' → 'b.'; float32 → bfloat16")
    """
    if one.decision == "exact":
        return other
    if other.decision == "exact":
        return one
    farther = max(one.decision, other.decision, key=_FARTHER.__getitem__)
    return Fate(farther, f"{one.reason}; {other.reason}")

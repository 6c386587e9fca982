"""Which saved name is which live name: by name, or by one of the further names that a tied tensor has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from optstate.text import listing, safe_text

Names: TypeAlias = "Mapping[str, Sequence[str]]"
"""First name → further names of the same tensor."""


@dataclass(slots=True)
class Pairing:
    """`pairs` maps a live name to its saved name. `lost` are live names without a saved one, `strangers` the reverse.

    `untied` and `tied` are sentences about tensors that are one on one side and several on the other.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    tied: dict[str, list[str]] = field(default_factory=dict)


def pair(live: Names, saved: Names) -> Pairing:
    """Pair two sets of names.

    Which of its names a tied tensor has first depends on the order of the modules, so any of them leads to it.
    A live tensor that finds several saved ones is in `tied`, with all of them, and paired with the first.
    """
    known = {alias: name for name, aliases in saved.items() for alias in (name, *aliases)}
    found = Pairing()
    owner: dict[str, str] = {}
    for name, aliases in live.items():
        hits = list(dict.fromkeys(known[alias] for alias in (name, *aliases) if alias in known))
        if not hits:
            found.lost.append(name)
            continue
        found.pairs[name] = hits[0]
        if len(hits) > 1:
            found.tied[name] = hits
        for hit in hits:
            if hit in owner:
                found.untied.append(
                    f"{listing([owner[hit], name])} are one tensor in the checkpoint ({safe_text(hit)}) and two live"
                )
            owner[hit] = name
    found.strangers = [name for name in saved if name not in owner]
    return found

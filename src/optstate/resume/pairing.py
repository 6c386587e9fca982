"""Which saved name is which live name: by name, or by one of the further names that a tied tensor has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from optstate.errors import PolicyError
from optstate.text import safe_text

Names: TypeAlias = "Mapping[str, Sequence[str]]"
"""First name → further names of the same tensor."""


@dataclass(slots=True)
class Pairing:
    """`pairs` maps a live name to its saved name. `lost` are live names without a saved one, `strangers` the reverse.

    `tied` is a live name with the several saved ones that it finds, of which the first is in `pairs`; `untied` is a saved
    name with the several live ones that find it.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    tied: dict[str, list[str]] = field(default_factory=dict)
    untied: dict[str, list[str]] = field(default_factory=dict)


def pair(live: Names, saved: Names, renamed: Mapping[str, str] = MappingProxyType({})) -> Pairing:
    """Pair two sets of names, saved ones by what `renamed` makes of them.

    Which of its names a tied tensor has first depends on the order of the modules, so any of them leads to it.
    Raises `PolicyError` where renaming gives two saved tensors one name.
    """
    known = _by_every_name(saved, renamed)
    found = Pairing()
    finders: dict[str, list[str]] = {}
    for name, aliases in live.items():
        hits = list(dict.fromkeys(known[alias] for alias in (name, *aliases) if alias in known))
        if not hits:
            found.lost.append(name)
            continue
        found.pairs[name] = hits[0]
        if len(hits) > 1:
            found.tied[name] = hits
        for hit in hits:
            finders.setdefault(hit, []).append(name)
    found.untied = {hit: names for hit, names in finders.items() if len(names) > 1}
    found.strangers = [name for name in saved if name not in finders]
    return found


def _by_every_name(saved: Names, renamed: Mapping[str, str]) -> dict[str, str]:
    known: dict[str, str] = {}
    for name, aliases in saved.items():
        for alias in (name, *aliases):
            new = renamed.get(alias, alias)
            owner = known.setdefault(new, name)
            if owner != name and renamed:
                raise PolicyError(
                    f"rename: two saved names become {safe_text(new)}",
                    found=f"{safe_text(owner)} and {safe_text(name)}",
                    todo="give one of them another name",
                )
    return known

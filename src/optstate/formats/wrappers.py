"""Prefixes that wrappers of a model put into parameter names, and finding a weight in spite of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from optstate.formats.orders import Weight

_ANYWHERE = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # compile, FSDP1, activation checkpoints
_IN_FRONT = "module."  # DDP, DataParallel


def bare(name: str) -> str:
    """A name without what wrappers put into it.

    >>> bare("module._orig_mod.0.weight")
    '0.weight'
    """
    if any(segment in name for segment in _ANYWHERE):
        name = ".".join(segment for segment in name.split(".") if segment not in _ANYWHERE)
    while name.startswith(_IN_FRONT) and name != _IN_FRONT:
        name = name.removeprefix(_IN_FRONT)
    return name


def _without_model(name: str) -> str:
    """As `bare`; and without the attribute in which many a training class keeps the model."""
    return bare(name).removeprefix("model.")


def wrapped(names: Sequence[str]) -> list[str]:
    """The prefixes of wrappers in these names; `module.` only where every name has it, else it is a module of the model."""
    found = [f"{segment}." for segment in _ANYWHERE if any(f"{segment}." in name for name in names)]
    if names and all(bare(name) != name for name in names) and any(name.startswith(_IN_FRONT) for name in names):
        found.append(_IN_FRONT)
    return found


class NameIndex:
    """The weights by any of their names; `differing` collects the prefixes by which a name was found only in part."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self.differing: dict[str, None] = {}
        self._weights = list(weights)
        self._tables: list[dict[str, Weight | None]] = []

    def find(self, name: str) -> Weight | None:
        """The weight of this name, or of one that differs from it by a wrapper's prefix; None where two would fit."""
        for level, understood in enumerate((_as_it_is, bare, _without_model)):
            weight = self._table(level, understood).get(understood(name))
            if weight is not None:
                if level:
                    self.differing |= dict.fromkeys(_difference(name, weight.name))
                return weight
        return None

    def _table(self, level: int, understood: Callable[[str], str]) -> dict[str, Weight | None]:
        while len(self._tables) <= level:
            self._tables.append({})
        table = self._tables[level]
        if not table:
            for weight in self._weights:
                for name in (weight.name, *weight.aliases):
                    table[understood(name)] = None if table.get(understood(name), weight) is not weight else weight
        return table


def _as_it_is(name: str) -> str:
    return name


def _difference(name: str, other: str) -> list[str]:
    """Segments that one of two names has and the other has not."""
    mine, theirs = name.split("."), other.split(".")
    return [f"{segment}." for segment in (*mine, *theirs) if (segment in mine) != (segment in theirs)]

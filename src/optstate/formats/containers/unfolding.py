"""Walking what a pickle describes: it may be deep, may contain itself, and may mean far more than it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from optstate.formats.containers.pickle_machine import Call, Node
from optstate.formats.containers.records import Config, Plain
from optstate.text import safe_text

DEPTH = 100
"""Levels that whoever prints or walks a checkpoint's objects must cope with."""

VISITS = 20_000_000
"""Values that a tree may unfold to when each is visited wherever it stands."""


@dataclass(frozen=True, slots=True)
class Elided:
    """Stands where a value was that cannot be walked; `reason` says why."""

    reason: str

    def __str__(self) -> str:
        return f"({self.reason})"


def prune(root: dict[Any, Node]) -> list[str]:
    """Replace the entries of `root` that nobody could walk by `Elided`, in place; returns a note for each.

    Afterwards everything in `root` is free of cycles, at most `DEPTH` deep, and `VISITS` large when unfolded.
    """
    unfolded: dict[int, tuple[float, int]] = {}
    notes, total = [], 0.0
    for key, value in root.items():
        size = _unfold(value, unfolded)
        if total + size <= VISITS:
            total += size
            continue
        reason = "contains itself, or is too deep or too large to be walked"
        root[key] = Elided(f"a {type(value).__name__} that {reason}")
        notes.append(f"left out: {safe_text(key, 60)}, which {reason}")
    return notes


def _children(node: Node) -> Iterator[Node]:
    if type(node) is dict:
        # A key can be a record with content of its own.
        yield from (key for key in node if type(key) is Call)
        yield from node.values()
    elif isinstance(node, Call):
        yield from (node.function, node.arguments, node.state, node.items)
    else:
        yield from node


_CONTAINERS = {dict, list, tuple, Call, Config, Plain}


class _Visit:
    """A container that is being walked: what is left of it, and what was found so far."""

    __slots__ = ("depth", "key", "left", "size")

    def __init__(self, node: Node) -> None:
        self.key = id(node)
        self.left = _children(node)
        self.size: float = 1
        self.depth = 1

    def add(self, size: float, depth: int) -> None:
        self.size += size
        self.depth = max(self.depth, depth + 1)
        if self.depth > DEPTH:
            self.size = inf


def _unfold(root: Node, known: dict[int, tuple[float, int]]) -> float:
    """How many values a tree unfolds to; infinite for one that is deeper than `DEPTH` or contains itself.

    `known` keeps size and depth of what was walked before: each container once, however often it is shared.
    """
    top = _Visit([root])
    path = [top]
    while path:
        visit = path[-1]
        inner = _next_unknown(visit, known)
        if inner is not None and len(path) <= DEPTH:
            known[id(inner)] = inf, 0  # until it is finished: to meet it again before that is a cycle
            path.append(_Visit(inner))
        elif inner is not None:
            visit.size = inf
        else:
            path.pop()
            if path:
                known[visit.key] = visit.size, visit.depth
                path[-1].add(visit.size, visit.depth)
    return top.size


def _next_unknown(visit: _Visit, known: dict[int, tuple[float, int]]) -> Node | None:
    """The next container in a visit that was not walked yet; what comes before it is added up."""
    for child in visit.left:
        if type(child) not in _CONTAINERS:
            visit.size += 1
        elif id(child) in known:
            visit.add(*known[id(child)])
        else:
            return child
    return None

"""Power cuts: every state that a deed's log of operations allows a disk to be left in, and what can be read in each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from optstate.errors import ReadError
from tests.disk import Step, Tree, crashes, plant
from tests.mirror import Mirror
from tests.torture.deeds import Deed, seen

Broken = Callable[[list[Step], int], None]
"""Makes a broken protocol of a log of operations; the number is where the deed begins."""


class Survey(NamedTuple):
    """How many states were tried, which verdicts came, and each one that breaks the promise: after which step, and what is seen."""

    states: int
    verdicts: set[str]
    wrong: list[tuple[int, str]]


def recorded(deed: Deed, root: Path) -> tuple[list[Step], int]:
    """A deed's operations with those that prepared it, and where it begins."""
    mirror = Mirror(root)
    deed.prepare(root, mirror)
    before = len(mirror.disk.log)
    deed.act(root, mirror)
    return mirror.disk.log, before


def survey(deed: Deed, root: Path, most: int, *, stride: int = 1, broken: Broken = lambda log, before: None) -> Survey:
    """Try every state, or each `stride`-th: until the deed is over any of its stages may be seen, then only success."""
    (root / "done").mkdir(parents=True)
    log, before = recorded(deed, root / "done")
    broken(log, before)
    oracle = Oracle(root / "disk")
    states, wrong = 0, []
    for end in range(before, len(log) + 1):
        allowed = set(deed.stages) if end < len(log) else deed.after
        for tree in crashes(log, end, most, stride=stride):
            states += 1
            verdict = oracle.of(tree)
            if verdict not in allowed:
                wrong.append((end - before, verdict))
    return Survey(states, set(oracle.known.values()), wrong)


class Oracle:
    """What can be read in each tree that a power cut leaves; what looks the same is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[tuple[tuple[str, bytes], ...], str] = {}

    def of(self, tree: Tree) -> str:
        # Nobody looks into what is hidden, unless it was set aside: see `deeds.seen`.
        key = tuple(sorted(item for item in tree.items() if "/." not in item[0] or ".old-" in item[0]))
        if key not in self.known:
            plant(tree, self.root)
            self.known[key] = verdict(self.root)
            shutil.rmtree(self.root)
        return self.known[key]


def verdict(root: Path) -> str:
    """What is seen in a folder, or what is wrong there."""
    try:
        return seen(root)
    except (ReadError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"


def states(deed: Deed, root: Path, most: int) -> Iterator[Tree]:
    """Every state once, all of what is hidden in it included."""
    log, before = recorded(deed, root)
    known = set()
    for end in range(before, len(log) + 1):
        for tree in crashes(log, end, most):
            key = tuple(sorted(tree.items()))
            if key not in known:
                known.add(key)
                yield tree

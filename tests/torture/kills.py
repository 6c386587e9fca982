"""Kills: a child does a deed and is killed before an operation; so is the one that recovers from it; a third one finishes.

Children are forked from a process that has imported everything, so a kill takes milliseconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from optstate.store.files import RealFiles
from optstate.store.lock import LOCK
from tests.torture.deeds import RUN, Deed, Effect
from tests.torture.power_cuts import verdict
from tests.torture.taps import Tapped, killing

BYSTANDER = ("somebody", "else's")
"""A folder in the same place, with a file in it, that nobody may touch."""


def forked(effect: Effect, root: Path, at: int, threads: int = 0) -> bool:
    """Have a child do it and be killed before its change number `at`; whether it was, and did not come to its end."""
    child = os.fork()
    if child == 0:
        try:
            effect(root, Tapped(killing(at), threads=threads))
        except BaseException:  # noqa: BLE001  # whatever it is, the child ends here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"a child ended with {status}")
    return status != 0


def swept(name: str, deed: Deed, root: Path, chance: random.Random, threads: int = 0, stride: int = 1) -> Iterator[int]:
    """Kill a deed before each of its operations (each `stride`-th), then its recovery before one; the number of kills of each.

    Raises `AssertionError` when anything but a stage of the deed is seen, or anything is left at the end.
    """
    at, again = 0, chance.randrange(4)
    killed = True
    while killed:
        here = root / str(at)
        (here / BYSTANDER[0]).mkdir(parents=True)
        (here / BYSTANDER[0] / BYSTANDER[1]).touch()
        deed.prepare(here, Tapped(lambda number, what: None))
        killed = forked(deed.act, here, at, threads)
        first = checked(name, deed, here, deed.stages if killed else tuple(deed.after))
        # The recovery is killed later each time, from its first operation to its last.
        kills = killed + (twice := forked(deed.again, here, again, threads))
        again = again + 1 if twice else 0
        second = checked(name, deed, here, deed.stages[deed.stages.index(first) :])
        deed.again(here, RealFiles())
        checked(name, deed, here, deed.stages[-1:])
        left = [each for each in os.listdir(here / RUN) if each.startswith(".") and each != LOCK]
        assert not left, (name, at, second, left)
        assert os.listdir(here / BYSTANDER[0]) == [BYSTANDER[1]]
        shutil.rmtree(here)
        yield kills
        at += stride


def checked(name: str, deed: Deed, root: Path, allowed: tuple[str, ...]) -> str:
    found = verdict(root)
    assert found in allowed, f"{name}: {found!r}, and not one of {allowed}"
    return found

"""Faults: the system refuses one operation of a deed, or that and all later ones, until there is no operation left to refuse."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from errno import EDQUOT, EINTR, EIO, ENOSPC
from itertools import count
from pathlib import Path
from typing import NamedTuple

from optstate.errors import OptstateError
from optstate.store.files import Files, RealFiles
from optstate.store.lock import LOCK
from tests.disk import crashes
from tests.mirror import Mirror
from tests.torture.deeds import RUN, Deed
from tests.torture.power_cuts import Oracle, verdict
from tests.torture.taps import Tap, Tapped

Fault = Callable[[str], "OSError | float | None"]
"""What becomes of an operation of that name."""


def refused(code: int) -> Fault:
    """The system says no."""
    return lambda what: OSError(code, os.strerror(code))


def shortened(limit: float) -> Fault:
    """Of a write only so many bytes pass, or such a part."""
    return lambda what: limit if what == "write" else None


FAULTS: dict[str, Fault] = {
    **{errno.errorcode[code]: refused(code) for code in (EIO, ENOSPC, EDQUOT, EINTR)},
    "one byte is written": shortened(1),
    "half is written": shortened(0.5),
}


class Attempt(NamedTuple):
    """A deed that met with a fault: which operation it was, what was raised, and what can be seen then."""

    what: str
    raised: OSError | OptstateError | None
    seen: str


class Broken:
    """A tap that passes a fault on: at one of the operations that it can happen to, or from that on."""

    def __init__(self, fault: Fault, at: int, *, for_ever: bool) -> None:
        self.fault, self.at, self.for_ever = fault, at, for_ever
        self.hit: str | None = None
        self._met = count()

    def __call__(self, number: int, what: str) -> OSError | float | None:
        answer = self.fault(what)
        met = -1 if answer is None else next(self._met)
        if met < self.at or (met > self.at and not self.for_ever):
            return None
        self.hit = self.hit or what
        return answer


def attempts(
    deed: Deed, root: Path, fault: Fault, *, for_ever: bool, real: bool = False, stride: int = 1
) -> Iterator[Attempt]:
    """A deed for each operation that can fail (each `stride`-th), recovered from afterwards; until nothing fails any more.

    Raises `AssertionError` where `check`, `check_power_cut` or `recover` finds a promise broken.
    """
    oracle = Oracle(root / "disk")
    at = 0
    while True:
        here = root / "here"
        here.mkdir(parents=True)
        broken = Broken(fault, at, for_ever=for_ever)
        gate = Gate()
        files: Files = Tapped(gate) if real else Mirror(here)
        if isinstance(files, Mirror):
            files.disk.fault = gate
        deed.prepare(here, files)
        gate.open(broken)
        raised = tried(deed, here, files)
        gate.close()
        if broken.hit is None:
            shutil.rmtree(here)
            return
        found = verdict(here)
        check(deed, found, raised, for_ever=for_ever)
        if isinstance(files, Mirror):
            check_power_cut(deed, files, oracle, success=raised is None)
        recover(deed, here)
        yield Attempt(broken.hit, raised, found)
        shutil.rmtree(here)
        at += stride


class Gate:
    """A tap that is opened to another one while a deed is done."""

    def __init__(self) -> None:
        self._tap: Tap | None = None

    def open(self, tap: Tap) -> None:
        self._tap = tap

    def close(self) -> None:
        self._tap = None

    def __call__(self, number: int, what: str) -> OSError | float | None:
        return self._tap(number, what) if self._tap else None


def tried(deed: Deed, root: Path, files: Files) -> OSError | OptstateError | None:
    """What a deed raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(was to go, and stays|cannot be removed)")
        try:
            deed.act(root, files)
        except (OSError, OptstateError) as error:
            return error
    return None


# --- what is promised ---------------------------------------------------------------------------------------


def check(deed: Deed, found: str, raised: OSError | OptstateError | None, *, for_ever: bool) -> None:
    """Without an error it is done; after one nothing has changed, and where the fault stays, at least nothing is lost."""
    if raised is None:
        assert found in deed.after, f"reported as done, and {found!r} is seen"
    elif for_ever:
        assert found in deed.stages, f"{found!r} is seen after {raised}"
    else:
        assert found in deed.stages[: max(1, len(deed.stages) - deed.done)], f"{found!r} is seen after {raised}"


def check_power_cut(deed: Deed, mirror: Mirror, oracle: Oracle, *, success: bool) -> None:
    """The same holds when the power goes right afterwards: what was not synced, for a sync failed, is not called done."""
    for tree in crashes(mirror.disk.log, len(mirror.disk.log), most=1):
        after = oracle.of(tree)
        assert after in (deed.after if success else deed.stages), f"{after!r} after a power cut, {success=}"


def recover(deed: Deed, root: Path) -> None:
    """Once the system is well again it succeeds, and nothing is left of what was tried before."""
    deed.again(root, RealFiles())
    assert verdict(root) == deed.stages[-1], verdict(root)
    left = [name for name in os.listdir(root / RUN) if name.startswith(".") and name != LOCK]
    assert not left, left

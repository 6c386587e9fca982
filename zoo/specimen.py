"""What a specimen is, and how one is shown: the act, what the library said, what doctor says."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import optstate
from optstate.text import safe_text

NOTHING = "nothing"
UNREAD = "not inspected"
"""For `seen_as`: doctor has no code for it, but names a part that cannot be read."""


@dataclass(frozen=True)
class Scene:
    """What doctor looks at: the arguments of `optstate.diagnose`."""

    target: Any
    model: Any = None
    against: Any = None
    scheduler: Any = None
    scaler: Any = None

    def diagnose(self) -> optstate.Diagnosis:
        """Ask doctor."""
        return optstate.diagnose(
            self.target, self.model, against=self.against, scheduler=self.scheduler, scaler=self.scaler
        )


Act = Callable[[], Iterator[Scene | str]]
"""A program that does what users do. It runs in an empty folder, yields what the library said at once where that is an
error, then the scene, and goes on with what comes later: an error of the library, or `really`, which shows the damage."""


@dataclass(frozen=True)
class Specimen:
    """One fault.

    seen_as
        Another code under which doctor finds it, because of what it leaves behind.
    unseen
        Why nothing can be seen afterwards; "" where something can.
    needs
        Modules without which it cannot be shown.
    """

    code: str
    title: str
    act: Act | None
    seen_as: str = ""
    unseen: str = ""
    needs: tuple[str, ...] = ()


SPECIMENS: list[Specimen] = []


def specimen(
    code: str, title: str, *, seen_as: str = "", unseen: str = "", needs: tuple[str, ...] = ()
) -> Callable[[Act], Act]:
    """Put a program into the zoo."""

    def put(act: Act) -> Act:
        SPECIMENS.append(Specimen(code, title, act, seen_as, unseen, needs))
        return act

    return put


def elsewhere(code: str, title: str, why: str) -> None:
    """Put a code into the zoo that cannot be shown here, and say why."""
    SPECIMENS.append(Specimen(code, title, None, unseen=why))


class NotSo(Exception):
    """The damage that a specimen is about did not happen: the library is not as it was."""


def really(happened: object) -> None:
    """Hold a specimen to what it claims. Raises `NotSo`."""
    if not bool(happened):
        raise NotSo


def attempt(act: Callable[[], object]) -> str:
    """What a library says when it refuses."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001 - DCP's own exceptions are no `Exception`
        return _worded(error)
    return NOTHING


def _worded(error: BaseException) -> str:
    return safe_text(f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}", 200)


@dataclass
class Showing:
    """What came of showing a specimen: the library's words, doctor's words, and whether doctor found it."""

    specimen: Specimen
    library: str = ""
    doctor: str = ""
    ok: bool = False
    skipped: bool = False
    codes: tuple[str, ...] = field(default=())


def show(each: Specimen) -> Showing:
    """Run a specimen in a folder of its own."""
    if each.act is None:
        return Showing(each, "", each.unseen, ok=True, skipped=True)
    missing = [module for module in each.needs if find_spec(module) is None]
    if missing:
        return Showing(each, "", f"not shown: {', '.join(missing)} is not installed", ok=True, skipped=True)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        return _shown(each, each.act, heard)


def _shown(each: Specimen, act: Act, heard: list[warnings.WarningMessage]) -> Showing:
    said: list[str] = []
    found: optstate.Diagnosis | None = None
    try:
        for event in act():
            if isinstance(event, str):
                said.append(event if event == NOTHING else f"at once: {event}")
                continue
            said += [f"warning: {_first_line(warning)}" for warning in heard if _relevant(warning)]
            found = event.diagnose()
    except NotSo:
        return Showing(each, "it did not happen", "the library is not as it was", ok=False)
    except BaseException as error:  # what a user would see; those of DCP are no `Exception`
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or found is None:
            raise
        said.append(f"later: {_worded(error)}")
    if found is None:
        return Showing(each, _joined(said), each.unseen, ok=bool(each.unseen))
    return _judged(each, _joined(said), found)


def _joined(said: list[str]) -> str:
    words = [each for each in dict.fromkeys(said) if each != NOTHING]
    return "; ".join(words) or NOTHING


def _judged(each: Specimen, library: str, found: optstate.Diagnosis) -> Showing:
    codes = tuple(dict.fromkeys(finding.code for finding in found))
    wanted = each.seen_as or each.code
    told = found.uninspected if wanted == UNREAD else [f.evidence for f in found if f.code == wanted]
    evidence = "; ".join(dict.fromkeys(told))
    if each.unseen:
        return Showing(each, library, f"cannot see it: {each.unseen}", ok=each.code not in codes, codes=codes)
    if not evidence:
        return Showing(each, library, f"missed it; it says {', '.join(codes) or 'nothing'}", ok=False, codes=codes)
    return Showing(each, library, f"{wanted} {evidence}", ok=True, codes=codes)


def _first_line(warning: warnings.WarningMessage) -> str:
    return safe_text(str(warning.message).strip().partition("\n")[0], 200)


def _relevant(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is about what was done, and not about how this process is set up."""
    about = str(warning.message)
    return not issubclass(warning.category, (DeprecationWarning, FutureWarning)) and not any(
        word in about for word in ("torch.distributed is disabled", "TypedStorage", "dataloader", "num_workers")
    )

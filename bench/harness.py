"""Measuring side by side: contenders take turns, figures are medians, ratios are medians of each turn's ratio.

An absolute time says more about the machine than about the code, so every subject is measured beside a peer
(what people use today) and a limit (what the machine could do at best), and is judged by the ratios. This
module imports nothing heavy: a child's peak memory counts from its parent's, where it was started.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

OURS, PEER, LIMIT = "ours", "peer", "limit"


@dataclass(frozen=True, slots=True)
class Options:
    """`directory` holds the files that are measured; `quick` asks for small sizes and few rounds."""

    directory: Path
    quick: bool

    def rounds(self, usual: int) -> int:
        """How often each contender takes its turn: once in a quick run, which only shows that everything runs."""
        return 1 if self.quick else usual


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to reach: `figure` names a field of `Row`, of which at most `most` is good."""

    figure: str
    most: float

    def __str__(self) -> str:
        return f"{self.figure} ≤ {self.most:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One subject: medians in seconds, the ratio to the peer and to the limit, and ours' peak memory.

    `size` is what was worked on, `busy` whether others worked on the machine meanwhile. A figure that was not
    taken is None.
    """

    subject: str
    size: str
    ours: float
    peer: float | None = None
    limit: float | None = None
    to_peer: float | None = None
    to_limit: float | None = None
    peak_mb: float | None = None
    busy: bool = False
    targets: tuple[Target, ...] = ()

    @property
    def verdict(self) -> str:
        """`good`, `MISSED` with what was, `busy` where only an absolute time was on a busy machine, `-` without targets."""
        missed = [target for target in self.targets if getattr(self, target.figure) > target.most]
        told = [target for target in missed if not (self.busy and target.figure == OURS)]
        if told:
            return "MISSED " + ", ".join(map(str, told))
        if missed:
            return f"busy: {missed[0]} was not judged"
        return "good" if self.targets else "-"

    def document(self) -> dict[str, Any]:
        """The row in JSON's own types."""
        figures = ("subject", "size", "ours", "peer", "limit", "to_peer", "to_limit", "peak_mb", "busy")
        return {
            **{figure: getattr(self, figure) for figure in figures},
            "targets": {target.figure: target.most for target in self.targets},
            "verdict": self.verdict,
        }


Times = Mapping[str, Sequence[float]]
"""Seconds of each contender, round by round."""


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let each contender run once per round, in the opposite order every other round.

    Each returns its own seconds, so that it can leave out what is not part of its work. Where there are
    several rounds, another one before them warms up and does not count.
    """
    warm_up = int(rounds > 1)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            times[name].append(contenders[name]())
    return {name: seconds[warm_up:] for name, seconds in times.items()}


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as a contender: the whole call counts."""

    def run() -> float:
        began = perf_counter()
        work()
        return perf_counter() - began

    return run


def row(subject: str, size: str, times: Times, *targets: Target, peak_mb: float | None = None) -> Row:
    """The row that the times of `ours`, and of `peer` and `limit` where there are, make."""

    def middle(name: str) -> float | None:
        return median(times[name]) if name in times else None

    def ratio(name: str) -> float | None:
        if name not in times:
            return None
        return median(ours / other for ours, other in zip(times[OURS], times[name], strict=True))

    return Row(
        subject=subject,
        size=size,
        ours=median(times[OURS]),
        peer=middle(PEER),
        limit=middle(LIMIT),
        to_peer=ratio(PEER),
        to_limit=ratio(LIMIT),
        peak_mb=peak_mb,
        busy=os.getloadavg()[0] > (os.cpu_count() or 1),
        targets=targets,
    )


@dataclass(frozen=True, slots=True)
class Child:
    """A process that ended: its wall-clock seconds, its peak resident memory, and what it printed."""

    seconds: float
    peak_mb: float
    output: str


def run_child(arguments: Sequence[str]) -> Child:
    """Run this Python with `arguments` to its end. Raises `SystemExit` with its complaint where it fails."""
    with tempfile.TemporaryFile("w+") as complaints:
        began = perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as child:
            output = child.stdout.read() if child.stdout else ""
            _, status, usage = os.wait4(child.pid, 0)
            seconds = perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            complaints.seek(0)
            raise SystemExit(f"python {' '.join(arguments)} ended with {child.returncode}\n{complaints.read()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Child(seconds, usage.ru_maxrss * unit / 1e6, output)


def measured_in_child(module: str, *arguments: object) -> dict[str, list[float]]:
    """The times that `python -m module arguments` prints as JSON."""
    times: dict[str, list[float]] = json.loads(run_child(["-m", module, *map(str, arguments)]).output)
    return times


def machine() -> dict[str, Any]:
    """What the figures depend on, without anything that names the machine."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("torch", "numpy", "click")},
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

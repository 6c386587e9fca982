"""`optstate show` on a torch.save file, the whole process, against a script that loads it with torch, mapped."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, row, run_child, take_turns

_PEER = "import sys, torch; torch.load(sys.argv[1], mmap=True, weights_only=True)"
_SIZES = {"20 MB": 20, "200 MB": 200, "2 GB": 2100}
_QUICK = {"2 MB": 2, "20 MB": 20}


def rows(options: Options) -> list[Row]:
    """One row per file size, and one that says how much more the largest file takes than the smallest."""
    sizes = _QUICK if options.quick else _SIZES
    paths = {label: str(options.directory / f"adamw-{megabytes}.pt") for label, megabytes in sizes.items()}
    run_child(["-m", "bench.training", *(word for label in sizes for word in (paths[label], str(sizes[label])))])
    peaks: dict[str, list[float]] = {label: [] for label in sizes}
    contenders: dict[str, Callable[[], float]] = {LIMIT: lambda: run_child(["-c", "pass"]).seconds}
    for label, path in paths.items():
        contenders[OURS + label] = _ours(path, peaks[label])
        contenders[PEER + label] = _peer(path)
    times = take_turns(contenders, options.rounds(5))

    targets = (Target("ours", 0.35), Target("to_peer", 0.25), Target("peak_mb", 120))
    found = [
        row(
            "show",
            label,
            {OURS: times[OURS + label], PEER: times[PEER + label], LIMIT: times[LIMIT]},
            *targets,
            peak_mb=median(peaks[label]),
        )
        for label in sizes
    ]
    smallest, *_, largest = sizes
    flat = {OURS: times[OURS + largest], PEER: times[OURS + smallest]}
    return [*found, row("show grows", f"{largest} ÷ {smallest}", flat, Target("to_peer", 1.15))]


def _ours(path: str, peaks: list[float]) -> Callable[[], float]:
    def run() -> float:
        child = run_child(["-m", "optstate", "show", path])
        peaks.append(child.peak_mb)
        return child.seconds

    return run


def _peer(path: str) -> Callable[[], float]:
    return lambda: run_child(["-c", _PEER, path]).seconds

"""What is said of a million slots: the manifest read, made anew, and looked at by whoever looks for the newest.

Each in a process of its own that has done nothing else; nobody else writes anything of the kind. One row has the time of
all three, which is aimed at, and the most memory that one of them took.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec

from bench.durable import extra_mb
from bench.harness import OURS, Options, Row, Target, measured_in_child, row

TINY = 4  # elements of a tensor

STEPS = ("read", "written", "looked at")


def rows(options: Options) -> list[Row]:
    """A row for each, and one for all three."""
    slots = 4000 if options.quick else 1_000_000
    folder = options.directory / "run"
    measured_in_child("bench.manifest", folder, "saved", slots)
    found = {what: [_measured(folder, what) for _ in range(options.rounds(3))] for what in STEPS}
    shutil.rmtree(folder)
    size = f"{slots:,} slots"
    each = [
        row(f"manifest {what}", size, {OURS: [seconds for seconds, _ in takes]}, peak_mb=_most(takes))
        for what, takes in found.items()
    ]
    every = row(
        "manifest, all three", size, {OURS: [sum(median(seconds for seconds, _ in takes) for takes in found.values())]},
        Target(OURS, 20), Target("peak_mb", 1500), peak_mb=max(map(_most, found.values())),
    )  # fmt: skip
    return [*each, every]


def _measured(folder: Path, what: str) -> tuple[float, float]:
    times = measured_in_child("bench.manifest", folder, what)
    return times["seconds"][0], times["extra_mb"][0]


def _most(takes: list[tuple[float, float]]) -> float:
    return max(extra for _, extra in takes)


def main() -> None:
    """`python -m bench.manifest FOLDER saved SLOTS`, or `FOLDER read|written|looked at`: seconds and memory as JSON."""
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "saved":
        _save(folder, int(sys.argv[3]))
        print("{}")
        return
    from optstate.formats.ours.directory import read_manifest
    from optstate.formats.ours.manifest import encode_manifest
    from optstate.store.folder import contents

    path = folder / "step-1"
    if what == "written":
        body = read_manifest(path)
        body = msgspec.structs.replace(body, tensors=dict(body.tensors))
    work: Callable[[], object] = {
        "read": lambda: read_manifest(path),
        "written": lambda: encode_manifest(body),
        "looked at": lambda: contents(folder),
    }[what]
    began = perf_counter()
    extra = extra_mb(work)
    print(json.dumps({"seconds": [perf_counter() - began], "extra_mb": [extra]}))


def _save(folder: Path, slots: int) -> None:
    import optstate
    from bench.training import many

    model, optimizer = many(slots // 4, TINY)  # AdamW keeps three slots beside each weight
    optstate.save(folder / "step-1", model=model, optimizer=optimizer, step=1)


if __name__ == "__main__":
    main()

"""`optstate show --stats`, the whole process, against the same statistics taken by numpy from a raw file."""

from __future__ import annotations

import sys
from statistics import median

from bench.harness import LIMIT, OURS, PEER, Child, Options, Row, Target, row, run_child, take_turns
from bench.reading import BLOCK, read, uncached

MOMENTS = 2 / 3  # the share of a file of AdamW that is read for statistics


def rows(options: Options) -> list[Row]:
    """All slots of an AdamW file, in the page cache and not; the limit is reading as many bytes of it."""
    megabytes = 100 if options.quick else 2000
    path = str(options.directory / f"adamw-{megabytes}.pt")
    run_child(["-m", "bench.training", path, str(megabytes)])
    return [_row(path, megabytes, options, cold=cold) for cold in (False, True)]


def _row(path: str, megabytes: int, options: Options, *, cold: bool) -> Row:
    peaks: list[float] = []

    def run(*arguments: str) -> Child:
        if cold:
            uncached([path])
        return run_child([*arguments, path])

    def ours() -> float:
        child = run("-m", "optstate", "show", "--stats")
        peaks.append(child.peak_mb)
        return child.seconds

    contenders = {
        OURS: ours,
        PEER: lambda: run("-m", "bench.stats", "numpy").seconds,
        LIMIT: lambda: run("-m", "bench.stats", "read").seconds,
    }
    times = take_turns(contenders, options.rounds(5))
    # Half the speed at which the disk reads; what is in memory already, at the speed of the bare sums.
    speed = Target("to_limit", 2) if cold else Target("to_peer", 1.25)
    subject = "show --stats, uncached" if cold else "show --stats"
    return row(subject, f"{megabytes} MB", times, speed, Target("peak_mb", 200), peak_mb=median(peaks))


def main() -> None:
    """`python -m bench.stats numpy|read FILE`: the share of the moments."""
    how, path = sys.argv[1:]
    if how == "read":
        read(path, MOMENTS)
        return
    import numpy as np

    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plainest read there is
        left = int(file.seek(0, 2) * MOMENTS)
        file.seek(0)
        while left > 0:
            raw = file.read(BLOCK)
            left -= len(raw) or left
            block = np.frombuffer(raw, dtype="float32", count=len(raw) // 4)
            np.count_nonzero(block == 0)
            with np.errstate(invalid="ignore"):  # the pickle between the tensors is no number
                wide = block.astype("float64")
            np.einsum("i,i->", wide, wide)


if __name__ == "__main__":
    main()

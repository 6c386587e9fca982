"""`optstate show --stats`, the whole process, against the same statistics taken by numpy from a raw file."""

from __future__ import annotations

import sys
from statistics import median

from bench.harness import LIMIT, OURS, PEER, Child, Options, Row, Target, row, run_child, take_turns

BLOCK = 1 << 22  # bytes


def rows(options: Options) -> list[Row]:
    """One row: all slots of an AdamW file, whose raw peer is the file itself read as float32."""
    megabytes = 100 if options.quick else 1000
    path = options.directory / f"adamw-{megabytes}.pt"
    run_child(["-m", "bench.training", str(path), str(megabytes)])
    children: list[Child] = []

    def ours() -> float:
        children.append(run_child(["-m", "optstate", "show", "--stats", str(path)]))
        return children[-1].seconds

    times = take_turns(
        {
            OURS: ours,
            PEER: lambda: run_child(["-m", "bench.stats", "numpy", str(path)]).seconds,
            LIMIT: lambda: run_child(["-m", "bench.stats", "read", str(path)]).seconds,
        },
        options.rounds(5),
    )
    peak = median(child.peak_mb for child in children)
    return [row("show --stats", f"{megabytes} MB", times, Target("peak_mb", 200), peak_mb=peak)]


def main() -> None:
    """`python -m bench.stats numpy|read FILE`: two thirds of the file, which is the share of the moments."""
    how, path = sys.argv[1:]
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plainest read there is
        left = file.seek(0, 2) * 2 // 3
        file.seek(0)
        if how == "read":
            buffer = bytearray(BLOCK)
            while left > 0:
                left -= file.readinto(buffer) or left
            return
        import numpy as np

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

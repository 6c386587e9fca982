"""`optstate.save` until it is durable: against torch.save and fsync, and against the disk itself.

One row for a large state, one for ten thousand small tensors, one for a million slots. The peak is what a save takes beyond
the model and the optimizer.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from bench.durable import durable, extra_mb, raw_writer, synced
from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns

SMALL, TINY = 1000, 4  # elements of a tensor


def rows(options: Options) -> list[Row]:
    """Three rows."""
    megabytes, tensors, slots = (100, 1000, 4000) if options.quick else (2100, 10_000, 1_000_000)
    return [
        _row(
            "save", f"{megabytes} MB", options, "large", megabytes, options.rounds(5),
            targets=(Target("to_peer", 1), Target("to_limit", 1.1), Target("peak_mb", 150)),
        ),
        _row(
            "save", f"{tensors:,} × {SMALL:,}", options, "small", tensors, options.rounds(5),
            targets=(Target("to_peer", 0.5), Target("peak_mb", 150)),
        ),
        _row(
            "save", f"{slots:,} slots", options, "million", slots, 1,
            targets=(Target("peak_mb", 1500),),
        ),
    ]  # fmt: skip


def _row(subject: str, size: str, options: Options, *arguments: object, targets: tuple[Target, ...]) -> Row:
    times = measured_in_child("bench.save", options.directory, *arguments)
    peak = max(times.pop("extra_mb"))
    known = tuple(target for target in targets if target.figure != "peak_mb" or not math.isnan(peak))
    return row(subject, size, times, *known, peak_mb=None if math.isnan(peak) else peak)


def main() -> None:
    """`python -m bench.save DIRECTORY large|small|million SIZE ROUNDS`: times and extra memory as JSON."""
    import torch

    import optstate
    from bench.training import many, state_nbytes, training

    directory, what, size, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    model, optimizer = {
        "large": lambda: training(size),
        "small": lambda: many(size, SMALL),
        "million": lambda: many(size // 4, TINY),  # AdamW keeps three slots beside each weight
    }[what]()

    save = optstate.save  # now, for the name is imported when it is first used

    def ours(path: Path) -> None:
        save(path, model=model, optimizer=optimizer, step=1)

    def peer(path: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, path)
        synced(path)

    contenders = {OURS: durable(ours, directory / "ours")}
    if what != "million":  # of which no peer writes in less than minutes
        contenders[PEER] = durable(peer, directory / "peer.pt")
    if what == "large":
        contenders[LIMIT] = durable(raw_writer(state_nbytes(model, optimizer)), directory / "raw")
    extra = extra_mb(contenders[OURS])
    print(json.dumps({**take_turns(contenders, rounds), "extra_mb": [extra]}))


if __name__ == "__main__":
    main()

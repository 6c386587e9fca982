"""`optstate.save` until it is durable, against torch.save and fsync, and against writing raw bytes and fsync."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns


def rows(options: Options) -> list[Row]:
    """One row."""
    megabytes = 100 if options.quick else 2100
    times = measured_in_child("bench.save", options.directory, megabytes, options.rounds(5))
    return [row("save", f"{megabytes} MB", times, Target("to_peer", 1))]


def main() -> None:
    """`python -m bench.save DIRECTORY MEGABYTES ROUNDS`: the times as JSON."""
    import torch

    import optstate
    from bench.training import training

    directory, megabytes, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model, optimizer = training(megabytes)

    def ours(path: Path) -> None:
        optstate.save(path, model=model, optimizer=optimizer, step=1)

    def peer(path: Path) -> None:
        with path.open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, file)
            file.flush()
            os.fsync(file.fileno())

    def limit(path: Path) -> None:
        slots = [slot for entry in optimizer.state.values() for slot in entry.values()]
        with path.open("wb", buffering=0) as file:
            for tensor in [*model.parameters(), *slots]:
                file.write(memoryview(tensor.detach().numpy()).cast("B"))
            os.fsync(file.fileno())

    def durable(write: Callable[[Path], None], name: str) -> Callable[[], float]:
        """A contender that starts with an idle disk and leaves nothing behind."""

        def run() -> float:
            path = directory / name
            os.sync()
            began = perf_counter()
            write(path)
            seconds = perf_counter() - began
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return seconds

        return run

    times = take_turns(
        {OURS: durable(ours, "ours"), PEER: durable(peer, "peer.pt"), LIMIT: durable(limit, "raw")}, rounds
    )
    print(json.dumps(times))


if __name__ == "__main__":
    main()

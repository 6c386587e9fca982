"""`optstate.restore` into a live model and optimizer, against torch.load and load_state_dict on both.

Each measurement is a process of its own, for a second load in one process reuses the memory of the first; the
files are in the page cache. The limit is copying the same number of bytes from memory to memory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, row, run_child, take_turns


def rows(options: Options) -> list[Row]:
    """One row."""
    megabytes = 100 if options.quick else 2100

    def seconds(how: str) -> float:
        return float(run_child(["-m", "bench.restore", how, str(options.directory), str(megabytes)]).output)

    seconds("write")
    times = take_turns(
        {OURS: lambda: seconds("ours"), PEER: lambda: seconds("peer"), LIMIT: lambda: seconds("limit")},
        options.rounds(5),
    )
    return [row("restore", f"{megabytes} MB", times, Target("to_peer", 1))]


def main() -> None:
    """`python -m bench.restore write|ours|peer|limit DIRECTORY MEGABYTES`: prints seconds."""
    import torch

    import optstate
    from bench.training import training

    how, directory, megabytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if how == "limit":
        source, target = (torch.ones(megabytes * 250_000) for _ in range(2))
        began = perf_counter()
        target.copy_(source)
        print(perf_counter() - began)
        return
    model, optimizer = training(megabytes, seed=0 if how == "write" else 1)
    restore = optstate.restore  # now, for the name is imported when it is first used
    began = perf_counter()
    if how == "write":
        optstate.save(directory / "ours", model=model, optimizer=optimizer, step=1)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
        torch.save(state, directory / "peer.pt")
    elif how == "ours":
        restore(directory / "ours", model=model, optimizer=optimizer)
    else:
        loaded = torch.load(directory / "peer.pt", weights_only=True)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
    print(perf_counter() - began)


if __name__ == "__main__":
    main()

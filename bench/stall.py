"""What a save in the background costs the training: steps around one, less the same steps without, against `torch.save`.

The training is such that forward and backward of one step outlast the writing, so a step that waits would be one that
waits for more than the copying. It leaves one core to others, as one that computes on an accelerator does; where it takes
all of them, whatever a save computes is taken from it, and rows of their own say how much that is. DCP's `async_save`, its
staging memory kept from save to save, has rows too.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.durable import durable, extra_mb, synced
from bench.harness import OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns

STEPS = 2
"""Steps that are timed: the one that may have to wait, and one during which the rest is written."""

OUTLASTS = 1.3
"""How many times as long as the writing forward and backward take."""


def rows(options: Options) -> list[Row]:
    """Ours, and DCP's, with a core left and without; the peer of all is `torch.save`, durable."""
    cores = len(os.sched_getaffinity(0))
    return [
        each
        for threads, beside in ((max(1, cores - 1), "one core left"), (cores, "no core left"))
        for each in _rows(options, threads, beside)
    ]


def _rows(options: Options, threads: int, beside: str) -> list[Row]:
    megabytes = 100 if options.quick else 2100
    times = measured_in_child("bench.stall", options.directory, megabytes, options.rounds(7), threads)
    size, saved = f"{megabytes} MB, {STEPS} steps", times["torch.save"]

    def stall(who: str) -> list[float]:
        return [around - without for around, without in zip(times[who], times["without"], strict=True)]

    return [
        row(
            f"stall, {beside}", size, {OURS: stall("ours"), PEER: saved},
            Target("to_peer", 0.1), Target("peak_mb", 150), peak_mb=times["extra_mb"][0],
        ),
        row(f"DCP's stall, {beside}", size, {OURS: stall("DCP"), PEER: saved}, peak_mb=times["extra_mb"][1]),
    ]  # fmt: skip


def main() -> None:
    """`python -m bench.stall DIRECTORY MEGABYTES ROUNDS THREADS`: times and extra memory as JSON."""
    import torch

    import optstate
    from bench.training import training

    directory, megabytes, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")  # of the peer
    torch.set_num_threads(int(sys.argv[4]))
    model, optimizer = training(megabytes)
    save = optstate.save  # now, for the name is imported when it is first used
    write = durable(lambda path: save(path, model=model, optimizer=optimizer), directory / "ours")
    backward = _backward(model, OUTLASTS * max(write(), write()))

    def steps() -> None:
        for _ in range(STEPS):
            backward()
            optimizer.step()

    def around(begin: Callable[[Path], Callable[[], object]]) -> Callable[[], float]:
        """A contender that trains while a save is under way, and lets it end where no time is taken."""

        def run() -> float:
            os.sync()
            began = perf_counter()
            end = begin(directory / "beside")
            steps()
            seconds = perf_counter() - began
            end()
            shutil.rmtree(directory / "beside", ignore_errors=True)
            return seconds

        return run

    def whole(path: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        synced(path)

    contenders = {
        "without": around(lambda _: lambda: None),
        "ours": around(lambda path: save(path, model=model, optimizer=optimizer, block=False).wait),
        "DCP": around(_dcp(model, optimizer, directory)),
        "torch.save": durable(whole, directory / "whole.pt"),
    }
    contenders["without"]()  # gradients have their memory now
    extra = [extra_mb(contenders[who]) for who in ("ours", "DCP")]
    print(json.dumps({**take_turns(contenders, rounds), "extra_mb": extra}))


def _backward(model: Any, seconds: float) -> Callable[[], None]:
    """Forward and backward that take about so many seconds."""
    import torch

    width = next(model.parameters()).shape[1]

    def once(batch: torch.Tensor) -> None:
        model.zero_grad(set_to_none=False)
        model(batch).square().mean().backward()

    def timed(batch: torch.Tensor) -> float:
        began = perf_counter()
        once(batch)
        return perf_counter() - began

    small, large = torch.randn(64, width), torch.randn(256, width)
    timed(small)
    fixed = timed(small)
    each = max((timed(large) - fixed) / 192, 1e-6)
    batch = torch.randn(max(64, 64 + ceil((seconds - fixed) / each)), width)
    return lambda: once(batch)


def _dcp(model: Any, optimizer: Any, directory: Path) -> Callable[[Path], Callable[[], object]]:
    """Begins an `async_save`; what it returns waits for the end."""
    from torch.distributed import init_process_group
    from torch.distributed.checkpoint.staging import BlockingAsyncStager
    from torch.distributed.checkpoint.state_dict_saver import async_save

    init_process_group("gloo", init_method=f"file://{(directory / 'group').resolve()}", rank=0, world_size=1)
    stager = BlockingAsyncStager(cache_staged_state_dict=True)
    stager.state_dict_cache = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    def begin(path: Path) -> Callable[[], object]:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saving: Any = async_save(state, checkpoint_id=path, async_stager=stager)
        return saving.result  # type: ignore[no-any-return]

    return begin


if __name__ == "__main__":
    main()

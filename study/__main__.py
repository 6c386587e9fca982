"""What does lost optimizer state cost, and what does each cure give back? `python -m study`.

Trains two tasks with two optimizers and several seeds to a cut, goes on from there in every way of `study/arms.py`, and
writes the losses, the tables and the plots of docs/study.md. Ten minutes of one core or so; `--small` takes less than one
and shows that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from study import page, results
from study.arms import ARMS
from study.runs import LOOKS, OPTIMIZERS, Key, go_on, start
from study.tasks import TASKS, Task

PAGE = Path(__file__).parents[1] / "docs" / "study.md"
SMALL_LOOKS = (0, 1, 3)


def main() -> int:
    """The whole study, or a small one; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="few steps and seeds: does everything run?")
    parser.add_argument("--keep", action="store_true", help="keep the runs that are there, and make those that are not")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="the page that gets tables and plots; default: docs/study.md"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)  # sums depend on how many share them
    began = time.process_time()
    looks = SMALL_LOOKS if options.small else LOOKS
    tasks = [replace(task, before=5, seeds=2) if options.small else task for task in TASKS.values()]
    path = options.page.with_suffix(".json")
    found = results.read(path) if options.keep else {}
    for key, losses in runs(tasks, looks, found):
        found[key] = losses
        results.write(path, found)
        print(f"{'/'.join(map(str, key))}: {losses[max(looks)]:.4f} after {max(looks)} steps", file=sys.stderr)
    page.write(options.page, results.read(path))  # as the file has them, rounded
    print(f"{len(found)} runs, {time.process_time() - began:.0f} s of one core: {options.page}")
    return 0


def runs(tasks: Iterable[Task], looks: Iterable[int], known: results.Results) -> Iterator[tuple[Key, dict[int, float]]]:
    """Every run that is not known yet: each seed is trained to the cut once."""
    for task in tasks:
        for optimizer in OPTIMIZERS:
            for seed in range(task.seeds):
                due = [
                    Key(task.name, optimizer, seed, arm)
                    for arm, each in ARMS.items()
                    if optimizer == "AdamW" or not each.adam
                ]
                due = [key for key in due if key not in known]
                cut = start(task, optimizer, seed) if due else None
                for key in due:
                    if cut is not None:
                        yield key, go_on(cut, seed, ARMS[key.arm], looks)


if __name__ == "__main__":
    sys.exit(main())

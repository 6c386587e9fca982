"""`optstate show --json` on files of very many tensors, the whole process, against torch that loads them onto no device.

What takes time here is the pickle, in which each tensor is some thirty opcodes, and the directory of the archive.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

from bench.harness import OURS, PEER, Child, Options, Row, Target, row, run_child, take_turns

_PEER = "import sys, torch; torch.load(sys.argv[1], mmap=True, weights_only=True, map_location='meta')"
_OLD_PEER = "import sys, torch; torch.load(sys.argv[1], weights_only=True, map_location='meta')"
TENSORS = 80_000


def rows(options: Options) -> list[Row]:
    """One row for each layout: the state of AdamW, a dict of weights, and that state in the layout of old torch."""
    tensors = TENSORS // 40 if options.quick else TENSORS
    found = []
    for kind, peer in (("adamw", _PEER), ("dict", _PEER), ("adamw-old", _OLD_PEER)):
        path = str(options.directory / f"{kind}-{tensors}.pt")
        run_child(["-m", "bench.pickle", kind, path, str(tensors)])
        children: list[Child] = []
        times = take_turns({OURS: _ours(path, children), PEER: _theirs(peer, path)}, options.rounds(3))
        peak = median(child.peak_mb for child in children)
        targets = (Target("ours", 5), Target("peak_mb", 500))
        found.append(row("show --json", f"{tensors:,} tensors, {kind}", times, *targets, peak_mb=peak))
    return found


def _ours(path: str, children: list[Child]) -> Callable[[], float]:
    def run() -> float:
        children.append(run_child(["-m", "optstate", "show", "--json", path]))
        return children[-1].seconds

    return run


def _theirs(peer: str, path: str) -> Callable[[], float]:
    return lambda: run_child(["-c", peer, path]).seconds


def main() -> None:
    """`python -m bench.pickle adamw|dict|adamw-old FILE TENSORS`: write such a file."""
    import torch

    kind, path, tensors = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind == "dict":
        torch.save({f"layers.{index}.weight": torch.full((4, 2), 0.1) for index in range(tensors)}, path)
        return
    state = {
        index: {"step": torch.tensor(3.0), "exp_avg": torch.full((4, 2), 0.1), "exp_avg_sq": torch.full((4, 2), 0.2)}
        for index in range(tensors // 3)
    }
    group = torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0] | {"params": [*state]}
    saved = {"state": state, "param_groups": [group]}
    torch.save(saved, path, _use_new_zipfile_serialization=kind == "adamw")


if __name__ == "__main__":
    main()

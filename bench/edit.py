"""An edit with backup, validation and the journal's norms, against what it does written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns, timed

if TYPE_CHECKING:
    import torch

FACTOR = 0.999


def rows(options: Options) -> list[Row]:
    """Few large tensors against one multiplication of as many numbers in one piece; many small ones against a loop."""
    large = (30, 50_000) if options.quick else (300, 500_000)
    small = (1_000, 1_000) if options.quick else (10_000, 1_000)
    rounds = options.rounds(9)
    return [
        _row("edit", large, "safe", rounds, Target("to_limit", 6)),
        _row("edit, no backup, no norms", large, "bare", rounds, Target("to_limit", 2)),
        _row("edit, small tensors", small, "safe", rounds, Target("to_peer", 2.5)),
    ]


def _row(subject: str, size: tuple[int, int], how: str, rounds: int, target: Target) -> Row:
    times = measured_in_child("bench.edit", *size, how, rounds)
    return row(subject, f"{size[0]:,} × {size[1]:,}", times, target)


def main() -> None:
    """`python -m bench.edit TENSORS ELEMENTS safe|bare ROUNDS`: the times as JSON."""
    import torch

    import optstate

    torch.set_num_threads(1)  # two would wait for each other wherever something else uses a core
    tensors, elements, how, rounds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    model = torch.nn.ParameterList([torch.zeros(elements) for _ in range(tensors)])
    optimizer = torch.optim.AdamW(model.parameters())
    for number, parameter in enumerate(model):
        optimizer.state[parameter] = {
            "step": torch.tensor(100.0),
            "exp_avg": torch.full((elements,), 1e-3 * (1 + number % 7)),
            "exp_avg_sq": torch.full((elements,), 1e-4),
        }
    whole = torch.full((tensors * elements,), 1e-3)
    state = optstate.attach(optimizer, model)
    safe = how == "safe"

    def ours() -> None:
        with state.edit("bench", backup=safe, norms=safe) as edit:
            edit.select("*").momentum.scale_(FACTOR)

    contenders = {OURS: timed(ours), PEER: timed(_by_hand(optimizer)), LIMIT: timed(lambda: whole.mul_(FACTOR))}
    print(json.dumps(take_turns(contenders, rounds)))


def _by_hand(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What people write today."""

    def loop() -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["exp_avg"].mul_(FACTOR)

    return loop


if __name__ == "__main__":
    main()

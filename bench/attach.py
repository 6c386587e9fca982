"""`attach` and `select("*")` on 10,000 parameters, against iterating `named_parameters()`."""

from __future__ import annotations

import json
import sys

from bench.harness import OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns, timed


def rows(options: Options) -> list[Row]:
    """One row."""
    parameters = 1_000 if options.quick else 10_000
    times = measured_in_child("bench.attach", parameters, options.rounds(15))
    return [row("attach", f"{parameters:,} parameters", times, Target("ours", 0.06), Target("to_peer", 4))]


def main() -> None:
    """`python -m bench.attach PARAMETERS ROUNDS`: the times as JSON."""
    import torch
    from torch import nn

    import optstate

    parameters, rounds = map(int, sys.argv[1:])
    # Twelve parameters per block and four levels, as in a transformer.
    blocks = [nn.Sequential(*(nn.Linear(1, 1) for _ in range(6))) for _ in range(parameters // 12)]
    model = nn.Sequential(nn.ModuleList(blocks))
    optimizer = torch.optim.AdamW(model.parameters())
    attach = optstate.attach  # now, for the name is imported when it is first used
    times = take_turns(
        {
            OURS: timed(lambda: attach(optimizer, model).select("*")),
            PEER: timed(lambda: list(model.named_parameters())),
        },
        rounds,
    )
    print(json.dumps(times))


if __name__ == "__main__":
    main()

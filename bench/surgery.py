"""Rows of a parameter and its slots kept, and grown, against gathering and against copying as many bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns, timed

if TYPE_CHECKING:
    import torch

WIDTH = 3
"""Numbers in a row, as of a position in space."""


def rows(options: Options) -> list[Row]:
    """The weights and the slots of AdamW with `amsgrad`, three of them: four tensors in all."""
    size = 200_000 if options.quick else 10_000_000
    rounds = options.rounds(7)
    return [
        row(
            f"surgery, {verb}",
            f"{size:,} rows × 3 slots",
            measured_in_child("bench.surgery", verb, size, rounds),
            Target("to_limit", 3),
        )
        for verb in ("keep_rows", "grow")
    ]


def main() -> None:
    """`python -m bench.surgery keep_rows|grow ROWS ROUNDS`: the times as JSON."""
    import torch

    import optstate

    torch.set_num_threads(1)  # two would wait for each other wherever something else uses a core
    verb, size, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = torch.nn.ParameterDict({"xyz": torch.nn.Parameter(torch.rand(size, WIDTH))})
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    optimizer.state[model["xyz"]] = {"step": torch.tensor(100.0)} | {
        key: torch.rand(size, WIDTH) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    }
    state = optstate.attach(optimizer, model)
    index = (torch.rand(size) < 0.9).nonzero().reshape(-1) if verb == "keep_rows" else None
    more = torch.rand(size // 10, WIDTH)

    def ours() -> None:
        with state.surgery("bench", dry_run=True) as cut:  # the same work, and every round begins alike
            cut.grow("xyz", rows=more) if index is None else cut.keep_rows("xyz", index)

    tensors = [model["xyz"].detach(), *(value for value in optimizer.state[model["xyz"]].values() if value.dim())]
    results = [torch.cat([tensor, more]) if index is None else tensor[: len(index)] for tensor in tensors]
    contenders = {OURS: timed(ours), PEER: timed(_by_hand(tensors, index, more)), LIMIT: timed(_copies(results))}
    print(json.dumps(take_turns(contenders, rounds)))


def _by_hand(tensors: list[torch.Tensor], index: torch.Tensor | None, more: torch.Tensor) -> Callable[[], None]:
    """The same rows of as many tensors gathered; or zeros behind them."""
    import torch

    def loop() -> None:
        made.extend(
            torch.cat([tensor, torch.zeros_like(more)]) if index is None else tensor.index_select(0, index)
            for tensor in tensors
        )
        made.clear()

    made: list[torch.Tensor] = []
    return loop


def _copies(tensors: list[torch.Tensor]) -> Callable[[], None]:
    """As many bytes as the result has, copied to new memory."""

    def loop() -> None:
        made.extend(tensor.clone() for tensor in tensors)
        made.clear()

    made: list[torch.Tensor] = []
    return loop


if __name__ == "__main__":
    main()

"""`alignment` and `rebuild` against the forward and backward passes that they ask for, in time and in memory."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable

from bench.harness import LIMIT, OURS, Options, Row, Target, row, run_child, take_turns, timed

SLOT_SET = 2
"""Bytes that AdamW keeps, over those of the weights."""


def rows(options: Options) -> list[Row]:
    """A transformer with AdamW, on batches of so many tokens as make the passes the work that they are in training.

    The peak is of what is allocated beyond the passes themselves; it may be one set of slots.
    """
    width, batch = (64, 8) if options.quick else (384, 16)
    found = []
    for subject in ("alignment", "rebuild"):
        child = run_child(["-m", "bench.rebuild", subject, str(width), str(batch), str(options.rounds(5))])
        told = json.loads(child.output)
        size = f"{told['parameters'] / 1e6:.3g} M × {told['batches']} batches"
        targets = Target("to_limit", 1.2), Target("peak_mb", 1.05 * told["slot_set"] / 1e6)
        found.append(row(subject, size, told["times"], *targets, peak_mb=told["extra"] / 1e6))
    return found


def main() -> None:
    """`python -m bench.rebuild alignment|rebuild WIDTH BATCH ROUNDS`: times and bytes as JSON."""
    import torch
    from torch import nn

    import optstate

    torch.set_num_threads(1)
    subject, width, batch, rounds = sys.argv[1], *map(int, sys.argv[2:])
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
    model = nn.Sequential(*(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(width, width)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    inputs, batches = torch.randn(batch, 64, width), 4

    def closure() -> None:
        model(inputs).square().mean().backward()

    def passes() -> None:
        for _ in range(batches):
            optimizer.zero_grad()
            closure()
        optimizer.zero_grad()

    closure()
    optimizer.step()
    optimizer.zero_grad()

    def ours() -> object:
        if subject == "alignment":
            return optstate.alignment(optimizer, model, closure, batches)
        return optstate.rebuild(optimizer, model, closure, batches)

    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if subject == "rebuild":
        optimizer.state.clear()
    print(
        json.dumps(
            {
                "extra": _peak(ours) - _peak(passes),
                "slot_set": SLOT_SET * weights,
                "times": take_turns({OURS: timed(ours), LIMIT: timed(passes)}, rounds),
                "parameters": weights // 4,
                "batches": batches,
            }
        )
    )


def _peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors that were alive at once during the work, besides those before it."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        kept = work()
    del kept
    alive = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


if __name__ == "__main__":
    main()

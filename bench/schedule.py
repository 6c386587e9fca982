"""A step of a schedule against `OneCycleLR.step`, what its hook adds to a step, and what coupling adds to one of AdamW."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable

from bench.harness import OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns


def rows(options: Options) -> list[Row]:
    """One row for each number of groups, one for the hook, one for coupling."""
    rounds = str(options.rounds(31))
    found = []
    for groups in (1, 2, 10):
        times = measured_in_child("bench.schedule", "step", groups, rounds)
        found.append(
            row("schedule step", f"{groups} {'group' if groups == 1 else 'groups'}", times, Target("to_peer", 1 / 3))
        )
    times = measured_in_child("bench.schedule", "hook", 1, rounds)
    added = {OURS: [ours - peer for ours, peer in zip(times[OURS], times[PEER], strict=True)]}
    found.append(row("schedule hook", "added to one step", added, Target(OURS, 10e-6)))
    elements = 10_000 if options.quick else 500_000
    times = measured_in_child("bench.schedule", "coupling", elements, rounds)
    found.append(row("schedule coupling", f"AdamW, 20 × {elements:,}", times))
    return found


def main() -> None:
    """`python -m bench.schedule SUBJECT SIZE ROUNDS`: the times as JSON."""
    warnings.simplefilter("ignore")  # torch's, about the order of steps
    subject, size, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    make = {"step": _step, "hook": _hook, "coupling": _coupling}[subject]
    print(json.dumps(take_turns(make(size), rounds)))


def _each(work: Callable[[], object], times: int = 200) -> Callable[[], float]:
    """`work` as a contender: the time of one call, the best of ten times `times`, for others use the machine as well."""
    from timeit import repeat

    return lambda: min(repeat(work, number=times, repeat=10)) / times


def _step(groups: int) -> dict[str, Callable[[], float]]:
    """Learning rate and momentum of SGD over one cycle, ours and torch's."""
    import torch
    from torch.optim.lr_scheduler import OneCycleLR

    from optstate import schedule as s

    def sgd() -> torch.optim.SGD:
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(groups)]
        return torch.optim.SGD([{"params": [weight]} for weight in weights], lr=0.1, momentum=0.9)

    steps = 10**8
    curves = {"lr": s.one_cycle(0.004, 0.1, 4e-7, steps), "momentum": s.one_cycle(0.95, 0.85, 0.95, steps)}
    return {OURS: _each(s.Scheduler(sgd(), curves).step), PEER: _each(OneCycleLR(sgd(), 0.1, total_steps=steps).step)}


def _hook(size: int) -> dict[str, Callable[[], float]]:
    """A step of SGD over one small parameter, with a schedule that follows it and without."""
    import torch

    from optstate import schedule as s

    def sgd() -> torch.optim.SGD:
        weight = torch.nn.Parameter(torch.zeros(size))
        weight.grad = torch.ones(size)
        return torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    followed = sgd()
    s.Scheduler(followed, {"lr": s.cosine(0.1, 0.01, 10**8)}, hook=True)
    return {OURS: _each(followed.step), PEER: _each(sgd().step)}


def _coupling(elements: int) -> dict[str, Callable[[], float]]:
    """A step of AdamW whose second coefficient moves at every step, and one whose does not."""
    import torch

    from optstate import schedule as s

    def adamw() -> torch.optim.AdamW:
        weights = [torch.nn.Parameter(torch.zeros(elements)) for _ in range(20)]
        for weight in weights:
            weight.grad = torch.ones(elements)
        return torch.optim.AdamW(weights)

    followed = adamw()
    s.Scheduler(followed, {"second_moment": s.linear(0.9, 0.999, 10**6)}, hook=True)
    return {OURS: _each(followed.step, 1), PEER: _each(adamw().step, 1)}


if __name__ == "__main__":
    main()

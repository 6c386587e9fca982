"""What a proof adds to a step: the digest of every weight, slot and value of 20 million parameters, beside the step itself.

The peer is the step, so the ratio is the overhead: forward and backward on 512 tokens, and AdamW. The limit is xxh3-128
over as many bytes in one piece.
"""

from __future__ import annotations

import json
import sys

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, measured_in_child, row, take_turns, timed


def rows(options: Options) -> list[Row]:
    """One row."""
    millions = 1 if options.quick else 20
    times = measured_in_child("bench.prove", millions, options.rounds(7))
    return [row("prove", f"{millions} M parameters", times, Target("to_peer", 0.3))]


def main() -> None:
    """`python -m bench.prove MILLIONS ROUNDS`: the times as JSON."""
    import numpy as np
    import torch
    from torch import nn
    from xxhash import xxh3_128_digest

    from optstate.proof.parts import Parts
    from optstate.proof.training import Training

    millions, rounds = int(sys.argv[1]), int(sys.argv[2])
    width = int((millions * 1e6 / 20) ** 0.5)
    model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(width, width), nn.GELU())))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randn(512, width)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(tokens).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    step()
    parts = Parts(Training(model, optimizer, step))
    whole = np.ones(sum(p.numel() for p in model.parameters()) * 3, np.float32)
    contenders = {OURS: parts.moment, PEER: step, LIMIT: lambda: xxh3_128_digest(whole.data)}
    print(json.dumps(take_turns({name: timed(work) for name, work in contenders.items()}, rounds)))


if __name__ == "__main__":
    main()

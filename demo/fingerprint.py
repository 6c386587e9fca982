"""Everything that decides how a run goes on, reduced to one digest per name."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from xxhash import xxh3_128_hexdigest

import optstate
from demo.run import Run


def fingerprint(run: Run) -> dict[str, str]:
    """The xxh3-128 digest of every weight (`NAME`), every slot (`NAME/KEY`), and all the rest (`:WHAT`)."""
    state = optstate.attach(run.optimizer, run.model)
    parts: dict[str, Any] = {name: weight.detach().numpy() for name, weight in run.model.named_parameters()}
    parts |= {f"{name}/{key}": slot.array() for name, p in state.items() for key, slot in p.slots.items()}
    parts |= {f":group {group.index}": text(group.hyperparameters) for group in state.groups}
    parts[":scheduler"] = text(run.scheduler.state_dict())
    parts[":rng torch"] = torch.get_rng_state().numpy()
    parts[":rng numpy"] = text(np.random.get_state(legacy=False))
    parts[":rng python"] = text(random.getstate())
    return {name: xxh3_128_hexdigest(parts[name]) for name in sorted(parts)}


def text(value: Any) -> bytes:
    """A tree of plain values as bytes. Floats print with every digit that they have."""
    with np.printoptions(threshold=2**20):  # an array prints whole as well
        return repr(value).encode()

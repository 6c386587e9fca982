"""What the demo does, as data: the size of its run, when that is interrupted, and the ways in which it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

RUNS = Path("demo-runs")
"""The folder of all runs: a run NAME has its log in NAME.jsonl and its checkpoints in NAME/."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A model and its training run. Two processes with equal settings do equal things."""

    width: int  # features per token
    layers: int
    heads: int
    context: int  # bytes that the model sees
    batch: int  # sequences per step
    steps: int
    warmup: int  # steps of linear warm-up, before the cosine
    save_every: int  # steps between checkpoints
    kill_at: int  # the step that the interrupted run does not survive; no checkpoint is due there
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 1337
    # One thread per process: several share a sum by how many of them the machine grants, and bits depend on that.
    threads: int = 1


FULL = Settings(width=160, layers=4, heads=5, context=64, batch=8, steps=200, warmup=30, save_every=40, kill_at=127)
QUICK = Settings(width=32, layers=2, heads=2, context=32, batch=4, steps=30, warmup=5, save_every=6, kill_at=15)

USUAL_WAYS: Mapping[str, str] = MappingProxyType(
    {
        "weights-only": "only the weights were saved; the optimizer starts anew",
        "module-order": "load_state_dict, after query and key changed places in the code of the model",
        "bf16-moments": "both moments rounded through bfloat16",
        "half-momentum": "momentum halved by hand",
    }
)
"""The four other ways to resume: name → what happens. `demo/variants.py` does it."""

PROGRESS = "… "
"""What begins a line in which a child process says how far it is; all its other lines are for the reader."""

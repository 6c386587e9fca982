"""What a running program shows of itself to a diagnosis: plain values, collected by `optstate.live`, no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optstate.state.optimizer_state import OptimizerState


@dataclass(frozen=True, slots=True)
class LiveEvidence:
    """A model, its optimizers and its schedulers, looked at once; nothing in it changes when they do.

    state
        The optimizer state by name: a snapshot of structure that reads live values.
    """

    state: OptimizerState
    extra: Mapping[str, object] = field(default_factory=dict)

"""What is diagnosed: a file, two files, a running program, or a file and the program it would be loaded into."""

from __future__ import annotations

from dataclasses import dataclass

from optstate.doctor.evidence import LiveEvidence
from optstate.doctor.values import NOTHING, Values
from optstate.formats.checkpoint import Checkpoint
from optstate.state.optimizer_state import OptimizerState


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule may look at; a rule is only asked when everything that it needs is there.

    checkpoint
        The file that is diagnosed.
    other
        The file that it is held against (`--against`): an earlier or later one of the same run.
    live
        The running program.
    values, other_values
        What the values of `state` and of `other` are like: filled in by the engine, in one pass, before any rule
        that reads values is asked.
    """

    checkpoint: Checkpoint | None = None
    other: Checkpoint | None = None
    live: LiveEvidence | None = None
    values: Values = NOTHING
    other_values: Values = NOTHING

    @property
    def state(self) -> OptimizerState:
        """The optimizer state that is diagnosed: of the file where there is one, else of the program."""
        source = self.checkpoint or self.live
        if source is None:
            raise ValueError("a case without anything to diagnose")
        return source.state

    def meets(self, needs: str) -> bool:
        """Whether everything is there that a rule needs."""
        return {
            "state": True,
            "file": self.checkpoint is not None,
            "two files": self.checkpoint is not None and self.other is not None,
            "live": self.live is not None,
            "file and live": self.checkpoint is not None and self.live is not None,
        }[needs]

"""What is diagnosed: a file, two files, a running program, or a file and the program it would be loaded into."""

from __future__ import annotations

from dataclasses import dataclass

from optstate.doctor.evidence import LiveEvidence
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
    """

    checkpoint: Checkpoint | None = None
    other: Checkpoint | None = None
    live: LiveEvidence | None = None

    @property
    def state(self) -> OptimizerState:
        """The optimizer state that is diagnosed: of the file where there is one, else of the program."""
        source = self.checkpoint or self.live
        if source is None:
            raise ValueError("a case without anything to diagnose")
        return source.state

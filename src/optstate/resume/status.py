"""How a run stands: what a checkpointer did, what it has, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optstate.store.folder import Found
from optstate.text import listing, safe_text


@dataclass(frozen=True, slots=True)
class Status:
    """How a run stands. Printing it shows one line for each checkpoint.

    directory
        The folder of the run.
    step
        How many steps are done, as far as the checkpointer knows.
    checkpoints
        Every checkpoint in the folder, the newest first, good and damaged ones.
    out_of_use
        The names of damaged ones that were put aside, and of copies without the optimizer.
    resumed_from
        The name of the checkpoint that this process went on from; None where it began at step 0.
    error
        What the last save failed with, None where it did not.
    stopped_by
        The signal that ended the loop, such as `SIGTERM`; None where none did.
    saving
        The step whose checkpoint is being written; it is not among `checkpoints` before it is durable.

    >>> run = optstate.Checkpointer("runs/a", model=model, optimizer=optimizer)
    >>> run.status().step, run.status().stopped_by
    (0, None)
    """

    directory: Path
    step: int
    checkpoints: tuple[Found, ...] = ()
    out_of_use: tuple[str, ...] = ()
    resumed_from: str | None = None
    error: str | None = None
    stopped_by: str | None = None
    saving: int | None = None

    def __str__(self) -> str:
        """Where the run is, what lies in its folder, and what went wrong."""
        since = f", resumed from {safe_text(self.resumed_from)}" if self.resumed_from else ""
        ended = f", stopped by {self.stopped_by}" if self.stopped_by else ""
        return "\n".join(
            [
                f"{safe_text(self.directory)}: step {self.step:,}{since}{ended}",
                *([f"  being written: step {self.saving:,}"] if self.saving is not None else []),
                *(f"  {found}" for found in self.checkpoints),
                *([f"  out of use: {listing(self.out_of_use)}"] if self.out_of_use else []),
                *([f"  the last save failed: {self.error}"] if self.error else []),
            ]
        )

"""What a plan says of momentum that no training made: it was rebuilt before the checkpoint was saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optstate.resume.policy import Policy
from optstate.state.journal import JournalEntry
from optstate.text import safe_text

VERB = "rebuild_"
"""What the journal calls a rebuild, in a running program and in a checkpoint."""

_PUT_IN_PLACE = ("restore", "revert")
"""What replaces state altogether, so that a rebuild before it is of no more interest."""


def told_of_rebuild(journal: Iterable[JournalEntry] | None, policy: Policy) -> Iterator[str]:
    """A line where the slots to be restored were rebuilt, in the end, rather than kept since the run began."""
    if policy.slots != "restore":
        return
    for entry in reversed(list(journal or ())):
        if entry.verb in _PUT_IN_PLACE and not entry.undone:
            return
        if entry.verb == VERB and not entry.undone:
            origin = safe_text(entry.arguments.get("from", ""), 80)
            yield f"its momentum is no run's own: it was rebuilt {origin}, and went on from there"
            return

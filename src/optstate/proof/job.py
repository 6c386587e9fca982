"""What a process is asked to do, and what it answers when it cannot. No torch."""

from __future__ import annotations

import msgspec

from optstate.errors import ProofError
from optstate.proof.moments import Run
from optstate.proof.program import Program

Way = str | Program
"""How to save or restore: the name of a built-in way, or a function of the user."""


class Look(msgspec.Struct, frozen=True):
    """Compare one tensor after a step with the one in a file: what the two first elements that differ are."""

    step: int
    component: str
    name: str
    folder: str


class Job(msgspec.Struct, frozen=True):
    """One process: build, restore if asked to, take steps, and write down every moment.

    start, stop
        The step that the training stands at once it is built and restored, and the one that it ends with.
    save
        The way to save, the step after which, and the path.
    load
        The way to restore and the path.
    keep
        The step after which every component is written to a folder, and the folder.
    take
        Components to put there after restoring, and the folder that they were kept in.
    flip
        Whether to flip one bit after restoring, look, and flip it back.
    switch
        One of `SWITCHES`, None for the program as it is.
    """

    build: Program
    where: str  # the folder to be in
    path: list[str]  # sys.path
    start: int
    stop: int
    save: tuple[Way, int, str] | None = None
    load: tuple[Way, str] | None = None
    keep: tuple[int, str] | None = None
    take: tuple[list[str], str] | None = None
    look: Look | None = None
    flip: bool = False
    switch: str | None = None


DETERMINISTIC, ONE_THREAD = "deterministic algorithms", "one thread"
SWITCHES = {
    DETERMINISTIC: "torch.use_deterministic_algorithms(True)",
    ONE_THREAD: "torch.set_num_threads(1)",
}
"""What may make a program compute the same twice, and how a program says it."""


class Failure(msgspec.Struct):
    """Why a job was not done: the fields of an error, and the traceback of the user's program."""

    what: str
    where: str | None = None
    expected: str | None = None
    found: str | None = None
    todo: str | None = None
    traceback: str = ""

    def error(self) -> ProofError:
        """As it is raised; the traceback is a note, so that it is shown once."""
        error = ProofError(self.what, where=self.where, expected=self.expected, found=self.found, todo=self.todo)
        if self.traceback:
            error.add_note(self.traceback)
        return error


class Answer(msgspec.Struct):
    """What a process leaves behind: the one or the other."""

    run: Run | None = None
    failure: Failure | None = None

"""The folder of one run: locked, tidied, its checkpoints known, the damaged ones put aside, the old ones let go.

What is written into it is the business of others; here is what must hold at every moment: the newest checkpoint that
read back is never touched, and nothing goes that this run did not save.
"""

from __future__ import annotations

import secrets
import warnings
from pathlib import Path

from optstate.errors import Damaged, OptstateError, RestoreError, SaveError
from optstate.formats.ours.manifest import LineageEntry
from optstate.store.commit import make_parents
from optstate.store.files import Files
from optstate.store.folder import NAME, Found, contents, look, out_of_use, read_back, told
from optstate.store.keep import put_aside, remove, superfluous, sweep
from optstate.store.lock import Lock, unusable
from optstate.store.strip_copy import strip_one
from optstate.text import listing, safe_text


class Shelf:
    """The checkpoints of a run in its folder.

    keep, keep_every, strip, full
        As `optstate.Checkpointer` has them; `full` reads every byte back.
    known
        Those that can be resumed from, the newest first.
    run, lineage
        What a manifest says of the run that saves here: its name, and the checkpoints that it was resumed from.
    """

    def __init__(self, path: Path, *, keep: int, keep_every: int | None, strip: bool, full: bool, files: Files) -> None:
        self.path = path
        self.known: list[Found] = []
        self.run = secrets.token_hex(16)
        self.lineage: tuple[LineageEntry, ...] = ()
        self.files = files
        self._keep, self._keep_every, self._strip, self._full = keep, keep_every, strip, full
        self._lock: Lock | None = None

    def open(self) -> None:
        """Lock the folder, which is made where it is missing, and finish what killed processes left in it; once.

        Raises `InUse`, `WriteFailed` where the system refuses, `ReadError` for a checkpoint that cannot be judged.
        """
        if self._lock is not None:
            return
        try:
            make_parents(self.path, self.files)
            self._lock = Lock(self.path, self.files)
            sweep(self.path, self.files)
            self.read()
        except BaseException as error:
            self.close()  # so that the next try looks again
            if isinstance(error, OSError) and not isinstance(error, OptstateError):
                raise unusable(self.path, error) from error
            raise

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.free()
            self._lock = None

    def read(self) -> list[Found]:
        """Look at what is in the folder; returns those that are damaged."""
        found = contents(self.path)
        self.known = [each for each in found if _resumable(each)]
        return [each for each in found if each.fault is not None]

    # --- a new one ----------------------------------------------------------------------------------------

    def place(self, step: int) -> tuple[Path, bool]:
        """Where the checkpoint of a step goes, and whether it replaces one of this run.

        Raises `SaveError` for a step before the newest, which would take the new one for an old one.
        """
        newest = self.known[0] if self.known else None
        if newest is not None and newest.step is not None and step < newest.step:
            raise SaveError(
                f"step {step:,} was not saved: {safe_text(self.path)} has a later one",
                expected=f"a step after {newest.step:,}",
                found=safe_text(newest.path.name),
                todo="restore() goes on from there; a run that starts anew needs a folder of its own",
            )
        path = self.path / f"step-{step}"
        return path, any(each.path == path and self._is_mine(each) for each in self.known)

    def add(self, path: Path, save_id: str) -> None:
        """Read a new checkpoint back, and let go of those that are not to be kept.

        Raises `Damaged` for one that is not what was written; it is put aside, and no other goes.
        """
        try:
            found = read_back(path, save_id, full=self._full)
        except Damaged as error:
            self.put_aside(Found(path, told(error)))
            raise
        self.known = [found, *(each for each in self.known if each.path != path)]
        self._let_go()

    # --- what goes ----------------------------------------------------------------------------------------

    def _is_mine(self, found: Found) -> bool:
        """Whether this run saved a checkpoint, and it still has the name that it was saved by."""
        return found.brief is not None and found.brief.run == self.run and found.path.name == f"step-{found.step}"

    def _let_go(self) -> None:
        mine = {step: each for each in self.known if (step := each.step) is not None and self._is_mine(each)}
        for step in sorted(superfluous(mine, self._keep, self._keep_every)):
            found = mine[step]
            try:
                self._let_one_go(found)
            except (OSError, OptstateError) as error:
                why = told(error) if isinstance(error, OptstateError) else safe_text(error)
                warnings.warn(f"{safe_text(found.path)} was to go, and stays: {why}", RuntimeWarning, stacklevel=2)
            else:
                self.known.remove(found)

    def _let_one_go(self, found: Found) -> None:
        now = look(found.path)
        if now is None or now.brief is None or found.brief is None or now.brief.save_id != found.brief.save_id:
            return  # somebody else put something there
        if self._strip:
            strip_one(found.path, self.files)
        else:
            remove(found.path, self.files)

    # --- resuming -----------------------------------------------------------------------------------------

    def goes_on_from(self, found: Found) -> None:
        """The run goes on from a checkpoint: as the run that saved it, and knowing it as an ancestor."""
        if found.brief is not None:
            self.run = found.brief.run or self.run
            self.lineage = (*found.brief.lineage, *filter(None, [found.entry]))

    def pass_over(self, damaged: Found, used: Found) -> None:
        """Put a damaged checkpoint aside where its name is one that a run gives, and warn that an older one is used."""
        aside = self.put_aside(damaged) if NAME.fullmatch(damaged.path.name) else None
        renamed = f"; renamed to {safe_text(aside.name)}" if aside else ""
        warnings.warn(
            f"{safe_text(damaged.path)} is damaged and was passed over: {damaged.fault}; "
            f"resumed from {safe_text(used.path.name)}, step {used.step:,}{renamed}",
            RuntimeWarning,
            stacklevel=4,
        )

    def put_aside(self, damaged: Found) -> Path | None:
        """Rename a damaged checkpoint, with the reason in it; None where the system refuses: it stays as it is."""
        try:
            return put_aside(damaged.path, f"{damaged.fault}\n", self.files)
        except OSError:
            return None

    def refuse_a_new_start(self, damaged: list[Found]) -> None:
        """Raise `RestoreError` where a run saved checkpoints here and none can be resumed from: that is no empty folder."""
        aside = out_of_use(self.path)
        if not aside and not any(NAME.fullmatch(each.path.name) for each in damaged):
            return
        lines = [*map(str, damaged), *([f"out of use: {listing(aside)}"] if aside else [])]
        raise RestoreError(
            f"{safe_text(self.path)} has checkpoints, and none that is intact: the run was not started anew",
            found="\n            ".join(lines),
            todo='optstate.plan with Policy(damaged="salvage") restores what is good in one; another folder starts anew',
        )


def _resumable(found: Found) -> bool:
    return found.fault is None and found.step is not None and found.brief is not None and bool(found.brief.optimizers)

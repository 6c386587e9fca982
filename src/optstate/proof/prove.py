"""`prove`: the uninterrupted run, its control, the restored run, each in a process of its own, and what they say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Literal

from optstate.errors import ProofError
from optstate.proof.causes import explain
from optstate.proof.job import DETERMINISTIC, SWITCHES, Job, Look, Way
from optstate.proof.judge import (
    batch_check,
    diverged,
    first_after,
    first_of,
    flip_check,
    restored_state,
    state_checks,
    unseeded,
    without_state,
)
from optstate.proof.moments import BATCH, LOSS, Difference, Run, digest, laid_out_otherwise
from optstate.proof.program import Given, Program, program
from optstate.proof.proof import GRADES, Check, FirstDifference, Grade, Proof
from optstate.proof.workers import TIMEOUT, Workers
from optstate.text import count, listing, safe_text

FEWEST = 3
"""Steps after the restore: the first loss is right even without any optimizer state, the second weights are not."""

BuiltIn = Literal["optstate", "torch"]
Progress = Callable[[str], None]


def prove(
    build: Given,
    before: int = 20,
    after: int = 5,
    save: Given | None = None,
    load: Given | None = None,
    *,
    using: BuiltIn = "optstate",
    timeout: float = TIMEOUT,
    progress: Progress = lambda _line: None,
) -> Proof:
    """Whether a training that is saved after `before` steps, and restored in a fresh process, goes on bit for bit.

    build
        `"train.py:build"`, or a function at the top of a file, that takes nothing and returns an `optstate.Training`.
    before, after
        Steps before the save, at least one, and compared after the restore, at least three.
    save, load
        Functions of yours to put to the test, called as `save(training, path)` and `load(training, path)`.
    using
        Without them: `"optstate"`, or `"torch"` for `torch.save` and `load_state_dict`.
    timeout
        Seconds without a finished step after which a process is said to hang.
    progress
        Called with a line of text where something begins.

    Nothing of it happens in this process: `build` runs in processes that are forked from an interpreter which has
    imported torch and nothing else, in this directory. Files are in the system's folder for temporary ones, and gone
    when this returns: a checkpoint and the state beside it.

    Raises `ProofError` where it cannot be tried: a program that fails, hangs, or is another at each call, and a
    comparison that does not see one flipped bit. A resume that is not exact raises nothing: see `Proof`.

    >>> optstate.prove("train.py:build", before=3, after=3).grade
    'trajectory-exact'
    """
    if before < 1 or after < FEWEST:
        raise ProofError(
            "there are too few steps to prove anything",
            expected=f"before at least 1, after at least {FEWEST}: the first loss is right even without optimizer state",
            found=f"before={before}, after={after}",
        )
    asked = _Asked(program(build, "build"), before, after, *_ways(save, load, using))
    with Workers(timeout) as workers:
        return proven(workers, asked, progress)


def _ways(save: Given | None, load: Given | None, using: str) -> tuple[Way, Way]:
    if (save is None) != (load is None):
        raise ProofError("save and load belong together", expected="both, or neither")
    if save is not None and load is not None:
        return program(save, "save"), program(load, "load")
    if using not in ("optstate", "torch"):
        raise ProofError("there is no such way to restore", expected="optstate, torch", found=safe_text(using, 40))
    return using, using


def asked(
    build: Given,
    before: int,
    after: int,
    save: Given | None = None,
    load: Given | None = None,
    using: BuiltIn = "optstate",
) -> _Asked:
    """What is to be proven, for `proven`."""
    return _Asked(program(build, "build"), before, after, *_ways(save, load, using))


@dataclass(frozen=True)
class _Asked:
    """What is to be proven, and the jobs that this takes."""

    build: Program
    before: int
    after: int
    save: Way
    load: Way
    where: str = field(default_factory=os.getcwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    @property
    def last(self) -> int:
        return self.before + self.after

    @property
    def way(self) -> str:
        return self.load.label if isinstance(self.load, Program) else self.load

    def job(self, start: int = 0, **also: Any) -> Job:
        return Job(self.build, self.where, list(self.path), start, also.pop("stop", self.last), **also)


def proven(workers: Workers, asked: _Asked, progress: Progress = lambda _line: None) -> Proof:
    """The proof, made by workers that are there already."""
    return _Proving(workers, asked, progress).proof()


class _Proving:
    """One proof in the making."""

    def __init__(self, workers: Workers, asked: _Asked, progress: Progress) -> None:
        self.workers = workers
        self.asked = asked
        self.say = progress
        self.checkpoint, self.kept = "", str(workers.new_folder())
        self.notes: list[str] = []
        self.checks: list[Check] = []
        self.switch: str | None = None

    def proof(self) -> Proof:
        began = monotonic()
        cut, last = self.asked.before, self.asked.last
        comparable = self.comparable = self._control()
        self.say(f"restore in a fresh process, and go on for {count(self.asked.after, 'step')}")
        self.restored = self._run([self._resume(flip=True)])[0]
        saved = self.saver.moments[cut]
        state = restored_state(saved, self.restored.moments[cut], self.ignored)
        self.checks += state_checks(without_state(saved), state, self.ignored)
        self.checks.append(
            batch_check(self.reference, self.restored, cut, min(last, cut + comparable)) if comparable else _NO_BATCH
        )
        after = self._after(self.restored, comparable)
        self._judge_trajectory(after, comparable)
        self.checks.append(flip_check(self.restored, cut))
        self._note_strides()
        first = first_of(0, state) if state else after
        cause = None
        if first is not None:
            self.say("look for the cause")
            first = self._with_element(first)
            cause = explain(state, after, "scheduler" in saved, self.saver.gradients, self._attempt)
        return Proof(
            program=self.asked.build.label,
            way=self.asked.way,
            before=cut,
            after=self.asked.after,
            grade=self._grade(state, after, comparable),
            checks=tuple(self.checks),
            conclusive=comparable == self.asked.after,
            difference=first or self.disturbed,
            cause=cause,
            notes=tuple(self.notes),
            digests={
                name: {step: digest(self._counted(run, step)) for step in sorted(run.moments)}
                for name, run in (("uninterrupted", self.reference), ("restored", self.restored))
            },
            environment=self.restored.seen,
            seconds=monotonic() - began,
        )

    # --- the control -----------------------------------------------------------------------------------------

    def _control(self) -> int:
        """Run it twice, and save in the second; how many steps after the save can be compared."""
        total = count(self.asked.last, "step")
        self.say(f"run {total} without interruption, and again with a save after {self.asked.before}")
        self._twice()
        self.ignored = unseeded(self.reference, self.saver, self.asked.build.label)
        self.notes += [f"{name} is not seeded and nothing draws from it: not compared" for name in sorted(self.ignored)]
        other = diverged(self.reference, self.saver, self.ignored)
        self.disturbed: FirstDifference | None = None
        if other is not None and other[0] > self.asked.before and self._saving_did_it():
            self.disturbed = first_of(other[0] - self.asked.before, other[1])
            self.checks.append(Check("control", "exact", f"the same {total} in two processes"))
            self.checks.append(Check("saving", "different", "the run goes on in another way once it was saved"))
            return self.asked.after
        if other is not None and self._found_switch():
            self._twice()
            other = diverged(self.reference, self.saver, self.ignored)
        if other is None:
            setting = f", with {SWITCHES[self.switch]}" if self.switch else ""
            self.checks.append(Check("control", "exact", f"the same {total} in two processes{setting}"))
            self.checks.append(Check("saving", "exact", "leaves the run as it was"))
            return self.asked.after
        step, found = other
        self.checks.append(
            Check("control", "different", f"two runs part at step {step}: {safe_text(found[0].name, 60)}")
        )
        return max(0, step - 1 - self.asked.before)

    def _twice(self) -> None:
        self.checkpoint = str(self.workers.new_folder() / "checkpoint")  # a fresh path: nothing is replaced
        saving = (self.asked.save, self.asked.before, self.checkpoint)
        jobs = [self._job(), self._job(save=saving, keep=(self.asked.before, self.kept))]
        self.reference, self.saver = self._run(jobs)

    def _saving_did_it(self) -> bool:
        """Whether the program computes the same again where nothing is saved."""
        return diverged(self.reference, self._run([self._job()])[0], self.ignored) is None

    def _found_switch(self) -> bool:
        """Look for a setting under which the program computes the same twice; the notes tell what came out."""
        for switch, setting in SWITCHES.items():
            self.say(f"the program does not compute the same twice; try {setting}")
            try:
                one, two = self._run([self.asked.job(switch=switch), self.asked.job(switch=switch)])
            except ProofError as error:
                operator = (error.found or "").partition(" does not have a deterministic implementation")
                if switch == DETERMINISTIC and operator[1]:
                    self.notes.append(f"not deterministic here: {safe_text(operator[0].rpartition(': ')[2])}")
                continue
            if diverged(one, two, self.ignored) is None:
                self.notes.append(f"the program computes the same twice only with {setting}; what follows is with it")
                self.switch = switch
                return True
        self.notes.append(
            "no setting of torch makes the program compute the same twice: look for a clock, a generator of the "
            "program's own that is not seeded, or the order of a set"
        )
        return False

    # --- the restored run ------------------------------------------------------------------------------------

    def _job(self, **also: Any) -> Job:
        return self.asked.job(switch=self.switch, **also)

    def _run(self, jobs: Sequence[Job]) -> list[Run]:
        return self.workers.run(jobs)

    def _resume(self, **also: Any) -> Job:
        return self._job(start=self.asked.before, load=(self.asked.load, self.checkpoint), **also)

    def _after(self, run: Run, comparable: int) -> FirstDifference | None:
        return first_after(self.reference, run, self.asked.before, comparable, self.ignored)

    def _judge_trajectory(self, after: FirstDifference | None, comparable: int) -> None:
        if not comparable:
            self.checks.append(Check("trajectory", "not tried", "the uninterrupted run is no measure"))
        elif after is None:
            self.checks.append(Check("trajectory", "exact", f"+1 to +{comparable}, every part and every loss"))
        elif self.restored.failed is not None and after.found is None and after.expected is None:
            self.checks.append(Check("trajectory", "different", safe_text(self.restored.failed)))
        else:
            self.checks.append(Check("trajectory", "different", f"from +{after.after} on"))

    def _grade(self, state: list[Difference], after: FirstDifference | None, comparable: int) -> Grade | None:
        if state:
            return None
        reached = comparable if after is None else after.after - 1
        if reached == self.asked.after:
            return GRADES[2]
        return GRADES[1] if reached >= 1 else GRADES[0]

    def _attempt(self, choices: Sequence[Sequence[str]]) -> list[FirstDifference | None]:
        for chosen in choices:
            self.say(f"try again with {listing(chosen, 8)} of the uninterrupted run")
        runs = self._run([self._resume(take=(list(chosen), self.kept)) for chosen in choices])
        return [self._after(run, self.comparable) for run in runs]

    def _with_element(self, first: FirstDifference) -> FirstDifference:
        """Where in the tensor they differ: the values of a later step are had by running up to it once more."""
        step = self.asked.before + first.after
        one, two = first.expected, first.found
        if one is None or two is None or one.kind != two.kind or one.shown or first.component in (BATCH, LOSS):
            return first
        folder = self.kept
        if first.after:
            folder = str(self.workers.new_folder())
            self._run([self._job(stop=step, keep=(step, folder))])
        look = Look(step, first.component, first.name, folder)
        run = self._run([self._resume(stop=step, look=look)])[0]
        return replace(first, element=run.element)

    def _note_strides(self) -> None:
        cut = self.asked.before
        other = laid_out_otherwise(self.saver.moments[cut], self.restored.moments[cut])
        if other:
            self.notes.append(
                f"other strides, the same values: {listing(other)}; another order in memory can pick another kernel"
            )

    def _counted(self, run: Run, step: int) -> dict[str, Any]:
        return {name: parts for name, parts in run.moments[step].items() if name not in self.ignored}


_NO_BATCH = Check("batches", "not tried", "the uninterrupted run is no measure")

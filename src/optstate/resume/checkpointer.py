"""`Checkpointer`: one object in the training loop that resumes, saves when it is due, and keeps what is needed."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from optstate.errors import Damaged, OptstateError, SaveError
from optstate.resume.due import Due
from optstate.resume.options import check_counts, check_objects, check_words, checked_step
from optstate.resume.plan import RestorePlan, live_side, plan
from optstate.resume.policy import Policy
from optstate.resume.signals import STOP, Signals
from optstate.resume.status import Status
from optstate.store.background import STAGING, Saving
from optstate.store.files import RealFiles
from optstate.store.folder import Found, contents, damage, out_of_use, told
from optstate.store.objects import RandomState
from optstate.store.save import save_beside, save_live
from optstate.store.shelf import Shelf
from optstate.store.streaming import Mode
from optstate.text import safe_text


class Checkpointer:
    """The checkpoints of one training run in one folder: resumed from, saved, read back and let go by rules.

    directory
        The folder of this run, made where it is missing. A checkpoint of step 500 is in `step-500`.
    model, optimizer, scheduler, loader, objects
        What is saved and resumed together. Build all of them first. All but model and optimizer have `state_dict` and
        `load_state_dict`; a loader that has them, such as torchdata's `StatefulDataLoader`, goes on in the middle of an epoch.
    rng
        Whether the random state of python, numpy and torch belongs to it.
    keep, keep_every
        The newest `keep` checkpoints stay, at least 2, and those whose step `keep_every` divides.
    strip
        Whether those that go leave their weights and objects behind, as `step-500.weights`.
    verify
        How a new checkpoint is read back before an old one goes: `"quick"`, its manifest, lengths and headers; `"full"`, every byte.
    policy
        What a resume may do where checkpoint and program do not agree; None: nothing, they must agree.
    on_error
        Whether a save that fails in `steps` or in the background raises, or warns and lets the training go on; `status()`
        tells of it.
    block
        Whether a save is over when the training goes on. False: it is written in the background, and what it has not read
        yet makes the next step wait; see `optstate.save`, also for `mode` and `staging`.
    busy
        What becomes of a save that falls due in `steps` while the one before is being written: `"wait"`, it is taken once that
        is over, or `"skip"`, it is left out. The last step, signals and `save` always wait.

    Nothing is read or written before the first `steps`, `restore` or `save`. From then on the folder is locked until
    `close()`, or until the process ends: raises `InUse` while another process has it.

    Which checkpoint is the newest is read from the manifests of those that are intact. Only what this run saved is ever
    removed, under the name that it was saved by: rename a checkpoint to keep it.

    >>> run = optstate.Checkpointer("runs/a", model=model, optimizer=optimizer)
    >>> for step in run.steps(6, every=2):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> run.close()
    >>> print(run.status())
    runs/a: step 6
      step-6: intact, step 6, 9.86 kB
      step-4: intact, step 4, 9.86 kB
      step-2: intact, step 2, 9.86 kB
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
        scheduler: Any = None,
        loader: Any = None,
        rng: bool = True,
        keep: int = 3,
        keep_every: int | None = None,
        strip: bool = False,
        verify: Literal["quick", "full"] = "quick",
        policy: Policy | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        block: bool = False,
        mode: Mode = "stream",
        staging: int = STAGING,
        busy: Literal["wait", "skip"] = "wait",
        **objects: Any,
    ) -> None:
        check_counts(keep, keep_every)
        check_words(verify=verify, on_error=on_error, mode=mode, busy=busy)
        given = {"scheduler": scheduler, "loader": loader}
        self.directory = Path(directory)
        self._objects = {**{name: item for name, item in given.items() if item is not None}, **objects}
        check_objects(self._objects)
        live_side(model, optimizer, self._objects, rng)
        self._live: dict[str, Any] = {"model": model, "optimizer": optimizer, "rng": rng}
        self._loader, self._policy, self._on_error = loader, policy, on_error
        self._block, self._mode, self._staging, self._skips = block, mode, staging, busy == "skip"
        self._shelf = Shelf(
            self.directory,
            keep=keep,
            keep_every=keep_every,
            strip=strip,
            full=verify == "full",
            files=RealFiles(),
        )
        self._process = os.getpid()
        self._started = self._closed = False
        self._step, self._restores = 0, 0
        self._saved: int | None = None
        self._saving: Saving | None = None
        self._resumed_from: str | None = None
        self._error: str | None = None
        self._stopped_by: str | None = None
        self._watching: Signals | None = None

    # --- the loop ---------------------------------------------------------------------------------------------

    def steps(
        self, total: int, *, every: int | None = None, seconds: float | None = None
    ) -> Generator[int, None, None]:
        """The steps that are still to do, up to `total`: 1, 2, 3, … or, resumed from a checkpoint of step 500, 501, …

        The first step resumes from the newest intact checkpoint, where there is one. A checkpoint is taken after every
        step that `every` divides, whenever `seconds` have passed since the last, and after step `total`.

        SIGTERM and Ctrl-C save after the step that is running, then the loop ends: for Ctrl-C with `KeyboardInterrupt`, for
        SIGTERM as if it were done, and `status().stopped_by` says so. SIGUSR1 saves and goes on. It takes as long as that
        step and one save. A second Ctrl-C interrupts at once. Handlers that were there before are called after the save, and
        are back when the loop ends. A loop that is left by `break` or an error saves nothing.

        What is written in the background is durable when the loop ends, and when a signal is passed on.

        Raises `OptstateError` where neither `every` nor `seconds` is given; what `restore` and `save` raise.

        >>> run = optstate.Checkpointer("runs/b", model=model, optimizer=optimizer)
        >>> list(run.steps(3, every=2)), list(run.steps(5, every=2))
        ([1, 2, 3], [4, 5])
        """
        return self._steps(total, Due(every, seconds))

    def _steps(self, total: int, due: Due) -> Generator[int, None, None]:
        self._stop_watching()
        with Signals() as signals:
            self._watching, self._stopped_by = signals, None
            if not self._started:
                self.restore()
            while self._step < total and not self._answer(signals):
                step, restores = self._step + 1, self._restores
                yield step
                if self._restores == restores:  # else the body went back to a checkpoint, and on from there
                    self._step = step
                    last = step == total or signals.pending
                    if last or (due.after(step) and not self._is_left_out()):
                        self._save_or_say(step, last=last)
                        due.saved()
            self._answer(signals)

    def _answer(self, signals: Signals) -> bool:
        """Pass on the signals that came, now that there is a checkpoint; whether the loop ends for one."""
        seen = signals.take()
        if seen:
            self._settle_or_say()
        stop = next((number for number in seen if number in STOP), None)
        if stop is not None:
            self._stopped_by = signal.Signals(stop).name
        signals.pass_on(seen)
        return stop is not None

    def _stop_watching(self) -> None:
        """Put the handlers back that a loop left behind which is over, but kept alive: by the traceback of what ended it."""
        if self._watching is not None:
            self._watching.__exit__(GeneratorExit)
            self._watching = None

    def _is_left_out(self) -> bool:
        """Whether a save that is due is not taken, for another one is being written."""
        return self._skips and self._saving is not None and not self._saving.done

    def _save_or_say(self, step: int, *, last: bool) -> None:
        try:
            if self._saved != step:  # else the body of the loop did it
                self._save(step, block=self._block or last)
            elif last:
                self._settle()
        except (SaveError, Damaged) as error:
            self._say(error)

    def _settle_or_say(self) -> None:
        try:
            self._settle()
        except (SaveError, Damaged) as error:
            self._say(error)

    def _say(self, error: BaseException) -> None:
        """Raise what a save failed with, or warn, as was asked for."""
        self._saved, self._error = None, _in_a_line(error)
        if self._on_error == "raise" or not isinstance(error, (SaveError, Damaged)):
            raise error
        warnings.warn(f"the training goes on without a checkpoint: {error}", RuntimeWarning, stacklevel=3)

    # --- one checkpoint ---------------------------------------------------------------------------------------

    def save(self, step: int) -> Path:
        """Save a checkpoint of this step, read it back, and let go of those that are not to be kept. Returns its path.

        Between two optimizer steps, that is, and with the number of steps done. Without `block` it may still be written
        when this returns: `wait()` says when it is not, and whatever fails is raised there, at the next step, or here, the
        next time, before anything is saved.

        Raises what `optstate.save` does, `Damaged` when what was written does not read back, and `SaveError` for a step
        before the newest one in the folder.

        >>> run = optstate.Checkpointer("runs/c", model=model, optimizer=optimizer)
        >>> run.save(3)
        PosixPath('runs/c/step-3')
        >>> run.wait()
        """
        return self._save(step, block=self._block)

    def _save(self, step: int, *, block: bool) -> Path:
        self._begin()
        step = checked_step(step)
        self._settle()
        try:
            path, replace_it = self._shelf.place(step)
            self._write(step, path, replace_it=replace_it, block=block)
        except (SaveError, Damaged) as error:
            self._error = told(error)
            raise
        self._started, self._step, self._saved, self._error = True, step, step, None
        return path

    def _write(self, step: int, path: Path, *, replace_it: bool, block: bool) -> None:
        what: dict[str, Any] = {
            **self._live,
            "step": step,
            "replace": replace_it,
            "objects": self._objects,
            "run": self._shelf.run,
            "lineage": self._shelf.lineage,
        }
        if block:
            body = save_live(path, self._shelf.files, **what)
            self._shelf.add(path, body.save_id)
            return
        self._saving = save_beside(
            path,
            self._shelf.files,
            mode=self._mode,
            staging=self._staging,
            then=lambda body: self._shelf.add(path, body.save_id),
            tell=self._say,
            **what,
        )

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is being written any more, at most so many seconds.

        Raises what the last save failed with, unless that was said already; `TimeoutError` where it is not over by then.

        >>> run = optstate.Checkpointer("runs/d", model=model, optimizer=optimizer)
        >>> path = run.save(1)
        >>> run.wait()
        >>> optstate.verify(path).ok
        True
        """
        self._settle(timeout)

    def _settle(self, timeout: float | None = None) -> None:
        """Wait for the save in the background, and raise what it failed with, if nobody heard of it; the shelf is free then."""
        if self._saving is not None:
            self._saving.finish(timeout)
            self._saving.tell()
            self._saving = None

    # --- resuming ---------------------------------------------------------------------------------------------

    def restore(self) -> RestorePlan | None:
        """Go back to the newest intact checkpoint. Returns the plan that was applied; None where there is no checkpoint.

        A damaged one is passed over with a warning, and renamed to `step-500.damaged`, with the reason in it. All or
        nothing, as `optstate.restore`. Raises `RestoreRefused` where it does not fit the program, `ReadError` for one that
        cannot be judged, and `RestoreError` where there are checkpoints and none of them is intact: such a run never
        starts anew by itself.

        >>> run = optstate.Checkpointer("runs", model=model, optimizer=optimizer, rng=False)
        >>> run.restore().step
        3
        """
        self._begin()
        if self._saving is not None:
            self._saving.finish()  # what it failed with is said by the next step
        damaged = self._shelf.read()
        for found in list(self._shelf.known):
            try:
                applied = self._apply(found)
            except Damaged:
                fault = damage(found.path)
                if fault is None:
                    raise
                self._shelf.known.remove(found)
                damaged.append(replace(found, fault=fault))
                continue
            self._goes_on_from(found)
            for each in damaged:
                self._shelf.pass_over(each, found)
            return applied
        self._shelf.refuse_a_new_start(damaged)
        self._started = True
        return None

    def _apply(self, found: Found) -> RestorePlan:
        made = plan(found.path, **self._live, policy=self._policy, **self._objects).apply(keep=False)
        if self._loader is not None:
            # It draws from the random state when it makes its iterator, which the run that saved it had done before.
            random = RandomState()
            before = random.state_dict()
            self._loader.state_dict()
            random.load_state_dict(before)
        return made

    def _goes_on_from(self, found: Found) -> None:
        self._shelf.goes_on_from(found)
        self._started, self._step, self._saved = True, found.step or 0, None
        self._restores += 1
        self._resumed_from, self._error = found.path.name, None

    # --- whose folder it is -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make sure that the folder is this process's. Raises `OptstateError` in a child of it, and after `close`."""
        if self._closed:
            raise OptstateError(
                f"this Checkpointer is closed: {safe_text(self.directory)} may be another's by now",
                todo="make a new one",
            )
        if self._process != os.getpid():
            raise OptstateError(
                f"this Checkpointer belongs to process {self._process}, of which this is a child",
                todo="save in the process that made it",
            )
        self._shelf.open()

    def status(self) -> Status:
        """How the run stands: what lies in its folder, good and damaged, and what went wrong. Changes nothing.

        >>> run = optstate.Checkpointer("runs", model=model, optimizer=optimizer)
        >>> print(run.status())
        runs: step 0
          step-3: intact, step 3, 2.06 kB
        """
        saving = self._saving
        # It may be there, and not durable yet.
        written = saving.path if saving is not None and not saving.done else None
        failed = saving.error if saving is not None else None
        return Status(
            self.directory,
            self._step,
            tuple(found for found in contents(self.directory, strict=False) if found.path != written),
            tuple(out_of_use(self.directory)),
            self._resumed_from,
            self._error if failed is None else _in_a_line(failed),
            self._stopped_by,
            None if written is None else self._saved,
        )

    def close(self) -> None:
        """Wait until nothing is being written, and give the folder back; nothing where that was done.

        The end of a `with` block does the same. Raises what `wait` does; the folder is given back all the same.
        """
        try:
            if self._process == os.getpid():
                self._settle()
        finally:
            self._shelf.close()
            self._closed = True
            self._stop_watching()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except (SaveError, Damaged) as problem:
            if error is None:
                raise
            error.add_note(f"besides, {problem}")  # what ends the block is not to be hidden by it


def _in_a_line(error: BaseException) -> str:
    return told(error) if isinstance(error, OptstateError) else f"{type(error).__name__}: {safe_text(error)}"

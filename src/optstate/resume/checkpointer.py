"""`Checkpointer`: one object in the training loop that resumes, saves when it is due, and keeps what is needed."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Generator, Mapping
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from optstate.errors import BindError, Damaged, OptstateError, SaveError
from optstate.optimizers.registry import qualified_name
from optstate.resume.due import Due
from optstate.resume.plan import RestorePlan, live_side, plan
from optstate.resume.policy import Policy
from optstate.resume.signals import STOP, Signals
from optstate.resume.status import Status
from optstate.store.files import RealFiles
from optstate.store.folder import Found, contents, damage, out_of_use, told
from optstate.store.objects import RESERVED, RandomState
from optstate.store.save import save_live
from optstate.store.shelf import Shelf
from optstate.text import listing, safe_text


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
        Whether a save that fails in `steps` raises, or warns and lets the training go on; `status()` tells of it.

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
        **objects: Any,
    ) -> None:
        _check_options(keep, keep_every, verify, on_error)
        given = {"scheduler": scheduler, "loader": loader}
        self.directory = Path(directory)
        self._objects = {**{name: item for name, item in given.items() if item is not None}, **objects}
        _check_objects(self._objects)
        live_side(model, optimizer, self._objects, rng)
        self._live: dict[str, Any] = {"model": model, "optimizer": optimizer, "rng": rng}
        self._loader, self._policy, self._on_error = loader, policy, on_error
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
        self._resumed_from: str | None = None
        self._error: str | None = None
        self._stopped_by: str | None = None

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

        Raises `OptstateError` where neither `every` nor `seconds` is given; what `restore` and `save` raise.

        >>> run = optstate.Checkpointer("runs/b", model=model, optimizer=optimizer)
        >>> list(run.steps(3, every=2)), list(run.steps(5, every=2))
        ([1, 2, 3], [4, 5])
        """
        return self._steps(total, Due(every, seconds))

    def _steps(self, total: int, due: Due) -> Generator[int, None, None]:
        with Signals() as signals:
            self._stopped_by = None
            if not self._started:
                self.restore()
            while self._step < total and not self._answer(signals):
                step, restores = self._step + 1, self._restores
                yield step
                if self._restores == restores:  # else the body went back to a checkpoint, and on from there
                    self._step = step
                    if due.after(step) or step == total or signals.pending:
                        self._save_or_say(step)
                        due.saved()
            self._answer(signals)

    def _answer(self, signals: Signals) -> bool:
        """Pass on the signals that came, now that there is a checkpoint; whether the loop ends for one."""
        seen = signals.take()
        stop = next((number for number in seen if number in STOP), None)
        if stop is not None:
            self._stopped_by = signal.Signals(stop).name
        signals.pass_on(seen)
        return stop is not None

    def _save_or_say(self, step: int) -> None:
        if self._saved == step:
            return  # the body of the loop did it
        try:
            self.save(step)
        except (SaveError, Damaged) as error:
            if self._on_error == "raise":
                raise
            warnings.warn(
                f"step {step:,} was not saved, and the training goes on: {error}", RuntimeWarning, stacklevel=3
            )

    # --- one checkpoint ---------------------------------------------------------------------------------------

    def save(self, step: int) -> Path:
        """Save a checkpoint of this step now, read it back, and let go of those that are not to be kept. Returns its path.

        Between two optimizer steps, that is, and with the number of steps done. Raises what `optstate.save` does,
        `Damaged` when what was written does not read back, and `SaveError` for a step before the newest one in the folder.

        >>> run = optstate.Checkpointer("runs/c", model=model, optimizer=optimizer)
        >>> run.save(3)
        PosixPath('runs/c/step-3')
        """
        self._begin()
        step = _checked_step(step)
        try:
            path, replace_it = self._shelf.place(step)
            self._write(step, path, replace_it=replace_it)
        except (SaveError, Damaged) as error:
            self._error = told(error)
            raise
        self._started, self._step, self._saved, self._error = True, step, step, None
        return path

    def _write(self, step: int, path: Path, *, replace_it: bool) -> None:
        body = save_live(
            path,
            self._shelf.files,
            **self._live,
            step=step,
            replace=replace_it,
            objects=self._objects,
            run=self._shelf.run,
            lineage=self._shelf.lineage,
        )
        self._shelf.add(path, body.save_id)

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
        return Status(
            self.directory,
            self._step,
            tuple(contents(self.directory)),
            tuple(out_of_use(self.directory)),
            self._resumed_from,
            self._error,
            self._stopped_by,
        )

    def close(self) -> None:
        """Give the folder back; nothing where that was done. The end of a `with` block does the same."""
        self._shelf.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- what is refused ------------------------------------------------------------------------------------------


def _check_options(keep: int, keep_every: int | None, verify: str, on_error: str) -> None:
    if keep < 2:
        raise OptstateError(
            f"keep={safe_text(keep)} leaves none while a new one is written", expected="2 or more", todo="keep=2"
        )
    if keep_every is not None and keep_every < 1:
        raise OptstateError("keep_every must be above zero", found=safe_text(keep_every))
    for name, value, known in (("verify", verify, ("quick", "full")), ("on_error", on_error, ("raise", "warn"))):
        if value not in known:
            raise OptstateError(f"{name} is not known", expected=" or ".join(map(repr, known)), found=safe_text(value))


def _check_objects(objects: Mapping[str, Any]) -> None:
    taken = sorted(RESERVED & set(objects))
    if taken:
        raise BindError(f"an object cannot be named {listing(taken)}", todo="give it another name")
    loader = objects.get("loader")
    if loader is not None and not callable(getattr(loader, "state_dict", None)):
        raise BindError(
            "this loader cannot say where in the data it is",
            expected="a loader with state_dict and load_state_dict",
            found=f"a {safe_text(qualified_name(type(loader)))}",
            todo="torchdata.stateful_dataloader.StatefulDataLoader takes the same arguments; without loader= every resume "
            "begins the data anew",
        )


def _checked_step(step: Any) -> int:
    try:
        checked = index(step)
    except TypeError:
        checked = -1
    if checked < 0:
        raise SaveError("step is no whole number from 0 on", found=safe_text(step))
    return checked

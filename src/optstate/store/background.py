"""A save that goes on while the program does: the thread that writes, the fence before the next step, and its outcome."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread

import torch

from optstate.errors import OptstateError, SaveError
from optstate.formats.ours.manifest import Body, TensorEntry
from optstate.live.fence import put_up, standing, take_down
from optstate.store.files import Files
from optstate.store.pipeline import Pipeline
from optstate.store.streaming import Streaming
from optstate.store.writer import Payload, write_checkpoint
from optstate.text import count, listing, safe_text

STAGING = 1 << 27
"""Bytes of memory that a save may take, unless told otherwise, while a step waits for it."""


class Saving:
    """A save that goes on in the background: what `optstate.save(..., block=False)` returns.

    path
        Where the checkpoint will be. It is there, whole and durable, once `wait` has returned.

    A save that fails says so once: at the next step of an optimizer that steps a parameter of it, before anything changes,
    or at the next save of one. `wait` says so each time. What nobody heard of goes to stderr when the program ends, which
    it does not before the save has.

    >>> saving = optstate.save("runs/step-5", model=model, optimizer=optimizer, step=5, block=False)
    >>> saving.wait()
    PosixPath('runs/step-5')
    >>> saving
    <saving runs/step-5: done>
    """

    def __init__(
        self,
        path: Path,
        parameters: frozenset[int] = frozenset(),
        hurry: Callable[[], None] | None = None,
        tell: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.path = path
        self._parameters = parameters
        self._hurry = hurry
        self._tell = tell
        self._process = os.getpid()
        self._copied, self._over = Event(), Event()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it is over: the checkpoint is durable, or the save has failed."""
        return self._over.is_set()

    @property
    def error(self) -> BaseException | None:
        """What the save failed with; None where it did not, and as long as it is not over."""
        return self._error

    def wait(self, timeout: float | None = None) -> Path:
        """Wait until the checkpoint is durable, at most so many seconds. Returns its path.

        Raises what the save failed with, such as `SaveError`; `TimeoutError` where it is not over by then, and goes on;
        `OptstateError` in a forked process, where it does not.
        """
        self.finish(timeout)
        take_down(self)
        if self._error is not None:
            raise self._error
        return self.path

    def finish(self, timeout: float | None = None) -> None:
        """Wait until it is over, well or not; raises as `wait` does, but for what it failed with."""
        if self._process != os.getpid():
            raise OptstateError(
                f"{safe_text(self.path)} is being saved by process {self._process}, of which this is a child",
                todo="wait in the process that saves",
            )
        if not self._over.wait(timeout):
            raise TimeoutError(f"{safe_text(self.path)} is still being written after {timeout:g} s")
        if self._thread is not None:
            self._thread.join()

    def tell(self) -> None:
        """Raise what it failed with, or have it told otherwise where that was asked for; once."""
        if self._error is not None and self in standing():
            take_down(self)
            if self._tell is None:
                raise self._error
            self._tell(self._error)

    def concerns(self, parameters: frozenset[int]) -> bool:
        """Whether any of these parameters, by `id`, is saved."""
        return not self._parameters.isdisjoint(parameters)

    def __repr__(self) -> str:
        if not self.done:
            said = "being written"
        else:
            said = "done" if self._error is None else f"failed, {safe_text(self._error)}"
        return f"<saving {safe_text(self.path)}: {said}>"

    # --- as a fence -------------------------------------------------------------------------------------------

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let no step begin that changes what is still to be read, nor one after the save has failed unheard."""
        if self._copied.is_set() and not self.done:
            return
        if self.concerns(frozenset(id(each) for group in optimizer.param_groups for each in group["params"])):
            self.before_write()
            self.tell()

    def before_write(self) -> None:
        """Wait until live memory is not read any more."""
        if not self._copied.is_set():
            if (hurry := self._hurry) is not None:
                hurry()
            self._copied.wait()

    def copied(self) -> None:
        """Live memory is not read any more."""
        self._copied.set()

    # --- in its thread ----------------------------------------------------------------------------------------

    def start(self, work: Callable[[], None]) -> None:
        """Do the work in the background; here and now where the system has no more threads, or Python is about to end."""
        put_up(self)
        _tell_at_exit()
        thread = Thread(target=self._run, args=(work,), name=f"optstate saving {self.path.name}", daemon=False)
        try:
            thread.start()
        except RuntimeError:
            self._run(work)
        else:
            self._thread = thread

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised where somebody hears it
            _let_go(error)
            self._error = error
        else:
            take_down(self)
        finally:
            self._hurry = None
            self._over.set()
            self._copied.set()  # last: who waited for this looks at the outcome next


def begin(
    path: Path,
    body: Body,
    payloads: list[Payload],
    streaming: Streaming,
    files: Files,
    *,
    replace: bool,
    staging: int = STAGING,
    parameters: frozenset[int] = frozenset(),
    then: Callable[[], None] | None = None,
    tell: Callable[[BaseException], None] | None = None,
) -> Saving:
    """Have a checkpoint written in the background; `payloads` are what `streaming` took.

    While a step waits, `staging` bytes of memory may be used, so that it waits less. `then` is called in the background once
    the checkpoint is durable; the save is not over before. `tell` is called, in place of raising, with what it failed with.
    """
    pipeline = Pipeline(files)
    saving = Saving(path, parameters, partial(pipeline.widen, staging), tell)
    if not streaming.begin():
        saving.copied()

    def copied(written: Mapping[str, TensorEntry]) -> None:
        moved = streaming.moved(written)
        if moved:
            raise _void(path, moved)
        saving.copied()

    def work() -> None:
        write_checkpoint(path, body, payloads, files, replace=replace, pipeline=pipeline, copied=copied)
        if then is not None:
            then()

    saving.start(work)
    return saving


def settle(parameters: frozenset[int]) -> None:
    """Wait for saves in the background that are about any of these parameters, and raise what they failed with."""
    for each in standing():
        if isinstance(each, Saving) and each.concerns(parameters):
            each.finish()
            each.tell()


def _void(path: Path, moved: list[str]) -> SaveError:
    return SaveError(
        f"{safe_text(path)} was not saved: {count(len(moved), 'tensor')} changed while being written, and not by a step "
        "that waited",
        expected="weights and slots that change in optimizer.step() only",
        found=listing(moved),
        todo='save with mode="copy", which copies all of it first, or with block=True; earlier checkpoints are untouched',
    )


def _let_go(error: BaseException) -> None:
    """Take the frames that an error and its causes came by away, for they hold on to every tensor; a note says what they were."""
    if not isinstance(error, OptstateError):  # whose message says all
        error.add_note("".join(traceback.format_exception(error)))
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__


@cache
def _tell_at_exit() -> None:
    """Have what nobody heard of said in the end, when Python has waited for all threads."""
    atexit.register(_say_untold)


def _say_untold() -> None:
    for each in standing():
        if isinstance(each, Saving) and each.error is not None:
            sys.stderr.write(f"optstate: {each.error}\n")

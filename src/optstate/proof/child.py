"""A job, done: everything here happens in a process of its own."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import torch

from optstate.errors import OptstateError, ProofError, RestoreRefused
from optstate.live.tensors import to_array
from optstate.proof.digest import parts_of
from optstate.proof.job import DETERMINISTIC, ONE_THREAD, Answer, Failure, Job, Look, Way
from optstate.proof.moments import BATCH, GRADIENTS, LOSS, Part, Run
from optstate.proof.parts import Parts
from optstate.proof.program import found
from optstate.proof.training import Training, checked
from optstate.proof.user_file import called
from optstate.proof.ways import BUILT_IN
from optstate.text import safe_text

_FAULTS = 3  # of a restore that is refused: enough to see what is wrong
_PACKAGE = str(Path(__file__).parents[1])


def answer(job: Job, tell: Callable[[int], None]) -> Answer:
    """Do a job; `tell` is called with each step that is reached. Raises nothing."""
    try:
        return Answer(run=_Process(job, tell).run())
    except BaseException as error:  # noqa: BLE001  # whatever a foreign program raises is told, exits included
        return Answer(failure=_failure(error))


class _Process:
    """A training and what is written down about it."""

    def __init__(self, job: Job, tell: Callable[[int], None]) -> None:
        self.job = job
        self.tell = tell
        self.result = Run({})
        self.home = Path(job.build.file or "")

    def run(self) -> Run:
        began = perf_counter()
        os.chdir(self.job.where)
        sys.path[:] = self.job.path
        self._switch()
        self.training = self._build()
        self._switch()  # again: a program may have settings of its own
        self.parts = Parts(self.training)
        self._restore()
        if self.job.flip:
            self._flip()
        self._at(self.job.start, {})
        self._go_on()
        self.result.seen = environment()
        self.result.seconds = perf_counter() - began
        return self.result

    def _go_on(self) -> None:
        """Take the steps. One that fails after a restore is a finding: what was restored is known all the same."""
        try:
            for step in range(self.job.start + 1, self.job.stop + 1):
                self._at(step, self._step(step))
        except OptstateError as error:
            if self.job.load is None:
                raise
            self.result.failed = f"{error.what}: {error.found}" if error.found else error.what

    def _switch(self) -> None:
        if self.job.switch == DETERMINISTIC:
            torch.use_deterministic_algorithms(True)
        elif self.job.switch == ONE_THREAD:
            torch.set_num_threads(1)

    def _build(self) -> Training:
        label = self.job.build.label
        build = found(self.job.build, needs=0, returns="takes nothing and returns optstate.Training(...)")
        return checked(called(build, self.home, f"{label} failed"), label)

    def _restore(self) -> None:
        if self.job.load is not None:
            way, path = self.job.load
            self._use(way, 1, path)
        if self.job.take is not None:
            components, folder = self.job.take
            for component in components:
                self.parts.write(component, kept(folder, component))

    def _use(self, way: Way, which: int, path: str) -> None:
        """Save (0) or restore (1)."""
        if isinstance(way, str):
            BUILT_IN[way][which](self.training, Path(path))
            return
        what = f"{('save', 'load')[which]}(training, path)"
        function = found(way, needs=2, returns=f"is called as {what}")
        called(lambda: function(self.training, Path(path)), Path(way.file or ""), f"{way.label} failed")

    def _flip(self) -> None:
        bit = self.parts.a_bit()
        if bit is None:
            return
        name, element = bit
        before = self.parts.moment()
        _flip_bit(element)
        self.result.flip, self.result.flipped = name, self.parts.moment()
        _flip_bit(element)
        self.result.untouched = self.parts.moment() == before

    def _step(self, step: int) -> dict[str, dict[str, Part]]:
        """Take a step; what it was fed and what loss it had."""
        batches: dict[str, Part] = {}
        what = f"train_step() failed at step {step}"
        try:
            with _watched(self.training, batches):
                loss = called(self.training.train_step, self.home, what)
        except OptstateError as error:
            if isinstance(error.__cause__, StopIteration):
                raise ProofError(
                    f"train_step() ran out of data at step {step}",
                    expected=f"batches for {self.job.stop} steps",
                    todo="begin the loader anew where it ends, or prove fewer steps",
                ) from error.__cause__
            raise
        parts = {} if loss is None else {LOSS: {LOSS: _loss(loss)}}
        return {**parts, **({BATCH: batches} if batches else {})}

    def _at(self, step: int, made: dict[str, dict[str, Part]]) -> None:
        """Write a moment down, and do what is due after this step."""
        self.result.moments[step] = {**made, **self.parts.moment()}
        if self.job.save is not None and self.job.save[1] == step:
            self._use(self.job.save[0], 0, self.job.save[2])
        if self.job.keep is not None and self.job.keep[0] == step:
            self.result.gradients = keep(self.parts, self.job.keep[1])
        if self.job.look is not None and self.job.look.step == step:
            self.result.element = _first_element(self.parts, self.job.look)
        self.tell(step)


def _flip_bit(element: torch.Tensor) -> None:
    """The lowest bit of one element, in place."""
    number = torch.view_as_real(element)[0] if element.is_complex() else element
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    number.view(kinds[number.element_size()]).bitwise_xor_(1)


def _loss(loss: Any) -> Part:
    number = loss.detach() if isinstance(loss, torch.Tensor) else loss
    if isinstance(number, (bool, int, float, np.generic)) or (isinstance(number, torch.Tensor) and number.numel() == 1):
        return next(part for _, part in parts_of(number, LOSS))
    raise ProofError(
        "train_step() returned no loss",
        expected="a number, a tensor of one element, or None",
        found=f"a {safe_text(type(loss).__name__)}",
    )


@contextmanager
def _watched(training: Training, batches: dict[str, Part]) -> Iterator[None]:
    """Note what the model is fed. The hook looks and changes nothing."""
    calls = 0

    def look(_: object, positional: Any, named: Any) -> None:
        nonlocal calls
        calls += 1
        batches.update(parts_of({**dict(enumerate(positional)), **named}, f"model call {calls}"))

    hook = training.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


# --- values in files, for the processes of this one proof --------------------------------------------------


def keep(parts: Parts, folder: str) -> bool:
    """Every component in a file of its own; whether there are gradients. One that cannot be written is left out."""
    gradients = parts.gradients()
    for component, values in {**parts.read(), GRADIENTS: gradients}.items():
        path = _file(folder, component)
        try:
            torch.save(values, path)
        except Exception:  # noqa: BLE001  # a foreign object that cannot be pickled: then it cannot be tried either
            path.unlink(missing_ok=True)
    return bool(gradients)


def kept(folder: str, component: str) -> Any:
    """A component that another process of this proof has written."""
    path = _file(folder, component)
    if not path.exists():
        raise ProofError(f"{safe_text(component)} cannot be taken over from one process into another")
    return torch.load(path, weights_only=False)  # this very proof wrote it


def _file(folder: str, component: str) -> Path:
    return Path(folder) / f"{component.encode().hex()}.pt"


def _first_element(parts: Parts, look: Look) -> str | None:
    """Where two tensors differ first, both values, and how many differ; None where that is no question of elements."""
    theirs, mine = kept(look.folder, look.component).get(look.name), parts.read().get(look.component, {}).get(look.name)
    if not isinstance(theirs, torch.Tensor) or not isinstance(mine, torch.Tensor):
        return None
    a, b = to_array(theirs), to_array(mine)
    if a.shape != b.shape or a.dtype != b.dtype or not a.size:
        return None
    other = (_bits(a) != _bits(b)).reshape(a.size, -1).any(axis=1)
    first = int(other.argmax())
    place = ", ".join(str(int(each)) for each in np.unravel_index(first, a.shape))
    one, two = (each.reshape(-1)[first].item() for each in (a, b))
    return f"[{place}] {two!r}, expected {one!r}; {int(other.sum()):,} of {a.size:,} elements differ"


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# --- what is told besides ----------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """What decides about bits besides the program."""
    seen = {
        "optstate": _version("optstate"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "matmul precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        seen["device"] = torch.cuda.get_device_name()
        seen["cudnn"] = f"deterministic={torch.backends.cudnn.deterministic} benchmark={torch.backends.cudnn.benchmark}"
    return seen


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _failure(error: BaseException) -> Failure:
    """An error in the one shape; with the traceback where it is one of the user's program."""
    cause = error.__cause__ if isinstance(error, OptstateError) and error.__cause__ is not None else error
    own = isinstance(error, OptstateError) and cause is error
    return Failure(
        what=error.what if isinstance(error, OptstateError) else f"the program failed: {type(error).__name__}",
        where=error.where if isinstance(error, OptstateError) else None,
        expected=error.expected if isinstance(error, OptstateError) else None,
        found=_found(error),
        todo=error.todo if isinstance(error, OptstateError) else None,
        traceback="" if own else _shown(cause),
    )


def _found(error: BaseException) -> str | None:
    if isinstance(error, RestoreRefused):
        return "; ".join(error.faults[:_FAULTS])
    return error.found if isinstance(error, OptstateError) else safe_text(error)


def _shown(error: BaseException) -> str:
    """The traceback from where it enters the user's program."""
    entry: TracebackType | None = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        entry = entry.tb_next
    lines = traceback.format_exception(type(error), error, entry or error.__traceback__)
    return "\n".join(safe_text(line, 300) for line in "".join(lines).splitlines())

"""The asking side: two interpreters that fork a process for each job, and nothing left behind, however it ends. No torch."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Self

import msgspec

from optstate.errors import ProofError
from optstate.proof.job import Answer, Failure, Job
from optstate.proof.moments import Run
from optstate.text import safe_text

TIMEOUT = 300.0
"""Seconds without a sign of life, such as a step that is done, after which a process counts as hanging."""

_START = "import sys; sys.path[:] = sys.argv[3:]; from optstate.proof.server import main; main(*sys.argv[1:3])"
_SERVERS = 2
_LAST_LINES = 12  # of what a process wrote before it died

Sign = Callable[[int, int], None]
"""Called with the number of a job and the step that it has reached."""


class Workers:
    """Two interpreters with two seeds for hashes, so that an order which rests on a set shows itself.

    A context: on leaving it every process is killed and every file removed, after Ctrl-C too. `timeout` is how long a
    process may give no sign of life; `modules` are imported once, for all jobs, where they can be.
    """

    def __init__(self, timeout: float = TIMEOUT, modules: Sequence[str] = ()) -> None:
        self.timeout = timeout
        self._modules = tuple(modules)
        self._asked = 0
        self._servers: list[_Server] = []

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="optstate-prove-"))
        try:
            for _ in range(_SERVERS):
                self._servers.append(_Server(self.folder, self._modules))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_folder(self) -> Path:
        """An empty folder for a proof, which goes with the workers at the latest."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def run(self, jobs: Sequence[Job], sign: Sign = lambda _number, _step: None) -> list[Run]:
        """Do all jobs, as `answers` does. Raises `ProofError` for one that fails or dies; those not yet begun are left then."""
        answers = self.answers(jobs, sign, until_failure=True)
        failed = [answer.failure for answer in answers if answer.failure is not None]
        if failed:
            raise failed[0].error()
        return [answer.run for answer in answers if answer.run is not None]

    def answers(
        self, jobs: Sequence[Job], sign: Sign = lambda _number, _step: None, *, until_failure: bool = False
    ) -> list[Answer]:
        """Do jobs, two at a time: those with even numbers in one interpreter, the others in the other.

        Each gives an answer, that it failed or died included; `until_failure` begins none after the first that did.
        Raises `ProofError` for one that hangs.
        """
        answers: dict[int, Answer] = {}
        queues = [list(range(len(jobs)))[first::_SERVERS] for first in range(_SERVERS)]
        try:
            while any(queues) or any(server.busy for server in self._servers):
                for server, queue in zip(self._servers, queues, strict=True):
                    if queue and not server.busy:
                        number = queue.pop(0)
                        self._asked += 1
                        server.ask(number, jobs[number], self.folder / f"job-{self._asked}.json")
                for number, answer in self._heard(sign):
                    answers[number] = answer
                    if until_failure and answer.failure is not None:
                        queues = [[] for _ in queues]
        finally:
            for server in self._servers:
                if server.busy:  # after an error: what it does is of no use to anybody
                    server.kill()
        return [answer for _, answer in sorted(answers.items())]

    def _heard(self, sign: Sign) -> Iterator[tuple[int, Answer]]:
        """Wait for the next lines of any server, and yield the answers among them. Raises `ProofError` on silence."""
        busy = [server for server in self._servers if server.busy]
        due = min(server.heard + self._patience(server) for server in busy)
        with selectors.DefaultSelector() as ready:
            for server in busy:
                ready.register(server.out, selectors.EVENT_READ, server)
            chosen = [key.data for key, _ in ready.select(max(0.0, due - monotonic()))]
        for server in chosen:
            yield from server.listen(sign)
        for server in busy:
            if server.busy and monotonic() - server.heard >= self._patience(server):
                raise ProofError(
                    f"the program gave no sign for {self.timeout:g} seconds, {server.whereabouts}",
                    expected="a step that is done, or the end of build()",
                    todo="look for what it waits for: data that never come, a lock, input; or allow more with timeout",
                )

    def _patience(self, server: _Server) -> float:
        """Seconds that a server may be silent: its own start is not the program's fault."""
        return self.timeout if server.ready else max(self.timeout, TIMEOUT)


class _Server:
    """One interpreter, started when it is first asked and again after it was killed."""

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        self._folder = folder
        self._modules = ",".join(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal reaches whoever asked, who then kills the whole group.
        with (self._folder / f"server-{id(self)}.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # this very interpreter
                [sys.executable, "-c", _START, str(self._folder), self._modules, *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, start_new_session=True,
            )  # fmt: skip
        self.busy = self.ready = False
        self._step: int | None = None
        self._pending = b""

    @property
    def out(self) -> int:
        """What to wait on for its lines."""
        return self._pipes()[1].fileno()

    @property
    def whereabouts(self) -> str:
        """How far the present job is."""
        return "in build()" if self._step is None else f"after step {self._step}"

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ProofError("the process is gone")
        return process.stdin, process.stdout

    def ask(self, number: int, job: Job, path: Path) -> None:
        """Have a job done, whose number is `number`; `path` is where it is written down, and the answer beside it."""
        if self._process is None:
            self._start()
        path.write_bytes(msgspec.json.encode(job))
        self._number, self._result, self._step = number, path.with_suffix(".answer"), None
        self.busy, self.heard = True, monotonic()
        with suppress(BrokenPipeError):  # it could not start: its end is heard next
            self._pipes()[0].write(f"{path}\0{self._result}\n".encode(errors="surrogateescape"))

    def listen(self, sign: Sign) -> Iterator[tuple[int, Answer]]:
        """Read what there is; yields the number and answer of a job that has ended."""
        self.heard = monotonic()
        chunk = os.read(self.out, 65536)
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            if line == b"ready":
                self.ready = True
            elif line.startswith(b"+"):
                self._step = int(line)
                sign(self._number, self._step)
            elif line.startswith(b"="):
                self.busy = False
                yield self._number, self._answer(int(line[1:]))
        if not chunk:
            said = _tail(self._folder / f"server-{id(self)}.log")
            self.kill()
            yield self._number, Answer(failure=Failure("the interpreter for the proof ended by itself", traceback=said))

    def _answer(self, status: int) -> Answer:
        if self._result.exists():
            answer: Answer = msgspec.json.decode(self._result.read_bytes(), type=Answer)
            self._result.unlink()
            return answer
        how = (
            f"killed by {signal.Signals(-status).name}"
            if status < 0
            else f"it ended with {status}, by os._exit or the like"
        )
        return Answer(
            failure=Failure(
                f"the process of the program died {self.whereabouts}",
                found=how,
                traceback=_tail(self._result.with_suffix(".log")),
            )
        )

    def kill(self) -> None:
        """End it and all that it started, at once."""
        process, self._process, self.busy = self._process, None, False
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _tail(log: Path) -> str:
    """The last lines that a process wrote."""
    if not log.exists():
        return ""
    lines = log.read_text(errors="backslashreplace").splitlines()[-_LAST_LINES:]
    return "\n".join(safe_text(line, 300) for line in lines)

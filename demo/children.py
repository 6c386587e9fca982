"""Runs as child processes: a few at once, watched while they go, and none left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from demo.settings import PROGRESS

AT_ONCE = 2  # each computes on one thread


@dataclass(frozen=True, slots=True)
class Job:
    """A child to start, `python -m COMMAND`, and how it has to end."""

    name: str
    command: Sequence[str]
    exit_code: int = 0


class ChildFailed(Exception):
    """A child ended in another way than it should; its own message is on stderr already."""


def run_jobs(jobs: Sequence[Job]) -> dict[str, str]:
    """Run all jobs, at most `AT_ONCE` at a time, and return what each said besides its progress.

    However this ends (an interrupt, a child that fails), every child has ended before. Raises `ChildFailed`.
    """
    try:
        return asyncio.run(_run_all(jobs))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _run_all(jobs: Sequence[Job]) -> dict[str, str]:
    limit = asyncio.Semaphore(AT_ONCE)
    progress = Progress()

    async def run_one(job: Job) -> str:
        async with limit:
            return await _run(job, progress)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {job.name: group.create_task(run_one(job)) for job in jobs}
    finally:
        progress.clear()
    return {name: task.result() for name, task in tasks.items()}


async def _run(job: Job, progress: Progress) -> str:
    progress.show(job.name, f"{job.name}: starting")
    # A process group of its own: Ctrl-C in the terminal reaches this process only, which then kills the whole group.
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *job.command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    said = []
    try:
        assert child.stdout is not None
        async for raw in child.stdout:
            line = raw.decode()
            if line.startswith(PROGRESS):
                progress.show(job.name, line.removeprefix(PROGRESS).rstrip())
            else:
                said.append(line)
        code = await child.wait()
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if code != job.exit_code:
        raise ChildFailed(f"the run {job.name!r} ended with {code} instead of {job.exit_code}")
    progress.drop(job.name)
    return "".join(said)


class Progress:
    """One line on a terminal that says where each running child is; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._terminal = sys.stderr.isatty()

    def show(self, name: str, line: str) -> None:
        """The child `name` has got to `line`."""
        self._lines[name] = line
        self._write("     " + " · ".join(self._lines.values()))

    def drop(self, name: str) -> None:
        """The child `name` has ended."""
        self._lines.pop(name, None)

    def clear(self) -> None:
        """Leave an empty line for what is printed next."""
        self._write("")

    def _write(self, line: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{line[:width]}", end="", file=sys.stderr, flush=True)

"""A process that has imported torch, and what it is asked to, and forks one child for each job.

Importing torch takes seconds, a fork milliseconds. Nothing is computed here, so a child finds what a fresh process
would: no thread pool, no CUDA, and generators that start where they would have.
Its standard input and output are pipes: a line with two paths (job, answer) is a job, `ready` comes first, `+N` is a
step that was reached, `=STATUS` the end of a job. When the input ends, whoever asked is gone: everything is killed and removed.
"""

from __future__ import annotations

import gc
import os
import random
import select
import shutil
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np

from optstate.proof.child import answer
from optstate.proof.job import Job

_LOOK = 0.02  # seconds between two looks whether a child has ended


def main(folder: str, modules: str) -> None:
    """Serve until the input ends; `folder` is removed then. `modules`, between commas, are imported beforehand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asked
    import_module("torch._dynamo")  # what the first optimizer of a process imports, for seconds
    for module in filter(None, modules.split(",")):
        with suppress(Exception, SystemExit):  # whoever needs it is told so when the job imports it
            import_module(module)
    gc.collect()
    gc.freeze()
    out = os.dup(1)
    os.write(out, b"ready\n")
    pending = b""
    while chunk := os.read(0, 65536):
        pending += chunk
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            job, result = map(Path, line.decode(errors="surrogateescape").split("\0"))
            _serve(job, result, out, folder)
    _end(None, folder)


def _serve(job: Path, result: Path, out: int, folder: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            _work(job, result, out)
        finally:
            os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            os.write(out, f"={os.waitstatus_to_exitcode(status)}\n".encode())
            return
        if select.select([0], [], [], _LOOK)[0]:  # one job at a time is asked for: this is the end of the input
            _end(child, folder)


def _end(child: int | None, folder: str) -> None:
    """Kill everything that was started, remove what was written, and this process with it."""
    if child is not None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _work(job: Path, result: Path, out: int) -> None:
    """In the child: what the program prints goes to a log; the generators start as in a process of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with result.with_suffix(".log").open("wb", buffering=0) as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    random.seed()
    np.random.seed(None)
    done = answer(msgspec.json.decode(job.read_bytes(), type=Job), lambda step: _tell(out, step))
    part = result.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(done))
    part.rename(result)
    sys.stdout.flush()


def _tell(out: int, step: int) -> None:
    os.write(out, f"+{step}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:3])

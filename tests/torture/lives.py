"""Real training runs, killed and told to stop at random moments and resumed, until each ends; and ends bit for bit as if unharmed."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from optstate.store.folder import contents, damage
from tests.trainings import Training, uninterrupted

TOTAL, EVERY, KEEP = 40, 3, 2
"""Steps of a run, from save to save, and how many checkpoints stay."""


def lives(root: Path, chance: random.Random, *, block: bool) -> Iterator[Counter[str]]:
    """Runs of one kind of checkpointer, one after the other; what was done to each, when it has ended.

    Raises `AssertionError` where a checkpoint is lost or damaged, or a run ends as another one.
    """
    torch.set_num_threads(1)
    wanted = uninterrupted(TOTAL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        yield _run(root / "run", chance, wanted, {"block": block})
        shutil.rmtree(root / "run")


def _run(folder: Path, chance: random.Random, wanted: str, options: dict[str, Any]) -> Counter[str]:
    done: Counter[str] = Counter()
    before, ended = 0, False
    while not ended:
        done["lives"] += 1
        done["resumed"] += before > 0
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        status, said = _life(folder, wanted, options, number, chance.uniform(0, 0.12 + done["lives"] / 100))
        assert status in (0, signal.SIGKILL, signal.SIGTERM), (status, said)
        found = contents(folder) if folder.exists() else []
        assert all(each.fault is None and damage(each.path) is None for each in found), found
        newest = found[0].step or 0 if found else 0
        told = max((int(step) for what, step in said if what == "saved"), default=0)
        assert newest >= max(before, told), f"step {max(before, told)} was saved, and {newest} is the newest"
        assert len(found) >= min(KEEP, newest // EVERY), found
        ends = [step for what, step in said if what == "ended"]
        if ends:
            assert ends == [str(newest)], (ends, newest)
        if status or "stopped" in dict(said):
            done["KILL" if status == signal.SIGKILL else "TERM"] += 1
        ended = ends == [str(TOTAL)]
        assert not ended or ("exact", "True") in said, "the run ended as another one"
        before = newest
    return done


def _life(
    folder: Path, wanted: str, options: dict[str, Any], number: int, seconds: float
) -> tuple[int, list[tuple[str, str]]]:
    """A process of the run, sent a signal after so many seconds of training; how it ended, and what it said."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        try:
            _train(folder, wanted, options, there)
        finally:
            os._exit(0)
    os.close(there)
    os.read(here, 8)  # it begins
    if signal.sigtimedwait([signal.SIGCHLD], seconds) is None:
        os.kill(child, number)
    with open(here, "rb") as pipe:
        words = pipe.read().decode().split()
    status = os.waitpid(child, 0)[1]
    signal.sigtimedwait([signal.SIGCHLD], 0)
    return status, list(zip(words[::2], words[1::2], strict=False))


def _train(folder: Path, wanted: str, options: dict[str, Any], told: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    training = Training()
    run = training.checkpointer(folder, keep=KEEP, **options)
    os.write(told, b"begun 1 ")
    late = 0 if options["block"] else EVERY  # in the background a save is over by the next one, for that waits for it
    for step in run.steps(TOTAL, every=EVERY):
        if step % EVERY == 1 and step > 1:
            os.write(told, f"saved {max(0, step - 1 - late)} ".encode())
        training.step()
    status = run.status()
    run.close()
    os.write(told, f"exact {training.digest() == wanted} ".encode())
    if status.stopped_by:
        os.write(told, f"stopped {status.stopped_by} ".encode())
    os.write(told, f"ended {status.step} ".encode())

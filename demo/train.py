"""One run in a process of its own: `python -m demo.train NAME`. It saves, and it logs every bit of every step.

Saving and resuming are `save`, `newest_intact` and `resume`: all that a training script needs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

import optstate
from demo.fingerprint import fingerprint
from demo.run import Run, build, seed, train_step
from demo.settings import FULL, PROGRESS, QUICK, RUNS


def save(run: Run, folder: Path, step: int) -> None:
    """A checkpoint of everything after `step` steps."""
    optstate.save(
        folder / f"step-{step}",
        model=run.model,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        step=step,
        rng=True,
    )


def newest_intact(folder: Path) -> Path:
    """The checkpoint with the most steps of those that hold every byte as it was written."""
    intact = [path for path in folder.glob("step-*") if is_intact(path)]
    if not intact:
        raise SystemExit(f"{folder} holds no intact checkpoint")
    return max(intact, key=step_of)


def is_intact(path: Path) -> bool:
    """Whether a path is a checkpoint, and each of its digests is right."""
    try:
        return optstate.verify(path).ok
    except optstate.errors.ReadError:
        return False


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved after."""
    return optstate.open(checkpoint).step or 0


def resume(run: Run, checkpoint: Path) -> None:
    """Put the run where the checkpoint was, and say how."""
    plan = optstate.plan(checkpoint, model=run.model, optimizer=run.optimizer, scheduler=run.scheduler, rng=True)
    print(plan)
    plan.apply()


def flip(run: Run, path: str) -> None:
    """Change the lowest bit of the first value of the slot `NAME/KEY`: the negative control."""
    name, _, key = path.rpartition("/")
    optstate.attach(run.optimizer, run.model)[name][key].tensor.view(torch.int32).view(-1)[0] ^= 1


def die_while_saving(run: Run, folder: Path, step: int) -> None:
    """SIGKILL this very process as soon as the first bytes of one more checkpoint are in the folder."""
    before = set(folder.iterdir())
    writer = threading.Thread(target=save, args=(run, folder, step))
    writer.start()
    while writer.is_alive() and not any(file for new in set(folder.iterdir()) - before for file in new.glob("*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(run: Run, start: int, name: str) -> Iterator[int]:
    """Train from step `start` to the last; yields each step once it is done and every bit of it is in the log."""

    def log(step: int, loss: float | None) -> None:
        print(json.dumps({"step": step, "loss": loss, "digests": fingerprint(run)}), file=file, flush=True)

    with (RUNS / f"{name}.jsonl").open("w") as file:
        log(start, None)
        for step in range(start + 1, run.settings.steps + 1):
            loss = train_step(run)
            log(step, loss)
            print(f"{PROGRESS}{name}: step {step} of {run.settings.steps}, loss {loss:.3f}", flush=True)
            yield step


def main() -> None:
    """Build, resume if asked to, then train and save to the last step."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("name", help="what the run is called")
    parser.add_argument("--quick", action="store_true", help="the small settings")
    parser.add_argument("--kill", action="store_true", help="die where the settings say")
    parser.add_argument("--resume-from", metavar="NAME", help="start at the newest intact checkpoint of that run")
    parser.add_argument("--flip", metavar="NAME/KEY", help="negative control: flip one bit of a slot after the resume")
    options = parser.parse_args()

    settings = QUICK if options.quick else FULL
    seed(settings)
    run, start, folder = build(settings), 0, RUNS / options.name
    if options.resume_from:
        checkpoint = newest_intact(RUNS / options.resume_from)
        start = step_of(checkpoint)
        resume(run, checkpoint)
    if options.flip:
        flip(run, options.flip)

    for step in go_on(run, start, options.name):
        if options.kill and step == settings.kill_at:
            die_while_saving(run, folder, step)
        if step % settings.save_every == 0 or step == settings.steps:
            save(run, folder, step)


if __name__ == "__main__":
    main()

"""Resume a training run with its momentum intact, and prove it: `python -m demo`.

Exit code 0: the resumed run is the uninterrupted one bit by bit, and four usual ways to resume were each caught.
1: it is not, or one was not, or a run failed. 130: interrupted; nothing is left behind.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from textwrap import fill

import optstate
from demo.children import ChildFailed, Job, run_jobs
from demo.compare import first_difference, outcome, prove, read_log
from demo.report import RESUMED, UNINTERRUPTED, Story, html_page, text_table
from demo.settings import FULL, QUICK, RUNS, USUAL_WAYS
from optstate.text import listing

REPORT = Path("demo-report.html")
KILLED = "killed"
NAMES = {UNINTERRUPTED, KILLED, RESUMED, *USUAL_WAYS}


def main() -> int:
    """The whole demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps")
    parser.add_argument("--flip", metavar="NAME/KEY", help=argparse.SUPPRESS)  # see demo/train.py
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is what Ctrl-C is
    try:
        begin()
        try:
            return demo(quick=options.quick, flip=options.flip)
        except KeyboardInterrupt:
            shutil.rmtree(RUNS, ignore_errors=True)
            raise
    except (ChildFailed, OSError, optstate.OptstateError) as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 130


def begin() -> None:
    """An empty folder for the runs, in place of the one that an earlier demo left; a stranger's is not touched."""
    strange = [path.name for path in RUNS.iterdir() if path.stem not in NAMES] if RUNS.exists() else []
    if strange:
        raise FileExistsError(f"{RUNS}/ holds {listing(strange)}, which this demo did not make; move it away")
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir()


def demo(*, quick: bool, flip: str | None) -> int:
    """Train, kill, resume, compare, report."""
    began = time.monotonic()
    settings = QUICK if quick else FULL
    size = ("--quick",) if quick else ()
    last = f"step-{settings.steps}"

    say(f"1/4  Train {settings.steps} steps; and once more, but killed (SIGKILL) at step {settings.kill_at}")
    run_jobs(
        [
            Job(UNINTERRUPTED, ["demo.train", UNINTERRUPTED, *size]),
            Job(KILLED, ["demo.train", KILLED, "--kill", *size], exit_code=-signal.SIGKILL),
        ]
    )
    reference = read_log(RUNS / f"{UNINTERRUPTED}.jsonl")
    parameters = sum(prod(weight.shape) for weight in optstate.open(RUNS / UNINTERRUPTED / last).weights.values())
    leftovers = half_written(RUNS / KILLED)
    say(f"     A GPT with {parameters:,} parameters. The kill left half-written: {', '.join(leftovers)}")
    if differences := first_difference(reference, read_log(RUNS / f"{KILLED}.jsonl")):
        say(f"     This machine does not compute the same twice, before any resume: {differences[0]}")

    say("2/4  Resume in a fresh process from the newest intact checkpoint\n")
    flipped = ("--flip", flip) if flip else ()
    resume = Job(RESUMED, ["demo.train", RESUMED, "--resume-from", KILLED, *size, *flipped])
    plan = run_jobs([resume])[RESUMED]
    say(plan)
    resumed = read_log(RUNS / f"{RESUMED}.jsonl")
    proof = prove(reference, resumed, RUNS / UNINTERRUPTED / last, RUNS / RESUMED / last)
    say(f"{fill(f'{proof.verdict}: {proof.evidence}', 80)}\n")

    say("3/4  Resume from it in four usual ways; data and dropout are the same\n")
    ways = list(USUAL_WAYS)
    pairs = [ways[:2], ways[2:]]  # two in a process, one after the other: importing torch takes as long as 40 steps
    run_jobs([Job(pair[0], ["demo.variants", *pair, "--resume-from", KILLED, *size]) for pair in pairs])
    outcomes = [outcome(name, reference, read_log(RUNS / f"{name}.jsonl")) for name in (RESUMED, *USUAL_WAYS)]
    story = Story(settings, parameters, proof, reference, outcomes, plan, leftovers)
    say(text_table(story))

    REPORT.write_text(html_page(story), encoding="utf-8")
    say(f"\n4/4  The curves are in {REPORT}, the checkpoints in {RUNS}/ ({time.monotonic() - began:.0f} s)")
    say(f"     look at one: optstate show {RUNS / UNINTERRUPTED / last}")
    return 0 if story.succeeded else 1


def half_written(folder: Path) -> Sequence[str]:
    """What the kill left in the folder besides checkpoints."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("step-")) or ["nothing"]


def say(text: str) -> None:
    """Print at once: a log that is followed shows where the demo is."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

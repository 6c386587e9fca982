"""`python -m tests.fuzz`: draw files, open each, and hold what comes of it against what may come of it.

A file is opened with its values and printed, or refused with an error of ours, in bounded time and memory; and a hurt
file that both torch and this reader accept holds the same tensors for both. Nothing is asked of what torch refuses.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tests.forged import torch_file
from tests.fuzz import grammar, seeds
from tests.fuzz.differential import assert_same_as_torch
from tests.hostile import exercise, fence, pace

LIMIT = 1.0
"""Seconds of processor time that a small file may take, on a machine at the pace of `tests.test_hostile_files`."""

Subject = tuple[st.SearchStrategy[Any], Callable[[Any], str]]


class Fuzz:
    """The subjects, and a place to write files to."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "drawn.pt"
        self.folder = folder / "ours"
        self.files = seeds.files()
        self.pickle, self.storages = seeds.parts(self.files["torch zip"])
        self.ours = seeds.ours(folder / "seed")
        self.patience = LIMIT * max(1, pace() / 0.1)

    def subjects(self) -> Mapping[str, Subject]:
        """Name → what is drawn, and what is done with it; returns what came of it."""
        hurt = st.tuples(st.sampled_from(sorted(self.files)), grammar.HURTS)
        return {
            "pickles": (grammar.PICKLES, self.open),
            "zips": (grammar.zips(), self.open),
            "headers": (grammar.headers(), self.open),
            "hurt files": (hurt, lambda drawn: self.compare(grammar.hurt(self.files[drawn[0]], drawn[1]))),
            "hurt pickles": (grammar.HURTS, lambda hurts: self.compare(torch_file(grammar.hurt(self.pickle, hurts), self.storages))),
            "hurt folders": (st.tuples(st.sampled_from(sorted(self.ours)), grammar.HURTS), self.hurt_ours),
        }  # fmt: skip

    def open(self, raw: bytes) -> str:
        """Open a file; raises `AssertionError` for any outcome that must not be."""
        self.file.write_bytes(raw)
        return self.exercise(self.file)

    def exercise(self, path: Path) -> str:
        started = time.process_time()
        outcome = exercise(path)
        taken = time.process_time() - started
        assert not outcome.startswith("crashed"), outcome
        assert taken < self.patience, f"{taken:.1f} s for {outcome}"
        return outcome.partition(":")[0].partition(" ")[0]

    def compare(self, raw: bytes) -> str:
        """As `open`; where torch accepts the file as well, its tensors are the same."""
        outcome = self.open(raw)
        return f"{outcome}, as torch" if outcome == "opened" and assert_same_as_torch(self.file) else outcome

    def hurt_ours(self, drawn: tuple[str, Any]) -> str:
        """A checkpoint of ours, one of whose files is hurt."""
        name, hurts = drawn
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for key, raw in self.ours.items():
            (self.folder / key).write_bytes(grammar.hurt(raw, hurts) if key == name else raw)
        return self.exercise(self.folder)


def run(subject: Subject, examples: int, seed: int | None) -> Counter[str]:
    """Draw so many examples; returns how often each outcome came. Without a seed they are the same each time."""
    drawn, act = subject
    outcomes: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(drawn)
    def test(example: Any) -> None:
        outcomes[act(example)] += 1

    (test if seed is None else hypothesis.seed(seed)(test))()
    return outcomes


def main() -> None:
    """Run every subject and print what came of it; the first file that fails is printed, as small as it gets."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=2_000, help="of each subject; default: %(default)s")
    parser.add_argument("--only", action="append", metavar="NAME", help="a subject; may be repeated")
    parser.add_argument("--fixed", action="store_true", help="draw the same examples each time")
    arguments = parser.parse_args()
    seed = None if arguments.fixed else random.SystemRandom().getrandbits(32)
    _say("fixed examples" if seed is None else f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        fence(24 * 3600)
        for name, subject in fuzz.subjects().items():
            if name not in (arguments.only or (name,)):
                continue
            started = time.monotonic()
            outcomes = run(subject, arguments.examples, seed)
            told = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
            _say(f"{name}: {outcomes.total():,} examples in {time.monotonic() - started:.0f} s: {told}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

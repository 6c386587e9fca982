"""Hostile files: nothing is executed or imported, nothing hangs, and each gets its own plain error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import CASES

ERRORS = ("Damaged", "Refused", "NotACheckpoint", "NewerFormat")
FILES = {case: f"{index:03}" for index, case in enumerate(CASES)}  # a case's name would be no file name


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What a child process saw when it opened every case, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    for key, (raw, _) in CASES.items():
        (folder / f"{FILES[key]}.pt").write_bytes(raw)
    before = sorted(os.listdir(folder))
    root = Path(__file__).parent.parent
    finished = subprocess.run(
        [sys.executable, "-m", "tests.hostile", str(folder)],
        cwd=folder, env={**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert sorted(os.listdir(folder)) == sorted([*before, "warm"])
    return json.loads(finished.stdout)


@pytest.mark.parametrize("case", CASES)
def test_outcome(case, opened):
    """A malformed or greedy file is refused with its own class and a place; an inert one opens and names its calls."""
    expected = CASES[case][1]
    outcome = opened["files"][FILES[case]]["outcome"]
    if expected in ERRORS:
        assert outcome.startswith(f"{expected}: ")
        assert FILES[case] in outcome  # the message names the file
    else:
        assert outcome.startswith("opened ")
        assert expected in outcome


def test_nothing_runs(opened):
    """No import, no call, no file for writing, no process: Python's audit hooks saw nothing but files read."""
    assert {
        case: opened["files"][FILES[case]]["events"] for case in CASES if opened["files"][FILES[case]]["events"]
    } == {}
    assert opened["modules"] == []


def test_bounded(opened):
    """Every case is settled within seconds of processor time, and none takes memory that its size does not explain."""
    seconds = {case: opened["files"][FILES[case]]["seconds"] for case in CASES}
    assert {case: taken for case, taken in seconds.items() if taken > 5} == {}
    assert max(seen["grown_kb"] for seen in opened["files"].values()) < 200_000


def test_the_watch_works(tmp_path):
    """The audit hooks do see what they are there for: a pickle that runs code is caught by them."""
    script = (
        "import pickle; from tests.hostile import watch; seen = []; watch(seen); "
        "pickle.loads(b'cos\\ngetcwd\\n)R.'); open('written', 'w').close(); print(seen)"
    )
    root = Path(__file__).parent.parent
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "pickle.find_class" in shown
    assert "open for writing written" in shown

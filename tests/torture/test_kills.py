"""Processes are killed at any operation and at random moments: what was saved is there, and the next process goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.counts import COUNTS
from tests.torture.deeds import DEEDS

ROOT = Path(__file__).parents[2]


def torture(*arguments):
    """Run the command; what it says."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    if os.access("/dev/shm", os.W_OK):
        environment["TMPDIR"] = (
            "/dev/shm"  # a kill loses nothing that was written, so memory is as good as a disk, and fast
        )
    command = [sys.executable, "-m", "tests.torture", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def kills(said, subject):
    """How many kills of a subject were survived."""
    found = re.search(rf"^{subject}: ([\d,]+) kills, .* nothing lost$", said, re.MULTILINE)
    assert found, said
    return int(found[1].replace(",", ""))


@pytest.mark.slow
def test_kill_at_any_operation(whole):
    """Each deed is killed before each of its operations, and its recovery again: what is seen is one of its stages."""
    done = torture("--only", "operations", "--kills", 1, "--seed", 1, *([] if whole else ["--small"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert kills(done.stdout, "operations") >= COUNTS["kills at an operation"]


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["threads", "runs", "runs in the background"])
def test_kill_at_random_moments(subject, whole):
    """With threads that write, and in real training runs with SIGTERM too: nothing is lost, and each run ends bit for bit."""
    wanted = 1_000 if whole else COUNTS["kills at random moments"] // 3
    done = torture("--only", subject, "--kills", wanted, "--seed", 2, "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert kills(done.stdout, subject) >= wanted


CARELESS = """
import random, sys
from pathlib import Path
from tests.torture import deeds, kills

def into_place(root, files):
    # the old one goes first
    files.remove_tree(root / deeds.RUN / "ck")
    deeds.made("ck", 2)(root, files)

deed = deeds.Deed(deeds.each(deeds.folder, deeds.made("ck", 1)), into_place, into_place, ("ck=1", "ck=2"))
for _ in kills.swept("careless", deed, Path(sys.argv[1]), random.Random(0)):
    pass
"""


@pytest.mark.slow
def test_the_test_sees_what_is_lost(tmp_path):
    """A save that removes the old checkpoint first does not survive it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", CARELESS, tmp_path],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "AssertionError: careless: '" in done.stderr


def test_every_deed_has_a_beginning_and_an_end():
    """Stages are told apart, so that a kill that changes nothing is not taken for one that does."""
    for name, deed in DEEDS.items():
        assert len(set(deed.stages)) == len(deed.stages) > 1, name


def test_page_states_what_is_tried():
    """The numbers on the page are those that the tests hold themselves to."""
    page = (ROOT / "docs" / "durability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z][\w ]+) \| ([\d,]+) \|$", page, re.MULTILINE))
    assert {what: int(number.replace(",", "")) for what, number in rows.items()} == COUNTS

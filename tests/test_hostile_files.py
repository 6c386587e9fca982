"""Hostile files: nothing is executed or imported, nothing hangs, and each gets its own plain answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optstate.errors import Refused
from optstate.formats.containers.pickle_opcodes import OPCODES
from optstate.formats.containers.pickled import PICKLE_LIMIT
from optstate.formats.opening import open_checkpoint
from tests.forged import PROTOCOL_2, STOP, Member, archive, pickled
from tests.hostile import CASES, write

ROOT = Path(__file__).parents[1]
PACE = 0.1
"""Seconds that `tests.hostile.pace` takes where the limits below are meant to hold."""


def python(*arguments, cwd):
    """Run this Python with the package and the tests on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What a child process saw when it opened every case, in a folder of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    names = write(folder, CASES)
    before = sorted(os.listdir(folder))
    finished = python("-m", "tests.hostile", str(folder), cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert sorted(os.listdir(folder)) == sorted([*before, "warm"])
    document = json.loads(finished.stdout)
    return {**document, "cases": {case: document["cases"][name] | {"name": name} for case, name in names.items()}}


@pytest.mark.parametrize("case", CASES)
def test_outcome(case, opened):
    """A malformed or greedy file is refused with its own class and a place; an inert one opens and names its calls."""
    expected = CASES[case][1]
    outcome, name = (opened["cases"][case][key] for key in ("outcome", "name"))
    if isinstance(expected, type):
        assert outcome.startswith(f"{expected.__name__}: ")
        assert name in outcome  # the message names the file
    else:
        assert outcome.startswith("opened ")
        assert expected in outcome


def test_nothing_runs(opened):
    """No import, no call, no file for writing, no process: Python's audit hooks saw nothing but files read."""
    assert {case: seen["events"] for case, seen in opened["cases"].items() if seen["events"]} == {}
    assert not opened["torch"]


def test_bounded(opened):
    """Every case is settled within a second, and another one for each megabyte that it truly has."""
    slow = {}
    for case, seen in opened["cases"].items():
        content = CASES[case][0]
        nbytes = len(content) if isinstance(content, bytes) else sum(map(len, content.values()))
        if seen["seconds"] > (1 + nbytes / 1e6) * max(1, opened["pace"] / PACE):
            slow[case] = seen["seconds"]
    assert slow == {}


def test_the_watch_works(tmp_path):
    """The audit hooks do see what they are there for: a pickle that runs code is caught by them."""
    script = (
        "import pickle; from tests.hostile import watch; seen = []; watch(seen); "
        "pickle.loads(b'cos\\ngetcwd\\n)R.'); open('written', 'w').close(); print(seen)"
    )
    shown = python("-c", script, cwd=tmp_path).stdout
    assert "pickle.find_class" in shown
    assert "open for writing written" in shown


def test_the_fence_works(tmp_path):
    """The child that opens the cases can neither take much memory nor compute for ever."""
    greedy = "from tests.hostile import fence; fence(300)\ntry: bytearray(1 << 30)\nexcept MemoryError: print('fenced')"
    assert python("-c", greedy, cwd=tmp_path).stdout == "fenced\n"
    endless = "from tests.hostile import fence; fence(1)\nwhile True: pass"
    assert python("-c", endless, cwd=tmp_path).returncode < 0


def test_longest_pickle(tmp_path):
    """A pickle longer than the limit is refused by its length, before any of it is read."""
    path = tmp_path / "long.pkl"
    path.write_bytes(pickled(b"N"))
    os.truncate(path, PICKLE_LIMIT + 1)
    with pytest.raises(Refused, match=r"the pickle in .*long\.pkl takes 268 MB"):
        open_checkpoint(path)
    claims = archive([Member("archive/data.pkl", b"", size=PICKLE_LIMIT + 1)])
    path.write_bytes(claims)
    with pytest.raises(Refused, match="overlap"):  # a size that is only claimed is another fault
        open_checkpoint(path)


@pytest.mark.slow
def test_most_opcodes(tmp_path):
    """A pickle of more opcodes than any checkpoint has is refused, however little each of them does."""
    path = tmp_path / "busy.pkl"
    path.write_bytes(PROTOCOL_2 + b"N0" * (OPCODES // 2) + b"N" + STOP)
    with pytest.raises(Refused, match="longer than any checkpoint's"):
        open_checkpoint(path)


@pytest.mark.slow
def test_folder_of_very_many_files(tmp_path):
    """A folder with more entries than a checkpoint is refused without looking at each of them."""
    for index in range(200_001):
        base = index - index % 60_000  # a file has at most 65,000 names
        if index == base:
            (tmp_path / str(index)).touch()
        else:
            os.link(tmp_path / str(base), tmp_path / str(index))
    with pytest.raises(Refused, match="more entries than a checkpoint"):
        open_checkpoint(tmp_path)

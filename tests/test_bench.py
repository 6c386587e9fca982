"""The benchmarks' own arithmetic: whoever reads a ratio or a verdict relies on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import LIMIT, OURS, PEER, Row, Target, row, run_child, take_turns
from bench.page import FIGURES, PAGE, page

ROOT = Path(__file__).parents[1]


def test_contenders_take_turns_and_the_first_round_does_not_count():
    """Who goes first changes every round, so that neither always finds the caches warm."""
    order: list[str] = []
    clock = iter(range(100))

    def contender(name):
        def run():
            order.append(name)
            return next(clock)

        return run

    times = take_turns({OURS: contender("a"), PEER: contender("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert times == {OURS: [3, 4, 7], PEER: [2, 5, 6]}


def test_ratios_are_of_each_round():
    """A machine that gets slower meanwhile changes both sides of a round, not their ratio."""
    found = row("x", "1", {OURS: [1.0, 10.0, 100.0], PEER: [2.0, 20.0, 200.0], LIMIT: [1.0, 1.0, 1.0]})
    assert (found.ours, found.peer, found.to_peer, found.to_limit) == (10, 20, 0.5, 10)


@pytest.mark.parametrize(
    ("ours", "to_peer", "busy", "verdict"),
    [
        (1, 0.5, False, "good"),
        (3, 0.5, False, "MISSED ours ≤ 2"),
        (3, 0.5, True, "busy: ours ≤ 2 was not judged"),
        (3, 1.5, True, "MISSED to_peer ≤ 1"),
    ],
)
def test_verdict(ours, to_peer, busy, verdict):
    """A busy machine excuses an absolute time, never a ratio."""
    found = Row("x", "1", ours, to_peer=to_peer, busy=busy, targets=(Target("ours", 2), Target("to_peer", 1)))
    assert found.verdict == verdict


def test_child_that_fails_is_told():
    """A figure of a program that did not do its work is none."""
    with pytest.raises(SystemExit, match="no such thing"):
        run_child(["-c", "raise SystemExit('no such thing')"])


def test_peak_memory_is_that_of_the_child():
    """Memory that the child takes is seen; it is not less than its parent's was, so that one has to be small."""
    code = "from bench.harness import run_child; print(run_child(['-c', 'bytearray(300_000_000).find(1)']).peak_mb)"
    peak = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 300 < float(peak) < 350


@pytest.mark.slow
def test_quick_run_writes_its_figures(tmp_path):
    """`python -m bench --quick` prints a table and writes the same as JSON, without a word about the machine's name."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "attach", "--json", figures, "--dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    document = json.loads(figures.read_text())
    assert [entry["subject"] for entry in document["subjects"]["attach"]] == ["attach"]
    assert done.stdout.splitlines()[1].startswith("attach")
    assert set(document["machine"]) == {"cores", "memory_gb", "load", "system", "python", "torch", "numpy", "click"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_page_shows_the_figures_that_were_measured():
    """Nobody edits a figure: the page is what its file of figures makes."""
    assert page(json.loads(FIGURES.read_text())) == PAGE.read_text()


def test_page_says_what_was_missed():
    """A target that was not reached is not left out, and what was not measured is empty."""
    missed = Row("s", "1 GB", 2.0, to_peer=0.25, targets=(Target("to_peer", 0.1), Target("ours", 0.03)))
    machine = {"cores": 2, "memory_gb": 24.0, "load": 0.1, "system": "Linux", "python": "3.11", "torch": "2.13.0"}
    text = page({"save": {"machine": machine, "rows": [missed.document()]}})
    assert "| s | 1 GB | 2.00 s |  |  | 0.25 |  |  | ≤ 0.1 ÷ peer, ≤ 30 ms | missed |" in text.splitlines()

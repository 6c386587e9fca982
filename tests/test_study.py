"""The study: it runs, its arithmetic is right, and its page says what its figures say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from study import page, results
from study.figures import differences
from study.rounding import dynamic_levels, through_bfloat16, through_dynamic_codes, through_linear_codes
from study.runs import LOOKS, OPTIMIZERS, Key
from study.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study.md"
FIGURES = ROOT / "docs" / "study.json"
SETTINGS = [(task, optimizer) for task in TASKS for optimizer in OPTIMIZERS]


@pytest.mark.slow
def test_small_study_runs(tmp_path):
    """Every arm of every task runs on both optimizers, and fills its place in the page; what is known is not run again."""
    pytest.importorskip("sklearn")
    copy = tmp_path / "study.md"
    copy.write_text("<!-- table digits AdamW -->\n<!-- end -->\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path)])}
    command = [sys.executable, "-m", "study", "--small", "--keep", "--page", copy]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.startswith("108 runs")
    assert "| rebuild | " in copy.read_text()
    assert "| momentum only | diverges" in copy.read_text()
    assert (tmp_path / "study-trap.svg").read_text().startswith("<svg")
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert again.stderr == ""


def test_page_is_what_the_figures_say(tmp_path):
    """Tables and plots of the page come from the file of losses beside it, to the last digit."""
    copy = tmp_path / "study.md"
    shutil.copy(PAGE, copy)
    page.write(copy, results.read(FIGURES))
    assert copy.read_text() == PAGE.read_text()
    for name in page.PLOTS:
        assert (tmp_path / name).read_text() == PAGE.with_name(name).read_text()


def test_figures_are_whole():
    """Every arm, seed and look is there: nothing was left out for what it says."""
    found = results.read(FIGURES)
    for task, optimizer in SETTINGS:
        arms = {key.arm for key in found if (key.task, key.optimizer) == (task, optimizer)}
        assert len(arms) == (15 if optimizer == "AdamW" else 12)
        for arm in arms:
            seeds = {key.seed for key in found if key[:2] == (task, optimizer) and key.arm == arm}
            assert seeds == set(range(TASKS[task].seeds))
    assert all(tuple(losses) == LOOKS for losses in found.values())


def test_rebuild_is_never_clearly_worse_than_a_cold_start():
    """Of all looks on both tasks with both optimizers, no more than chance makes lie above, and none by much."""
    found = results.read(FIGURES)
    looks = [
        each
        for task, optimizer in SETTINGS
        for step, each in differences(found, task, optimizer, "rebuild", "cold start").items()
        if step
    ]
    assert len(looks) == 4 * 23
    assert sum(each.is_worse for each in looks) <= 5
    assert all(each.mean < 0.02 for each in looks if each.is_worse)


def test_rebuild_of_adam_is_close_to_a_full_restore_after_twenty_steps():
    """With a second moment given back, what is left of the loss is within what differs between seeds."""
    found = results.read(FIGURES)
    for task in TASKS:
        after = differences(found, task, "AdamW", "rebuild", "full restore")[20]
        assert abs(after.mean) < 0.03


def test_differences_are_paired_by_seed():
    """What all arms of a seed share takes no part: a constant difference has no interval, however much seeds differ."""
    runs = {
        Key("t", "SGD", seed, arm): {0: 10.0 * seed, 5: 10.0 * seed + extra}
        for seed in range(3)
        for arm, extra in (("a", 0.5), ("b", 0.0))
    }
    found = differences(runs, "t", "SGD", "a", "b")
    assert (found[5].mean, found[5].half, found[5].is_worse) == (0.5, 0.0, True)
    assert str(found[5]) == "+0.500 ± 0.000"
    assert differences(runs, "t", "SGD", "c", "b") == {}


def test_results_are_read_as_they_were_written(tmp_path):
    """A line for each run, in order."""
    runs = {Key("t", "SGD", 0, "cold start, warm-up"): {0: 1.25, 3: 0.5}, Key("t", "SGD", 0, "a"): {0: 1.0, 3: 2.0}}
    results.write(tmp_path / "r.json", runs)
    assert results.read(tmp_path / "r.json") == runs
    assert results.read(tmp_path / "none.json") == {}
    assert len(re.findall(r"^  \"t/", (tmp_path / "r.json").read_text(), re.MULTILINE)) == 2


def test_rounding_loses_as_much_as_it_should():
    """C of F87: dynamic 8-bit codes lose a percent or two of a heavy-tailed slot; even levels lose its small elements."""
    torch.manual_seed(0)
    slot = torch.randn(4096) * torch.exp(1.5 * torch.randn(4096))
    error = {
        name: ((rounding(slot, signed=True) - slot).norm() / slot.norm()).item()
        for name, rounding in (("bf16", through_bfloat16), ("dynamic", through_dynamic_codes))
    }
    assert error["bf16"] < 0.003
    assert 0.005 < error["dynamic"] < 0.03
    squares = slot.square()
    assert (through_linear_codes(squares, signed=False) == 0).float().mean() > 0.5
    assert (through_dynamic_codes(squares, signed=False) == 0).float().mean() < 0.1
    assert through_linear_codes(torch.zeros(3), signed=True).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_levels_are_a_byte(signed):
    """256 levels, rising, up to 1, with a zero."""
    levels = dynamic_levels(signed=signed)
    assert len(levels) == 256
    assert (levels.diff() > 0).all()
    assert levels.max() == 1.0
    assert (levels == 0).any()

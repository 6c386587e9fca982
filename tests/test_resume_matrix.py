"""Save, then restore in a fresh process into a changed program, and go on: the same bits, or the test fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optstate
from tests.resume_cases import AFTER, BEFORE, VARIANTS, Run, draw

SEED = 20

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, whole):
    """For each case: what the uninterrupted run did, and what one fresh process made of the saves."""
    count = 20 * len(VARIANTS) if whole else 2 * len(VARIANTS)
    folder = tmp_path_factory.mktemp("cases")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the fresh process does: another number of threads may add in another order
    try:
        expected = []
        for case in draw(SEED, count):
            run = Run(case, changed=False)
            run.train(0, BEFORE)
            optstate.save(folder / str(case.seed), step=BEFORE, **run.everything)
            expected.append((case, run.digest(), run.train(BEFORE, AFTER)))
    finally:
        torch.set_num_threads(threads)
    script = Path(__file__).with_name("resume_cases.py")
    subprocess.run(
        [sys.executable, str(script), str(folder), "--seed", str(SEED), "--count", str(count)],
        check=True,
        timeout=1200,
    )
    results = json.loads((folder / "results.json").read_text())
    return [(*each, results[str(each[0].seed)]) for each in expected]


def test_every_case_goes_on_bit_identically(outcome):
    """Weights, buffers, every slot, learning rates and random state, after the restore and after each step."""
    wrong = [
        f"{case.label}: differs {'at once' if now != result['resumed']['restored'] else 'after some steps'}"
        for case, now, after, result in outcome
        if (now, after) != (result["resumed"]["restored"], result["resumed"]["after"])
    ]
    assert wrong == []


def test_every_plan_says_exact(outcome):
    """A restore of everything that was saved calls itself exact."""
    assert [result["resumed"]["plan"] for *_, result in outcome if not result["resumed"]["exact"]] == []


def test_two_swapped_buffers_are_caught(outcome):
    """The negative control: the comparison sees a swap of two equal-shape momenta, wherever there are two."""
    swapped = [
        (case, now, after, result["swapped"]) for case, now, after, result in outcome if result["swapped"]["swapped"]
    ]
    assert len(swapped) > len(outcome) // 3
    missed = [case.label for case, now, after, run in swapped if run["restored"] == now or run["after"] == after]
    assert missed == []


def test_the_sample_covers_every_variant(outcome):
    """No optimizer or flag of the table is left out of a run."""
    seen = {(case.optimizer, *sorted(case.arguments)) for case, *_ in outcome}
    assert seen == {(name, *sorted(arguments)) for name, arguments in VARIANTS}

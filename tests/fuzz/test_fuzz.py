"""A bounded run of the fuzz: the same few hundred files each time. `make fuzz` draws others, and many."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = 150


@pytest.mark.slow
def test_fuzz(whole):
    """Whatever is drawn is opened or refused, in bounded time and memory, and torch sees nothing else in it."""
    examples = 20 * EXAMPLES if whole else EXAMPLES
    command = [sys.executable, "-m", "tests.fuzz", "--fixed", "--examples", str(examples)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    told = re.findall(r"^[\w ]+: ([\d,]+) examples in \d+ s: (.*)", done.stdout, re.MULTILINE)
    assert len(told) == 6
    assert all(int(count.replace(",", "")) >= EXAMPLES // 2 for count, _ in told), done.stdout
    assert all("opened" in outcomes for _, outcomes in told), done.stdout  # were all refused, nothing would be tried

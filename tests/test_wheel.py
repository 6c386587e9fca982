"""The wheel, installed beside its declared dependencies and nothing else: the torch-free half works without torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def call(*command, **options):
    """Run a command that must succeed and return its standard output; no path of ours leads it to the source."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def requirements(name):
    """A distribution and everything that it requires, extras aside."""
    found, left = {}, [name]
    while left:
        name = left.pop()
        if name not in found:
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or ())
            left += [other.name for other in wanted if other.marker is None or other.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the wheel and its requirements; these are linked, not downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    programs = folder / "env" / "bin"
    install = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index")
    call(*install, wheel)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    needed = requirements("optstate")
    del needed["optstate"]
    for found in needed.values():
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(found.locate_file(top))
    return programs


def test_there_is_no_torch(environment):
    """The control: this environment could not import torch, and has the wheel itself, not the source."""
    code = "import importlib.util, optstate; print(importlib.util.find_spec('torch'), optstate.__file__)"
    assert re.fullmatch(rf"None {re.escape(str(environment.parent))}.*\n", call(environment / "python", "-c", code))


def test_the_wheel_is_typed(environment):
    """Type checkers find the marker beside the code."""
    (site,) = (environment.parent / "lib").glob("python*/site-packages")
    assert (site / "optstate" / "py.typed").is_file()


def test_help_without_torch(environment):
    """The console script is installed and explains itself."""
    said = call(environment / "optstate", "--help")
    assert "show" in said
    assert "verify" in said


def test_show_without_torch(environment, tmp_path):
    """A file of torch.save is shown, values and statistics included, where torch is not installed."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    said = call(environment / "optstate", "show", "run.pt", "--stats", "--values", "weight", cwd=tmp_path)
    assert "momentum_buffer" in said

"""`optstate prove`: verdict, certificate and exit code; and that nothing is left behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import psutil  # type: ignore[import-untyped]  # in tests alone
import pytest

from optstate.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]

TRAIN = """
import os, sys, time
import torch
import optstate
from beside import WIDTH

print("this goes to no one's result")

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, WIDTH), torch.nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step():
        print("and this")
        optimizer.zero_grad()
        loss = model(torch.ones(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return optstate.Training(model, optimizer, train_step)

def hangs():
    open("started", "w").close()
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)

def raises():
    raise KeyError("corpus")

def save(training, path):
    path.mkdir()
    torch.save(training.model.state_dict(), path / "model.pt")

def load(training, path):
    training.model.load_state_dict(torch.load(path / "model.pt"))

if __name__ == "__main__":
    sys.exit(str(optstate.prove(build, before=3, after=3, using="torch").cause))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program in the current folder, with a module beside it and a place for temporary files of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    return tmp_path


def left(program):
    """What is left among the temporary files, but for the folder of torch's compiler, which importing it makes."""
    return [name for name in os.listdir(program / "tmp") if not name.startswith("torchinductor")]


def run(*arguments):
    """The command as a shell starts it."""
    command = [sys.executable, "-m", "optstate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_exact_resume(program):
    """Exit code 0, a story on standard output, progress on standard error, the certificate in its file, no file left."""
    done = run("prove", "train.py:build", "--before", 3, "--after", 3, "--with", "optstate", "-o", "certificate.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "prove train.py:build · 3 steps, save, 3 more · restored by optstate"
    assert done.stdout.splitlines()[-1] == "EXACT: bit-identical for 3 steps after the restore (trajectory-exact)"
    assert "note: run 6 steps without interruption, and again with a save after 3" in done.stderr
    assert "no one" not in done.stdout + done.stderr
    certificate = json.loads((program / "certificate.json").read_text())
    jsonschema.validate(certificate, json.loads((ROOT / "docs/schema/optstate-proof-1.json").read_text()))
    assert certificate["environment"]["torch"]
    assert left(program) == []


def test_inexact_resume_as_json(program, capsys):
    """Exit code 1 and one document: what was lost, its code, and what was tried to tell."""
    steps = ["--before", "3", "--after", "3"]
    assert (
        main(["prove", "train.py:build", *steps, "--save", "train.py:save", "--load", "train.py:load", "--json"]) == 1
    )
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads((ROOT / "docs/schema/optstate-proof-1.json").read_text()))
    assert (document["way"], document["grade"]) == ("train.py:load", None)
    assert document["cause"]["code"] == "M101"
    assert document["cause"]["components"] == ["step", "momentum", "second_moment", "torch RNG"]


def test_crash_shows_its_traceback_once(program, capsys):
    """Exit code 2, the traceback of the program on standard error, once, and then the error."""
    assert main(["prove", "train.py:raises"]) == 2
    said = capsys.readouterr().err
    assert said.count("Traceback") == said.count("raise KeyError") == 1
    assert "error: train.py:raises failed\n  where     train.py, line " in said.replace(str(program) + "/", "")
    assert left(program) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py:build"], "there is no file nowhere.py"),
        (["train.py"], "names no function of a file"),
        (["train.py:build", "--after", "2"], "too few steps"),
        (["train.py:build", "--save", "train.py:save"], "save and load belong together"),
        (["train.py:build", "-o", "nowhere/certificate.json"], "the certificate cannot be written to nowhere"),
        (["train.py:build", "--with", "magic"], "magic"),
    ],
)
def test_bad_usage(program, arguments, said, capsys):
    """What cannot be tried has exit code 2 and says why; what can be known at once is said at once."""
    assert main(["prove", *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped(program, number):
    """Ctrl-C, and even a kill, ends every process that was started, theirs too, and removes every file."""
    command = [sys.executable, "-m", "optstate", "prove", "train.py:hangs"]
    asking = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (program / "started").exists():
            assert asking.poll() is None
        children = psutil.Process(asking.pid).children(recursive=True)
        asking.send_signal(number)
        assert asking.wait(30) == (130 if number == signal.SIGINT else -number)
    finally:
        asking.kill()
    assert len(children) >= 3  # two interpreters, and a fork
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert left(program) == []


def test_script_proves_itself(program):
    """A function of the running script is found again by its processes, which do not run its main part."""
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False, timeout=200)
    assert "Cause(components=('torch RNG',)" in done.stderr

"""`optstate plan`: what a restore would do, for people and programs, with exit codes to rely on."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import jsonschema
import pytest
import torch

import optstate
from optstate.cli.app import main
from tests.test_restore import mlp, train

ROOT = Path(__file__).parents[1]

PROGRAM = """
    import torch
    from torch import nn

    def build(width=8, lr=1e-2):
        print("building")
        torch.manual_seed(9)
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    class Loader:
        position = 0
        def state_dict(self):
            print("looking")
            return {"position": self.position}
        def load_state_dict(self, state):
            raise RuntimeError("a plan loads nothing")

    def all_by_name():
        model, optimizer, scheduler = build()
        return {"model": model, "optimizer": optimizer, "course": scheduler, "loader": Loader()}

    class Training:
        def __init__(self):
            self.model, self.optimizer, self.course = build()
            self.loader, self.steps, self.nothing = Loader(), 3, None

    def with_rate(): return build(lr=0.5)
    def wide(): return build(width=16)
    def alone(): return build()[0]
    def odd(): return {"model": build()[0], "steps": 3}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A program and its checkpoint, in which the scheduler is called `course`."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(textwrap.dedent(PROGRAM))
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    train(model, optimizer)

    class Loader:
        def state_dict(self):
            return {"position": 3}

        load_state_dict = None

    Loader.__module__, Loader.__qualname__ = "_optstate_model_train", "Loader"
    Loader.load_state_dict = lambda self, state: None
    optstate.save("ck", model=model, optimizer=optimizer, course=scheduler, step=3, rng=True)
    optstate.save("ck-loader", model=model, optimizer=optimizer, course=scheduler, loader=Loader(), step=3)
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    """Run the command: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["plan", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_exact(call):
    """Everything comes back: code 0, the verdict on the last line, nothing else on standard output."""
    code, out, err = call("ck", "--model", "train.py:build")
    assert code == 0
    assert out.splitlines()[0] == "restore ck · step 3"
    assert out.splitlines()[-1] == "exact: everything in the checkpoint, bit for bit"
    assert "objects    course, rng" in out.splitlines()
    assert "building" in err
    assert "building" not in out
    assert "hint: optstate plan ck --model train.py:build --all" in err


@pytest.mark.parametrize("function", ["all_by_name", "Training"])
def test_objects_by_name(call, function):
    """A dict, and an object with attributes, pass further objects under their names; what they print is not data."""
    code, out, err = call("ck-loader", "--model", f"train.py:{function}")
    assert (code, out.splitlines()[-1]) == (0, "exact: everything in the checkpoint, bit for bit"), out + err
    assert "objects    course, loader" in out.splitlines()
    assert "looking" in err
    assert "looking" not in out


def test_not_exact(call):
    """What is left out or overruled: code 1, and the plan says what."""
    code, out, _ = call("ck-loader", "--model", "train.py:build")
    assert code == 1
    assert "left out   objects loader" in out.splitlines()
    assert out.splitlines()[-1] == "exact for what is restored: something is left out"
    code, out, _ = call("ck", "--model", "train.py:alone")
    assert code == 1
    assert "optimizer state (4 parameters)" in out


def test_cannot(call):
    """Faults: code 2, all of them, and what a policy could say to each kind."""
    code, out, err = call("ck", "--model", "train.py:wide")
    assert code == 2
    assert "  - 0.weight: shape [8, 4] in the checkpoint, [16, 4] live" in out
    assert '  shape:            Policy(shape="pad" | "slice" | "fresh" | a function)' in out.splitlines()
    assert "--policy policy.toml" in err


def test_a_policy_from_a_file(call):
    """The fields of a TOML file decide."""
    Path("policy.toml").write_text('shape = "pad"\n[hyperparameters]\nlr = 0.25\n')
    code, out, _ = call("ck", "--model", "train.py:wide", "--policy", "policy.toml")
    assert code == 1
    assert any("[8, 4] → [16, 4] by pad" in line for line in out.splitlines())
    assert "lr 0.01 → 0.25" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('shap = "pad"', "a policy has no 'shap'; did you mean 'shape'?"),
        ('shape = "padd"', "a policy's shape cannot be this"),
        ('preset = "finetun"', "a policy's preset cannot be this"),
        ("shape = pad", "the policy cannot be read"),
        ('exclude = ["embed.*"]', "'embed.*'"),
        ('[rename]\n"encoder." = "backbone."', "encoder."),
        ("[hyperparameters]\nlearning_rate = 0.1", "learning_rate"),
        ('[overrides]\n"*.bias" = {wd = 0.0}', "wd"),
    ],
)
def test_a_slip_in_a_policy(call, text, message):
    """A key, word or pattern that means nothing: code 2, the error names it, and no plan is printed."""
    Path("policy.toml").write_text(text)
    code, out, err = call("ck", "--model", "train.py:build", "--policy", "policy.toml")
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--model", "train.py:build"], "nothing"),
        (["train.py", "--model", "train.py:build"], "train.py"),
        (["ck"], "needs the program"),
        (["ck", "--model", "train.py:buld"], "no function 'buld'"),
        (["ck", "--model", "train.py:build", "--policy", "none.toml"], "the policy cannot be read"),
        (["ck", "--model", "train.py:odd"], "steps cannot be restored into"),
        (["ck", "--model", "train.py:build", "--ful"], "--ful"),
    ],
)
def test_what_cannot_be_planned(call, arguments, message):
    """A file, a function, a policy that is not there: code 2 and one message, no traceback."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_all_shows_every_parameter(call):
    """--all has a row for each, and ends with the same verdict."""
    code, out, err = call("ck", "--model", "train.py:build", "--all")
    assert code == 0
    assert "0.weight  exact   exact: step, exp_avg, exp_avg_sq" in out.splitlines()
    assert out.splitlines()[-1] == "exact: everything in the checkpoint, bit for bit"
    assert "hint" not in err


@pytest.mark.parametrize("function", ["build", "wide", "with_rate", "alone"])
def test_the_document(call, function):
    """--json prints one document that keeps the published schema and agrees with the exit code."""
    schema = json.loads((ROOT / "docs" / "schema" / "optstate-plan-1.json").read_text())
    code, out, _ = call("ck", "--model", f"train.py:{function}", "--json")
    document = json.loads(out)
    jsonschema.validate(document, schema)
    assert code == (2 if not document["applicable"] else 0 if document["exact"] else 1)


def test_damage_is_found_while_planning_a_salvage(call):
    """With damaged = "salvage" everything is read, and what is damaged is in the plan: code 1."""
    files = sorted(Path("ck").glob("optimizer*.safetensors"))
    raw = bytearray(files[0].read_bytes())
    raw[-1] ^= 1
    files[0].write_bytes(raw)
    Path("policy.toml").write_text('damaged = "salvage"')
    code, out, _ = call("ck", "--model", "train.py:build", "--policy", "policy.toml")
    assert code == 1
    assert "cannot be read and start fresh" in out


def test_nothing_is_changed(call, folder):
    """No file is written, none of the program's objects is loaded."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    call("ck-loader", "--model", "train.py:all_by_name")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_help_shows_how(call):
    """Exit codes, a policy and examples are in the help."""
    code, out, _ = call("--help")
    assert code == 0
    for part in ("Exit codes:", 'preset = "finetune"', "optstate plan runs/a/step-420 --model train.py:build --policy"):
        assert part in out

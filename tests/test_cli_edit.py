"""`optstate edit`: exit codes as scripts rely on them, the document as published, one screen for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import optstate
from optstate.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def schema():
    """The published schema of the document."""
    document = json.loads((ROOT / "docs" / "schema" / "optstate-edit-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return document


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`a`, a checkpoint of ours after 20 steps; `a.pt`, the same by torch.save; `bare.pt` without names; `train.py`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    optstate.save("a", model=model, optimizer=optimizer, step=20)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "a.pt")
    torch.save(optimizer.state_dict(), "bare.pt")
    Path("train.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n"
        "    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))\n"
        "    return model, torch.optim.AdamW(model.parameters(), lr=0.01)\n"
    )
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    """Runs a command line; gives the exit code, standard output, standard error."""

    def run(*arguments):
        code = main(["edit", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def momentum(path, name="0.weight"):
    """The momentum of a parameter in a file."""
    return torch.tensor(optstate.open(path).state[name].momentum.array())


def test_it_writes_another_checkpoint(call):
    """What is selected is changed, the rest has its digests, the source is as it was, and the next command is told."""
    code, out, err = call("a", "--select", "0.*", "--zero", "momentum", "-o", "b", "--note", "after the drop")
    assert code == 0
    assert "zero_()" in out
    assert "after the drop" in out
    assert "untouched 14 other tensors, 14 of them with the digest that they had" in out
    assert "optstate diff a b" in err
    assert not momentum("b").any()
    assert momentum("b", "1.weight").equal(momentum("a", "1.weight"))
    assert momentum("a").any()


def test_every_verb_has_its_option(call):
    """Each verb of the library can be had, several in one call, in the order of the help."""
    assert call("a", "--reset", "all", "-o", "reset")[0] == 0
    assert optstate.open("reset").state["0.weight"].step.item() == 0
    code, out, _ = call(
        "a", "--set", "momentum=0.01", "--scale", "exp_avg=0.5", "--clamp", "momentum=:0.004", "--clip-norm", "momentum=1",
        "-o", "b",
    )  # fmt: skip
    assert code == 0
    assert [line.split("(")[0].split()[-1] for line in out.splitlines()[3:7]] == [
        "set_",
        "scale_",
        "clamp_",
        "clip_norm_",
    ]
    assert torch.equal(momentum("b"), torch.full((3, 4), 0.004))
    assert call("a", "--lerp", "momentum=1", "--towards", "b", "-o", "c")[0] == 0
    assert torch.allclose(momentum("c"), momentum("b"))
    assert call("a", "--clip-norm", "momentum=0.001", "--per-parameter", "-o", "d")[0] == 0
    assert momentum("d").norm() == pytest.approx(0.001)


def test_rows_and_exclusions(call):
    """Rows are numbers and ranges; what is excluded stays."""
    assert (
        call("a", "--exclude", "*.bias", "--exclude", "1.", "--rows", "0,2:3", "--zero", "momentum", "-o", "b")[0] == 0
    )
    rows = momentum("b").any(dim=1).tolist()
    assert rows == [False, True, False]
    assert momentum("b", "1.weight").equal(momentum("a", "1.weight"))


def test_too_large_an_update_exits_1(call):
    """What is refused names the factor and the way out, and writes nothing; --force writes it."""
    code, out, err = call("a", "--zero", "second_moment", "-o", "b")
    assert (code, out) == (1, "")
    assert "times as large" in err
    assert "--force" in err
    assert not Path("b").exists()
    assert call("a", "--zero", "second_moment", "-o", "b", "--force")[0] == 0


def test_a_dry_run_prints_the_change(call):
    """A dry run needs no target, writes nothing, and exits with 1 where it would be refused."""
    before = sorted(Path().rglob("*"))
    code, out, _ = call("a", "--zero", "momentum", "--dry-run")
    assert code == 0
    assert "1 change, not made" in out
    code, out, _ = call("a", "--zero", "second_moment", "--dry-run")
    assert code == 1
    assert "refused: the next update" in out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("options", [["-o", "b"], ["-o", "b.pt"], ["--dry-run"]], ids=["ours", "torch", "dry"])
def test_json_keeps_its_schema(call, schema, options):
    """Every document is what the published schema promises."""
    code, out, _ = call("a", "--scale", "momentum=0.5", "--json", *options)
    document = json.loads(out)
    jsonschema.validate(document, schema)
    assert code == 0
    assert document["made"] is (options[0] == "-o")
    assert document["changes"][0]["arguments"] == {"factor": 0.5}


def test_a_refusal_is_json_too(call, schema):
    """With --json a refusal is a document as well, and its message is on standard error."""
    code, out, err = call("a", "--zero", "second_moment", "-o", "b", "--json")
    document = json.loads(out)
    jsonschema.validate(document, schema)
    assert code == 1
    assert document["refusals"]
    assert not document["made"]
    assert err.startswith("error: the next update")


def test_pt_in_pt_out(call):
    """A file of torch.save becomes one again."""
    assert call("a.pt", "--select", "0.*", "--zero", "momentum", "-o", "b.pt")[0] == 0
    assert not torch.load("b.pt", weights_only=True)["optimizer"]["state"][0]["exp_avg"].any()
    assert call("a.pt", "--zero", "momentum", "-o", "c", "--to", "torch")[0] == 0
    assert torch.load("c", weights_only=True)["optimizer"]["param_groups"]


def test_positions_and_names_of_the_program(call):
    """A file without names takes positions, says how to give it names, and takes those."""
    code, _, err = call("bare.pt", "--select", "0.weight", "--zero", "momentum", "-o", "b")
    assert code == 2
    assert "--model FILE:FUNCTION" in err
    assert call("bare.pt", "--select", "#0", "--zero", "momentum", "-o", "b.pt")[0] == 0
    assert call("bare.pt", "--select", "0.weight", "--zero", "momentum", "-o", "c", "--model", "train.py:build")[0] == 0
    assert not momentum("c").any()


WRONG = {
    "no verb": ([], "there is no verb"),
    "no target": (["--zero", "momentum"], "no target"),
    "the source": (["--zero", "momentum", "-o", "a"], "what is to be edited"),
    "within": (["--zero", "momentum", "-o", "a/b"], "what is to be edited"),
    "exists": (["--zero", "momentum", "-o", "a.pt"], "exists already"),
    "a typo in a pattern": (["--select", "0.wieght", "--zero", "momentum", "-o", "b"], "lists every name"),
    "a typo in a slot": (["--zero", "momentun", "-o", "b"], "no slot 'momentun'"),
    "all excluded": (["--exclude", "*", "--zero", "momentum", "-o", "b"], "nothing is left"),
    "no number": (["--scale", "momentum=half", "-o", "b"], "'half' is not a number"),
    "no factor": (["--scale", "momentum", "-o", "b"], "--scale wants SLOT=NUMBER"),
    "no range": (["--clamp", "momentum=1", "-o", "b"], "--clamp wants SLOT=MIN:MAX"),
    "no rows": (["--rows", "first", "--zero", "momentum", "-o", "b"], "--rows wants numbers and ranges"),
    "rows beyond": (["--select", "0.*", "--rows", "99", "--zero", "momentum", "-o", "b"], "do not fit"),
    "lerp to nowhere": (["--lerp", "momentum=0.5", "-o", "b"], "belong together"),
    "keep of nothing": (["--keep", "step", "--zero", "momentum", "-o", "b"], "--keep belongs to --reset"),
    "not finite": (["--scale", "momentum=nan", "-o", "b"], "not finite"),
    "no such file": (["--lerp", "momentum=0.5", "--towards", "nowhere", "-o", "b"], "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_exits_2(call, case):
    """Each mistake is told with a way out, and nothing is written."""
    options, message = WRONG[case]
    before = sorted(Path().rglob("*"))
    code, out, err = call("a", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(Path().rglob("*")) == before


def test_the_edit_is_in_the_journal(call, capsys):
    """`optstate show` of the outcome tells what was done to it."""
    call("a", "--scale", "momentum=0.5", "--note", "after the drop", "-o", "b")
    main(["show", "b"])
    assert "after the drop" in capsys.readouterr().out


@pytest.mark.slow
def test_it_needs_no_torch(folder):
    """The command runs where there is no torch, whatever it is asked to do."""
    code = "import sys; sys.modules['torch'] = None; from optstate.cli import main; sys.exit(main(sys.argv[1:]))"
    verbs = ["--reset", "all", "--scale", "momentum=2", "--lerp", "second_moment=0.5", "--towards", "a", "--rows", "1"]
    command = [sys.executable, "-c", code, "edit", "a.pt", "--select", "1.*", *verbs, "-o", "b.pt", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_help_shows_examples(call):
    """The help has an example for the common cases, and says what the exit codes mean."""
    code, out, _ = call("--help")
    assert code == 0
    assert "optstate edit runs/a/step-420 --select 'layers.3.*' --zero momentum -o" in out
    assert "Exit codes:" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--reset", "-o", "b"), "--reset wants SLOT, and -o came next"),
        (("--scale", "--dry-run"), "--scale wants SLOT=FACTOR, and --dry-run came next"),
        (("--rows", "0:99999999999999", "--zero", "momentum", "--dry-run"), "is more than 67,108,864 rows"),
        (("--select", "0", "--zero", "momentum", "--dry-run"), "did you mean '0.'"),
    ],
)
def test_slips_of_the_pen_are_told(call, arguments, says):
    """A forgotten slot, a range that no memory holds, a module's name for its parameters: what was meant is said."""
    code, _, err = call("a", *arguments)
    assert (code, says in err) == (2, True)


def test_a_count_has_no_norm(call):
    """The norms of a reset are those of its moments, not of step counts."""
    _, out, _ = call("a", "--reset", "all", "--dry-run")
    assert "exp_avg" in out
    assert "step " not in out.partition("NEXT UPDATE")[2]

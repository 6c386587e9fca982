"""`optstate doctor` and `optstate explain` as a user meets them: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from optstate.cli import main
from optstate.doctor.catalogue.codes import CODES
from tests.faults.making import adamw, contents, entries, net, save, trained
from tests.faults.store import one_bit_flipped

ROOT = Path(__file__).parents[1]

FACTORY = """
import torch
def build():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    return model, torch.optim.AdamW(model.named_parameters(), lr={lr})
def alone():
    return torch.nn.Linear(4, 4)
"""


@pytest.fixture
def call(capsys):
    """The command in this process: exit code, standard output, standard error."""

    def run_here(*arguments):
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, out, err

    return run_here


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind of verdict."""
    folder = tmp_path_factory.mktemp("files")
    bad = adamw()
    entries(bad)[0]["exp_avg"].zero_()
    entries(bad)[1]["exp_avg_sq"].neg_()
    warned = adamw()
    entries(warned)[0]["exp_avg"].zero_()
    return {
        "clean": save(folder / "clean.pt", adamw()),
        "explained": save(folder / "explained.pt", contents(*trained(torch.optim.SGD, lr=0.1))),
        "warned": save(folder / "warned.pt", warned),
        "bad": save(folder / "bad.pt", bad),
        "later": save(folder / "later.pt", adamw(at=4, steps=4, weight_decay=0.5)),
        "damaged": one_bit_flipped(tmp_path_factory.mktemp("damaged")),
    }


@pytest.mark.parametrize(
    ("kind", "options", "code"),
    [
        ("clean", [], 0),
        ("clean", ["--fail-on", "info"], 0),
        ("explained", [], 0),
        ("explained", ["--fail-on", "info"], 1),
        ("warned", [], 1),
        ("warned", ["--fail-on", "error"], 0),
        ("bad", ["--fail-on", "error"], 1),
        ("bad", ["--headers"], 0),
        ("damaged", ["--fail-on", "error"], 1),
        ("clean", ["--json"], 0),
        ("bad", ["--json"], 1),
    ],
)
def test_exit_codes(files, call, kind, options, code):
    """0 below --fail-on, 1 from it on and where a part was not read; leaving values out on request is no failure."""
    assert call("doctor", files[kind], *options)[0] == code


@pytest.mark.parametrize(
    "arguments", [["nowhere.pt"], [], ["x", "--fail-on", "never"], ["x", "--model", "nowhere.py:f"]]
)
def test_what_cannot_be_read_and_wrong_usage_are_2(call, arguments):
    """Nothing to diagnose is never 0 or 1."""
    code, out, err = call("doctor", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def test_a_finding_tells_evidence_cause_effect_and_fix(files, call):
    """The page: mark and code, names and numbers, what it does, what to paste; then what was checked; then a count."""
    _, out, err = call("doctor", files["bad"])
    assert out.splitlines()[1] == "torch.save · step 3 · AdamW? · 4 parameters"
    error, warning = out.index("✗ M317 negative-second-moment"), out.index("! M320 zero-first-moment")
    assert error < warning
    for part in ("evidence    4 of 4 elements", "0.bias/exp_avg_sq", "cause", "effect", "fix"):
        assert part in out[error:warning]
    assert "\n✓ presence · momentum · slots · dtypes · steps" in out
    assert out.splitlines()[-1] == "1 error, 1 warning"
    assert err == "hint: optstate explain M317   the whole story of a code\n"


def test_a_clean_file_says_so_and_what_was_checked(files, call):
    """No finding is not silence."""
    _, out, err = call("doctor", files["clean"])
    assert out.splitlines()[-1] == "nothing found; clean"
    assert "✓ presence" in out
    assert "--model train.py:build" in err


def test_two_files_are_held_against_each_other(files, call):
    """--against names both, whichever is the earlier."""
    for one, other in (("later", "clean"), ("clean", "later")):
        code, out, _ = call("doctor", files[one], "--against", files[other])
        assert code == 1
        assert "! M401 hyper-overwritten" in out
        assert "weight_decay 0.01 became 0.5" in out
        assert out.index("clean.pt to") < out.index("later.pt,")


def test_a_program_tells_what_loading_would_do(files, call, tmp_path):
    """--model runs the factory, says so on standard error, and predicts the load."""
    factory = tmp_path / "train.py"
    factory.write_text(FACTORY.format(lr=0.5))
    code, out, err = call("doctor", files["clean"], "--model", f"{factory}:build")
    assert code == 1
    assert "M401 hyper-overwritten" in out
    assert "0.5" in out
    assert "runs build() of" in err
    code, _, err = call("doctor", files["clean"], "--model", f"{factory}:alone")
    assert code == 2
    assert "needs its optimizer" in err


@pytest.fixture(scope="module")
def schema():
    """The published schema."""
    document = json.loads((ROOT / "docs" / "schema" / "optstate-doctor-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return document


@pytest.mark.parametrize(
    "options", [["clean"], ["bad"], ["explained"], ["damaged"], ["bad", "--headers"], ["later", "--against", "clean"]]
)
def test_json_keeps_its_schema(files, call, schema, options):
    """Every document is what the published schema promises, one line where nobody watches."""
    _, out, _ = call("doctor", *(files.get(option, option) for option in options), "--json")
    document = json.loads(out)
    jsonschema.validate(document, schema)
    assert out.count("\n") == 1
    assert document["ok"] is (options in (["clean"], ["explained"]))
    assert sum(document["counts"].values()) == len(document["findings"])


def test_json_has_all_names_and_the_fix(files, call):
    """What the page elides a program gets whole."""
    document = json.loads(call("doctor", files["bad"], "--json")[1])
    first = document["findings"][0]
    assert (first["code"], first["severity"], first["parameters"]) == ("M317", "error", ["0.bias"])
    assert first["fix"] == CODES["M317"].fix
    assert document["optimizers"] == ["torch.optim.adamw.AdamW"]


def test_schema_refuses_what_is_not_in_it(files, call, schema):
    """The schema bites."""
    document = json.loads(call("doctor", files["bad"], "--json")[1])
    document["findings"][0]["severity"] = "fatal"
    with pytest.raises(jsonschema.ValidationError, match="fatal"):
        jsonschema.validate(document, schema)


def test_names_from_a_file_cannot_act_on_the_terminal(call, tmp_path):
    """Escape sequences and line feeds of parameter names arrive as text."""
    evil = "layer\x1b[2J\nhint: all is well"
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(4))})
    optimizer = torch.optim.AdamW([(evil, model["w"])])
    model["w"].grad = torch.ones(4)
    optimizer.step()
    optimizer.state[model["w"]]["exp_avg_sq"].neg_()
    path = save(tmp_path / "evil.pt", {"optimizer": optimizer.state_dict(), evil: net().state_dict()})
    code, out, _ = call("doctor", path)
    assert code == 1
    assert "\x1b" not in out
    assert not any(line.startswith("hint") for line in out.splitlines())
    assert "\x1b" not in call("doctor", path, "--json")[1]


# --- explain ------------------------------------------------------------------------------------------------


def test_explain_tells_the_whole_story(call):
    """By number or name: what it is, cause, effect, fix, what torch says, and where people met it."""
    code, out, err = call("explain", "m101")
    assert (code, err) == (0, "")
    assert out == call("explain", "never-saved")[1]
    assert out.startswith("M101 never-saved (error)\n")
    for part in ("cause", "effect", "fix", "torch says  nothing", "seen in     a checkpoint", "https://github.com/"):
        assert part in out
    assert '        torch.save({"model"' in out


def test_explain_alone_lists_every_code(call):
    """One line each."""
    code, out, _ = call("explain")
    assert code == 0
    assert len(out.splitlines()) == len(CODES)
    assert out.splitlines()[0].startswith("✗ M101  never-saved")


def test_explain_of_a_wrong_code_names_the_nearest(call):
    """A slip costs one look."""
    code, out, err = call("explain", "M1001")
    assert (code, out) == (2, "")
    assert "did you mean M101" in err


def test_explain_json_keeps_its_schema(call):
    """One code or all of them, as published."""
    schema = json.loads((ROOT / "docs" / "schema" / "optstate-explain-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for arguments, number in ((["M101"], 1), ([], len(CODES))):
        document = json.loads(call("explain", *arguments, "--json")[1])
        jsonschema.validate(document, schema)
        assert len(document["codes"]) == number


def test_both_work_without_torch(files):
    """Neither the diagnosis of a file nor an explanation imports torch, and an explanation not even numpy."""
    code = f"""
import sys
sys.modules["torch"] = None
from optstate.cli import main
assert main(["explain", "M101"]) == 0
print(sorted({{"numpy", "msgspec", "rich"}} & set(sys.modules)), file=sys.stderr)
assert main(["doctor", {str(files["clean"])!r}]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "[]"
    assert done.stdout.endswith("nothing found; clean\n")


def test_help_ends_in_examples(call):
    """What can be pasted, and the exit codes."""
    for command in ("doctor", "explain"):
        code, out, _ = call(command, "--help")
        assert code == 0
        assert "Exit codes:" in out
        assert f"optstate {command} " in out[out.index("Examples:") :]

"""`optstate diff` and `optstate convert`: exit codes as scripts rely on them, documents as published, one screen for people."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import optstate
from optstate.cli import main
from optstate.formats.difference import KINDS, PARTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def schema():
    """The published schema of the document."""
    document = json.loads((ROOT / "docs" / "schema" / "optstate-diff-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`a.pt`; `b.pt` after another step; `names.pt` under other names; `bare.pt` without names; `odd.pt` with an object."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def save(name, **more):
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1, **more}
        torch.save(content, folder / name)
        return content

    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    content = save("a.pt")
    torch.save(optimizer.state_dict(), folder / "bare.pt")
    torch.save({**content, "model": {f"net.{name}": w for name, w in content["model"].items()}}, folder / "names.pt")
    save("odd.pt", odd={"kept": 1, "lost": Odd()})
    optimizer.step()
    save("b.pt")
    (folder / "train.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n"
        "    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))\n"
        "    return model, torch.optim.AdamW(model.parameters(), lr=0.01)\n"
    )
    return folder


class Odd:
    """An object of a program."""


def call(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# --- diff -------------------------------------------------------------------------------------------------


def test_diff_ends_as_diff_does(folder, capsys):
    """0: the same · 1: different · 2: cannot be opened."""
    assert call(capsys, "diff", folder / "a.pt", folder / "a.pt")[0] == 0
    assert call(capsys, "diff", folder / "a.pt", folder / "b.pt")[0] == 1
    code, out, err = call(capsys, "diff", folder / "a.pt", folder / "none.pt")
    assert (code, out) == (2, "")
    assert "none.pt" in err


def test_damage_ends_with_1_and_names_the_tensor(folder, tmp_path, capsys):
    """A part that cannot be read is told and never taken for equal; headers alone are still compared."""
    raw = bytearray((folder / "a.pt").read_bytes())
    momentum = optstate.open(folder / "a.pt").state["0.weight"].momentum.array().tobytes()
    raw[raw.index(momentum)] ^= 1
    (tmp_path / "bad.pt").write_bytes(raw)
    code, out, _ = call(capsys, "diff", tmp_path / "bad.pt", tmp_path / "bad.pt")
    assert code == 1
    assert "0.weight/exp_avg" in out
    code, out, _ = call(capsys, "diff", tmp_path / "bad.pt", folder / "a.pt", "--headers")
    assert code == 0
    assert "as far as headers tell" in out


@pytest.mark.parametrize("pair", [("a.pt", "a.pt"), ("a.pt", "b.pt"), ("a.pt", "names.pt"), ("bare.pt", "odd.pt")])
@pytest.mark.parametrize("options", [[], ["--headers"], *(["--only", part] for part in PARTS)])
def test_document_keeps_its_schema(folder, capsys, schema, pair, options):
    """Every document is what the published schema promises, and agrees with the exit code."""
    code, out, _ = call(capsys, "diff", *(folder / name for name in pair), "--json", *options)
    document = json.loads(out)
    jsonschema.validate(document, schema)
    assert document["ok"] == (code == 0)
    assert sum(document["counts"].values()) == len(document["differences"])


def test_schema_lists_the_kinds(schema):
    """The words in the schema are those of the code."""
    assert tuple(schema["$defs"]["kind"]["enum"]) == KINDS


def test_schema_refuses_what_is_not_in_it(folder, capsys, schema):
    """A field that changes its name is found: the schema bites."""
    document = json.loads(call(capsys, "diff", folder / "a.pt", folder / "b.pt", "--json")[1])
    document["differences"][0]["kinds"] = document["differences"][0].pop("kind")
    with pytest.raises(jsonschema.ValidationError, match="kind"):
        jsonschema.validate(document, schema)


def test_diff_shows_the_gravest_first_and_all_on_request(tmp_path, capsys):
    """A screen by default, everything with `--all`; what to type for that is hinted."""
    weights = {f"w{index}": torch.tensor([1.0, index]) for index in range(100)}
    torch.save(weights, tmp_path / "a.pt")
    torch.save({name: weight * 2 for name, weight in weights.items()}, tmp_path / "b.pt")
    _, out, err = call(capsys, "diff", tmp_path / "a.pt", tmp_path / "b.pt")
    assert out.count("\n") < 50
    assert "--all" in err
    _, out, err = call(capsys, "diff", tmp_path / "a.pt", tmp_path / "b.pt", "--all")
    assert out.count("values") >= 100


def test_renamed_parameters_are_told_as_such(folder, capsys):
    """Another name with the same content is a rename."""
    code, out, _ = call(capsys, "diff", folder / "a.pt", folder / "names.pt")
    assert code == 1
    assert "4 other names" in out
    assert "0.weight → net.0.weight" in out


def test_program_names_positions(folder, capsys):
    """With `--model`, a file without names is compared by the names of the program."""
    code, out, err = call(
        capsys,
        "diff",
        folder / "bare.pt",
        folder / "b.pt",
        "--only",
        "slots",
        "--model",
        f"{folder / 'train.py'}:build",
    )
    assert code == 1
    assert "0.weight/exp_avg" in out
    assert "without a name" not in out
    assert "runs build()" in err


# --- convert ----------------------------------------------------------------------------------------------


def test_convert_writes_and_says_what(folder, tmp_path, capsys):
    """One line says what was written; the hint holds both against each other, which finds them the same."""
    code, out, err = call(capsys, "convert", folder / "a.pt", tmp_path / "ours")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'ours'}: optstate, 16 tensors")
    assert "optstate diff" in err
    assert call(capsys, "diff", folder / "a.pt", tmp_path / "ours")[0] == 0


def test_convert_refuses_to_lose_unless_allowed(folder, tmp_path, capsys):
    """1 and nothing written where a part has no place; with `--partial` 0, and the part is listed."""
    code, out, err = call(capsys, "convert", folder / "odd.pt", tmp_path / "ours")
    assert (code, out) == (1, "")
    assert "odd.lost" in err
    assert "--partial" in err
    assert not (tmp_path / "ours").exists()
    code, out, _ = call(capsys, "convert", folder / "odd.pt", tmp_path / "ours", "--partial")
    assert code == 0
    assert "left out  odd.lost" in out


def test_convert_never_overwrites_unless_told(folder, tmp_path, capsys):
    """2 and the old file, unless `--replace`."""
    target = tmp_path / "x.pt"
    assert call(capsys, "convert", folder / "a.pt", target)[0] == 0
    before = target.read_bytes()
    code, _, err = call(capsys, "convert", folder / "b.pt", target)
    assert (code, "--replace" in err, "replace=True" in err) == (2, True, False)
    assert target.read_bytes() == before
    assert call(capsys, "convert", folder / "b.pt", target, "--replace")[0] == 0
    assert target.read_bytes() != before


def test_convert_of_something_else_ends_with_2(tmp_path, capsys):
    """What cannot be read is said; nothing is written."""
    (tmp_path / "a.pt").write_text("<html>")
    assert call(capsys, "convert", tmp_path / "a.pt", tmp_path / "b")[0] == 2
    assert not (tmp_path / "b").exists()


def test_program_gives_names_for_converting(folder, tmp_path, capsys):
    """A file without names becomes one by name, with the program at hand."""
    target, model = tmp_path / "named.pt", f"{folder / 'train.py'}:build"
    assert call(capsys, "convert", folder / "bare.pt", target, "--to", "torch-named")[0] == 1
    assert call(capsys, "convert", folder / "bare.pt", target, "--to", "torch-named", "--model", model)[0] == 0
    assert list(optstate.open(target).state) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_weights_alone(folder, tmp_path, capsys):
    """What `load_state_dict` of the model takes, and nothing else."""
    assert call(capsys, "convert", folder / "a.pt", tmp_path / "w.pt", "--weights-only")[0] == 0
    assert list(torch.load(tmp_path / "w.pt", weights_only=True)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("command", ["diff", "convert"])
def test_help_is_one_screen_and_tells_the_exit_codes(command, capsys):
    """`--help` says what each exit code means and has examples."""
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "Exit codes" in out
    assert "Examples" in out
    assert out.count("\n") < 60

"""The `optstate` program as a user meets it: what it prints, where, with which exit code, and at what cost."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

import optstate
from optstate.cli import main
from optstate.cli.app import COMMANDS
from optstate.cli.terminal import Progressing
from optstate.formats.opening import open_checkpoint
from optstate.state.absence import Absence
from optstate.state.roles import CERTAINTIES, CONVENTIONS, OFS, ROLES

ROOT = Path(__file__).parents[1]
HEAVY = {"ml_dtypes", "msgspec", "numpy", "rich", "torch"}
EVIL = {
    "escape": "layer\x1b[2J\x1b]0;owned\x07.weight",
    "line feed": "a\nhint: all is well",
    "bidi": "user\u202etxt.weight",
    "markup": "[bold red]x[/bold red].weight",
    "surrogate": "\udcff.weight",
    "delete": "w\x7f",
}


def stepped(model, make=torch.optim.AdamW, **options):
    """An optimizer over the model's parameters, after two steps, its names recorded by torch."""
    optimizer = make(model.named_parameters(), **options)
    torch.manual_seed(1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.rand_like(parameter)
        optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


@pytest.fixture(scope="module")
def file(tmp_path_factory, model):
    """What most people save."""
    path = tmp_path_factory.mktemp("torch") / "run.pt"
    optimizer = stepped(model)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 420}, path)
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory, model):
    """One of our own checkpoints."""
    path = tmp_path_factory.mktemp("ours") / "step-420"
    optstate.save(path, model=model, optimizer=stepped(model), step=420)
    return path


@pytest.fixture
def copy(ours, tmp_path):
    """A checkpoint of ours that a test may damage."""
    path = tmp_path / "copy"
    path.mkdir()
    for part in ours.iterdir():
        (path / part.name).write_bytes(part.read_bytes())
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More parameters than a terminal shows."""
    path = tmp_path_factory.mktemp("many") / "many.pt"
    layers = torch.nn.ParameterDict({f"layer{index:03}": torch.nn.Parameter(torch.ones(2)) for index in range(100)})
    torch.save({"optimizer": stepped(layers).state_dict()}, path)
    return path


def environment(**changes):
    """The environment of a command: this package, no colour settings of whoever runs the tests."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **changes}


def run(*arguments, **changes):
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "optstate", *map(str, arguments)],
        capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=60, check=False, env=environment(**changes),
    )  # fmt: skip


@pytest.fixture
def call(capsys):
    """The command in this process, which is quicker, told as `run` tells it."""

    def run_here(*arguments):
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run_here


def run_on_terminal(*arguments, **changes):
    """Standard output of the real command when that is a terminal, and the exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "optstate", *map(str, arguments)],
        stdout=theirs, stderr=subprocess.DEVNULL, stdin=theirs, env=environment(TERM="xterm", **changes),
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    os.close(ours)
    return shown.decode().replace("\r\n", "\n"), process.returncode


def _read(descriptor):
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how Linux says that the other side of a terminal is closed
        return b""


def is_printable(text):
    """Whether a terminal would only show this text, and act on none of it."""
    return all(char == "\n" or char.isprintable() for char in text)


# --- show ------------------------------------------------------------------------------------------


def test_show_of_a_torch_file(file, capsys):
    """Names, shapes, groups, steps and slots of a plain torch.save file, and what else is in it."""
    assert main(["show", str(file)]) == 0
    out, err = capsys.readouterr()
    head = out.split("\n")
    assert head[0].startswith(f"{file} · torch.save · step 420 · ")
    assert head[1].startswith("4 weights, 232 B")
    assert "names: 4 recorded by torch (param_names)" in out
    assert "AdamW? · 4 parameters · 1 group" in out
    assert re.search(r"0\.weight +#0 +8×4 +float32 +0 +2 +exp_avg +exp_avg_sq\n", out)
    assert f"hint: optstate show {file} --values 0.weight" in err


def test_show_of_our_own_checkpoint(ours, capsys):
    """Our directory shows the same state, with names that stand in the file, and the next command checks it."""
    assert main(["show", str(ours)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{ours} · optstate/1 · step 420 · ")
    assert "names: 4 written beside the state in the file" in out
    assert re.search(r"0\.weight +8×4 +float32 +0 +2 +exp_avg +exp_avg_sq\n", out)
    assert f"hint: optstate verify {ours}" in err


def test_select_and_exclude(file, capsys):
    """Patterns add up, exclusions take away, and the order stays that of the optimizer."""
    assert main(["show", str(file), "--select", "2.*", "--select", "re:.*weight", "--exclude", "2.bias"]) == 0
    out = capsys.readouterr().out
    assert "selected: 2 parameters" in out
    assert re.findall(r"^(\d\.\w+)", out, re.MULTILINE) == ["0.weight", "2.weight"]


def test_stats_are_of_the_finite_values(tmp_path, capsys):
    """Norm, zeros and non-finite values of a tensor whose own are known."""
    weight = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = stepped(torch.nn.ParameterDict({"w": weight}))
    average = optimizer.state[weight]["exp_avg"].fill_(2.0)
    average[0] = torch.tensor([0.0, 0.0, float("nan"), float("inf"), 3.0])
    optimizer.state[weight]["exp_avg_sq"] = torch.full((3, 5), 1e300, dtype=torch.float64)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert main(["show", str(tmp_path / "o.pt"), "--stats", "--json"]) == 0
    slots = {slot["key"]: slot for slot in json.loads(capsys.readouterr().out)["parameters"][0]["slots"]}
    assert slots["exp_avg"]["norm"] == 7  # 3² + 10·2² = 7²
    assert (slots["exp_avg"]["nonfinite"], slots["exp_avg"]["zeros"]) == (2, 2)
    assert (slots["exp_avg_sq"]["nonfinite"], slots["exp_avg_sq"]["zeros"]) == (0, 0)
    assert slots["exp_avg_sq"]["norm"] == "Infinity", "each value is finite, the sum of their squares is not"
    assert main(["show", str(tmp_path / "o.pt"), "--stats"]) == 0
    assert re.search(r"exp_avg ‖7‖ ! 2 non-finite 2 zeros", capsys.readouterr().out)


@pytest.mark.parametrize("where", ["file", "ours"])
def test_values_are_the_first_of_each_slot(where, request, capsys):
    """`--values` prints what the tensors begin with, in either format."""
    path = request.getfixturevalue(where)
    assert main(["show", str(path), "--values", "2.bias"]) == 0
    out = capsys.readouterr().out
    values = ", ".join(f"{value:.6g}" for value in open_checkpoint(path).state["2.bias"].momentum.array().tolist())
    assert f"\n  exp_avg  momentum, ema_debiased of gradient  float32 [2]  [{values}]\n" in out
    assert "PARAMETER" not in out


def test_unknown_name_is_told_with_the_nearest(file, capsys):
    """A name that is not there is an error of one screen with the names that were meant."""
    assert main(["show", str(file), "--values", "0.wieght"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no parameter is named '0.wieght'\n")
    assert "the nearest: 0.weight" in err
    assert f"`optstate show {file}` lists every name" in err


def test_pattern_that_matches_nothing_is_an_error(file, capsys):
    """Neither --select nor --exclude passes over a pattern in silence, and one that leaves nothing says so."""
    assert main(["show", str(file), "--select", "O.*"]) == 2
    assert "'O.*' matches nothing" in capsys.readouterr().err
    assert main(["show", str(file), "--exclude", "encoder."]) == 2
    assert "'encoder.' matches nothing" in capsys.readouterr().err
    assert main(["show", str(file), "--exclude", "*"]) == 2
    assert "--exclude leaves nothing" in capsys.readouterr().err
    assert main(["show", str(file), "--select", "re:["]) == 2
    assert "is not a regular expression" in capsys.readouterr().err


def test_weights_only_file(tmp_path, model, capsys):
    """A file without optimizer state is shown as one, and nothing can be selected in it."""
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    assert main(["show", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "4 weights, 232 B" in out
    assert "no optimizer state" in out
    assert "momentum from zero" in err
    assert main(["show", str(path), "--values", "0.weight"]) == 2
    assert "4 weights and no optimizer state at all" in capsys.readouterr().err


def test_names_of_unequal_certainty_are_told_apart(tmp_path, capsys):
    """Where some names are surer than others a column says which, and the line above counts them."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(2, 3), "c": torch.nn.Linear(3, 2)})
    optimizer = torch.optim.AdamW(list(model.parameters())[::-1])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "mixed.pt")
    assert main(["show", str(tmp_path / "mixed.pt")]) == 0
    out = capsys.readouterr().out
    certainties = [p.facts.certainty for p in open_checkpoint(tmp_path / "mixed.pt").state.values()]
    assert sorted(set(certainties)) == ["position", "shapes"]
    assert "4 by position alone, 4 of them one of several weights (M201) · 2 by their shapes alone" in out
    assert re.search(r"^PARAMETER +# +NAME BY +SHAPE", out, re.MULTILINE)
    assert re.search(r"^b\.weight +#3 +shapes +3×2 ", out, re.MULTILINE)
    assert re.search(r"^#0 +#0 +position +2 .*2: a\.bias, c\.bias$", out, re.MULTILINE)


def test_absences_are_explained(tmp_path, capsys):
    """A column of dashes says why: SGD without momentum keeps none."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "sgd.pt")
    assert main(["show", str(tmp_path / "sgd.pt")]) == 0
    assert Absence.COEFFICIENT_ZERO.sentence in capsys.readouterr().out


@pytest.fixture
def odd(tmp_path, model):
    """A file with state of no parameter, and one step count in which a bit was flipped."""
    state = stepped(model).state_dict()
    state["state"][9] = {"exp_avg": torch.ones(2, 3), "note": "x\x1b[2J"}
    state["state"][1]["step"] = torch.tensor(7.0)
    path = tmp_path / "odd.pt"
    torch.save({"optimizer": state}, path)
    flip(path, struct.pack("<f", 7.0))
    return path


def test_what_belongs_to_no_parameter_is_shown(odd, call):
    """State that could not be placed has its raw path in the file, and the diagnosis that explains it is named."""
    done = call("show", odd)
    assert "state of no parameter that could be told:\n  optimizer.state[9].exp_avg  float32 [2, 3]\n" in done.stdout
    assert "optimizer.state[9].note  x\\x1b[2J" in done.stdout
    assert f"hint: optstate doctor {odd}   M219" in done.stderr


def test_damaged_step_hides_nothing_else(odd, call):
    """A step count that cannot be read is marked and named; the rest is shown, and the exit code says: in part."""
    done = call("show", odd)
    assert done.returncode == 1
    assert re.search(r"^0\.bias +#1 +8 +float32 +0 +! +exp_avg", done.stdout, re.MULTILINE)
    assert re.search(r"^2\.bias +#3 +2 +float32 +0 +2 +exp_avg", done.stdout, re.MULTILINE)
    assert "not read: 0.bias/step: 0.bias/step is damaged" in done.stdout
    assert call("show", odd, "--select", "2.*").returncode == 0, "what was asked for is whole"


def test_damaged_step_in_a_document(odd, schema, call):
    """The document of a file that could be read in part says so in its own words, and keeps its schema."""
    done = call("show", odd, "--json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema)
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in document["unread"]] == ["0.bias/step"]
    steps = [
        each["value"] for parameter in document["parameters"] for each in parameter["slots"] if each["key"] == "step"
    ]
    assert steps == [2, None, 2, 2]
    assert [entry["path"] for entry in document["unplaced"]] == [
        "optimizer.state[9].exp_avg",
        "optimizer.state[9].note",
    ]
    assert [clue["code"] for clue in document["clues"]] == ["M219"]


def test_damaged_learning_rate(tmp_path, model, call):
    """A learning rate that is a tensor and damaged is marked in its group."""
    optimizer = stepped(model, lr=torch.tensor(0.375))
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "lr.pt")
    flip(tmp_path / "lr.pt", struct.pack("<f", 0.375))
    done = call("show", tmp_path / "lr.pt")
    assert done.returncode == 1
    assert "group 0: 4 parameters · lr !" in done.stdout
    assert "not read: group 0, lr: " in done.stdout
    assert json.loads(call("show", tmp_path / "lr.pt", "--json").stdout)["unread"]


def test_candidates_of_a_position(tmp_path, schema, call):
    """A parameter that could be one of several weights says which, in both forms."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
    optimizer = torch.optim.SGD(list(model.parameters())[::-1], 0.1, 0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    done = call("show", tmp_path / "x.pt")
    assert re.search(r"^#0 +3 .*4: 0\.bias, 1\.bias, 2\.bias and 1 more$", done.stdout, re.MULTILINE)
    assert "names: 8 by position alone, 8 of them one of several weights (M201)" in done.stdout
    assert "M201; --model FILE:FUNCTION pins names" in done.stderr
    document = json.loads(call("show", tmp_path / "x.pt", "--json").stdout)
    jsonschema.validate(document, schema)
    first = document["parameters"][0]
    assert (first["position"], first["one_of"], first["candidates"][0]) == (0, 4, "0.bias")


# --- show --json --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    """The published schema."""
    document = json.loads((ROOT / "docs" / "schema" / "optstate-show-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return document


@pytest.mark.parametrize("where", ["file", "ours", "many"])
@pytest.mark.parametrize("options", [[], ["--stats"], ["--select", "*0*"]])
def test_json_keeps_its_schema(where, options, schema, request, capsys):
    """Every document is what the published schema promises."""
    assert main(["show", str(request.getfixturevalue(where)), "--json", *options]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)


def test_json_of_every_optimizer_keeps_its_schema(tmp_path, schema, capsys):
    """Scalars, lists, absent slots, several groups: nothing that torch's optimizers keep falls outside."""
    for make in (torch.optim.SGD, torch.optim.NAdam, torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adafactor):
        torch.save(
            stepped(
                torch.nn.Linear(3, 2), make, lr=torch.tensor(0.1) if make is torch.optim.NAdam else 0.1
            ).state_dict(),
            tmp_path / "o.pt",
        )
        assert main(["show", str(tmp_path / "o.pt"), "--json", "--values", "weight"]) == 0
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, schema)
        assert document["optimizers"][0]["groups"][0]["hyperparameters"]["lr"] == pytest.approx(0.1)


def test_json_says_what_the_issue_of_a_reader_needs(file, capsys):
    """The fields that programs rely on, with their values."""
    assert main(["show", str(file), "--json", "--values", "0.weight"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "optstate.show/1"
    assert (document["format"], document["step"]) == ("torch.save", 420)
    assert document["bytes"] == file.stat().st_size
    assert document["optimizers"][0]["class"] == "torch.optim.adamw.AdamW"
    (parameter,) = document["parameters"]
    assert (parameter["name"], parameter["name_certainty"], parameter["shape"]) == ("0.weight", "recorded", [8, 4])
    slots = {slot["key"]: slot for slot in parameter["slots"]}
    assert slots["step"]["value"] == 2
    assert (slots["exp_avg"]["role"], slots["exp_avg"]["convention"], slots["exp_avg"]["of"]) == (
        "momentum", "ema_debiased", "gradient",
    )  # fmt: skip
    assert len(slots["exp_avg"]["head"]) == 6
    assert "norm" not in slots["exp_avg"]


def test_json_is_strict(tmp_path, capsys):
    """NaN and infinity, which JSON lacks, are words; a document is one that every parser takes."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([("w", parameter)], lr=float("inf"), betas=(0.5, 0.999))
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert main(["show", str(tmp_path / "o.pt"), "--json"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["optimizers"][0]["groups"][0]["hyperparameters"]["lr"] == "Infinity"


def test_schema_lists_the_closed_sets(schema):
    """The words in the schema are those of the code, each list whole."""
    parts = schema["$defs"]
    assert parts["role"]["enum"] == list(ROLES)
    assert parts["slot"]["properties"]["convention"]["enum"] == [*CONVENTIONS, None]
    assert parts["slot"]["properties"]["of"]["enum"] == [*OFS, None]
    assert parts["parameter"]["properties"]["name_certainty"]["enum"] == list(CERTAINTIES)
    reasons = parts["parameter"]["properties"]["absences"]["items"]["properties"]["reason"]["enum"]
    assert reasons == [absence.value for absence in Absence]


def test_schema_refuses_what_is_not_in_it(file, schema, capsys):
    """A field that changes its name is found: the schema bites."""
    main(["show", str(file), "--json"])
    document = json.loads(capsys.readouterr().out)
    document["parameters"][0]["certainty"] = document["parameters"][0].pop("name_certainty")
    with pytest.raises(jsonschema.ValidationError, match="name_certainty"):
        jsonschema.validate(document, schema)


# --- foreign text -----------------------------------------------------------------------------------


@pytest.fixture(params=EVIL.values(), ids=EVIL)
def evil(request, tmp_path):
    """A file in which a parameter, a slot key and a group key have a hostile name, and that name."""
    name = request.param
    parameter = torch.nn.Parameter(torch.ones(2))
    state = stepped(torch.nn.ParameterDict({"w": parameter})).state_dict()
    state["param_groups"][0]["param_names"] = [name]
    state["param_groups"][0][name] = name
    state["state"][0][name] = torch.ones(2)
    path = tmp_path / "evil.pt"
    torch.save({"optimizer": state, name: name}, path)
    return path, name


@pytest.mark.parametrize("options", ["", "--stats", "--values {}", "--values {}x", "--select nothing"])
def test_hostile_names_are_only_ever_shown(options, evil, call):
    """Whatever a name holds, what is printed moves no cursor, forges no line and hides nothing."""
    path, name = evil
    done = call("show", path, *(option.format(name) for option in options.split()))
    assert done.returncode == (2 if options.endswith(("x", "nothing")) else 0)
    assert is_printable(done.stdout)
    assert is_printable(done.stderr)
    assert not re.search(r"^hint: all is well", done.stdout + done.stderr, re.MULTILINE)


def test_json_gives_hostile_names_back_whole(evil, capsys):
    """A program gets the very name, in pure ASCII."""
    path, name = evil
    assert main(["show", str(path), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert is_printable(out)
    assert json.loads(out)["parameters"][0]["name"] == name


# --- streams, terminals, exit codes -------------------------------------------------------------------


def test_piped_output_is_whole_and_plain(many):
    """Without a terminal every row is printed, with no escape code."""
    done = run("show", many)
    assert done.returncode == 0
    assert len(re.findall(r"^layer\d+", done.stdout, re.MULTILINE)) == 100
    assert is_printable(done.stdout)
    assert is_printable(done.stderr)


def test_terminal_shows_forty_rows_and_how_to_see_all(many):
    """On a terminal the middle is elided with a count; --all shows it."""
    shown, code = run_on_terminal("show", many)
    assert code == 0
    assert len(re.findall(r"^layer\d+", shown, re.MULTILINE)) == 40
    assert "… 60 more" in shown
    assert "no momentum" not in shown
    every, _ = run_on_terminal("show", many, "--all")
    assert len(re.findall(r"^layer\d+", every, re.MULTILINE)) == 100


def test_terminal_gets_colour_unless_it_says_no(many):
    """NO_COLOR and a dumb terminal are honoured."""
    assert "\x1b[1m" in run_on_terminal("show", many)[0]
    assert is_printable(run_on_terminal("show", many, NO_COLOR="1")[0])


def test_output_that_cannot_be_encoded_is_escaped(file):
    """A terminal of another encoding is no reason to fail."""
    done = run("show", file, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"8\xd74" in done.stdout


def test_reader_that_stops_reading_is_no_error(many):
    """`optstate show FILE | head -1` ends quietly, as a program in a pipe does."""
    command = f"{sys.executable} -m optstate show {many} --json 2>{os.devnull} | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment())
    assert done.stdout in ("{0\n", "{141\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        gone = subprocess.run(
            [sys.executable, "-m", "optstate", "show", many],
            stdout=closed, stderr=subprocess.PIPE, text=True, check=False, env=environment(),
        )  # fmt: skip
    assert (gone.returncode, gone.stderr) == (141, "")


def test_interrupt_is_quiet():
    """Ctrl-C ends a command with 130 and not a word."""
    code = (
        "import os, signal, sys\n"
        "import optstate.formats.opening as opening\n"
        "from optstate.cli import main, show\n"
        "show.open_checkpoint = lambda path: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['show', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["shwo"],
            f"there is no command 'shwo'\n  expected  one of {', '.join(COMMANDS)}\n  to do     did you mean `optstate show`?",
        ),
        (["show", "x", "--sats"], "Did you mean"),
        (["show"], "Missing argument 'FILE'"),
        (["show", "x", "--values", "w", "--select", "w"], "--values names its parameters itself"),
    ],
)
def test_wrong_usage_says_what_is_right(arguments, said, capsys):
    """A slip of the fingers is answered with what was meant, and with exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "--help`" in err


@pytest.mark.parametrize("arguments", [["--debug", "show"], ["show", "--debug"]])
def test_debug_prints_the_traceback(arguments, tmp_path, capsys):
    """--debug, before or after the command, shows where an error comes from; without it there is none."""
    assert main([*arguments, str(tmp_path / "missing.pt")]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "missing.pt")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_fault_of_ours_asks_for_debug(capsys, monkeypatch, file):
    """An error that nobody foresaw is a short message too, and says how to report it."""
    monkeypatch.setitem(COMMANDS, "no_such_module", "")
    assert main(["no_such_module"]) == 2
    err = capsys.readouterr().err
    assert "optstate failed" in err
    assert "--debug" in err
    assert "Traceback" not in err


def test_help_ends_in_examples(capsys):
    """Every page of help ends with commands that can be pasted, and the list of commands is their own first lines."""
    for arguments in ([], *([name] for name in COMMANDS)):
        assert main([*arguments, "--help"]) == 0
        page = capsys.readouterr().out
        assert re.search(r"Examples:\n(  +optstate [^\n]+\n)+$", page)
        for name in arguments:
            assert COMMANDS[name] in " ".join(page.split())


def test_version(capsys):
    """The version is that of the package."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"optstate {optstate.__version__}\n"


@pytest.mark.parametrize("module", ["optstate", "optstate.cli"])
def test_modules_run_as_programs(module, file):
    """`python -m optstate` and `python -m optstate.cli` are the command."""
    done = subprocess.run(
        [sys.executable, "-m", module, "show", file], capture_output=True, check=False, env=environment()
    )
    assert done.returncode == 0


@pytest.mark.parametrize("where", ["file", "ours"])
def test_header_costs_no_heavy_import(where, request):
    """Showing a torch file imports none of the heavy packages, and our own none but what reads its manifest."""
    path = request.getfixturevalue(where)
    code = (
        "import sys\nfrom optstate.cli import main\n"
        f"code = main(['show', {str(path)!r}])\n"
        f"print(code, sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert done.stderr.splitlines()[-1] == f"0 {[] if where == 'file' else ['msgspec']}"


def test_stats_need_no_torch(file):
    """Reading values takes numpy and nothing of torch, on a machine that has none."""
    code = f"import sys; sys.modules['torch'] = None\nfrom optstate.cli import main\nmain(['show', {str(file)!r}, '--stats'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert "exp_avg ‖" in done.stdout


def test_progress_is_shown_late_and_only_on_a_terminal(monkeypatch):
    """A bar appears on a terminal once the delay has passed; elsewhere nothing does."""
    ours, theirs = pty.openpty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progressing("too early", delay=3600) as progress:
            progress.at(50, 100)
        with Progressing("in time", delay=0) as progress:
            progress.at(50, 100)
        monkeypatch.setenv("TERM", "dumb")
        with Progressing("too dumb", delay=0) as progress:
            progress.at(50, 100)
    shown = _read(ours).decode()
    os.close(ours)
    assert re.search("in time.+50/100 bytes", shown)
    assert "too" not in shown


# --- bad input ------------------------------------------------------------------------------------------


def an_html_page(path, file):
    path.write_text("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>")


def a_git_lfs_pointer(path, file):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def an_empty_file(path, file):
    path.touch()


def a_missing_file(path, file):
    pass


def a_truncated_file(path, file):
    path.write_bytes(file.read_bytes()[:-100])


def half_a_file(path, file):
    path.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def a_directory_of_something_else(path, file):
    path.mkdir()
    (path / "notes.txt").write_text("nothing")


def a_dangling_link(path, file):
    path.symlink_to("nowhere")


READERS = [name for name in COMMANDS if name not in ("explain", "prove", "strip")]
"""The commands that open a checkpoint."""


def on(command, path):
    """The command with everything that it needs, the checkpoint being `path`."""
    further = {"diff": [path], "convert": [path.parent / "converted"]}
    return [command, path, *further.get(command, [])]


BAD = {
    a_missing_file: "there is no file",
    an_empty_file: "is empty",
    a_truncated_file: "is damaged",
    half_a_file: "is damaged",
    an_html_page: "a web page",
    a_git_lfs_pointer: "a Git LFS pointer",
    a_directory_of_something_else: "manifest.json",
    a_dangling_link: "there is no file",
}


def assert_one_screen(done, said, path):
    """An error of one screen that names the file and says what to do, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert path.name in done.stderr
    assert "  to do     " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 24


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input(make, command, file, tmp_path, call):
    """What is no checkpoint is told apart, in one screen, with exit code 2."""
    path = tmp_path / "model.pt"
    make(path, file)
    assert_one_screen(call(*on(command, path)), BAD[make], path)


@pytest.mark.parametrize("command", READERS)
def test_pipe_is_not_waited_for(command, tmp_path):
    """A pipe that nobody writes to is refused at once, by the program as a shell starts it."""
    os.mkfifo(tmp_path / "model.pt")
    assert_one_screen(run(*on(command, tmp_path / "model.pt")), "a pipe", tmp_path / "model.pt")


@pytest.mark.parametrize("options", [["--stats"], ["--values", "0.weight"]])
@pytest.mark.parametrize("where", ["file", "copy"])
def test_flipped_bit_in_a_tensor_is_named(where, options, file, request, tmp_path, call):
    """One bit of one tensor: reading its values is refused, and the message says whose they are."""
    path = request.getfixturevalue(where)
    values = open_checkpoint(path).state["0.weight"].momentum.array().tobytes()
    if where == "file":
        path = tmp_path / "flipped.pt"
        path.write_bytes(file.read_bytes())
    flip(path if path.is_file() else path / "optimizer.safetensors", values)
    assert_one_screen(call("show", path, *options), "0.weight/exp_avg", path)
    assert call("show", path).returncode == 0, "the header is whole"
    assert call("show", path, "--stats", "--select", "2.*").returncode == 0, "so are other tensors"


def flip(path, values):
    """Change one bit of these bytes in a file."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(values)] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("command", READERS)
def test_newer_format_asks_for_an_upgrade(command, copy, call):
    """A checkpoint of a later version is told apart from a broken one."""
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"optstate/1", b"optstate/2"))
    assert_one_screen(call(*on(command, copy)), "pip install --upgrade optstate", copy)


@pytest.mark.parametrize("command", READERS)
def test_changed_manifest_is_refused(command, copy, call):
    """Nothing is read by a manifest that is not the one that was written."""
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":420', b'"step":421'))
    assert_one_screen(call(*on(command, copy)), "digest", copy)


# --- verify ---------------------------------------------------------------------------------------------


def test_verify_of_an_intact_checkpoint(ours, capsys):
    """Every tensor is read, and that is said."""
    assert main(["verify", str(ours)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{ours}: intact (16 tensors, ")
    assert err == ""


def test_verify_names_what_is_damaged(copy, capsys):
    """Exit code 1 and the name of each damaged tensor, no more; a lost file loses those in it."""
    flip(copy / "optimizer.safetensors", open_checkpoint(copy).state["2.bias"].second_moment.array().tobytes())
    assert main(["verify", str(copy)]) == 1
    out, err = capsys.readouterr()
    assert "2.bias/exp_avg_sq" in out
    assert "0.weight" not in out
    assert "hint: resume from an earlier checkpoint" in err
    (copy / "weights.safetensors").unlink()
    assert main(["verify", str(copy), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {"0.weight", "2.bias", "2.bias/exp_avg_sq"} < {item["tensor"] for item in document["damage"]}


def test_verify_json_keeps_its_schema(copy, capsys):
    """The published schema holds for a good and for a bad report."""
    schema = json.loads((ROOT / "docs" / "schema" / "optstate-verify-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert main(["verify", str(copy), "--json"]) == 0
    good = json.loads(capsys.readouterr().out)
    (copy / "optimizer.safetensors").write_bytes(b"")
    assert main(["verify", str(copy), "--json"]) == 1
    bad = json.loads(capsys.readouterr().out)
    for document in (good, bad):
        jsonschema.validate(document, schema)
    assert (good["ok"], bad["ok"]) == (True, False)
    assert (good["tensors"], good["bytes"]) == (16, 3 * 232 + 4 * 4)  # weights and two moments, four step counts


def test_verify_of_a_torch_file_says_what_to_do(file, call):
    """A file that holds no digests is not called damaged, nor intact."""
    assert_one_screen(call("verify", file), f"optstate show {file} --stats", file)

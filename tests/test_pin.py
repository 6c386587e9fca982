"""`--model FILE:FUNCTION`: names by identity from the user's own program, and clear words where the two do not fit."""

from __future__ import annotations

import json
import re
import sys
from textwrap import dedent

import pytest
import torch
from torch import nn

from optstate.cli import main
from optstate.errors import BindError
from optstate.formats.opening import open_checkpoint
from optstate.formats.pin import pin
from optstate.live.view import attach
from tests.truth import assert_is


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))


def backwards(model):
    """An order that no file could tell: every shape is that of others."""
    return torch.optim.AdamW(list(model.parameters())[::-1])


def stepped(model, optimizer):
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def saved(path, optimizer, model, **more):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}, path)
    return open_checkpoint(path)


def test_positions_get_the_names_of_the_program(tmp_path):
    """What the file leaves open, the live pair settles: every name, slot and value, by identity."""
    model = net()
    optimizer = stepped(model, backwards(model))
    checkpoint = saved(tmp_path / "ck.pt", optimizer, model)
    assert {each.facts.certainty for each in checkpoint.state.values()} == {"position"}
    pinned = pin(checkpoint, attach(optimizer, model))
    assert_is(pinned, optimizer, model, certainty="identity")
    assert {"M201"} == {clue.code for clue in checkpoint.clues}
    assert pinned.clues == ()
    assert [each.facts.position for each in pinned.state.values()] == [0, 1, 2, 3, 4, 5]


def test_a_fresh_program_will_do(tmp_path):
    """The program need not have stepped: it gives names, the file gives state."""
    model = net()
    checkpoint = saved(tmp_path / "ck.pt", stepped(model, backwards(model)), model)
    fresh = net()
    pinned = pin(checkpoint, attach(backwards(fresh), fresh))
    assert torch.equal(
        torch.from_numpy(pinned.state["2.bias"].momentum.array().copy()), torch.full((4,), 6.0) * (1 - 0.9)
    )


def test_several_optimizers(tmp_path):
    """Optimizers are paired by name, or one by one where the program calls them otherwise."""
    model = net()
    pair = {"a": torch.optim.SGD(model[0].parameters(), 0.1, 0.9), "b": torch.optim.AdamW(model[1:].parameters())}
    for optimizer in pair.values():
        stepped(model, optimizer)
    torch.save({"optimizers": {name: each.state_dict() for name, each in pair.items()}}, tmp_path / "ck.pt")
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    assert_is(pin(checkpoint, attach(pair, model)), pair, model, certainty="identity")
    renamed = pin(checkpoint, attach({"one": pair["a"], "two": pair["b"]}, model))
    assert [*renamed.state] == [name for name, _ in model.named_parameters()]
    with pytest.raises(BindError, match=r"another number of optimizers[\s\S]*1 optimizer[\s\S]*2 optimizers"):
        pin(checkpoint, attach(pair["a"], model))


def test_recorded_names_that_are_not_the_programs(tmp_path):
    """Names in the file that the program contradicts are told with the code for it; the program's are used."""
    model = net()
    optimizer = stepped(model, torch.optim.AdamW(list(model.named_parameters())[::-1]))
    lying = optimizer.state_dict()
    lying["param_groups"][0]["param_names"].reverse()
    torch.save({"optimizer": lying}, tmp_path / "lying.pt")
    pinned = pin(open_checkpoint(tmp_path / "lying.pt"), attach(optimizer, model))
    assert_is(pinned, optimizer, model, certainty="identity")
    (clue,) = pinned.clues
    assert clue.code == "M206"
    assert "6 parameters, such as 2.bias, called 0.weight" in clue.evidence


def test_names_by_order_that_were_wrong(tmp_path):
    """Names that were taken from the order and are others in the program are told in a note."""
    model = net()
    square = list(model.parameters())[::2]
    swapped = stepped(model, torch.optim.SGD(square[::-1], 0.1, 0.9))
    torch.save(
        {
            "model": {name: each for name, each in model.state_dict().items() if "weight" in name},
            "optimizer": swapped.state_dict(),
        },
        tmp_path / "ck.pt",
    )
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    assert checkpoint.clues[0].code == "M201"
    pinned = pin(checkpoint, attach(swapped, model))
    assert_is(pinned, swapped, model, certainty="identity")
    assert any("2 parameters, such as 2.weight, called 0.weight" in note for note in pinned.notes)


def test_names_in_the_file_stay(tmp_path):
    """What the file itself names beside its slots is matched by name, whatever the order of the program."""
    model = net()
    optimizer = stepped(model, torch.optim.SGD(model.parameters(), 0.1, 0.9))
    names = [name for name, _ in model.named_parameters()]
    plain = optimizer.state_dict()
    by_name = {
        "state": {names[key]: entry for key, entry in plain["state"].items()},
        "param_groups": [{**plain["param_groups"][0], "params": names}],
    }
    torch.save({"optimizer": by_name}, tmp_path / "ck.pt")
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    other = torch.optim.SGD(list(model.parameters())[::-1], 0.1, 0.9)
    assert_is(pin(checkpoint, attach(other, model)), optimizer, model, certainty="identity")
    stranger = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Module())
    stranger[2].weights, stranger[2].bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    with pytest.raises(BindError, match=r"does not have[\s\S]*2\.weights[\s\S]*2\.weight"):
        pin(checkpoint, attach(torch.optim.SGD(stranger.parameters(), 0.1, 0.9), stranger))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda m: torch.optim.AdamW(list(m.parameters())[1:]),
            r"groups[\s\S]*groups of 5 parameters[\s\S]*groups of 6",
        ),
        (lambda m: torch.optim.AdamW([{"params": [each]} for each in m.parameters()]), "groups of 1, 1, 1, 1, 1, 1"),
        (
            lambda m: torch.optim.AdamW(m.parameters()),
            r"6 parameters of the file have another shape[\s\S]*0\.weight \[4, 4\]",
        ),
    ],
)
def test_a_program_that_does_not_fit(make, said, tmp_path):
    """Another number, other groups, other shapes: refused, with both sides named."""
    model = net()
    checkpoint = saved(tmp_path / "ck.pt", stepped(model, backwards(model)), model)
    with pytest.raises(BindError, match=said):
        pin(checkpoint, attach(make(model), model))


# --- the option ---------------------------------------------------------------------------------------------

PROGRAM = """
    import torch
    import beside
    from torch import nn

    print("building")

    def backwards():
        model = beside.net()
        return model, torch.optim.AdamW(list(model.parameters())[::-1])

    def alone():
        return beside.net()

    class Run:
        def __init__(self):
            self.model, self.optimizer = backwards()

    def other_way():
        model, optimizer = backwards()
        return [optimizer, model]

    def several():
        model, optimizer = backwards()
        return model, {"only": optimizer}

    def needs(width, depth=2):
        return beside.net()

    def broken():
        raise ValueError("no data\\x1b[2J")

    def nothing():
        return 3

    def too_much():
        return beside.net(), beside.net()

    not_a_function = 3
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A checkpoint of a program, and the program, whose module beside it has the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))\n"
    )
    (tmp_path / "train.py").write_text(dedent(PROGRAM))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    saved(tmp_path / "ck.pt", stepped(model, backwards(model)), model)
    before = list(sys.path)
    yield
    assert sys.path == before
    sys.modules.pop("beside", None)


def shown(capsys, *arguments):
    code = main(["show", "ck.pt", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("function", ["backwards", "Run", "other_way", "several"])
def test_whatever_a_factory_returns(function, program, capsys):
    """A pair in any order, an object with both, optimizers by name: all of them pin the names."""
    code, out, err = shown(capsys, "--model", f"train.py:{function}")
    assert code == 0
    assert re.search(r"^1\.bias +#0 +4 ", out, re.MULTILINE)
    assert "M201" not in out + err


def test_the_users_code_is_announced_and_its_output_kept_apart(program, capsys):
    """That code runs is said, and what it prints never mixes with a document on standard output."""
    code, out, err = shown(capsys, "--model", "train.py:backwards", "--json")
    assert code == 0
    assert {each["name_certainty"] for each in json.loads(out)["parameters"]} == {"identity"}
    assert "note: --model imports torch and runs backwards() of train.py" in err
    assert "building" in err


def test_a_model_alone(program, tmp_path, capsys):
    """A model without an optimizer names one group in the order of its parameters, by rule; other groups it cannot."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    torch.save(stepped(model, torch.optim.SGD(model.parameters(), 0.1, 0.9)).state_dict(), tmp_path / "ck.pt")
    code, out, _ = shown(capsys, "--model", "train.py:alone")
    assert code == 0
    assert re.search(r"^0\.weight +#0 ", out, re.MULTILINE)
    assert "4 by their order, every shape agrees" in out
    groups = torch.optim.SGD([{"params": [each]} for each in model.parameters()], 0.1)
    torch.save(groups.state_dict(), tmp_path / "ck.pt")
    code, _, err = shown(capsys, "--model", "train.py:alone")
    assert code == 2
    assert "return (model, optimizer) from the factory" in err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("train.py", "names no function of a file"),
        ("train.py:", "names no function of a file"),
        ("trian.py:build", "there is no file trian.py"),
        ("train.py:build", r"has no function 'build'\n  found     it defines backwards"),
        ("train.py:not_a_function", "has no function 'not_a_function'"),
        ("train.py:needs", r"takes arguments\n[\s\S]*needs width\n"),
        (
            "train.py:broken",
            r"broken\(\) of train\.py failed\n[\s\S]*train\.py, line \d+\n[\s\S]*ValueError: no data\\x1b",
        ),
        ("train.py:nothing", r"returned no model\n[\s\S]*found     int"),
        ("train.py:too_much", "returned too much"),
        ("syntax.py:build", r"cannot be imported\n[\s\S]*SyntaxError"),
        ("script.py:build", r"cannot be imported\n[\s\S]*SystemExit: 2\n[\s\S]*__main__"),
    ],
)
def test_a_factory_that_cannot_be_used(value, said, program, tmp_path, capsys):
    """Each slip has its own message, exit code 2, and no traceback unless asked for."""
    (tmp_path / "syntax.py").write_text("def build(:\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(2)\n")
    code, out, err = shown(capsys, "--model", value)
    assert (code, out) == (2, "")
    assert re.search(said, err), err
    assert "Traceback" not in err
    assert "\x1b" not in err


def test_debug_shows_where_the_users_code_failed(program, capsys):
    """With --debug the traceback of the user's own exception is printed."""
    assert main(["show", "ck.pt", "--model", "train.py:broken", "--debug"]) == 2
    assert "in broken" in capsys.readouterr().err


def test_a_program_that_does_not_fit_the_file(program, tmp_path, capsys):
    """The command line says the same as the library, with exit code 2."""
    torch.save(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1).state_dict(), tmp_path / "ck.pt")
    code, _, err = shown(capsys, "--model", "train.py:backwards")
    assert code == 2
    assert "groups of the optimizer in the file are not those of the program" in err

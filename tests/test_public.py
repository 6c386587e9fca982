"""The public names: few, real, documented, and every example in a docstring runs."""

from __future__ import annotations

import ast
import doctest
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import optstate
from tools.graph import modules

ROOT = Path(__file__).parents[1]
TREES = modules(ROOT / "src" / "optstate")
WITH_EXAMPLES = [
    name
    for name, tree in TREES.items()
    if any(
        ">>>" in (ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
]


def test_names_are_few_and_unique():
    """At most 40 names, each once: what a newcomer can read through."""
    assert len(optstate.__all__) == len(set(optstate.__all__)) <= 40


def test_names_are_real():
    """What `__all__` lists can be had and is listed by `dir`, before it was used and after."""
    assert set(optstate.__all__) <= set(dir(optstate))
    assert [name for name in optstate.__all__ if not hasattr(optstate, name)] == []
    assert set(optstate.__all__) <= set(dir(optstate))


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING, which only type checkers read, give the very objects that users get."""
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(TREES["optstate"])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optstate")
        for alias in node.names
    }
    assert set(seen) == set(optstate.__all__)
    for name, (module, original) in seen.items():
        assert getattr(import_module(module), original) is getattr(optstate, name)


def test_unknown_name_is_an_attribute_error():
    """A typo is told as Python tells it, although names are loaded when used."""
    with pytest.raises(AttributeError, match="no_such_name"):
        optstate.no_such_name  # noqa: B018 - looking is the test


def test_version_is_that_of_the_project():
    """The version is written once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert optstate.__version__ == project["version"]


@pytest.mark.parametrize("name", optstate.__all__)
def test_name_has_a_docstring_with_an_example(name):
    """Each public name shows how it is used."""
    assert ">>>" in (getattr(optstate, name).__doc__ or "")


TRAIN = """
import torch
import optstate

def build():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step():
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return optstate.Training(model, optimizer, train_step)
"""
"""The program that docstrings call `train.py`."""


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What docstrings take for granted: a stepped AdamW over a small model, its state, a checkpoint of both, a closure."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    checkpoint = "runs/step-3"
    optstate.save(checkpoint, model=model, optimizer=optimizer, step=3)
    state = optstate.attach(optimizer, model)

    def closure():
        model(torch.randn(5, 4)).square().sum().backward()

    Path("train.py").write_text(TRAIN)
    return {
        "optstate": optstate, "torch": torch, "model": model, "optimizer": optimizer, "checkpoint": checkpoint,
        "state": state, "closure": closure,
    }  # fmt: skip


def examples(module, namespace):
    """The examples in a module's docstrings, ready to run."""
    return doctest.DocTestFinder().find(module, module.__name__, globs={**vars(module), **namespace})


def failures(tests):
    """What does not come out as shown."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name, namespace):
    """Each example prints what its docstring says."""
    tests = [test for test in examples(import_module(name), namespace) if test.examples]
    assert tests, "there are examples, but none was found to run"
    said = failures(tests)
    assert not said, said


def test_wrong_example_is_found():
    """An example that prints something else fails."""
    parser = doctest.DocTestParser()
    assert failures([parser.get_doctest(">>> 1 + 1\n2\n", {}, "right", None, None)]) == ""
    assert "Expected:\n    3" in failures([parser.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)])

"""The pytest plugin, as a project that installs optstate meets it; and `assert_state_equal`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import optstate

TRAIN = """
import torch
import optstate

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step():
        optimizer.zero_grad()
        loss = model(torch.ones(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return optstate.Training(model, optimizer, train_step)
"""

TESTS = """
from train import build

def save(training, path):
    import torch
    torch.save([training.model.state_dict(), training.optimizer.state_dict()], path)

def load(training, path):
    import torch
    model, optimizer = torch.load(path)
    training.model.load_state_dict(model)
    training.optimizer.load_state_dict(optimizer)
    for entry in training.optimizer.state.values():
        entry["step"] -= 1

def test_exact(resume_exact):
    assert resume_exact(build, before=3, after=3).grade == "trajectory-exact"

def test_own_functions(resume_exact):
    resume_exact(build, before=3, after=3, save=save, load=load)
"""


def run_pytest(folder, *arguments):
    """Run pytest in a folder with the plugin, once."""
    command = ["-m", "pytest", "-p", "no:optstate", "-p", "optstate.proof.pytest_plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, *command, "-q", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.slow
def test_fixture_proves_and_explains(tmp_path):
    """An exact resume passes; another fails with the first difference by name and its cause, and without a traceback."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "test_resume.py").write_text(TESTS)
    done = run_pytest(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert "first       as restored: 0.weight/step is 2.0, expected 3.0" in done.stdout
    assert "what differs: step 2, torch RNG 1" in done.stdout
    assert "NOT EXACT" in done.stdout
    assert "pytest_plugin.py" not in done.stdout


@pytest.mark.slow
def test_collecting_imports_no_torch(tmp_path):
    """To have optstate installed costs a test session neither torch nor numpy."""
    (tmp_path / "test_light.py").write_text(
        "import sys\n\ndef test_light(request):\n"
        "    assert request.config.pluginmanager.hasplugin('optstate.proof.pytest_plugin')\n"
        "    assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout


# --- assert_state_equal -------------------------------------------------------------------------------------


@pytest.fixture
def training():
    """A model and an optimizer that has stepped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_equal_states_pass(training, tmp_path):
    """A live state, its snapshot and its checkpoint are equal, and nothing is said."""
    model, optimizer = training
    state = optstate.attach(optimizer, model)
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    optstate.assert_state_equal(state, state.snapshot())
    optstate.assert_state_equal(tmp_path / "ck", state)
    optstate.assert_state_equal(optstate.named_state_dict(optimizer, model), state)


def minus_zero(optimizer, entry):
    entry["exp_avg"].copy_(torch.where(entry["exp_avg"] == 0, -entry["exp_avg"], entry["exp_avg"]))
    entry["exp_avg"].view(-1)[0] = -0.0


CHANGES = {
    "one bit": (lambda optimizer, entry: entry["exp_avg"].view(torch.int32).view(-1)[3:4].bitwise_xor_(1), "exp_avg"),
    "sign of zero": (minus_zero, "exp_avg"),
    "step": (lambda optimizer, entry: entry["step"].add_(1), "step"),
    "missing slot": (lambda optimizer, entry: entry.pop("exp_avg_sq"), "exp_avg_sq"),
    "type": (lambda optimizer, entry: entry.update(exp_avg=entry["exp_avg"].double()), "float64"),
    "hyperparameter": (lambda optimizer, entry: optimizer.param_groups[0].update(lr=0.5), "lr"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_difference_is_said_by_name(change, training):
    """Whatever differs, to the last bit, fails with the name of the parameter or group and what is wrong."""
    model, optimizer = training
    state = optstate.attach(optimizer, model)
    optimizer.state[model[1].weight]["exp_avg"].view(-1)[0] = 0.0
    before = state.snapshot()
    make, said = CHANGES[change]
    make(optimizer, optimizer.state[model[1].weight])
    with pytest.raises(AssertionError, match=r"Optimizer states are not equal!\n\n") as caught:
        optstate.assert_state_equal(state, before)
    assert said in str(caught.value)
    assert ("group 0" if change == "hyperparameter" else "1.weight") in str(caught.value)


def test_what_is_no_state_is_refused():
    """A mistake in the call is no difference."""
    with pytest.raises(optstate.OptstateError, match="nothing to compare"):
        optstate.assert_state_equal(1, 2)

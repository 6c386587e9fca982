"""stable-baselines3's `.zip`: the optimizers of every algorithm over their own part of the policy."""

from __future__ import annotations

import shutil
import warnings
import zipfile

import pytest
import torch

from optstate.errors import Damaged, ReadError
from optstate.formats.opening import open_checkpoint
from tests.truth import assert_is

sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
pytestmark = pytest.mark.slow


def learned(kind, world, steps, path, **options):
    """An algorithm after some steps, saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of environments and devices
        torch.manual_seed(0)
        algorithm = kind("MlpPolicy", world, device="cpu", policy_kwargs={"net_arch": [8, 8]}, **options).learn(steps)
        algorithm.save(path)
    return algorithm


@pytest.fixture(scope="module")
def ppo(tmp_path_factory):
    path = tmp_path_factory.mktemp("sb3") / "ppo.zip"
    return learned(sb3.PPO, "CartPole-v1", 64, path, n_steps=32, batch_size=16), path


def test_one_optimizer_over_the_policy(ppo):
    """PPO: every name, slot and value of its optimizer; the policy's own order is known."""
    algorithm, path = ppo
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "stable-baselines3"
    assert_is(checkpoint, algorithm.policy.optimizer, algorithm.policy, certainty="rule")
    assert set(checkpoint.weights) == set(algorithm.policy.state_dict())
    assert checkpoint.clues == ()


def test_settings_are_shown_and_pickles_in_them_are_not_decoded(ppo):
    """Settings are plain values; those that are pickles stay undecoded, and that is said."""
    checkpoint = open_checkpoint(ppo[1])
    settings = checkpoint.objects["data"]
    assert settings["n_steps"] == 32
    assert settings["policy_class"] == "(a pickle in base64)"
    assert any(note.startswith("not decoded: ") for note in checkpoint.notes)


class Coefficient(torch.nn.Module):
    """The policy, and the coefficient that is trained beside it, under the names that the file has for both."""

    def __init__(self, algorithm):
        super().__init__()
        for name, part in algorithm.policy.named_children():
            setattr(self, name, part)
        self.log_ent_coef = torch.nn.Parameter(algorithm.log_ent_coef)
        algorithm.ent_coef_optimizer.param_groups[0]["params"] = [self.log_ent_coef]
        algorithm.ent_coef_optimizer.state[self.log_ent_coef] = algorithm.ent_coef_optimizer.state.pop(
            algorithm.log_ent_coef
        )


def test_three_optimizers(tmp_path):
    """SAC: actor, critic and entropy coefficient have an optimizer each; target networks have none."""
    algorithm = learned(sb3.SAC, "Pendulum-v1", 110, tmp_path / "sac.zip")
    checkpoint = open_checkpoint(tmp_path / "sac.zip")
    optimizers = {
        "actor.optimizer": algorithm.actor.optimizer,
        "critic.optimizer": algorithm.critic.optimizer,
        "ent_coef_optimizer": algorithm.ent_coef_optimizer,
    }
    assert_is(checkpoint, optimizers, Coefficient(algorithm), certainty="rule")
    assert checkpoint.clues == ()
    left = checkpoint.state.left_out["weights that no optimizer updates"]
    assert left
    assert all(name.startswith("critic_target.") for name in left)


def test_optimizer_over_a_part_of_the_policy(tmp_path):
    """DQN: the optimizer is over the network that is trained, not over its equal, the target."""
    algorithm = learned(sb3.DQN, "CartPole-v1", 60, tmp_path / "dqn.zip", learning_starts=20)
    checkpoint = open_checkpoint(tmp_path / "dqn.zip")
    assert_is(checkpoint, algorithm.policy.optimizer, algorithm.policy, certainty="rule")


def test_policy_without_an_optimizer(ppo, tmp_path):
    """A policy that was saved without says so, with the code for it."""
    algorithm, _ = ppo
    algorithm.save(tmp_path / "bare.zip", exclude=["policy.optimizer"], include=[])
    with zipfile.ZipFile(tmp_path / "bare.zip") as archive:
        assert "policy.optimizer.pth" in archive.namelist(), "exclude is for attributes; this library keeps its files"
    rewritten(tmp_path / "bare.zip", tmp_path / "none.zip", drop="policy.optimizer.pth")
    checkpoint = open_checkpoint(tmp_path / "none.zip")
    assert [clue.code for clue in checkpoint.clues] == ["M103"]
    assert len(checkpoint.weights) == 12


def rewritten(source, target, *, drop="", change=None):
    """A copy of a bundle with one member left out, or with its content changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name != drop:
                new.writestr(name, change(name, old.read(name)) if change else old.read(name))


def test_an_optimizer_that_cannot_be_read(ppo, tmp_path):
    """One torch file in the bundle that is no torch file is listed; the rest opens. Of the policy it is an error."""
    for victim in ("policy.optimizer.pth", "policy.pth"):
        broken = tmp_path / f"{victim}.zip"
        rewritten(ppo[1], broken, change=lambda name, raw, victim=victim: b"no" * 40 if name == victim else raw)
        if victim == "policy.pth":
            with pytest.raises(ReadError):
                open_checkpoint(broken)
        else:
            checkpoint = open_checkpoint(broken)
            assert [line.partition(":")[0] for line in checkpoint.unread] == [victim]
            assert len(checkpoint.weights) == 12


def test_settings_that_are_no_json(ppo, tmp_path):
    """Settings that are damaged are listed as not read."""
    rewritten(ppo[1], tmp_path / "x.zip", change=lambda name, raw: b"{" if name == "data" else raw)
    assert [line.partition(":")[0] for line in open_checkpoint(tmp_path / "x.zip").unread] == ["data"]


def test_truncated(ppo, tmp_path):
    """A bundle that is cut short is damage."""
    shutil.copy(ppo[1], tmp_path / "cut.zip")
    with (tmp_path / "cut.zip").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(Damaged):
        open_checkpoint(tmp_path / "cut.zip")

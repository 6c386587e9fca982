"""PyTorch Lightning's `.ckpt`: every name, slot and value of the live optimizers, and why there may be none."""

from __future__ import annotations

import logging
import pathlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optstate.formats.opening import open_checkpoint
from tests.truth import assert_is, same_bits

pytest.importorskip("lightning", reason="PyTorch Lightning is not installed")
import lightning

pytestmark = pytest.mark.slow


class Plain(lightning.LightningModule):
    """Hyperparameters of kinds that no plain reader knows, buffers, and a scheduler."""

    def __init__(self, where=None, activation=nn.ReLU):
        super().__init__()
        self.save_hyperparameters()
        self.first, self.norm, self.last = nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)

    def training_step(self, batch, _):
        return self.last(self.norm(self.first(batch[0]))).square().sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class Pair(lightning.LightningModule):
    """Two optimizers, each over its own part of the model; the parts have shapes in common."""

    schedulers = 0

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.maker = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
        self.judge = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))

    def training_step(self, batch, _):
        for optimizer, part in zip(self.optimizers(), (self.maker, self.judge), strict=True):
            optimizer.zero_grad()
            self.manual_backward(part(batch[0]).square().sum())
            optimizer.step()

    def configure_optimizers(self):
        pair = [torch.optim.Adam(self.maker.parameters()), torch.optim.AdamW(self.judge.parameters())]
        return pair, [torch.optim.lr_scheduler.StepLR(pair[0], 1) for _ in range(self.schedulers)]


class Crowded(Pair):
    """More schedulers than optimizers, as Lightning allows."""

    schedulers = 3


class Frozen(Plain):
    """Only a part is trained, and only that is given to the optimizer."""

    def configure_optimizers(self):
        self.first.requires_grad_(False)
        return torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), lr=0.1)


def fitted(module, path, *, alone=False, callbacks=()):
    """Train a few steps and save at the end, or when a callback does; the module keeps its optimizers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on workers, loggers and the like
        trainer = lightning.Trainer(
            max_steps=4, max_epochs=9, accelerator="cpu", logger=False, enable_checkpointing=bool(callbacks),
            enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(module, data)
        if not callbacks:
            trainer.save_checkpoint(path, weights_only=alone)
    return SimpleNamespace(checkpoint=open_checkpoint(path), module=module, optimizers=trainer.optimizers)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fitted(Plain(pathlib.Path("data")), tmp_path_factory.mktemp("lightning") / "full.ckpt")


def test_names_slots_and_values(plain):
    """Everything that the optimizer holds is there by name, in the order of the model, buffers passed over."""
    checkpoint = plain.checkpoint
    assert checkpoint.format == "PyTorch Lightning"
    assert checkpoint.step == 4
    assert_is(checkpoint, plain.optimizers[0], plain.module, certainty="rule")
    assert set(checkpoint.weights) == set(plain.module.state_dict())


def test_what_else_is_in_it(plain):
    """Schedulers, loops and hyperparameters are objects; classes among them are named and not imported."""
    objects = plain.checkpoint.objects
    assert {"epoch", "loops", "callbacks", "lr_schedulers", "hyper_parameters"} <= set(objects)
    assert objects["lr_schedulers"][0]["step_size"] == 1
    assert objects["hyper_parameters"]["where"] == "data"
    assert "not imported: torch.nn.modules.activation.ReLU" in plain.checkpoint.notes


def test_names_rest_on_order_where_shapes_are_equal(plain):
    """Which order a program chose is its own affair, so parameters of one shape are told to be open to doubt."""
    (clue,) = plain.checkpoint.clues
    assert clue.code == "M201"
    assert "first.bias, norm.weight, norm.bias" in clue.evidence


def test_weights_alone(tmp_path):
    """Without optimizer states the file says so, with the code for it and the way to keep them."""
    checkpoint = fitted(Plain(), tmp_path / "weights.ckpt", alone=True).checkpoint
    assert checkpoint.format == "PyTorch Lightning"
    assert len(checkpoint.state) == 0
    assert len(checkpoint.weights) == 9
    (clue,) = checkpoint.clues
    assert clue.code == "M103"
    assert "save_weights_only=False" in clue.fix


def test_two_optimizers(tmp_path):
    """Each optimizer gets the names of its own part of the model."""
    run = fitted(Pair(), tmp_path / "pair.ckpt")
    assert_is(run.checkpoint, dict(zip("01", run.optimizers, strict=True)), run.module, certainty="rule")


def test_more_schedulers_than_optimizers(tmp_path):
    """What Lightning pairs and cuts without a word is told."""
    checkpoint = fitted(Crowded(), tmp_path / "crowded.ckpt").checkpoint
    assert [clue.evidence[:42] for clue in checkpoint.clues if clue.code == "M205"] == [
        "3 schedulers and 2 optimizers were saved: "
    ]


def test_partly_frozen(tmp_path):
    """An optimizer over what is trained has the names of that, where the shapes leave no choice."""
    run = fitted(Frozen(), tmp_path / "frozen.ckpt")
    expected = dict.fromkeys(("norm.weight", "norm.bias", "last.weight", "last.bias"), "position")
    found = {name: parameter.facts for name, parameter in run.checkpoint.state.items()}
    assert found["last.weight"].certainty == "rule"
    assert {facts.certainty for facts in found.values()} == {"rule", *expected.values()}
    assert found["#0"].candidates == ("first.bias", "norm.weight", "norm.bias", "last.bias")


def test_averaged_weights(tmp_path):
    """With an average of the weights in the file, the weights shown are those that the momentum belongs to."""
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    while_it_runs = ModelCheckpoint(tmp_path, "average", every_n_train_steps=4)
    run = fitted(Plain(), tmp_path / "average.ckpt", callbacks=[EMAWeightAveraging(decay=0.5), while_it_runs])
    saved = torch.load(run.checkpoint.path, weights_only=False)
    assert not torch.equal(saved["state_dict"]["first.weight"], saved["current_model_state"]["first.weight"])
    for name, weight in saved["current_model_state"].items():
        assert same_bits(run.checkpoint.weights[name].array().tolist(), weight.tolist())
    assert "state_dict" in run.checkpoint.objects
    assert any("no momentum belongs: state_dict" in note for note in run.checkpoint.notes)

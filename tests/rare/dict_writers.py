"""Trains a few steps with one of several libraries and lets it save; run as `dict_writers.py LIBRARY FOLDER`.

Beside each checkpoint NAME lies NAME.truth: what the running optimizer held for each parameter, by identity. Exits with
code 77 and says why where the library is not installed or does not run here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import optstate

NOT_HERE = 77


def truth(path: Path, optimizer: Any, model: nn.Module) -> None:
    """Save what the optimizer holds, by name."""
    torch.save(optstate.named_state_dict(optimizer, model), path.with_name(f"{path.name}.truth"))


def stepped(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    """Steps with gradients of its own for each parameter."""
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()


def timm(folder: Path) -> None:
    """Its own saver, after its own optimizers: with and without weight decay, with an average, with its list."""
    from tests.rare.vision import declare

    declare()
    from timm import create_model
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    for name, kind, options in (
        ("sgd", "sgd", {"weight_decay": 1e-4, "momentum": 0.9}),
        ("plain", "adamw", {"weight_decay": 0.0}),
        ("vit", "adamw", {"weight_decay": 0.05}),
    ):
        torch.manual_seed(0)
        if name == "vit":
            model = create_model("vit_tiny_patch16_224", num_classes=2, embed_dim=8, depth=2, num_heads=2, img_size=32)
        else:
            model = create_model("resnet10t", num_classes=2)
        optimizer = create_optimizer_v2(model, kind, lr=0.01, **options)
        stepped(model, optimizer)
        home = folder / name
        home.mkdir()
        average = ModelEmaV3(model) if name == "vit" else None
        arguments = argparse.Namespace(model=name)
        saver = CheckpointSaver(
            model, optimizer, args=arguments, model_ema=average, checkpoint_dir=str(home), recovery_dir=str(home)
        )
        saver.save_checkpoint(0, 1.0)
        truth(home / "last.pth.tar", optimizer, model)


def mmengine(folder: Path) -> None:
    """Its own runner: plain, with an average of the weights, with a group for each parameter, and a best file."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(inputs)))

        def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
            loss = self(torch.stack(list(data))).square().sum()
            optim_wrapper.update_params(loss)
            return {"loss": loss}

    class Data(torch.utils.data.Dataset[torch.Tensor]):
        metainfo: dict[str, str] = {}

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.full((4,), float(index))

    each = {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0}
    sgd = {"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}}
    adamw = {"optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1}, "paramwise_cfg": each}
    for name, wrapper, hooks in (("plain", sgd, []), ("average", sgd, [{"type": "EMAHook"}]), ("each", adamw, [])):
        torch.manual_seed(0)
        home = folder / name
        runner = Runner(
            model=Model(),
            work_dir=str(home),
            train_dataloader={
                "batch_size": 2,
                "sampler": {"type": "DefaultSampler", "shuffle": True},
                "dataset": Data(),
            },
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper=wrapper,
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
            custom_hooks=hooks,
            log_level="ERROR",
            experiment_name=name,
        )
        runner.train()
        truth(home / "epoch_1.pth", runner.optim_wrapper.optimizer, runner.model)
        torch.save({key: value.clone() for key, value in runner.model.state_dict().items()}, home / "trained.pt")
        runner.save_checkpoint(str(home), "best_loss.pth", save_optimizer=False, save_param_scheduler=False)


def fastai(folder: Path) -> None:
    """The layout of `Learner.save`, with optimizers of its own: one group, two groups, one of them frozen."""
    from fastai.optimizer import SGD, Adam, OptimWrapper

    for name, make in (
        ("adam", lambda parts: Adam(parts[0] + parts[1], lr=0.1)),
        ("sgd", lambda parts: SGD(parts[0] + parts[1], lr=0.1, mom=0.9)),
        ("groups", lambda parts: Adam(parts, lr=slice(0.01, 0.1))),
        ("wrapped", lambda parts: OptimWrapper(parts[0] + parts[1], torch.optim.AdamW, lr=0.1)),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        optimizer = make([list(model[0].parameters()), [*model[1].parameters(), *model[2].parameters()]])
        if name == "groups":
            optimizer.set_hypers(lr=[0.01, 0.1])
        stepped(model, optimizer)
        path = folder / f"{name}.pth"
        torch.save({"model": model.state_dict(), "opt": optimizer.state_dict()}, path, pickle_protocol=2)
        if name == "wrapped":
            truth(path, optimizer.opt, model)
        else:
            state = {key: dict(optimizer.state[parameter]) for key, parameter in model.named_parameters()}
            torch.save(state, path.with_name(f"{path.name}.truth"))


def composer(folder: Path) -> None:
    """Its own trainer, whole and with weights alone."""
    from tests.rare.vision import declare

    declare()
    from composer import Trainer
    from composer.models import ComposerModel

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))

        def forward(self, batch: Any) -> torch.Tensor:
            return self.net(batch[0])

        def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            return outputs.square().sum()

    data = torch.utils.data.TensorDataset(torch.randn(8, 4))
    for name, alone in (("whole", False), ("weights", True)):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = Trainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=torch.utils.data.DataLoader(data, batch_size=2),
            max_duration="3ba",
            save_folder=str(folder / name),
            save_weights_only=alone,
            device="cpu",
            progress_bar=False,
        )
        trainer.fit()
        truth(folder / name / "latest-rank0.pt", optimizer, model)


def ultralytics(folder: Path) -> None:
    """A training run: its files as they were while it ran, and one stripped as they are when it has finished."""
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    from tests.rare.vision import declare

    declare()
    import numpy as np
    from PIL import Image
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import strip_optimizer

    for part in ("train", "val"):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / f"{index}.png")
            (folder / "labels" / part / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4")
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: a}}\n")
    for kind in ("SGD", "AdamW", "MuSGD"):

        def keep(trainer: Any, kind: str = kind) -> None:
            path = folder / f"{kind}.pt"
            path.write_bytes(Path(trainer.last).read_bytes())
            truth(path, trainer.optimizer, trainer.model)

        model = YOLO("yolov8n.yaml")
        model.add_callback("on_model_save", keep)
        # The evaluation after the last epoch wants torchvision's own operators; every file is written by then.
        with contextlib.suppress(RuntimeError, NotImplementedError):
            model.train(
                data=str(data), epochs=2, imgsz=32, batch=2, device="cpu", workers=0, optimizer=kind, plots=False,
                amp=False, project=str(folder / "runs"), name=kind, val=False, verbose=False,
            )  # fmt: skip
    (folder / "finished.pt").write_bytes((folder / "SGD.pt").read_bytes())
    strip_optimizer(str(folder / "finished.pt"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _, library, target = sys.argv
    try:
        {each.__name__: each for each in (timm, mmengine, fastai, composer, ultralytics)}[library](Path(target))
    except ImportError as error:
        sys.stdout.write(f"{library} cannot be imported: {error}\n")
        sys.exit(NOT_HERE)

"""Runs of other people's trainers, as small as they get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Learner(nn.Module):
    """A model in the manner of Hugging Face: it takes labels and returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch."""
        return {"loss": (self.layer(x) - labels).square().mean()}


def hugging_face(steps: int, resume: Path | None = None) -> Path:
    """The last checkpoint of a run of `transformers.Trainer` that saves after every step."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import PrinterCallback, Trainer, TrainingArguments

    torch.manual_seed(0)
    data: Any = [{"x": torch.ones(4), "labels": torch.zeros(4)}] * 8
    arguments = TrainingArguments(
        "out", max_steps=steps, save_steps=1, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
        use_cpu=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=Learner(), args=arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)  # a table of our own is being printed
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return Path("out") / f"checkpoint-{steps}"

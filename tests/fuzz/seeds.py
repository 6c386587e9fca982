"""Genuine files that the fuzz hurts: made by torch, safetensors, pickle and optstate themselves, tiny."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

import optstate


def files() -> dict[str, bytes]:
    """One file of each container, by what it is."""
    model, optimizer = _trained()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 2}
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    return {
        "torch zip": _saved(saved),
        "torch stream": _saved(saved, _use_new_zipfile_serialization=False),
        "pickle": pickle.dumps({"blobs": arrays, "lr": 0.1}, 4),
        "pickle of old": pickle.dumps({"blobs": arrays, "lr": 0.1}, 0),
        "safetensors": save(model.state_dict()),
    }


def parts(raw: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle of a torch zip, and its storages by key."""
    with zipfile.ZipFile(io.BytesIO(raw)) as opened:
        root = opened.namelist()[0].partition("/")[0]
        kept = {
            key.rpartition("/")[2]: opened.read(key) for key in opened.namelist() if key.startswith(f"{root}/data/")
        }
        return opened.read(f"{root}/data.pkl"), kept


def ours(folder: Path) -> dict[str, bytes]:
    """A checkpoint of ours, written to `folder` and read back file by file."""
    model, optimizer = _trained()
    optstate.save(folder, model=model, optimizer=optimizer, step=2)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def _saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()

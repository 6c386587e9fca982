"""M5xx in files and folders, and what the readers of other layouts tell."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from tests.faults.making import (
    State,
    adamw,
    contents,
    entries,
    fault,
    folder_fault,
    halving,
    net,
    save,
    scheduled,
    step,
    trained,
)


@fault("M501")
def state_of_a_step_with_no_gradient() -> State:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = trained(steps=0)
    get_optimizer_state_dict(model, optimizer)
    return contents(model, optimizer, at=None)


@fault("M503")
def a_group_that_lost_everything() -> State:
    model = net()
    step(model, optimizer := torch.optim.AdamW([{"params": list(each.parameters())} for each in model]), 3)
    saved = contents(model, optimizer)
    saved["optimizer"]["param_groups"][0] = {"params": saved["optimizer"]["param_groups"][0]["params"]}
    return saved


@folder_fault("M512")
def one_bit_flipped(folder: Path) -> Path:
    path = save(folder / "file.pt", adamw())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: ("/data/" in member.filename, member.file_size))
        place = path.read_bytes().index(archive.read(largest))
    raw = bytearray(path.read_bytes())
    raw[place + 5] ^= 64
    path.write_bytes(raw)
    return path


@folder_fault("M118")
def trainer_folder_without_its_optimizer(folder: Path) -> Path:
    """As the Hugging Face Trainer lays it out; its own folders are read in tests of that layout."""
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    save(folder / "pytorch_model.bin", net().state_dict())
    save(folder / "scheduler.pt", halving(trained()[1]).state_dict())
    return folder


@folder_fault("M522")
def trainer_folder_that_was_not_finished(folder: Path) -> Path:
    saved = scheduled(halving)
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "checkpoint-is-incomplete.txt").write_text("")
    save(folder / "pytorch_model.bin", saved["model"])
    save(folder / "scheduler.pt", saved["scheduler"])
    save(folder / "optimizer.pt", saved["optimizer"])
    return folder


@fault("M205")
def a_scheduler_without_its_optimizer() -> State:
    """As Lightning lays it out."""
    saved = scheduled(halving)
    return {
        "pytorch-lightning_version": "2.6.6",
        "global_step": 3,
        "epoch": 0,
        "loops": {},
        "state_dict": saved["model"],
        "optimizer_states": [saved["optimizer"]],
        "lr_schedulers": [saved["scheduler"]] * 2,
    }


def distributed(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """What `torch.distributed.checkpoint` writes in a single process."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    weights, state = get_state_dict(model, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        save_distributed({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)
    return folder


@folder_fault("M505", "M110")
def folder_of_a_state_with_gaps(folder: Path) -> Path:
    model = net()
    model[0].bias.requires_grad_(False)
    _, optimizer = trained(model=model, named=False)
    model[0].bias.requires_grad_(True)  # what is frozen while it is saved is left out altogether
    optimizer.zero_grad()
    return distributed(folder, model, optimizer)


@folder_fault("M513")
def folder_that_lost_a_shard(folder: Path) -> Path:
    distributed(folder, *trained(named=False))
    next(folder.glob("*.distcp")).write_bytes(b"")
    return folder


@fault("M303")
def moments_quantised_by_torch() -> State:
    saved = adamw()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor")
        for entry in entries(saved):
            entry["exp_avg"] = torch.quantize_per_tensor(entry["exp_avg"], 1e-5, 0, torch.qint8)
    return saved

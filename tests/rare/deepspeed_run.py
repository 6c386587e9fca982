"""Trains a few steps with DeepSpeed and saves; run by torchrun: `deepspeed_run.py FOLDER STAGE OPTIMIZER [OPTION...]`.

Beside the checkpoint lies `truth.pt`: what the running optimizer holds for each parameter, gathered from its ranks
without any of DeepSpeed's own code for checkpoints.
"""

from __future__ import annotations

import sys

import deepspeed
import torch
import torch.distributed as dist
from torch import nn


def main(folder: str, stage: int, kind: str, options: list[str]) -> None:
    """Train, save, and save the truth."""
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    if "frozen" in options:
        model[4].bias.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    kinds = {"AdamW": lambda: torch.optim.AdamW(groups, lr=1e-2), "SGD": lambda: torch.optim.SGD(groups, 1e-2, 0.9)}
    optimizer = kinds[kind]()
    zero = {"stage": stage}
    if "subgroups" in options:
        zero["sub_group_size"] = 16
    if "robin" in options:
        zero["round_robin_gradients"] = True
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for step in range(3):
        torch.manual_seed(100 * step + engine.global_rank)
        engine.backward(engine(torch.randn(2, 4).bfloat16()).float().square().sum())
        engine.step()
    engine.save_checkpoint(folder)
    truth = TRUTHS[stage](engine)
    if engine.global_rank == 0:
        torch.save(truth, f"{folder}/truth.pt")
    dist.barrier()
    dist.destroy_process_group()


def truth_0(engine) -> dict:
    """Without ZeRO every rank has everything; the optimizer's parameters are fp32 copies in the order of its groups."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    wrapped = engine.optimizer
    return {
        names[id(low)]: {**wrapped.optimizer.state[high], "fp32": high.detach()}
        for lows, highs in zip(wrapped.fp16_groups, wrapped.fp32_groups, strict=True)
        for low, high in zip(lows, highs, strict=True)
    }


def _gathered(flat: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, flat.detach().contiguous())
    return torch.cat(parts)


def truth_1_2(engine) -> dict:
    """A group's parameters lie end to end, and every rank has an equal part of the vector."""
    wrapped, truth = engine.optimizer, {}
    for index, flat in enumerate(wrapped.single_partition_of_fp32_groups):
        slots = {"fp32": flat, **wrapped.optimizer.state[flat]}
        whole = {key: _gathered(value) if value.ndim else value for key, value in slots.items()}
        start = 0
        for parameter in wrapped.round_robin_bit16_groups[index]:
            stop = start + parameter.numel()
            truth[wrapped.param_names[parameter]] = {
                key: value[start:stop].reshape(parameter.shape).clone() if value.ndim else value.clone()
                for key, value in whole.items()
            }
            start = stop
    return truth


def truth_3(engine) -> dict:
    """DeepSpeed's way of asking a running engine for one slot of one parameter."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    keys = [key for key in next(iter(engine.optimizer.optimizer.state.values())) if key != "step"]
    return {
        name: {
            "fp32": safe_get_full_fp32_param(parameter).clone(),
            **{key: safe_get_full_optimizer_state(parameter, key).clone() for key in keys},
        }
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


TRUTHS = {0: truth_0, 1: truth_1_2, 2: truth_1_2, 3: truth_3}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])

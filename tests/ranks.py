"""Checkpoints that two processes write together, with gloo on the CPU, and the truth that they gathered in the same run.

`python -m tests.ranks FOLDER KIND RANK PORT` is one of them; KIND is `torch`, `lightning` or `accelerate`. Everything goes
into a file or folder of its own, and beside each is `NAME.truth`: a dict of the model's weights and every slot by parameter
name, whole. `live` makes a pair of model and optimizer of it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

RANKS = 2


def net() -> nn.Module:
    """A model whose tensors do not divide evenly by two, one of them smaller than that, with a dot in its names."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    return nn.Sequential(inner, nn.Linear(3, 5, bias=False), nn.Linear(5, 1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Two groups with options of their own, in another order than the model's."""
    named = [(name.removeprefix("_fsdp_wrapped_module."), p) for name, p in model.named_parameters()]
    decay = [p for name, p in named if name in MATRICES]
    rest = [p for name, p in named if name not in MATRICES]
    groups = [{"params": rest, "weight_decay": 0.0, "lr": 0.02}, {"params": decay}]
    return torch.optim.AdamW(groups, lr=0.01, amsgrad=True)


MATRICES = ("0.0.weight", "1.weight", "2.weight")


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    """SGD over all parameters in one group."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


Make = Callable[[nn.Module], torch.optim.Optimizer]


def live(truth: dict[str, Any], make: Make) -> tuple[torch.optim.Optimizer, nn.Module]:
    """A model and an optimizer in one process, in the state that was gathered."""
    model = net()
    model.load_state_dict(truth["model"])
    optimizer = make(model)
    names = {id(p): name for name, p in model.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = {index: truth["state"][name] for index, name in enumerate(ordered) if name in truth["state"]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return optimizer, model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Callable[[int], torch.Tensor]) -> None:
    for step in range(3):
        optimizer.zero_grad()
        model(inputs(step)).square().sum().backward()
        optimizer.step()


def batch(step: int) -> torch.Tensor:
    torch.manual_seed(100 + 10 * step + dist.get_rank())
    return torch.randn(2, 4)


def whole(value: Any) -> Any:
    """A value of all ranks together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Rank:
    """One of the processes: where it writes, and how it tells the truth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank = dist.get_rank()

    def tell(self, name: str, model: dict[str, Any], state: dict[str, Any]) -> None:
        truth = {"model": {key: whole(value) for key, value in model.items()}, "state": state}
        if self.rank == 0:
            torch.save(truth, self.folder / f"{name}.truth")

    def dcp(self, name: str, content: dict[str, Any], **options: Any) -> None:
        state_dict_saver.save(content, checkpoint_id=self.folder / name, **options)

    def own(self, name: str, content: Any, file: str = "rank{}.pt") -> None:
        path = self.folder / name / file.format(self.rank)
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path)

    def full(self, name: str, content: Any) -> None:
        if self.rank == 0:
            torch.save(content, self.folder / name)
        else:
            torch.save(content, self.folder / f"{name}.from_rank_1")

    # --- FSDP2 ------------------------------------------------------------------------------------------

    def fsdp2(self, name: str, make: Make) -> None:
        """`fully_shard`: DTensors."""
        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
        optimizer = make(model)
        train(model, optimizer, batch)
        names = {id(p): key for key, p in model.named_parameters()}
        state = {names[id(p)]: {slot: whole(v) for slot, v in entry.items()} for p, entry in optimizer.state.items()}
        self.tell(name, model.state_dict(), state)
        for form, flat in (("nested", False), ("flattened", True)):
            weights, by_name = get_state_dict(
                model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat)
            )
            self.dcp(f"{name}.{form}", {"model": weights, "optimizer": by_name, "step": 3})
        self.dcp(f"{name}.raw", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        weights, by_name = get_state_dict(model, optimizer)
        # Each rank writes metadata of its own.
        self.dcp(f"{name}.alone", {"model": weights, "optimizer": by_name, "rank": self.rank}, use_collectives=False)
        self.own(f"{name}.ranks", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        weights, by_name = get_state_dict(
            model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        self.full(f"{name}.full.pt", {"model": weights, "optimizer": by_name})

    def columns(self, name: str, make: Make) -> None:
        """Tensor parallelism: matrices cut along their second dimension, vectors along the only one."""
        mesh, model = init_device_mesh("cpu", (RANKS,)), net()
        local = batch(0)
        gradients = torch.autograd.grad(model(local).square().sum(), list(model.parameters()))
        for (key, parameter), gradient in zip(list(model.named_parameters()), gradients, strict=True):
            module = model.get_submodule(key.rpartition(".")[0])
            cut = [Shard(parameter.dim() - 1)]
            sharded = nn.Parameter(distribute_tensor(parameter.detach(), mesh, cut))
            sharded.grad = distribute_tensor(gradient, mesh, cut)
            setattr(module, key.rpartition(".")[2], sharded)
        optimizer = make(model)
        optimizer.step()
        names = {id(p): key for key, p in model.named_parameters()}
        state = {names[id(p)]: {slot: whole(v) for slot, v in entry.items()} for p, entry in optimizer.state.items()}
        self.tell(name, model.state_dict(), state)
        self.dcp(f"{name}.raw", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        self.own(f"{name}.ranks", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "rank_{}.pt")

    # --- FSDP1 ------------------------------------------------------------------------------------------

    def fsdp1(self, name: str, make: Make, *, original: bool) -> None:
        """`FullyShardedDataParallel`: flat parameters, with or without the original ones as views."""
        model = FullyShardedDataParallel(net(), use_orig_params=original, device_id=torch.device("cpu"))
        optimizer = make(model)
        train(model, optimizer, batch)

        def kind(which: StateDictType) -> AbstractContextManager[Any]:
            return FullyShardedDataParallel.state_dict_type(model, which)

        with kind(StateDictType.FULL_STATE_DICT):
            weights, by_name = model.state_dict(), FullyShardedDataParallel.optim_state_dict(model, optimizer)
            self.tell(name, weights, self.joined_runs(model, optimizer, weights) if original else by_name["state"])
            self.full(f"{name}.full.pt", {"model": weights, "optimizer": by_name})
            # What goes wrong most often: the optimizer itself was asked.
            raw = optimizer.state_dict()
            self.own(f"{name}.runs", {"model": weights, "optimizer": raw}, "ckpt_rank{}.pt")
            self.own(f"{name}.flat", raw, "optim_world_size_2_rank_{}.pt")
        with kind(StateDictType.SHARDED_STATE_DICT):
            sharded, by_name = model.state_dict(), FullyShardedDataParallel.optim_state_dict(model, optimizer)
            self.dcp(f"{name}.dcp", {"model": sharded, "optimizer": by_name})
            self.own(f"{name}.ranks", sharded, "model_world_size_2_rank_{}.pt")
            self.own(f"{name}.ranks", by_name, "optim_world_size_2_rank_{}.pt")

    def joined_runs(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, torch.Tensor]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """The state by name, of the flat runs of all ranks.

        On the CPU torch's own full dict has one buffer for all slots of a parameter, each written over the last one.
        """
        ranks: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in range(RANKS)]
        dist.all_gather_object(ranks, optimizer.state_dict()["state"])
        names = {id(p): name.removeprefix("_fsdp_wrapped_module.") for name, p in model.named_parameters()}
        ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        found: dict[str, dict[str, list[torch.Tensor]]] = {name: {} for name in ordered}
        for rank in ranks:
            for index, entry in rank.items():
                for slot, value in entry.items():
                    found[ordered[index]].setdefault(slot, []).append(value)
        return {
            name: {
                slot: runs[0] if slot == "step" else torch.cat(runs).view(weights[name].shape)
                for slot, runs in entry.items()
            }
            for name, entry in found.items()
        }


def of_torch(one: Rank) -> None:
    """What torch itself writes."""
    one.fsdp2("fsdp2", adamw)
    one.fsdp2("fsdp2sgd", momentum)
    one.columns("columns", adamw)
    one.fsdp1("fsdp1", adamw, original=True)
    one.fsdp1("fsdp1flat", momentum, original=False)


def of_lightning(one: Rank) -> None:
    """Directories of Lightning's strategies. Its FSDP strategy wants a GPU unless it is a subclass and finds its model wrapped."""
    import lightning
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

    class Module(lightning.LightningModule):
        def __init__(self, *, original: bool) -> None:
            super().__init__()
            self.net, self.original = net(), original

        def configure_model(self) -> None:
            if self.original:
                self.net = FullyShardedDataParallel(self.net, use_orig_params=True, device_id=torch.device("cpu"))
            else:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.net(inputs).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.net)

    class Wrapped(FSDPStrategy):
        pass

    for name, strategy in (("parallel", ModelParallelStrategy()), ("wrapped", Wrapped(state_dict_type="sharded"))):
        trainer = lightning.Trainer(
            max_steps=3, accelerator="cpu", devices=RANKS, strategy=strategy,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = Module(original=name == "wrapped")
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=2))
        trainer.save_checkpoint(one.folder / f"{name}.ckpt")
        optimizer = trainer.optimizers[0]
        if name == "parallel":
            weights = {key.removeprefix("net."): value for key, value in module.state_dict().items()}
            names = {id(p): key for key, p in module.net.named_parameters()}
            state = {
                names[id(p)]: {slot: whole(v) for slot, v in entry.items()} for p, entry in optimizer.state.items()
            }
        else:
            with FullyShardedDataParallel.state_dict_type(module.net, StateDictType.FULL_STATE_DICT):
                weights = module.net.state_dict()
            state = one.joined_runs(module.net, optimizer, weights)
        one.tell(name, weights, state)


def of_accelerate(one: Rank) -> None:
    """What Accelerate's own functions write for FSDP2; an `Accelerator` with FSDP there is only on a GPU."""
    from accelerate import PartialState
    from accelerate.checkpointing import save_accelerator_state
    from accelerate.utils import fsdp_utils

    PartialState(cpu=True)  # which their log asks for
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = momentum(model)
    train(model, optimizer, batch)
    names = {id(p): key for key, p in model.named_parameters()}
    state = {names[id(p)]: {slot: whole(v) for slot, v in entry.items()} for p, entry in optimizer.state.items()}
    one.tell("accelerate", model.state_dict(), state)
    accelerator = SimpleNamespace(process_index=one.rank, num_processes=RANKS)
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=StateDictType.SHARDED_STATE_DICT, state_dict_config=None)
    for name, use_dcp in (("accelerate", True), ("accelerate_ranks", False)):
        folder = one.folder / name
        fsdp_utils.save_fsdp_model(plugin, accelerator, model, folder, use_dcp=use_dcp)
        fsdp_utils.save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder, use_dcp=use_dcp)
        save_accelerator_state(folder, [], [], [], [], one.rank, 3)


KINDS = {"torch": of_torch, "lightning": of_lightning, "accelerate": of_accelerate}


def main(folder: Path, kind: str, rank: str, port: str) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "WORLD_SIZE": str(RANKS)}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(rank), world_size=RANKS)
    KINDS[kind](Rank(folder))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

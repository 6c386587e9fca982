"""Random training set-ups, each built twice: as the run that is saved, and as the one that goes on from the save.

Run as a program it is the fresh process: `python resume_cases.py FOLDER --seed N --count N` restores every case in
FOLDER and writes what the continued runs did. Both sides build the same cases from the same seed; the second one
registers its modules, fills its groups and draws its weights in another order, as a changed program would.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import optstate

BEFORE, AFTER = 4, 3  # steps before the save, and compared after it

# Class → keyword arguments, one variant a row: every optimizer that takes dense gradients, and its flags.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True, "foreach": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "fused": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("Adam", {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1, "foreach": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.01, "foreach": True}),
    ("AdamW", {"lr": 0.01, "fused": True}),
    ("AdamW", {"lr": 0.01, "fused": True, "amsgrad": True}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "foreach": True, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.01}),
    ("Adagrad", {"lr": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("Adagrad", {"lr": 0.01, "fused": True}),
    ("Adadelta", {"lr": 1.0, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "foreach": True}),
    ("Rprop", {"lr": 0.01}),
    ("ASGD", {"lr": 0.01, "t0": 2.0, "lambd": 0.01}),
    ("Adafactor", {"lr": 0.01}),
    ("Muon+AdamW", {"lr": 0.01}),
    ("LBFGS", {"lr": 0.5, "max_iter": 3, "history_size": 2}),
)
SCHEDULERS = (None, "LambdaLR", "OneCycleLR", "CosineAnnealingWarmRestarts", "SequentialLR")


@dataclass(frozen=True)
class Case:
    """One set-up; a seed makes everything that is drawn in it."""

    seed: int
    optimizer: str
    arguments: dict[str, Any]
    dtype: str = "float32"
    tied: bool = False
    groups: int = 1
    tensor_lr: bool = False
    scheduler: str | None = None

    @property
    def label(self) -> str:
        """A short name for reports."""
        flags = [f"{key}={value}" for key, value in self.arguments.items() if key != "lr"]
        extra = [self.dtype, *(["tied"] if self.tied else []), f"groups={self.groups}", *filter(None, [self.scheduler])]
        return "-".join([self.optimizer, *flags, *extra, *(["tensor_lr"] if self.tensor_lr else [])])


def draw(seed: int, count: int) -> list[Case]:
    """`count` cases, every variant about equally often."""
    cases = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, arguments = VARIANTS[number % len(VARIANTS)]
        alone = name in ("LBFGS", "Muon+AdamW")
        plain = not (arguments.get("foreach") or arguments.get("fused"))
        # torch's Muon and LBFGS have no bfloat16 arithmetic worth comparing. Its fused SGD reads momentum that it has
        # not written yet when the elements have 16 bits (seen on 2.13, CPU), so that no two runs are the same.
        single = alone or (name == "SGD" and arguments.get("fused"))
        cases.append(
            Case(
                seed=number,
                optimizer=name,
                arguments=arguments,
                dtype="float32" if single else rng.choice(["float32", "float32", "bfloat16"]),
                tied=rng.random() < 0.4,
                groups=1 if alone else rng.choice([1, 2, 3]),
                tensor_lr=plain and not alone and rng.random() < 0.25,
                scheduler=None if alone or arguments.get("maximize") else rng.choice(SCHEDULERS),
            )
        )
    return cases


class Net(nn.Module):
    """Layers of equal shapes, registered in an order of their own; one is frozen and one is never used."""

    def __init__(self, order: list[str], tied: bool) -> None:
        super().__init__()
        parts = {
            "embed": nn.Embedding(7, 6),
            "first": nn.Linear(6, 6),
            "second": nn.Linear(6, 6),
            "norm": nn.BatchNorm1d(6),
            "frozen": nn.Linear(6, 6),
            "unused": nn.Linear(6, 6),
            "head": nn.Linear(6, 7, bias=False),
        }
        for name in order:
            self.add_module(name, parts[name])
        if tied:
            self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.first(self.embed(tokens)).tanh()
        x = nn.functional.dropout(x, 0.2)
        return self.head(self.norm(self.second(x) + self.frozen(x)))


PARTS = ["embed", "first", "second", "norm", "frozen", "unused", "head"]


class Run:
    """A case, built: `changed` builds it as the program that resumes."""

    def __init__(self, case: Case, changed: bool) -> None:
        rng = random.Random(f"{case.seed}/{changed}")
        torch.manual_seed(1000 * case.seed + changed)
        order = list(PARTS)
        if changed and case.optimizer != "LBFGS":
            rng.shuffle(order)
        self.case = case
        self.model = Net(order, case.tied).to(getattr(torch, case.dtype))
        self.optimizers = self._optimizers(rng if changed else None)
        self.scheduler = self._scheduler()

    def _optimizers(self, rng: random.Random | None) -> dict[str, torch.optim.Optimizer]:
        arguments = dict(self.case.arguments)
        if self.case.tensor_lr:
            arguments["lr"] = torch.tensor(arguments["lr"])
        parameters = {name: tensor for tensor, name in self._names().items()}
        if self.case.optimizer == "LBFGS":
            return {"": torch.optim.LBFGS([p for p in parameters.values() if p.requires_grad], **arguments)}
        if self.case.optimizer == "Muon+AdamW":
            matrices = [p for p in parameters.values() if p.ndim == 2]
            vectors = [p for p in parameters.values() if p.ndim != 2]
            return {
                "muon": torch.optim.Muon(matrices, **arguments),
                "adamw": torch.optim.AdamW(vectors, **arguments),
            }
        by_name = sorted(parameters)  # membership must not depend on the order of registration
        groups = [
            {
                "params": [parameters[name] for name in by_name[number :: self.case.groups]],
                "weight_decay": 0.01 * number,
            }
            if self.case.optimizer != "Rprop"
            else {"params": [parameters[name] for name in by_name[number :: self.case.groups]]}
            for number in range(self.case.groups)
        ]
        if rng is not None:
            for group in groups:
                rng.shuffle(group["params"])
            rng.shuffle(groups)
        return {"": getattr(torch.optim, self.case.optimizer)(groups, **arguments)}

    def _names(self) -> dict[torch.Tensor, str]:
        """Each parameter's name, the same whichever of a tied pair is registered first."""
        names = {tensor: name for name, tensor in self.model.named_parameters()}
        return {tensor: "embed.weight" if tensor is self.model.embed.weight else name for tensor, name in names.items()}

    def _scheduler(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        schedulers = torch.optim.lr_scheduler
        optimizer = next(iter(self.optimizers.values()))
        if self.case.scheduler == "LambdaLR":
            return schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        if self.case.scheduler == "OneCycleLR":
            cycle = "betas" in optimizer.defaults or bool(self.case.arguments.get("momentum"))
            return schedulers.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=cycle)
        if self.case.scheduler == "CosineAnnealingWarmRestarts":
            return schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=3)
        if self.case.scheduler == "SequentialLR":
            first = schedulers.LinearLR(optimizer, total_iters=3)
            return schedulers.SequentialLR(optimizer, [first, schedulers.ExponentialLR(optimizer, 0.9)], milestones=[3])
        return None

    @property
    def everything(self) -> dict[str, Any]:
        """What save and restore take."""
        single = self.optimizers.get("")
        objects = {} if self.scheduler is None else {"scheduler": self.scheduler}
        return {"model": self.model, "optimizer": single or self.optimizers, "rng": True, **objects}

    def train(self, start: int, steps: int) -> list[str]:
        """Train, and return a digest of everything after each step."""
        return [self._step(number) for number in range(start, start + steps)]

    def _step(self, number: int) -> str:
        tokens = torch.randint(0, 7, (8,), generator=torch.Generator().manual_seed(number))

        def closure() -> torch.Tensor:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(tokens).float(), tokens)
            loss.backward()
            return loss

        if self.case.optimizer == "LBFGS":
            self.optimizers[""].step(closure)
        else:
            closure()
            for optimizer in self.optimizers.values():
                optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return self.digest()

    def digest(self) -> str:
        """One digest over names, dtypes, shapes, strides and bytes of every weight, buffer and slot, and the RNG."""
        total = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
        for name, tensor in sorted(self.model.state_dict().items()):
            add(total, name, tensor)
        names = self._names()
        places = {
            names[parameter]: (optimizer, group, parameter)
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, (optimizer, group, parameter) in sorted(places.items(), key=lambda item: item[0]):
            total.update(repr([name, float(group["lr"]), group.get("betas"), group.get("momentum")]).encode())
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                add(total, f"{name}/{key}", value)
        return total.hexdigest()


def add(total: Any, name: str, value: Any) -> None:
    """Feed one value to a digest, so that no two different values feed the same bytes."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous().reshape(-1).view(torch.uint8)
        total.update(repr([name, str(value.dtype), tuple(value.shape), value.stride()]).encode())
        total.update(plain.numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            add(total, f"{name}[{number}]", item)
    else:
        total.update(repr([name, value]).encode())


def swap_two_buffers(run: Run) -> bool:
    """The negative control: exchange the momentum of two parameters of one shape. Says whether there were two."""
    state = optstate.attach(run.everything["optimizer"], run.model)
    pair = [state[name].find("momentum") for name in ("first.weight", "second.weight")]
    if pair[0] is None or pair[1] is None or torch.equal(pair[0].tensor, pair[1].tensor):
        return False
    kept = pair[0].tensor.clone()
    pair[0].tensor.copy_(pair[1].tensor)
    pair[1].tensor.copy_(kept)
    return True


def restore_and_continue(folder: Path, case: Case, *, swap: bool = False) -> dict[str, Any]:
    """Restore one case into a freshly built, changed program and train on."""
    run = Run(case, changed=True)
    plan = optstate.restore(folder / str(case.seed), **run.everything)
    swapped = swap and swap_two_buffers(run)
    return {
        "exact": plan.exact,
        "restored": run.digest(),
        "after": run.train(BEFORE, AFTER),
        "swapped": swapped,
        "plan": str(plan),
    }


def main() -> None:
    """The fresh process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's advice about schedulers; the parent's tests watch for ours
    results = {}
    for case in draw(options.seed, options.count):
        results[case.seed] = {
            "case": asdict(case),
            "resumed": restore_and_continue(options.folder, case),
            "swapped": restore_and_continue(options.folder, case, swap=True),
        }
    (options.folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

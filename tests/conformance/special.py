"""Trainings with something special beside the optimizer: one function each, whose docstring is its label."""

from __future__ import annotations

import importlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler, swa_utils

from optstate.proof.training import Training
from tests.conformance import programs as made
from tests.conformance.programs import Program
from tests.conformance.row import Row

SPECIAL: dict[str, Program] = {}
SLOW = {"compiled"}


def special(program: Program) -> Program:
    """Enter a program into the table."""
    SPECIAL[program.__name__] = program
    return program


def special_rows() -> list[Row]:
    """A row for each."""
    return [
        Row(
            "training",
            (each.__doc__ or "").rstrip("."),
            program=name,
            options=OPTIONS.get(name, {"lr": 0.01}),
            slow=name in SLOW,
        )
        for name, each in SPECIAL.items()
    ]


OPTIONS: dict[str, dict[str, Any]] = {"float16": {"lr": 0.01, "eps": 1e-4}}  # the usual eps is 0 in it
"""Options of AdamW in a row of these, where they are not the usual ones."""


def looped(training: Training, also: Any) -> Training:
    """A training whose step is followed by something else."""
    step = training.train_step

    def train_step() -> Any:
        loss = step()
        also(loss)
        return loss

    return Training(
        training.model, training.optimizer, train_step, training.scheduler, training.loader, training.objects
    )


def optimizer_in(training: Training) -> torch.optim.Optimizer:
    """The one optimizer."""
    assert isinstance(training.optimizer, torch.optim.Optimizer)
    return training.optimizer


# --- around the step ----------------------------------------------------------------------------------------


@special
def scaler(row: Row, changed: bool) -> Training:
    """GradScaler under autocast."""
    model, batches = made.Dense(changed), made.Batches()
    optimizer = made.optimizer_of(row, made.grouped(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3)  # too large at first: steps are skipped

    def train_step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = made.loss_of(model, batches.next())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches, objects={"scaler": scaler})


@special
def accumulation(row: Row, changed: bool) -> Training:
    """Gradients of three batches accumulated for a step."""
    model, batches = made.Dense(changed), made.Batches()
    optimizer = made.optimizer_of(row, made.grouped(model))

    def train_step() -> Tensor:
        optimizer.zero_grad()
        losses = torch.zeros(())
        for _ in range(3):
            loss = made.loss_of(model, batches.next()) / 3
            loss.backward()
            losses += loss.detach()
        optimizer.step()
        return losses

    return Training(model, optimizer, train_step, loader=batches)


def averaged(row: Row, changed: bool, buffers: bool) -> Training:
    model = made.Dense(changed)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=buffers)
    training = made.plain(row, model, objects={"average": average})
    return looped(training, lambda _loss: average.update_parameters(model))


@special
def ema(row: Row, changed: bool) -> Training:
    """Moving average of the weights."""
    return averaged(row, changed, buffers=False)


@special
def ema_with_buffers(row: Row, changed: bool) -> Training:
    """Moving average of weights and buffers."""
    return averaged(row, changed, buffers=True)


@special
def swa(row: Row, changed: bool) -> Training:
    """Stochastic weight averaging from step 6 on, with its own schedule."""
    model = made.Dense(changed)
    average = swa_utils.AveragedModel(model)
    training = made.plain(row, model)
    schedule = swa_utils.SWALR(optimizer_in(training), swa_lr=0.05, anneal_epochs=4)

    def after(_loss: Any) -> None:
        if training.loader.position > 5:
            average.update_parameters(model)
            schedule.step()

    whole = Training(model, training.optimizer, training.train_step, schedule, training.loader, {"average": average})
    return looped(whole, after)


@special
def compiled(row: Row, changed: bool) -> Training:
    """Model and step compiled."""
    model, batches = made.Dense(changed), made.Batches()
    optimizer = made.optimizer_of(row, made.grouped(model))
    compiled, update = torch.compile(model), torch.compile(optimizer.step)

    def train_step() -> Tensor:
        optimizer.zero_grad()
        loss = made.loss_of(compiled, batches.next())
        loss.backward()
        update()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches)


@special
def clipped(row: Row, changed: bool) -> Training:
    """Gradients clipped by their norm in a hook."""
    model = made.Dense(changed)
    training = made.plain(row, model)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    optimizer_in(training).register_step_pre_hook(clip)
    return training


@special
def not_yet(row: Row, changed: bool) -> Training:
    """No step before the save: the first steps only gather running statistics."""
    model, batches = made.Dense(changed), made.Batches()
    optimizer = made.optimizer_of(row, made.grouped(model))

    def train_step() -> Tensor:
        optimizer.zero_grad()
        loss = made.loss_of(model, batches.next())
        loss.backward()
        if batches.position > made.BEFORE:
            optimizer.step()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches)


# --- several optimizers, and which parameters they have -----------------------------------------------------


def pair(model: nn.Module, one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> Training:
    batches = made.Batches()

    def train_step() -> Tensor:
        loss = made.loss_of(model, batches.next())
        for each in (one, other):
            each.zero_grad()
        loss.backward()
        for each in (one, other):
            each.step()
        return loss.detach()

    return Training(model, {"muon": one, "adamw": other}, train_step, loader=batches)


@special
def several(row: Row, changed: bool) -> Training:
    """Two optimizers: Muon for matrices, AdamW for the rest."""
    model = made.Dense(changed)
    matrices = [each for each in model.parameters() if each.ndim == 2]
    rest = [each for each in model.parameters() if each.ndim != 2]
    return pair(model, torch.optim.Muon(matrices), made.optimizer_of(row, rest))


@special
def tied(row: Row, changed: bool) -> Training:
    """Two layers with one weight."""
    model = made.Dense(changed)
    model.add_module("again", nn.Linear(made.WIDTH, made.WIDTH))
    model.get_submodule("again").weight = model.get_submodule("first").weight
    model.get_submodule("norm").register_forward_pre_hook(lambda _, given: (model.get_submodule("again")(given[0]),))
    return made.plain(row, model)


@special
def frozen(row: Row, changed: bool) -> Training:
    """Frozen parameters in the optimizer."""
    model = made.Dense(changed)
    model.get_submodule("first").requires_grad_(False)
    return made.plain(row, model, groups=list(model.parameters()))


@special
def unused(row: Row, changed: bool) -> Training:
    """Parameters that never get a gradient."""
    model = made.Dense(changed)
    model.add_module("unused", nn.Linear(3, 3))
    return made.plain(row, model)


@special
def unfrozen(row: Row, changed: bool) -> Training:
    """Parameters unfrozen after the save."""
    return thawed(row, changed, made.BEFORE + 1)


@special
def unfrozen_before(row: Row, changed: bool) -> Training:
    """Parameters unfrozen before the save."""
    return thawed(row, changed, made.BEFORE - 2)


def thawed(row: Row, changed: bool, step: int) -> Training:
    """A layer that learns from a step on; its parameters are in the optimizer from the start."""
    model = made.Dense(changed)
    late = model.get_submodule("first")
    late.requires_grad_(False)
    training = made.plain(row, model, groups=list(model.parameters()))
    first = training.train_step

    def train_step() -> Any:
        late.requires_grad_(training.loader.position + 1 >= step)
        return first()

    return Training(model, training.optimizer, train_step, loader=training.loader)


@special
def added(row: Row, changed: bool) -> Training:
    """A param group added later."""
    model = made.Dense(changed)
    groups = made.grouped(model)
    training = made.plain(row, model, groups=groups[:1])
    optimizer_in(training).add_param_group({**groups[1], "lr": 0.02, "weight_decay": 0.0})
    return training


@special
def many_groups(row: Row, changed: bool) -> Training:
    """One group for each parameter, each with its own learning rate."""
    model = made.Dense(changed)
    named = sorted(model.named_parameters())
    groups = [{"params": [each], "lr": 0.01 / (1 + number)} for number, (_, each) in enumerate(named)]
    return made.plain(row, model, groups=groups)


@special
def not_all(row: Row, changed: bool) -> Training:
    """Half of the model in no optimizer."""
    model = made.Dense(changed)
    return made.plain(row, model, groups=made.grouped(model)[:1])


# --- what parameters are ------------------------------------------------------------------------------------


@special
def empty(row: Row, changed: bool) -> Training:
    """A parameter without elements."""
    model = made.Dense(changed)
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
    training = made.plain(row, model)
    nothing = model.get_parameter("nothing")
    optimizer_in(training).register_step_pre_hook(lambda *_: setattr(nothing, "grad", torch.zeros(0, 3)))
    return training


def cast(row: Row, changed: bool, dtype: torch.dtype) -> Training:
    return made.plain(row, made.Dense(changed).to(dtype))


@special
def bfloat16(row: Row, changed: bool) -> Training:
    """Parameters in bfloat16."""
    return cast(row, changed, torch.bfloat16)


@special
def float16(row: Row, changed: bool) -> Training:
    """Parameters in float16."""
    return cast(row, changed, torch.float16)


@special
def float64(row: Row, changed: bool) -> Training:
    """Parameters in float64."""
    return cast(row, changed, torch.float64)


@special
def mixed(row: Row, changed: bool) -> Training:
    """Parameters in bfloat16 beside others in float32."""
    model = made.Dense(changed)
    model.get_submodule("first").to(torch.bfloat16)
    model.get_submodule("first").register_forward_pre_hook(lambda _, given: (given[0].bfloat16(),))
    model.get_submodule("first").register_forward_hook(lambda _, given, result: result.float())
    return made.plain(row, model)


@special
def nadam_in_bfloat16(row: Row, changed: bool) -> Training:
    """NAdam on parameters in bfloat16: its products of β stay in float32."""
    return cast(Row("torch", "", "torch.optim.NAdam"), changed, torch.bfloat16)


@special
def wide_moments(row: Row, changed: bool) -> Training:
    """Adafactor's factors in float32 for parameters in bfloat16."""
    cast_row = Row("torch", "", "torch.optim.Adafactor")
    return cast(cast_row, changed, torch.bfloat16)


class Complex(nn.Module):
    """Complex weights."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        for name in ("second", "first") if changed else ("first", "second"):
            self.register_parameter(name, nn.Parameter(torch.randn(made.WIDTH, made.WIDTH, dtype=torch.complex64) / 8))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.get_parameter("first"), self.get_parameter("second")
        return nn.functional.dropout(((x.to(first.dtype) @ first) @ second).real, 0.1)


@special
def complex_numbers(row: Row, changed: bool) -> Training:
    """Complex parameters."""
    return made.plain(row, Complex(changed))


@special
def channels_last(row: Row, changed: bool) -> Training:
    """Kernels in channels-last memory."""
    return made.plain(row, made.Dense(changed).to(memory_format=torch.channels_last))


@special
def transposed(row: Row, changed: bool) -> Training:
    """Parameters that lie transposed in memory."""
    model = made.Dense(changed)
    for name in ("first", "second"):
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return made.plain(row, model)


@special
def views(row: Row, changed: bool) -> Training:
    """Parameters that share one block of memory."""
    model = made.Dense(changed)
    block = torch.randn(2, made.WIDTH, made.WIDTH) / 8
    for number, name in enumerate(("first", "second")):
        model.get_submodule(name).weight = nn.Parameter(block[number])
    return made.plain(row, model)


@special
def parametrised(row: Row, changed: bool) -> Training:
    """Weight normalisation by a parametrisation."""
    model = made.Dense(changed)
    parametrizations.weight_norm(model.get_submodule("first"))
    return made.plain(row, model)


@special
def spectral(row: Row, changed: bool) -> Training:
    """Spectral normalisation, whose vectors are buffers."""
    model = made.Dense(changed)
    parametrizations.spectral_norm(model.get_submodule("first"))
    return made.plain(row, model)


@special
def scalar(row: Row, changed: bool) -> Training:
    """A parameter without dimensions."""
    model = made.Dense(changed)
    model.register_parameter("gain", nn.Parameter(torch.tensor(1.0)))
    model.register_forward_hook(lambda module, given, result: result * module.get_parameter("gain"))
    return made.plain(row, model)


# --- how it is computed, changed at the save ----------------------------------------------------------------


def switched(row: Row, changed: bool, options: dict[str, Any], flags: dict[str, Any]) -> Training:
    """A training whose implementation is another one from the step after the save on."""
    training = made.plain(Row(row.library, row.label, row.optimizer, {**row.options, **options}), made.Dense(changed))
    step = training.train_step

    def train_step() -> Any:
        if training.loader.position >= made.BEFORE:
            for group in optimizer_in(training).param_groups:
                group.update(flags)
        return step()

    return Training(training.model, training.optimizer, train_step, loader=training.loader)


@special
def loop_to_foreach(row: Row, changed: bool) -> Training:
    """From the loop over parameters to foreach at the save."""
    return switched(row, changed, {"foreach": False}, {"foreach": True})


@special
def foreach_to_fused(row: Row, changed: bool) -> Training:
    """From foreach to fused at the save."""
    return switched(row, changed, {"foreach": True}, {"foreach": False, "fused": True})


@special
def fused_to_loop(row: Row, changed: bool) -> Training:
    """From fused to the loop over parameters at the save."""
    return switched(row, changed, {"fused": True}, {"foreach": False, "fused": False})


# --- data and schedules -------------------------------------------------------------------------------------


@special
def other_generators(row: Row, changed: bool) -> Training:
    """Data that draws from Python's and NumPy's generators."""
    model, batches = made.Dense(changed), made.Batches()
    optimizer = made.optimizer_of(row, made.grouped(model))

    def train_step() -> Tensor:
        optimizer.zero_grad()
        loss = made.loss_of(model, batches.next() * (0.5 + random.random()) + np.random.rand())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches)


def loaded(row: Row, changed: bool, **options: Any) -> Training:
    """Batches of a StatefulDataLoader, five in a shuffled epoch."""
    loaders: Any = importlib.import_module("torchdata.stateful_dataloader")
    model = made.Dense(changed)
    optimizer = made.optimizer_of(row, made.grouped(model))
    data = torch.randn(5 * made.ROWS, made.WIDTH, generator=torch.Generator().manual_seed(7))
    loader = loaders.StatefulDataLoader(data, batch_size=made.ROWS, shuffle=True, **options)
    epoch: list[Any] = []

    def batch() -> Tensor:
        while True:
            if not epoch:
                epoch.append(iter(loader))
            found: Tensor | None = next(epoch[0], None)
            if found is not None:
                return found
            epoch.clear()

    def train_step() -> Tensor:
        optimizer.zero_grad()
        loss = made.loss_of(model, batch())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=loader)


@special
def stateful_loader(row: Row, changed: bool) -> Training:
    """StatefulDataLoader in the middle of an epoch, with a generator of its own."""
    return loaded(row, changed, generator=torch.Generator().manual_seed(3))


@special
def stateful_loader_of_torch(row: Row, changed: bool) -> Training:
    """StatefulDataLoader in the middle of an epoch, with torch's generator."""
    return loaded(row, changed)


def scheduled(row: Row, changed: bool, cls: type[Any], *arguments: Any, **options: Any) -> Training:
    training = made.plain(row, made.Dense(changed))
    schedule = cls(optimizer_in(training), *arguments, **options)
    step = schedule.step if cls is lr_scheduler.ReduceLROnPlateau else lambda _loss: schedule.step()
    return looped(Training(training.model, training.optimizer, training.train_step, schedule, training.loader), step)


@special
def one_cycle(row: Row, changed: bool) -> Training:
    """OneCycleLR, which moves the momentum too."""
    return scheduled(row, changed, lr_scheduler.OneCycleLR, 0.1, total_steps=20)


@special
def cosine(row: Row, changed: bool) -> Training:
    """CosineAnnealingLR."""
    return scheduled(row, changed, lr_scheduler.CosineAnnealingLR, 20)


@special
def warm_restarts(row: Row, changed: bool) -> Training:
    """CosineAnnealingWarmRestarts."""
    return scheduled(row, changed, lr_scheduler.CosineAnnealingWarmRestarts, 5)


@special
def plateau(row: Row, changed: bool) -> Training:
    """ReduceLROnPlateau."""
    return scheduled(row, changed, lr_scheduler.ReduceLROnPlateau, patience=1, threshold=0.5)


@special
def cyclic(row: Row, changed: bool) -> Training:
    """CyclicLR."""
    return scheduled(row, changed, lr_scheduler.CyclicLR, 0.001, 0.1, step_size_up=3)


@special
def exponential(row: Row, changed: bool) -> Training:
    """ExponentialLR."""
    return scheduled(row, changed, lr_scheduler.ExponentialLR, 0.9)

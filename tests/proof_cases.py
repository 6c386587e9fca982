"""Trainings to prove, and ways to restore them that leave one thing out. Fresh processes import this file."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optstate.proof.training import Training

# --- everything that a training can hold --------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its calls in a buffer that no state dict has, and keeps a number that is no tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.temperature = 1.0

    def forward(self, x):
        if self.training:
            self.seen.add_(1)
            self.temperature *= 0.99
        return x * self.temperature + 0.001 * self.seen

    def get_extra_state(self):
        return self.temperature

    def set_extra_state(self, state):
        self.temperature = state


class Loader:
    """Endless batches in an order of its own; knows where it is."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(self.position))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Noise:
    """A generator of the program's own."""

    def __init__(self):
        self.generator = np.random.default_rng(7)

    def state_dict(self):
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state):
        self.generator.bit_generator.state = state["generator"]


def seed():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)


def full(*, accumulate=False):
    """A training with every component that can be lost."""
    seed()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), Counting(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=3)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    loader, noise = Loader(), Noise()

    def train_step():
        drawn = random.random() + np.random.rand() + noise.generator.random()
        batch = next(loader) + 0.1 * drawn + 0.1 * torch.randn(6)
        if not accumulate:
            optimizer.zero_grad()
        loss = model(batch).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        average.update_parameters(model)
        if accumulate:
            for parameter in model.parameters():
                parameter.grad.mul_(0.5)
        return loss

    objects = {"average": average, "scaler": scaler, "noise": noise}
    return Training(model, optimizer, train_step, scheduler=scheduler, loader=loader, objects=objects)


def save(training, path):
    """All of it, the plain way."""
    torch.save(
        {
            "model": training.model.state_dict(),
            "seen": training.model[3].seen,
            "optimizer": training.optimizer.state_dict(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "gradients": [parameter.grad for parameter in training.model.parameters()],
            **{name: item.state_dict() for name, item in training.saved().items()},
        },
        path,
    )


def load(without, training, path):
    """All of it but what `without` names."""
    saved = torch.load(path, weights_only=False)
    if without is not None:
        LEFT_OUT[without](saved)
    if "model" in saved:
        own = training.model.state_dict()
        training.model.load_state_dict({**own, **saved["model"]})
    if "seen" in saved:
        training.model[3].seen.copy_(saved["seen"])
    if "optimizer" in saved:
        training.optimizer.load_state_dict(saved["optimizer"])
    setters = {"python": random.setstate, "numpy": np.random.set_state, "torch": torch.set_rng_state}
    for name, item in training.saved().items():
        if name in saved:
            item.load_state_dict(saved[name])
    if "gradients" in saved:
        for parameter, gradient in zip(training.model.parameters(), saved["gradients"], strict=True):
            parameter.grad = gradient
    for name, put in setters.items():
        if name in saved:
            put(saved[name])


def without_key(key):
    return lambda saved: saved.pop(key)


def without_weights(*names):
    def leave_out(saved):
        for name in [name for name in saved["model"] if name.endswith(names)]:
            del saved["model"][name]

    return leave_out


def without_slot(key):
    def leave_out(saved):
        for entry in saved["optimizer"]["state"].values():
            del entry[key]

    return leave_out


def counts_from_zero(saved):
    for entry in saved["optimizer"]["state"].values():
        entry["step"] = torch.zeros(())


def momentum_from_zero(saved):
    for entry in saved["optimizer"]["state"].values():
        entry["exp_avg"].zero_()


def fresh_groups(saved):
    saved["optimizer"]["param_groups"] = full().optimizer.state_dict()["param_groups"]


def swap(saved):
    one, other = (saved["optimizer"]["state"][number] for number in (1, 2))
    one["exp_avg"], other["exp_avg"] = other["exp_avg"], one["exp_avg"]


LEFT_OUT = {
    "weights": without_weights("weight", "bias"),
    "running statistics": without_weights("running_mean", "running_var"),
    "number of batches": without_weights("num_batches_tracked"),
    "module state": without_weights("_extra_state"),
    "buffer outside the state dict": without_key("seen"),
    "optimizer state": lambda saved: saved["optimizer"]["state"].clear(),
    "momentum": momentum_from_zero,
    "second moment": without_slot("exp_avg_sq"),
    "maximum of it": without_slot("max_exp_avg_sq"),
    "step counts": counts_from_zero,
    "hyperparameters": fresh_groups,
    "names": swap,
    "scheduler": without_key("scheduler"),
    "average": without_key("average"),
    "scaler": without_key("scaler"),
    "own generator": without_key("noise"),
    "python RNG": without_key("python"),
    "numpy RNG": without_key("numpy"),
    "torch RNG": without_key("torch"),
    "position in the data": without_key("loader"),
    "gradients": without_key("gradients"),
}
"""What a restore can leave out, and how it is left out."""


# --- small ones, with one thing wrong -----------------------------------------------------------------------


def small(train=None, **also):
    """A linear model under AdamW that learns from noise."""
    seed()
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def train_step():
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Training(model, optimizer, train_step if train is None else partial(train, model, optimizer), **also)


def without_any_seed():
    training = small()
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    nn.init.normal_(training.model.weight)
    return training


def draws_unseeded():
    training = small()
    random.seed()
    step = training.train_step

    def train_step():
        random.random()
        return step()

    return Training(training.model, training.optimizer, train_step)


def raises_in_build():
    raise ValueError("no such corpus \x1b[2J")


def raises_in_step():
    def train(model, optimizer):
        raise ValueError("NaN in the data")

    return small(train)


def opens_a_file():
    Path("beside.txt").read_text()


def returns_nothing():
    small()


def returns_a_tuple():
    return small().model, small().optimizer


def never_gets_data():
    def train(model, optimizer):
        for batch in list[torch.Tensor]():
            model(batch)

    return small(train)


def runs_out_of_data():
    batches = iter(torch.randn(6, 5, 4))

    def train(model, optimizer):
        optimizer.zero_grad()
        model(next(batches)).sum().backward()
        optimizer.step()

    return small(train)


def returns_no_loss():
    def train(model, optimizer):
        model.weight.data.add_(1)
        return {"loss": 1.0}

    return small(train)


def exits():
    raise SystemExit(3)


def names_an_object_badly():
    return small(objects={"weights": Loader()})


def order_of_a_set():
    """The order of a set of names is another in each interpreter."""
    seed()
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    named = dict(model.named_parameters())
    return Training(model, torch.optim.SGD([named[name] for name in set(named)], lr=0.1), lambda: None)


def opens_a_file_beside():
    Path("proof_cases.py").read_text()


def never_ends():
    time.sleep(10_000)


def dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def nothing_to_flip():
    class Empty(nn.Module):
        def forward(self, x):
            return x

    seed()
    model = Empty()
    optimizer = torch.optim.SGD([torch.zeros(0, requires_grad=True)], lr=0.1)
    counter = Loader()
    return Training(model, optimizer, lambda: next(counter).sum(), loader=counter)


def hidden_position():
    """The place in the data is in a variable that nothing saves."""
    batches = (torch.randn(5, 4, generator=torch.Generator().manual_seed(number)) for number in itertools.count())

    def train(model, optimizer):
        optimizer.zero_grad()
        loss = model(next(batches)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return small(train)


def hidden_variable():
    """A factor of the loss is in a variable that nothing saves; the batches are right."""
    factor = [1.0]

    def train(model, optimizer):
        factor[0] *= 0.9
        optimizer.zero_grad()
        loss = factor[0] * model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return small(train)


def hidden_rate():
    """A factor of the gradients is in a variable that nothing saves: batch and loss are right."""
    factor = [1.0]

    def train(model, optimizer):
        factor[0] *= 0.9
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad.mul_(factor[0])
        optimizer.step()
        return loss

    return small(train)


def another_each_time():
    """Steps that add what no seed decides."""

    def train(model, optimizer):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        model.weight.grad += int.from_bytes(os.urandom(2), "big") / 2**20
        optimizer.step()

    return small(train)


def order_of_threads():
    """Computes otherwise unless torch is asked to be deterministic."""

    def train(model, optimizer):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        if not torch.are_deterministic_algorithms_enabled():
            model.weight.grad += int.from_bytes(os.urandom(2), "big") / 2**20
        optimizer.step()
        return loss

    return small(train)


def uses_put():
    """Uses an operator that has no deterministic implementation."""

    def train(model, optimizer):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        noise = torch.tensor([int.from_bytes(os.urandom(2), "big") / 2**20])
        model.weight.grad.put_(torch.tensor([0]), noise)
        optimizer.step()

    return small(train)


def save_and_disturb(training, path):
    """Saves, and draws a random number doing so."""
    save_plainly(training, path)
    torch.randn(1)


def save_plainly(training, path):
    torch.save([training.model.state_dict(), training.optimizer.state_dict(), torch.get_rng_state()], path)


def load_plainly(training, path):
    model, optimizer, state = torch.load(path)
    training.model.load_state_dict(model)
    training.optimizer.load_state_dict(optimizer)
    torch.set_rng_state(state)


def load_nothing(training, path):
    """Weights and nothing else, as many scripts do."""
    training.model.load_state_dict(torch.load(path)[0])


def load_and_raise(training, path):
    raise RuntimeError("size mismatch")


def load_transposed(training, path):
    """The right values, laid out otherwise in memory."""
    load_plainly(training, path)
    for entry in training.optimizer.state.values():
        if entry["exp_avg"].ndim == 2:
            entry["exp_avg"] = entry["exp_avg"].t().contiguous().t()

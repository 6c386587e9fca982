"""A trial: an edit, judged by what a user's function says before and after it, with everything else put back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.source import LiveSource
from optstate.live.tensors import is_quantised
from optstate.live.transaction import Transaction
from optstate.live.unwrap import walk
from optstate.state.change import Change
from optstate.state.slot import format_number
from optstate.text import safe_text

Keep = bool | Literal["if better"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial found: the value before and after the edit, whether the edit was kept, and what it changed.

    >>> def loss():
    ...     return model(torch.ones(1, 4)).square().sum().item()
    >>> trial = state.trial(loss, lambda edit: edit.select("*").momentum.scale_(0.5), keep=False)
    >>> trial.before == trial.after, trial.kept
    (True, False)
    """

    before: float
    after: float
    kept: bool
    change: Change

    def __str__(self) -> str:
        kept = "kept" if self.kept else "undone"
        return f"{format_number(self.before)} before, {format_number(self.after)} after: {kept}\n{self.change}"

    __repr__ = __str__


def is_kept(keep: Keep, before: float, after: float) -> bool:
    """Whether an edit stays; a lower value is better, and one that is not finite is never."""
    if keep == "if better":
        return isfinite(after) and after < before
    if isinstance(keep, bool):
        return keep
    raise EditError("keep is neither True, False nor 'if better'", found=safe_text(repr(keep), 40))


def evaluated(evaluate: Callable[[], Any], source: LiveSource) -> float:
    """What `evaluate()` returns, as a float; whatever it did to model, optimizers and random numbers is undone."""
    with put_back(source):
        value = evaluate()
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise EditError(
            "a trial is judged by one number",
            expected="evaluate() to return a float, such as a loss; lower is better",
            found=f"a {safe_text(type(value).__name__)}",
        ) from None


@contextmanager
def put_back(source: LiveSource) -> Iterator[None]:
    """Put weights, buffers, gradients, modes, optimizer state, hyperparameters and random numbers back, bit by bit."""
    transaction = Transaction()
    modules = [module for _, module in walk(source.model)]
    modes = [module.training for module in modules]
    tensors = _tensors(modules, source)
    gradients = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]
    _keep(transaction, [*tensors, *(gradient for _, gradient in gradients)])
    for optimizer in source.live_optimizers.values():
        _keep_state(optimizer, transaction)
    numbers = random_numbers()
    try:
        yield
    finally:
        transaction.rollback()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for tensor, gradient in gradients:
            tensor.grad = gradient
        numbers()


def _tensors(modules: list[nn.Module], source: LiveSource) -> list[torch.Tensor]:
    """Parameters and buffers of the model, and parameters that only an optimizer has."""
    found = [tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())]
    found += [
        tensor
        for optimizer in source.live_optimizers.values()
        for group in optimizer.param_groups
        for tensor in group["params"]
    ]
    return _distinct([tensor for tensor in found if tensor is not None])


def _distinct(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _keep_state(optimizer: torch.optim.Optimizer, transaction: Transaction) -> None:
    for group in optimizer.param_groups:
        _keep(transaction, [value for key, value in group.items() if key != "params"])
        for parameter in group["params"]:
            transaction.before_entry(optimizer, parameter)
            _keep(transaction, list(optimizer.state.get(parameter, {}).values()))
    transaction.before_groups(optimizer)


def _keep(transaction: Transaction, values: list[Any]) -> None:
    """Keep what tensors among the values hold; a sparse one, which a step gives other indices, as a whole."""
    for tensor in _distinct([tensor for value in values for tensor in _inside(value)]):
        if tensor.layout is torch.sparse_coo:
            transaction.on_rollback(_copier(tensor, tensor.detach().clone()))
        else:
            transaction.before_write([tensor])


def _copier(tensor: torch.Tensor, before: torch.Tensor) -> Callable[[], None]:
    def put_back() -> None:
        with torch.no_grad():
            tensor.copy_(before)

    return put_back


def _inside(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a slot is made of: itself, those of a list, the parts of one in codes."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, torch.Tensor):
        if is_quantised(value):
            for name in value.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
                yield from _inside(getattr(value, name))
        else:
            yield value


def random_numbers() -> Callable[[], None]:
    """The state of every generator of random numbers that a step may draw from; calling it puts them back."""
    plain, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore() -> None:
        random.setstate(plain)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_devices:
            torch.cuda.set_rng_state_all(of_devices)

    return restore

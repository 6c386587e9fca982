"""A pass over batches at frozen weights: gradients are looked at, and everything is as it was before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.measuring import real, square
from optstate.live.readout import Readout
from optstate.live.source import LiveSource
from optstate.live.stamp import Stamp
from optstate.live.stepping import is_stepping
from optstate.live.trial import random_numbers
from optstate.live.unwrap import walk
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import number
from optstate.text import listing, safe_text

_SPOTS = 64
"""Elements of each weight by which a write is noticed that torch does not count, as one through `.data`."""

_NAMES = 4


class Look(Protocol):
    """Takes the gradients of one batch, by name, as the optimizer's moments would take them, and the sums of their squares."""

    def __call__(self, gradients: Mapping[str, torch.Tensor], squares: Mapping[str, float], /) -> None: ...


def whole_batches(batches: Any) -> int:
    """How many batches were asked for. Raises `EditError` where that is no number of batches."""
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise EditError(
            "nothing is measured on this many batches", expected="batches=1 or more", found=safe_text(repr(batches), 40)
        )
    return batches


def plural(batches: int) -> str:
    """So many batches, in words."""
    return "1 batch" if batches == 1 else f"{batches:,} batches"


def look_at(source: LiveSource, closure: Callable[[], Any], batches: int, look: Look) -> None:
    """Call `closure` so many times, each time with no gradients, and have each batch's gradients looked at.

    Gradients are given as the optimizer uses them: turned round where it maximizes, with the weight decay that goes
    through them, dense, and complex ones as pairs. A parameter without a gradient is not among them.

    Weights stay as they are, and are never copied. Buffers, modes, gradients and random numbers are put back bit by bit,
    however this ends.

    Raises `EditError` for a closure that steps, writes to weights or to the optimizer, or leaves no gradient, or one that
    is not finite: by the name of the parameter.
    """
    if not callable(closure):
        raise EditError(
            "there is nothing to call",
            expected="a closure that computes the loss of a batch and calls backward()",
            found=f"a {safe_text(type(closure).__name__)}",
        )
    if any(is_stepping(optimizer) for optimizer in source.live_optimizers.values()):
        raise EditError("the optimizer is in the middle of a step", todo="measure between steps")
    if not source.model.training:
        warnings.warn(
            "the model is in eval mode, so its gradients are not those of training: call model.train() first",
            UserWarning,
            stacklevel=4,
        )
    whole_batches(batches)
    bounds = list(source.bind().parameters())
    with _put_back(source), _not_stepping(source), torch.enable_grad():
        watch = _Watch(source, bounds)
        for batch in range(batches):
            _forget_gradients(source.model, bounds)
            closure()
            watch.check()
            look(*_gradients(source, bounds, batch))
        watch.check_all()


# --- what comes back ------------------------------------------------------------------------------------------


@contextmanager
def _put_back(source: LiveSource) -> Iterator[None]:
    """Put buffers, modes, gradients and random numbers back."""
    modules = [module for _, module in walk(source.model)]
    modes = [module.training for module in modules]
    buffers = [tensor for module in modules for tensor in module._buffers.values() if tensor is not None]
    before = [(buffer, buffer.detach().clone()) for buffer in {id(each): each for each in buffers}.values()]
    named = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    gradients = [(tensor, tensor.grad) for tensor in _leaves(source)]
    numbers = random_numbers()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for live, kept in named:
            live.update(kept)
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)
        for tensor, gradient in gradients:
            tensor.grad = gradient
        numbers()


def _leaves(source: LiveSource) -> list[torch.Tensor]:
    """Every tensor that may get a gradient: of the model, and of the optimizers."""
    found: list[torch.Tensor] = []
    for _, module in walk(source.model):
        found += [each for each in module._parameters.values() if each is not None]
    found += [bound.tensor for bound in source.bind().parameters()]
    return list({id(tensor): tensor for tensor in found}.values())


def _forget_gradients(model: nn.Module, bounds: Sequence[Bound]) -> None:
    for _, module in walk(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.grad = None
    for bound in bounds:
        bound.tensor.grad = None


# --- what must not happen -------------------------------------------------------------------------------------


@contextmanager
def _not_stepping(source: LiveSource) -> Iterator[None]:
    """Refuse a step before it writes anything."""

    def refuse(*_: Any) -> NoReturn:
        raise EditError(
            "the closure steps the optimizer, and weights are to stay as they are",
            expected="forward and backward only",
            todo="leave optimizer.step() out of it; it changed nothing",
        )

    hooks = [optimizer.register_step_pre_hook(refuse) for optimizer in source.live_optimizers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    """Notices a write to weights or to the optimizer: most of them after each batch, any other in the end."""

    def __init__(self, source: LiveSource, bounds: Sequence[Bound]) -> None:
        self._bounds = bounds
        self._weights = [self._mark(bound) for bound in bounds]
        self._spots = [_spots(bound.tensor) for bound in bounds]
        self._state = Stamp(None, source, {})

    def check(self) -> None:
        """Raise `EditError` where torch has counted a write to a weight since the beginning."""
        for bound, before in zip(self._bounds, self._weights, strict=True):
            if self._mark(bound) != before:
                raise self._written(bound)

    def check_all(self) -> None:
        """The same for writes that torch does not count, and to the optimizer."""
        for bound, spots in zip(self._bounds, self._spots, strict=True):
            if not torch.equal(_spots(bound.tensor), spots):
                raise self._written(bound)
        changed = self._state.changed()
        if changed is not None:
            raise EditError(
                "the closure changes the optimizer", expected="forward and backward only", found=safe_text(changed)
            )

    @staticmethod
    def _mark(bound: Bound) -> tuple[int, int]:
        return bound.tensor._version, bound.tensor.data_ptr()

    @staticmethod
    def _written(bound: Bound) -> EditError:
        return EditError(
            f"the closure writes to {safe_text(bound.name)}, and weights are to stay as they are",
            expected="forward and backward only",
            todo="restore the weights: they are as the closure left them, and no copy was kept",
        )


def _spots(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a few elements, evenly spread."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[..., :1].reshape(-1)
    spots = flat[:: max(flat.numel() // _SPOTS, 1)].clone()
    return spots.view(torch.uint8) if spots.dim() and not spots.is_complex() else torch.view_as_real(spots)


# --- gradients ------------------------------------------------------------------------------------------------


def _gradients(
    source: LiveSource, bounds: Sequence[Bound], batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    found = [(bound, gradient) for bound in bounds if (gradient := bound.tensor.grad) is not None]
    if not found:
        raise EditError(
            f"batch {batch + 1} left no gradient on any parameter",
            where=listing([bound.name for bound in bounds], _NAMES),
            expected="a closure that calls backward() on the loss of these parameters",
            found="a closure without backward, frozen parameters, or another model",
        )
    readout = Readout()
    with torch.no_grad():
        gradients = {bound.name: _as_used(source, bound, gradient) for bound, gradient in found}
        for gradient in gradients.values():
            readout.ask(square(gradient.reshape(-1)))
    squares = {name: sums[0] for name, sums in zip(gradients, readout.fetch(), strict=True)}
    wrong = [name for name, each in squares.items() if not each < torch.inf]
    if wrong:
        raise EditError(
            f"batch {batch + 1} left gradients that are not finite, or too large to be squared",
            where=listing(wrong, _NAMES),
            todo="leave out batches that overflow; where a GradScaler scales the loss, unscale the gradients in the closure",
        )
    return gradients, squares


def _as_used(source: LiveSource, bound: Bound, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient as moments take it, in a type that sums can be made in."""
    optimizer = source.live_optimizers[bound.optimizer]
    group, spec = optimizer.param_groups[bound.group], by_class(type(optimizer))
    gradient = gradient.detach()
    gradient = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    if group.get("maximize"):
        gradient = -gradient
    decay = coupled_decay(spec, group)
    if decay:
        gradient = gradient.add(bound.tensor.detach(), alpha=decay)
    return real(gradient.reshape(-1)).reshape(real_shape(bound.tensor))


def coupled_decay(spec: Any, group: Mapping[str, Any]) -> float:
    """The weight decay that goes through gradients, and so into moments; 0 where it shrinks weights beside them."""
    decay = number(group.get("weight_decay", 0.0)) or 0.0
    if spec is None or spec.decoupled is True or (spec.decoupled and group.get(spec.decoupled)):
        return 0.0
    return decay


def real_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a tensor with complex numbers as pairs."""
    return (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)

"""A tiny optimizer to experiment on, cut off from everything else in the process.

The gradients are given, not computed, and the parameters are put back after every step, so that slots depend on the
gradients and the learning rate alone. Gradients are near 2^40: an epsilon or a weight decay is lost in rounding, and
a power of two scales every number exactly.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from optstate.optimizers.probe_report import Gradients
from optstate.optimizers.registry import beneath_hooks

MATRIX = (4, 3)
"""The shape that every optimizer takes."""
_GRADIENT = 2.0**40


@dataclass(frozen=True)
class Rig:
    """How to build and step one class: its options, the shapes of its parameters, the kind of its gradients."""

    cls: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    gradients: Gradients

    def gradient(self, seed: int, scale: float = 1.0) -> list[Tensor]:
        """One tensor per parameter, of both signs; another seed gives other sizes but the same signs."""
        return [_values(shape, seed) * (_GRADIENT * scale) for shape in self.shapes]

    def zero(self) -> list[Tensor]:
        """A gradient that is there but zero."""
        return self.gradient(1, scale=0.0)


class Trial:
    """One optimizer over parameters of its own. Each trial sees the same random numbers.

    `start` is where the parameters were, `born` what the optimizer kept, before any step.
    """

    def __init__(self, rig: Rig, lr_scale: float = 1.0, dtype: torch.dtype = torch.float64) -> None:
        _seed()
        self.rig = rig
        self.parameters = [torch.nn.Parameter(_values(shape, seed=0).to(dtype, copy=True)) for shape in rig.shapes]
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = rig.cls(self.parameters, **rig.options)
        if callable(enter := getattr(self.optimizer, "train", None)):
            enter()  # schedule-free optimizers step in this mode only
        self.born = self.copies()
        if isinstance(self.optimizer.state, defaultdict):
            self.optimizer.state.default_factory = _Entry
        for group in self.optimizer.param_groups:
            if lr_scale != 1.0 and group.get("lr") is not None:
                group["lr"] = group["lr"] * lr_scale

    def entries(self) -> list[dict[str, Any]]:
        """What the optimizer keeps for each parameter; a key whose value is None is no slot."""
        entries = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        return [{key: value for key, value in entry.items() if value is not None} for entry in entries]

    def copies(self) -> list[dict[str, Any]]:
        """The entries, their tensors copied."""
        return [{key: _copy(value) for key, value in entry.items()} for entry in self.entries()]

    def first(self) -> list[dict[str, Any]]:
        """The first value of each slot, where it was seen."""
        entries = [self.optimizer.state.get(parameter) for parameter in self.parameters]
        return [
            {**(entry.first if isinstance(entry, _Entry) else {}), **born}
            for entry, born in zip(entries, self.born, strict=True)
        ]

    def step(self, gradient: Sequence[Tensor], put_back: bool = True) -> None:
        """One step; afterwards no parameter has a gradient, and each is at its start unless told otherwise."""
        if self.rig.gradients == "closure":
            self.optimizer.step(self._bowl(gradient))
        else:
            self._give(gradient)
            self.optimizer.step()
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.grad = None
                if put_back:
                    parameter.copy_(value)

    def steps(self, count: int, scale: float = 1.0) -> Trial:
        """The trial itself after `count` steps, each with a gradient of its own."""
        for seed in range(1, count + 1):
            self.step(self.rig.gradient(seed, scale))
        return self

    def _give(self, gradient: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, gradient, strict=True):
            parameter.grad = _sparse(value) if self.rig.gradients == "sparse" else value.clone()

    def _bowl(self, curvatures: Sequence[Tensor]) -> Callable[[], float]:
        """A loss with its minimum at zero, so that an optimizer that evaluates it again finds other gradients."""

        def closure() -> float:
            with torch.no_grad():
                gradient = [bend.abs() * at for bend, at in zip(curvatures, self.parameters, strict=True)]
                self._give(gradient)
                losses = [(pull * at).sum() / 2 for pull, at in zip(gradient, self.parameters, strict=True)]
                return torch.stack(losses).sum().item()

        return closure


class _Entry(dict[str, Any]):
    """An entry of `optimizer.state` that remembers the first value of each key, as it was when it was assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Any] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.first:
            self.first[key] = _copy(value)
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


def unpatched(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A subclass that steps as `cls` does, runs no hooks, and leaves `cls` itself as it is.

    Making an instance wraps `step` on its class unless it is marked as wrapped already; here it is.
    """
    original = beneath_hooks(cls.step)

    def step(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # torch's own mark
    return type(cls.__name__, (cls,), {"step": step, "__module__": cls.__module__, "__qualname__": cls.__qualname__})


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards nothing in the process shows that a foreign class was run, but for what it does on purpose."""
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def _seed() -> None:
    """Start the generators of the processor anew; those of devices are nobody's here."""
    torch.default_generator.manual_seed(0)
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)


@cache
def _values(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of both signs and of size 0.5 to 1, the same for the same seed. Not to be written to."""
    generator = torch.Generator("cpu").manual_seed(seed)
    size = 0.5 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    signs = 1.0 - 2.0 * (torch.arange(prod(shape), dtype=torch.float64, device="cpu") % 2)
    return size * signs.reshape(shape)


def _sparse(value: Tensor) -> Tensor:
    """`value` in coordinate form, every element stored, zeros included."""
    places = torch.ones_like(value).nonzero().T
    return torch.sparse_coo_tensor(places, value.flatten(), value.shape, check_invariants=True).coalesce()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value

"""What is to be proven: a training run that a function builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optstate.errors import BindError
from optstate.proof.moments import RESERVED
from optstate.text import listing, safe_text

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Training:
    """A training run: all that a loop holds, and one step of it. What `build()` returns to be proven.

    model, optimizer
        As for `optstate.save`; several optimizers by name.
    train_step
        Takes one optimizer step and returns the loss, a number or a tensor of one element, or None.
    scheduler, loader
        What drives the hyperparameters, and what the batches come from; each is saved if it has a `state_dict`.
    objects
        Whatever else has `state_dict` and `load_state_dict`, by name: a gradient scaler, an average of the weights.

    Seed every random generator in `build`: two calls in two processes must make the same run. Raises `BindError`
    for a part that is not what it should be.

    >>> training = optstate.Training(model, optimizer, train_step=lambda: 0.0)
    >>> sorted(training.saved())
    []
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
    train_step: Callable[[], Any]
    scheduler: Any = None
    loader: Any = None
    objects: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from optstate.live.view import checked_model, optimizers_by_name

        checked_model(self.model)
        optimizers_by_name(self.optimizer)
        if not callable(self.train_step):
            raise BindError("train_step cannot be called", expected="a function that takes one optimizer step")
        taken = sorted(set(self.objects) & RESERVED)
        if taken:
            raise BindError(f"an object cannot be named {listing(taken)}", todo="give it another name")
        dumb = [name for name, item in self.objects.items() if not _has_state(item)]
        if self.scheduler is not None and not _has_state(self.scheduler):
            dumb.append("scheduler")
        if dumb:
            raise BindError(f"{listing(dumb)} cannot be saved", expected="objects with state_dict and load_state_dict")

    def saved(self) -> dict[str, Any]:
        """Every object that can be saved, by name: scheduler, loader and the others."""
        named = {"scheduler": self.scheduler, "loader": self.loader, **self.objects}
        return {name: item for name, item in named.items() if _has_state(item)}


def _has_state(item: object) -> bool:
    return all(callable(getattr(item, method, None)) for method in ("state_dict", "load_state_dict"))


def checked(made: object, label: str) -> Training:
    """What `build` returned. Raises `BindError` where it is no training."""
    if isinstance(made, Training):
        return made
    raise BindError(
        f"{label} returned no optstate.Training",
        expected="optstate.Training(model, optimizer, train_step)",
        found="None: is there a return?" if made is None else f"a {safe_text(type(made).__name__)}",
    )

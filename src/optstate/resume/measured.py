"""What a pass over batches tells of each parameter's gradients: their sum, the sum of their squares, how many there were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optstate.live.sampling import real_shape
from optstate.live.source import LiveSource
from optstate.optimizers.conversion_moments import Moments
from optstate.optimizers.rebuilding import needs_square
from optstate.optimizers.registry import by_class


@dataclass(slots=True)
class Sums:
    """Of one parameter, in its shape, complex numbers as pairs; `squares` is None where no second moment is kept."""

    total: torch.Tensor
    squares: torch.Tensor | None
    batches: int = 0

    def add(self, gradient: torch.Tensor) -> None:
        """Take the gradient of one more batch."""
        self.total.add_(gradient)
        if self.squares is not None:
            self.squares.addcmul_(gradient, gradient)
        self.batches += 1

    def moments(self, momentum: float, trust: int) -> Moments:
        """The estimates that an optimizer is to go on with, as of at most `trust` steps, with a share of the mean.

        This uses up the sums, whose memory becomes theirs.
        """
        mean = self.total.mul_(momentum / self.batches)
        square = None if self.squares is None else self.squares.div_(self.batches)
        return Moments(float(min(trust, self.batches)), mean, square)


class Measured:
    """The sums of all parameters that got a gradient, by name."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self.sums: dict[str, Sums] = {}

    def look(self, gradients: Mapping[str, torch.Tensor], _: Mapping[str, float]) -> None:
        """Take the gradients of one more batch."""
        for name, gradient in gradients.items():
            if name not in self.sums:
                self.sums[name] = self._new(name, gradient)
            self.sums[name].add(gradient)

    def _new(self, name: str, gradient: torch.Tensor) -> Sums:
        bound = self._source.bound(name)
        optimizer = self._source.live_optimizers[bound.optimizer]
        spec = by_class(type(optimizer))
        squares = spec is not None and needs_square(spec, optimizer.param_groups[bound.group])
        zeros = torch.zeros(real_shape(bound.tensor), dtype=gradient.dtype, device=gradient.device)
        return Sums(zeros, torch.zeros_like(zeros) if squares else None)

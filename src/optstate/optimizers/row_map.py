"""Where the rows of a changed parameter come from, and tensors with their rows there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from optstate.optimizers.arrays import Array, library
from optstate.optimizers.resizing import Shape

NEW = -1
"""The source of a row that comes from none."""


@dataclass(frozen=True)
class RowMap:
    """Where each row of a parameter comes from, along one of its dimensions.

    size, dim
        How many rows there were, and along which dimension of the parameter they lie.
    sources
        int64 [rows]: for each row to be the old row that it comes from, or `NEW`.
    like
        int64 [new rows]: for each row that comes from none the old row that it resembles; None: all of them.
    shares
        float64 [rows]: by what the gradient of each row is multiplied from now on; None: by 1.
    appends
        Whether all old rows stay where they are and new ones follow: then none has to be looked up.
    """

    size: int
    sources: Array
    dim: int = 0
    like: Array | None = None
    shares: Array | None = None
    appends: bool = False

    @property
    def rows(self) -> int:
        """How many rows there will be."""
        return len(self.sources)

    @cached_property
    def new(self) -> Array:
        """The places of the rows that come from none."""
        if self.appends:
            return self.sources.new_ones(self.rows - self.size).cumsum(0) + (self.size - 1)
        return (self.sources == NEW).nonzero().reshape(-1)

    @cached_property
    def kept(self) -> Array:
        """The old row of each row that comes from one."""
        if self.appends:
            return self.sources[: self.size]
        return self.sources if not len(self.new) else self.sources[self.sources != NEW]

    def shape(self, shape: Shape) -> Shape:
        """The shape that a parameter of this shape gets."""
        return self.sized(shape, self.rows)

    def sized(self, shape: Shape, rows: int) -> Shape:
        """This shape with so many rows."""
        return (*shape[: self.dim], rows, *shape[self.dim + 1 :])


def gathered(array: Array, rows: RowMap, new: Array | None) -> Array:
    """A tensor with its rows where the map puts them: kept rows to the bit, `new` in those that come from none.

    >>> import torch
    >>> rows = RowMap(2, torch.tensor([1, NEW, 0, 0]))
    >>> gathered(torch.tensor([1.0, 2.0]), rows, torch.tensor([9.0])).tolist()
    [2.0, 9.0, 1.0, 1.0]
    """
    sources = rows.sources.to(array.device)
    if new is None:
        return array.index_select(rows.dim, sources)
    if rows.appends:
        return library(array).concatenate([array, new.to(array.dtype)], rows.dim)
    found = array.index_select(rows.dim, sources.clamp(min=0))
    return found.index_copy_(rows.dim, rows.new.to(array.device), new.to(array.dtype))

"""Tensors in another shape: `pad` keeps what was saved in the leading corner, `slice` keeps the leading part of it."""

from __future__ import annotations

from math import prod
from typing import Literal, TypeAlias

from optstate.errors import RestoreError
from optstate.optimizers.arrays import Array, library

How: TypeAlias = Literal["pad", "slice"]
Shape: TypeAlias = "tuple[int, ...]"

_DOING = {"pad": "padding", "slice": "slicing"}


def only_ones_differ(saved: Shape, live: Shape) -> bool:
    """Whether two shapes are equal but for dimensions of size 1: then the elements are the same, one after the other."""
    return [size for size in saved if size != 1] == [size for size in live if size != 1]


def misfit(saved: Shape, live: Shape, how: How) -> str | None:
    """Why a tensor of one shape cannot be padded or sliced to another, as a sentence; None where it can.

    >>> misfit((8, 4), (9, 2), "pad")
    'dimension 1 is 4 in the checkpoint and 2 live, which padding does not make of it'
    """
    if only_ones_differ(saved, live):
        return None
    if len(saved) != len(live):
        return f"shapes {list(saved)} and {list(live)} differ in more than dimensions of size 1"
    for axis, (old, new) in enumerate(zip(saved, live, strict=True)):
        if (new < old) if how == "pad" else (new > old):
            return (
                f"dimension {axis} is {old} in the checkpoint and {new} live, which {_DOING[how]} does not make of it"
            )
    return None if prod(saved) and prod(live) else "a tensor without elements has nothing to keep"


def refuse(why: str | None, what: str, saved: Shape, live: Shape) -> None:
    """Raise `RestoreError` with the reason, where there is one."""
    if why is not None:
        raise RestoreError(
            f"{what} cannot be resized: {why}", found=f"shape {list(saved)} in the checkpoint, {list(live)} live"
        )


def padded(saved: Array, live: Array) -> Array:
    """A weight in the live shape and dtype: saved elements in the leading corner, live ones elsewhere; in new memory.

    Arrays are numpy arrays or torch tensors. Where only dimensions of size 1 differ, all of it is saved elements.
    Raises `RestoreError` for a shape that no padding leads to.

    >>> import numpy as np
    >>> padded(np.ones((1, 2)), np.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    shape, ours = tuple(saved.shape), tuple(live.shape)
    refuse(misfit(shape, ours, "pad"), "a weight", shape, ours)
    return framed(saved.reshape(ours) if only_ones_differ(shape, ours) else saved, owned(live))


def sliced(saved: Array, live: Shape) -> Array:
    """The leading part of a weight, in the live shape; in new memory.

    Raises `RestoreError` for a shape that no slicing leads to.

    >>> import numpy as np
    >>> sliced(np.arange(4.0).reshape(2, 2), (2, 1)).tolist()
    [[0.0], [2.0]]
    """
    shape = tuple(saved.shape)
    refuse(misfit(shape, live, "slice"), "a weight", shape, live)
    return owned(saved.reshape(live) if only_ones_differ(shape, live) else saved[corner(live)])


def corner(shape: Shape) -> tuple[slice, ...]:
    """The index of the leading part of this shape."""
    return tuple(map(slice, shape))


def framed(part: Array, whole: Array) -> Array:
    """`whole` with its leading corner overwritten."""
    whole[corner(tuple(part.shape))] = part
    return whole


def owned(array: Array) -> Array:
    """The same elements one after the other in new memory."""
    return library(array).concatenate([array.reshape(-1)]).reshape(tuple(array.shape))


def filled(like: Array, shape: Shape, value: complex) -> Array:
    """A new array of this shape, of the type and on the device of another, that holds one number."""
    first = like.reshape(-1)[:1].reshape((1,) * len(shape))
    whole = owned(library(like).broadcast_to(first, shape))
    whole[...] = value
    return whole

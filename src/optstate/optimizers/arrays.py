"""The few operations that numpy and torch do not spell alike, so that one formula serves a file and a live optimizer."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A numpy array or a torch tensor; in formulas also a plain number, which is an array of the same value everywhere."""


def library(array: Array) -> Any:
    """The module whose functions take this array: torch where it is a tensor, otherwise numpy."""
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    if torch is not None and isinstance(array, torch.Tensor):
        return torch
    import numpy as np

    return np


def where(condition: Array, yes: Array, no: Array) -> Array:
    """`yes` where the condition holds, else `no`; the condition may be a plain bool."""
    if isinstance(condition, bool):
        return yes if condition else no
    return library(condition).where(condition, yes, no)


def larger(one: Array, other: Array) -> Array:
    """The larger of two, element by element; NaN where either is. At least one is an array, or both are numbers."""
    return where((other > one) | (other != other), other, one)  # noqa: PLR0124  # NaN alone differs from itself


def smaller(one: Array, other: Array) -> Array:
    """The smaller of two, as `larger`."""
    return where((other < one) | (other != other), other, one)  # noqa: PLR0124


def sign(array: Array) -> Array:
    """-1, 0 or 1, element by element."""
    return library(array).sign(array)


def norm(array: Array) -> Array:
    """The Euclidean length of all elements together, without a dimension."""
    return (array * array).sum() ** 0.5


def silent() -> AbstractContextManager[object]:
    """A context in which numpy, as torch always, makes NaN and infinity without a warning."""
    import numpy as np

    return np.errstate(all="ignore")

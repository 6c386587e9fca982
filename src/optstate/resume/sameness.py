"""Whether two values are the same value of the same kind, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from optstate.live.tensors import HeldTensor
from optstate.state.tensors import is_tensor


def same(a: Any, b: Any) -> bool:
    """Compare two plain trees of numbers, text, arrays, tensors and references to tensors.

    NaN is the same as itself, 0.0 is not -0.0, True is not 1; an integer and a float of equal value are the
    same, because every optimizer treats them so. Values of any other kind are the same if they are equal.
    """
    a, b = _reference(a), _reference(b)
    if is_tensor(a) and is_tensor(b):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.array().tobytes() == b.array().tobytes()
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return a is b or (isinstance(a, bool) == isinstance(b, bool) and bool(a == b))


def _reference(value: Any) -> Any:
    return HeldTensor(value) if isinstance(value, torch.Tensor) else value

"""From references in a file or in memory to torch tensors and Python values that belong to nobody else."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch

from optstate.errors import RestoreError
from optstate.formats.containers.quantised import Blockwise
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours import nodes
from optstate.formats.ours.tree import ArrayRef
from optstate.live.quantised import Codes
from optstate.live.tensors import HeldTensor
from optstate.state.tensors import DTYPES, TensorRef, is_tensor, new_bytes
from optstate.text import safe_text

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CARRIERS = {2: np.int16, 1: np.uint8}  # for types that torch cannot take from numpy


def materialise(value: Any) -> Any:
    """`value` with every reference replaced by what it refers to, read, verified and in new memory.

    Raises `Damaged` for bytes that changed since they were written, and `RestoreError` for a value that only
    code named in the file could rebuild.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (list, tuple, set, frozenset):
        return kind(map(materialise, value))
    if kind is deque:
        return deque(map(materialise, value), value.maxlen)
    if kind in (dict, OrderedDict, Counter, defaultdict):
        return _mapping(value)
    return _leaf(value)


def _mapping(value: Any) -> Any:
    copy = value.copy()  # keeps the class and a defaultdict's factory
    copy.clear()
    for key, item in value.items():
        copy[materialise(key)] = materialise(item)
    for name, attribute in getattr(value, "__dict__", {}).items():  # torch hangs a note on a module's state dict
        setattr(copy, name, materialise(attribute))
    return copy


def _leaf(value: Any) -> Any:
    match value:
        case ArrayRef():
            return _owned(value.tensor)
        case SparseRef():
            return _sparse(value)
        case Blockwise():
            return Codes.of(value, to_tensor)
        case nodes.NumpyScalar():
            return value.value()
        case nodes.Size():
            return torch.Size(value.v)
        case nodes.Dtype():
            return getattr(torch, value.v)
        case nodes.Device():
            return torch.device(value.v)
    if is_tensor(value):
        return to_tensor(value)
    raise RestoreError(
        f"a value in the file is described by code, which is not run: {safe_text(value, 120)}",
        found=f"a {type(value).__name__}",
        todo="load the file with torch where you trust it, and save it with optstate",
    )


def to_tensor(ref: TensorRef) -> torch.Tensor:
    """The values of a reference as a CPU tensor (of a live one: on its own device) in new memory, strides kept."""
    if isinstance(ref, HeldTensor):
        return ref.tensor.detach().clone()
    array = _owned(ref)
    if not DTYPES[ref.dtype][1].startswith("ml_dtypes."):
        return torch.from_numpy(array)
    carrier: torch.Tensor = torch.from_numpy(array.view(_CARRIERS[array.itemsize]))
    return carrier.view(getattr(torch, ref.dtype))


def _owned(ref: TensorRef) -> np.ndarray[Any, Any]:
    """The values of a reference into a file, as an array that may be written and that nobody else has."""
    array = ref.array()
    if array.flags.writeable:
        return array
    strides = np.empty_like(array, order="K").strides  # its memory is never touched
    owned: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, new_bytes(array.nbytes).data, strides=strides)
    owned[...] = array
    return owned


def _sparse(ref: SparseRef) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        to_tensor(ref.indices), to_tensor(ref.values), ref.shape, is_coalesced=ref.coalesced, check_invariants=True
    )

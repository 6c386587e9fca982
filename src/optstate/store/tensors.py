"""Tensors and arrays as what the writer takes: checked, described, and their bytes a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import string_at
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from optstate.errors import Unsaveable
from optstate.formats.ours import nodes
from optstate.formats.ours.manifest import Family, fingerprint_positions
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.tree import Leaf, Path, path_text
from optstate.live.tensors import dtype_name
from optstate.optimizers.registry import qualified_name
from optstate.state.tensors import DTYPES, numpy_dtype
from optstate.store.files import Buffer
from optstate.store.table import PayloadTable, kept_stride
from optstate.store.writer import GATHER, PIECE, Payload
from optstate.text import safe_text


class TensorTable(PayloadTable):
    """The tensors of a checkpoint that is being collected: each once, however many names it has.

    It keeps every tensor alive until the checkpoint is written: two that never live at the same time can have
    the same address.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[tuple[object, ...], str] = {}

    def add(self, tensor: torch.Tensor, family: Family, parts: Path, where: Path) -> str:
        """The key of a strided tensor, under which it will be stored unless it is already.

        `parts` make up the name that it gets, `where` is what messages call it. Raises `Unsaveable`.
        """
        dtype = check(tensor, where)
        if tensor.layout != torch.strided:
            raise _unsaveable(where, "a sparse weight")
        shape, stride = tuple(tensor.shape), tensor.stride()
        identity = tensor.data_ptr(), dtype, tensor.device, shape, stride, tensor.is_conj(), tensor.is_neg()
        known = self._keys.get(identity) if tensor.numel() else None
        if known is not None:
            return known
        key = self._keys[identity] = self.free_key(family, parts)
        self.payloads[key] = Payload(
            key, dtype, shape, partial(_pieces, tensor), kept_stride(shape, stride), str(tensor.device)
        )
        return key

    def add_array(self, array: np.ndarray[Any, Any], family: Family, parts: Path, where: Path) -> str:
        """The key of a numpy array. Raises `Unsaveable`."""
        name = _numpy_name(array.dtype)
        if name is None:
            raise _unsaveable(where, f"a numpy array of {safe_text(array.dtype, 40)}")
        stride = tuple(step // array.itemsize for step in array.strides)
        key = self.free_key(family, parts)
        self.payloads[key] = Payload(
            key, name, array.shape, partial(_array_pieces, array), kept_stride(array.shape, stride)
        )
        return key

    def leaf(self, family: Family, prefix: Path = (), skip: int = 0) -> Leaf:
        """What encodes tensors, arrays and torch's small types in a tree; see `optstate.formats.ours.tree.encode`.

        A tensor's name is made of `prefix` and its path in the tree without the first `skip` steps.
        """

        def encode(value: Any, path: Path) -> Tree:
            return self._leaf(value, path, family, (*prefix, *path[skip:]))

        return encode

    def _leaf(self, value: Any, path: Path, family: Family, parts: Path) -> Tree:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            if value.layout == torch.sparse_coo:
                return self._sparse(value, path, family, parts)
            return nodes.Tensor(self.add(value, family, parts, path))
        if kind is np.ndarray:
            return nodes.Array(self.add_array(value, family, parts, path))
        if isinstance(value, np.generic) and (name := _numpy_name(value.dtype)) is not None:
            return nodes.NumpyScalar(name, value.tobytes())
        if kind is torch.Size:
            return nodes.Size(tuple(value))
        if kind is torch.dtype and value in _DTYPES:
            return nodes.Dtype(_DTYPES[value])
        return nodes.Device(str(value)) if kind is torch.device else None

    def _sparse(self, value: torch.Tensor, path: Path, family: Family, parts: Path) -> Tree:
        check(value, path)
        value = value.detach()
        # Without an underscore these refuse a tensor that is not coalesced.
        indices, values = value._indices(), value._values()  # noqa: SLF001
        return nodes.Sparse(
            indices=self.add(indices, family, (*parts, "indices"), path),
            values=self.add(values, family, (*parts, "values"), path),
            shape=tuple(value.shape),
            coalesced=value.is_coalesced(),
        )


# --- what is refused ----------------------------------------------------------------------------------------


_DTYPES = {getattr(torch, name): name for name in DTYPES}


def check(tensor: torch.Tensor, where: Path) -> str:
    """The name of a tensor's element type. Raises `Unsaveable` where its bytes alone do not say what it is."""
    if is_lazy(tensor):
        raise _unsaveable(where, "a lazy parameter that has no shape yet")
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        found = f"a {safe_text(qualified_name(type(tensor)))}, a kind of tensor that is more than its values"
        raise _unsaveable(where, found)
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:  # quantized ones among them
        raise _unsaveable(where, f"a tensor of type {dtype_name(tensor)}")
    if tensor.is_nested or tensor.layout not in (torch.strided, torch.sparse_coo):
        raise _unsaveable(where, "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}")
    if tensor.is_meta:
        raise _unsaveable(where, "a tensor on the meta device, which has no values")
    return dtype


def _unsaveable(where: Path, found: str) -> Unsaveable:
    return Unsaveable(
        f"{path_text(where)}: {found} cannot be saved",
        expected="a strided or sparse COO tensor with values, of a numeric type",
        found=found,
        todo="save its plain values, or leave it out",
    )


def _numpy_name(dtype: np.dtype[Any]) -> str | None:
    """torch's name for a numpy type; None where it has none, or where the bytes are the other way round."""
    return _numpy_names().get(dtype)


@lru_cache(maxsize=1)
def _numpy_names() -> dict[Any, str]:
    return {numpy_dtype(name): name for name in DTYPES}


# --- bytes --------------------------------------------------------------------------------------------------


def _address(tensor: torch.Tensor) -> int | None:
    """Where the bytes of a tensor lie in row-major order; None when they lie so nowhere on the CPU."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.data_ptr()


def _pieces(tensor: torch.Tensor) -> Iterator[Buffer]:
    """The bytes of a tensor in row-major order; a large one that is contiguous on the CPU is not copied."""
    nbytes = tensor.numel() * tensor.element_size()
    address = _address(tensor)
    if address is not None and nbytes < GATHER:
        yield string_at(address, nbytes)  # will be copied anyway, and takes a tenth of numpy's time
    elif address is not None:
        view = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        yield from (view[start : start + PIECE] for start in range(0, nbytes, PIECE))
    elif nbytes <= PIECE:
        yield from _pieces(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())
    elif len(tensor) == 1:
        yield from _pieces(tensor.detach()[0])
    else:
        for rows in tensor.detach().split(max(1, PIECE * len(tensor) // nbytes)):
            yield from _pieces(rows)


def _array_pieces(array: np.ndarray[Any, Any]) -> Iterator[Buffer]:
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    yield from (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def fingerprint(tensor: torch.Tensor) -> str:
    """The bytes, in hexadecimal, of the elements at `fingerprint_positions`."""
    positions = fingerprint_positions(tensor.numel())
    address, width = _address(tensor), tensor.element_size()
    if address is not None:
        return b"".join(string_at(address + position * width, width) for position in positions).hex()
    plain = tensor.detach().resolve_conj().resolve_neg()
    # Not every element type can be indexed, but every one can travel as an integer of its width.
    carrier = plain if plain.is_complex() else plain.view(_CARRIERS[width])
    chosen = torch.take(carrier, torch.tensor(positions, device=tensor.device)).cpu()
    return string_at(chosen.data_ptr(), len(positions) * width).hex()


_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

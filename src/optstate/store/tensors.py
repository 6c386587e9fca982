"""Tensors and arrays as what the writer takes: checked, described, and their bytes a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ctypes import c_char, string_at
from functools import lru_cache, partial
from struct import Struct
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from optstate.errors import Unsaveable
from optstate.formats.ours import nodes
from optstate.formats.ours.manifest import Family, fingerprint_positions
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.tree import Leaf, Path, path_text
from optstate.live.tensors import dtype_name, is_quantised
from optstate.optimizers.registry import qualified_name
from optstate.state.tensors import DTYPES, numpy_dtype
from optstate.store.files import Buffer
from optstate.store.table import PayloadTable, kept_stride
from optstate.store.writer import GATHER, PIECE, Payload
from optstate.text import safe_text


class Taking(Protocol):
    """How a save in the background takes the bytes of what it is given; else they are read when they are written."""

    def tensor(self, key: str, tensor: torch.Tensor, *, in_steps: bool) -> Callable[[], Iterable[Buffer]]:
        """What gives the bytes of a tensor; `in_steps` says that steps of an optimizer change it, and nothing else."""

    def array(self, array: np.ndarray[Any, Any]) -> Callable[[], Iterable[Buffer]]:
        """What gives the bytes of an array."""


class TensorTable(PayloadTable):
    """The tensors of a checkpoint that is being collected: each once, however many names it has.

    It keeps every tensor alive: two that never live at the same time can have the same address.
    """

    def __init__(self, taking: Taking | None = None) -> None:
        super().__init__()
        self._taking = taking
        self._keys: dict[object, str] = {}
        self._first: dict[int, torch.Tensor] = {}

    def add(self, tensor: torch.Tensor, family: Family, parts: Path, where: Path, *, in_steps: bool = False) -> str:
        """The key of a strided tensor, under which it will be stored unless it is already.

        `parts` make up the name that it gets, `where` is what messages call it; `in_steps` as for `Taking`. Raises
        `Unsaveable`.
        """
        dtype = check(tensor, where)
        if tensor.layout is not torch.strided:
            raise _unsaveable(where, "a sparse weight")
        shape, identity = tuple(tensor.shape), self._identity(tensor)
        known = self._keys.get(identity)
        if known is not None and 0 not in shape:  # those that are empty are all at the same place
            return known
        key = self._keys[identity] = self.free_key(family, parts)
        self.payloads[key] = Payload(
            key,
            dtype,
            shape,
            self._taking.tensor(key, tensor, in_steps=in_steps) if self._taking else partial(pieces, tensor),
            None if tensor.is_contiguous() else kept_stride(shape, tensor.stride()),
            "cpu" if tensor.is_cpu else str(tensor.device),
        )
        return key

    def _identity(self, tensor: torch.Tensor) -> object:
        """What tensors have in common that are the same bytes in the same form, and no others.

        For the first at an address that is the address, which is all that nearly every tensor needs.
        """
        address = tensor.data_ptr()
        first = self._first.setdefault(address, tensor)
        if first is tensor or _form(first) == _form(tensor):
            return address
        return address, *_form(tensor)

    def add_array(self, array: np.ndarray[Any, Any], family: Family, parts: Path, where: Path) -> str:
        """The key of a numpy array. Raises `Unsaveable`."""
        name = _numpy_name(array.dtype)
        if name is None:
            raise _unsaveable(where, f"a numpy array of {safe_text(array.dtype, 40)}")
        stride = tuple(step // array.itemsize for step in array.strides)
        key = self.free_key(family, parts)
        taken = self._taking.array(array) if self._taking else partial(array_pieces, array)
        self.payloads[key] = Payload(key, name, array.shape, taken, kept_stride(array.shape, stride))
        return key

    def leaf(self, family: Family, prefix: Path = (), skip: int = 0, *, in_steps: bool = False) -> Leaf:
        """What encodes tensors, arrays and torch's small types in a tree; see `optstate.formats.ours.tree.encode`.

        A tensor's name is made of `prefix` and its path in the tree without the first `skip` steps; `in_steps` as for
        `Taking`.
        """

        def encode(value: Any, path: Path) -> Tree:
            return self._leaf(value, path, family, (*prefix, *path[skip:]), in_steps)

        return encode

    def _leaf(self, value: Any, path: Path, family: Family, parts: Path, in_steps: bool) -> Tree:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            if value.layout is torch.sparse_coo:
                return self._sparse(value, path, family, parts)
            if kind not in _PLAIN and is_quantised(value):
                return self._blockwise(value, path, family, parts, in_steps)
            return nodes.Tensor(self.add(value, family, parts, path, in_steps=in_steps))
        if kind is np.ndarray:
            return nodes.Array(self.add_array(value, family, parts, path))
        if isinstance(value, np.generic) and (name := _numpy_name(value.dtype)) is not None:
            return nodes.NumpyScalar(name, value.tobytes())
        if kind is torch.Size:
            return nodes.Size(tuple(value))
        if kind is torch.dtype and value in _DTYPES:
            return nodes.Dtype(_DTYPES[value])
        return nodes.Device(str(value)) if kind is torch.device else None

    def _blockwise(self, value: Any, path: Path, family: Family, parts: Path, in_steps: bool) -> Tree:
        names = ("codes", "scale", "qmap")[: len(value.__tensor_flatten__()[0])]
        if [*value.__tensor_flatten__()[0]] != [*names]:
            raise _unsaveable(path, f"a {safe_text(qualified_name(type(value)))}, whose parts nobody described")
        keys = [self.add(getattr(value, each), family, (*parts, each), path, in_steps=in_steps) for each in names]
        return nodes.Blockwise(keys[0], keys[1], tuple(value.shape), value.block_size, *keys[2:])

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


_LAYOUTS = {torch.strided, torch.sparse_coo}
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_DTYPES = {getattr(torch, name): name for name in DTYPES}


def check(tensor: torch.Tensor, where: Path) -> str:
    """The name of a tensor's element type. Raises `Unsaveable` where its bytes alone do not say what it is."""
    if type(tensor) not in _PLAIN:
        if is_lazy(tensor):
            raise _unsaveable(where, "a lazy parameter that has no shape yet")
        found = f"a {safe_text(qualified_name(type(tensor)))}, a kind of tensor that is more than its values"
        raise _unsaveable(where, found)
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:  # quantized ones among them
        raise _unsaveable(where, f"a tensor of type {dtype_name(tensor)}")
    if tensor.is_nested or tensor.layout not in _LAYOUTS:
        raise _unsaveable(where, "a nested tensor" if tensor.is_nested else f"a tensor of layout {tensor.layout}")
    if not tensor.is_cpu and tensor.is_meta:
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


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    """As what the bytes at a tensor's address are read."""
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg()


# --- bytes --------------------------------------------------------------------------------------------------


def _address(tensor: torch.Tensor) -> int | None:
    """Where the bytes of a tensor lie in row-major order; None when they lie so nowhere on the CPU."""
    if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.data_ptr()


def pieces(tensor: torch.Tensor) -> Iterable[Buffer]:
    """The bytes of a tensor in row-major order; a large one that is contiguous on the CPU is not copied."""
    nbytes, address = tensor.nbytes, _address(tensor)
    if address is not None and nbytes < GATHER:
        return (string_at(address, nbytes),)  # will be copied anyway, and takes a tenth of numpy's time
    return _pieces(tensor, nbytes, address)


def _pieces(tensor: torch.Tensor, nbytes: int, address: int | None) -> Iterator[Buffer]:
    if address is not None:
        view = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        yield from (view[start : start + PIECE] for start in range(0, nbytes, PIECE))
    elif nbytes <= PIECE:
        yield from pieces(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())
    elif len(tensor) == 1:
        yield from pieces(tensor.detach()[0])
    else:
        for rows in tensor.detach().split(max(1, PIECE * len(tensor) // nbytes)):
            yield from pieces(rows)


def array_pieces(array: np.ndarray[Any, Any]) -> Iterator[Buffer]:
    """The bytes of an array in row-major order."""
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    yield from (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def fingerprint(tensor: torch.Tensor) -> str:
    """The bytes, in hexadecimal, of the elements at `fingerprint_positions`."""
    elements, width = tensor.numel(), tensor.element_size()
    address = _address(tensor)
    if address is not None:
        memory = (c_char * (elements * width)).from_address(address)
        return b"".join(_picker(elements, width).unpack(memory)).hex()
    positions = fingerprint_positions(elements)
    plain = tensor.detach().resolve_conj().resolve_neg()
    # Not every element type can be indexed, but every one can travel as an integer of its width.
    carrier = plain if plain.is_complex() else plain.view(CARRIERS[width])
    chosen = torch.take(carrier, torch.tensor(positions, device=tensor.device)).cpu()
    return string_at(chosen.data_ptr(), len(positions) * width).hex()


@lru_cache(maxsize=4096)
def _picker(elements: int, width: int) -> Struct:
    """What takes the bytes of a fingerprint's elements out of a tensor's: a look-up each would take ten times as long."""
    starts = [position * width for position in fingerprint_positions(elements)]
    ends = [0, *(start + width for start in starts)]
    gaps = [start - end for start, end in zip(starts, ends, strict=False)]
    return Struct("".join(f"{gap}x{width}s" for gap in gaps) + f"{elements * width - ends[-1]}x")


CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

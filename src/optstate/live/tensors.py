"""torch tensors as `TensorRef`: values reach numpy without a copy where they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from optstate.errors import MissingSlot
from optstate.state.tensors import DTYPES, Value, array_blocks, numpy_dtype
from optstate.text import safe_text

if TYPE_CHECKING:
    import numpy as np

# For each type that numpy lacks, an integer type of the same width through which its bits travel.
_CARRIERS = {2: torch.int16, 1: torch.uint8}


def dtype_name(tensor: torch.Tensor) -> str:
    """torch's own name for the element type, without the module."""
    return str(tensor.dtype).removeprefix("torch.")


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The values of a tensor on any device as numpy, sharing memory where that is possible."""
    plain = tensor.detach()
    if is_quantised(plain):
        plain = plain.dequantize()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu().resolve_conj().resolve_neg()
    name = dtype_name(plain)
    if DTYPES[name][1].startswith("ml_dtypes."):
        array: np.ndarray[Any, Any] = plain.view(_CARRIERS[plain.element_size()]).numpy().view(numpy_dtype(name))
        return array
    return plain.numpy()


def is_quantised(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that stores codes and says how to read them, as torchao's slots are."""
    return type(tensor).dequantize is not torch.Tensor.dequantize


class HeldTensor:
    """A tensor that this object itself holds: in a snapshot, or inside a list that an optimizer keeps."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def dtype(self) -> str:
        return dtype_name(self.tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def array(self) -> np.ndarray[Any, Any]:
        return to_array(self.tensor)

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        return array_blocks(self.array())

    def item(self) -> bool | int | float | complex:
        return self.tensor.item()


class LiveTensor(HeldTensor):
    """A slot of a running optimizer, looked up at each access, so that it is never stale and keeps nothing alive."""

    __slots__ = ("_key", "_optimizer", "_parameter")

    def __init__(self, optimizer: torch.optim.Optimizer, parameter: torch.Tensor, key: str) -> None:
        self._optimizer = optimizer
        self._parameter = parameter
        self._key = key

    @property
    def tensor(self) -> torch.Tensor:  # type: ignore[override]  # read-only here, where the base holds it
        # .get, because reading a missing key of the state would create an entry
        tensor = self._optimizer.state.get(self._parameter, {}).get(self._key)
        if isinstance(tensor, torch.Tensor):
            return tensor
        raise MissingSlot(
            f"slot {safe_text(self._key)!r} is no longer in the optimizer",
            found="nothing" if tensor is None else f"a {type(tensor).__name__}",
            todo="ask the state for the parameter again",
        )


def live_entry(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Value]:
    """The optimizer's entry for a parameter with tensors as references; empty where there is none."""
    entry = optimizer.state.get(parameter) or {}
    return {
        str(key): LiveTensor(optimizer, parameter, key) if isinstance(value, torch.Tensor) else held(value)
        for key, value in entry.items()
    }


def held(value: Any) -> Any:
    """A plain tree of tensors as a tree of references that hold them."""
    return _mapped(value, torch.Tensor, HeldTensor)


def frozen(value: Any) -> Any:
    """A tree of references in which every tensor is a clone on its own device that nothing else holds."""
    return _mapped(value, HeldTensor, lambda ref: HeldTensor(_copied(ref.tensor.detach())))


def _copied(tensor: Any) -> Any:
    """A clone; of a class that wraps tensors and cannot be cloned, made anew of the clones of what it wraps."""
    if not is_quantised(tensor):
        return tensor.clone()
    names, context = tensor.__tensor_flatten__()
    parts = {name: getattr(tensor, name).clone() for name in names}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())


def released(value: Any) -> Any:
    """A tree of references as the plain tree of the tensors that they hold."""
    return _mapped(value, HeldTensor, lambda ref: ref.tensor)


def _mapped(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """`value` with every leaf of a kind converted; containers are new plain ones, other leaves the same."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, kind, convert) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, kind, convert) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value

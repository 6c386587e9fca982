"""Slots in codes: what they stand for, how a live optimizer keeps them, and what writing them anew costs.

Whoever takes a saved entry to a live optimizer gathers it, reads it, so that a `Blockwise` becomes `Codes`, decodes it only
if something is to be computed with it, and encodes it last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

from optstate.formats.containers.quantised import Blockwise
from optstate.formats.entries import PARTS, entry_of
from optstate.live.tensors import HeldTensor, is_quantised
from optstate.state.tensors import TensorRef, Value
from optstate.text import count


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A slot in codes, in memory. Fields are those of `Blockwise`, as torch tensors.

    >>> codes = Codes(torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([2.0]), torch.linspace(-1, 1, 256), (2,), 256)
    >>> codes.values()
    tensor([-2.,  2.])
    """

    codes: torch.Tensor
    scale: torch.Tensor
    qmap: torch.Tensor | None
    shape: tuple[int, ...]
    block: int

    @classmethod
    def of(cls, ref: Blockwise, read: Callable[[TensorRef], torch.Tensor]) -> Codes:
        """The codes that a reference leads to; `read` makes a tensor that belongs to nobody else of each part."""
        return cls(read(ref.codes), read(ref.scale), None if ref.qmap is None else read(ref.qmap), ref.shape, ref.block)

    def values(self) -> torch.Tensor:
        """`qmap[code] * scale` in float32 and `shape`, bit for bit as the libraries compute it."""
        if self.qmap is None:
            unscaled = self.codes.float()
        elif self.qmap.numel() == 16:
            unscaled = self.qmap[torch.stack([self.codes >> 4, self.codes & 15], -1).int()]
        else:
            unscaled = self.qmap[self.codes.int()]
        scales = self.scale.reshape(-1, self.scale.shape[-1])  # a row for each part that has blocks of its own
        factors = scales.repeat_interleave(self.block, 1)[:, : unscaled.numel() // len(scales)]
        return (unscaled.reshape(len(scales), -1) * factors).reshape(self.shape)


class Loss(NamedTuple):
    """What fewer bits have cost.

    `error` is the root mean square of the differences relative to that of the values. `vanished` counts values that
    became 0: in a second moment, elements of which the next updates are too large.

    >>> print(Loss.between(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])))
    error 80.00%, 1 value became 0
    """

    error: float
    vanished: int

    @classmethod
    def between(cls, before: torch.Tensor, after: torch.Tensor) -> Loss:
        """Of values and what they have become, in any two types."""
        fine, coarse = before.double(), after.to(before.device).double()
        size, off = (each.square().mean().sqrt().item() for each in (fine, fine - coarse))
        return cls(off / size if size else 0.0, int(((coarse == 0) & (fine != 0)).sum()))

    def __str__(self) -> str:
        zeros = f", {count(self.vanished, 'value')} became 0" if self.vanished else ""
        return f"error {self.error:.2%}{zeros}"


@dataclass(frozen=True, slots=True, eq=False)
class Form(ABC):
    """How a live optimizer keeps one slot of one parameter: in which codes, and under which keys of the entry.

    `keys` are all that it fills, the slot's own first; `parts` have blocks of their own: 1, but 2 for two averages in one
    slot. The other fields are those of `Blockwise`.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    block: int
    parts: int
    qmap: torch.Tensor | None

    @abstractmethod
    def quantise(self, values: torch.Tensor) -> Codes:
        """Codes of float32 values of this shape, written by the library's own functions."""

    @abstractmethod
    def hold(self, codes: Codes) -> dict[str, Any]:
        """What the optimizer's entry gets, by key, of codes in this form."""

    def __str__(self) -> str:
        bits = "fp8" if self.qmap is None else "8-bit" if self.qmap.numel() > 16 else "4-bit"
        return f"{bits} blocks of {self.block}"

    def takes(self, saved: object) -> bool:
        """Whether these are codes that go in as they are: in the same blocks, by the same map, of any library."""
        if not isinstance(saved, (Blockwise, Codes)):
            return False
        layout = (saved.shape, saved.block, prod(saved.scale.shape[:-1]), saved.qmap is None)
        if layout != (self.shape, self.block, self.parts, self.qmap is None):
            return False
        return saved.qmap is None or self.qmap is None or _values(saved.qmap).equal(self.qmap.cpu())

    def kept(self, value: torch.Tensor | Codes) -> dict[str, Any]:
        """What the optimizer's entry gets, by key, of values, or of codes of any kind."""
        if isinstance(value, Codes) and self.takes(value):
            return self.hold(value)
        return self.hold(self.quantise(_decoded(value)))

    def loss(self, value: torch.Tensor | Codes) -> Loss:
        """What is lost when this is kept."""
        if self.takes(value):
            return Loss(0.0, 0)
        before = _decoded(value)
        return Loss.between(before, self.quantise(before).values())


def _values(qmap: TensorRef | torch.Tensor) -> torch.Tensor:
    return qmap.cpu() if isinstance(qmap, torch.Tensor) else torch.from_numpy(qmap.array().copy())


def _decoded(value: Any) -> Any:
    return value.values() if isinstance(value, Codes) else value


# --- entries: gathered before they are read; read with `Codes`; decoded; encoded ----------------------------------


def gathered(entry: Mapping[str, Value]) -> dict[str, Value]:
    """A saved or a live entry with one `Blockwise` for each slot in codes, whose scales and map have no keys any more."""
    found = entry_of({key: _blockwise(value) for key, value in entry.items()})
    own = {part for key, parts in PARTS.items() if isinstance(found.get(key), Blockwise) for part in parts}
    return {key: value for key, value in found.items() if key not in own}


def _blockwise(value: Value) -> Value:
    """A reference to a tensor of torchao as one to its parts; any other value as it is."""
    tensor: Any = value.tensor if isinstance(value, HeldTensor) else None
    if tensor is None or not is_quantised(tensor):
        return value
    codes, scale, *qmap = (HeldTensor(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return Blockwise(codes, scale, qmap[0] if qmap else None, tuple(tensor.shape), tensor.block_size)


def decoded(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with values for codes."""
    return {key: _decoded(value) for key, value in entry.items()}


def encoded(entry: Mapping[str, Any], forms: Mapping[str, Form]) -> dict[str, Any]:
    """An entry, of values or of codes of any kind, as the optimizer keeps it: what has no form here in values."""
    found = decoded({key: value for key, value in entry.items() if key not in forms})
    for key in [key for key in forms if key in entry]:
        found |= forms[key].kept(entry[key])
    return found

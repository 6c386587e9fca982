"""Experts that are one parameter in memory and many tensors in a file, as transformers 5 saves mixtures of experts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optstate.formats.containers.assembled import Assembled, Piece
from optstate.formats.containers.stored_tensor import StoredTensor, row_major
from optstate.state.tensors import TensorRef

_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,5})\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight")

# The parameter that a tensor of each name is a part of, and which one of its halves.
_PARTS = {
    "w1": ("gate_up_proj", 0),
    "gate_proj": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "up_proj": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
    "down_proj": ("down_proj", 0),
}


def fused(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The same tensors, those of all experts of a layer as the one parameter that they are while the model trains.

    It has the expert as its first dimension; the gate lies before the other half. What cannot be put together so stays.
    """
    layers: dict[str, dict[tuple[int, int], StoredTensor]] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is not None and isinstance(tensor, StoredTensor) and len(tensor.shape) == 2 and tensor.contiguous:
            parameter, half = _PARTS[match[3]]
            whole = f"{match[1]}.{parameter}"
            layers.setdefault(whole, {})[int(match[2]), half] = tensor
            names.setdefault(whole, []).append(name)
    wholes = {whole: made for whole, parts in layers.items() if (made := _whole(whole, parts)) is not None}
    taken = {name for whole in wholes for name in names[whole]}
    return {**{name: tensor for name, tensor in tensors.items() if name not in taken}, **wholes}


def _whole(name: str, parts: Mapping[tuple[int, int], StoredTensor]) -> Assembled | None:
    """None where an expert is missing or has another shape than the others."""
    experts, halves = 1 + max(expert for expert, _ in parts), 1 + max(half for _, half in parts)
    first = next(iter(parts.values()))
    rows, columns = first.shape
    alike = all((part.shape, part.dtype) == (first.shape, first.dtype) for part in parts.values())
    if not alike or len(parts) != experts * halves:
        return None
    pieces = [Piece((expert, half * rows, 0), _with_expert(part)) for (expert, half), part in sorted(parts.items())]
    return Assembled(name, first.dtype, (experts, halves * rows, columns), pieces)


def _with_expert(tensor: StoredTensor) -> StoredTensor:
    shape = (1, *tensor.shape)
    return StoredTensor(tensor.record, tensor.dtype, tensor.offset, shape, row_major(shape), swap=tensor.swap)

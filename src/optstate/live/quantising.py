"""In which codes bitsandbytes and torchao keep what: the live optimizer itself is asked, and nothing is changed by it.

The library decides which parameters stay plain, the size of blocks, the map, and how values become codes.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from optstate.formats.entries import BLOCK, PARTS
from optstate.live.quantised import Codes, Form
from optstate.live.tensors import is_quantised
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec


class Forms:
    """The forms in which one live optimizer keeps slots of its parameters in codes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        spec = by_class(type(optimizer))
        self._optimizer: Any = optimizer
        self._spec = spec if spec is not None and (spec.stored_as or "qmap1" in spec.slots) else None
        self._known: dict[object, dict[str, Form]] = {}

    def of(self, parameter: torch.Tensor) -> dict[str, Form]:
        """Key → form of the slots that this parameter has or may have in codes; empty for nearly all optimizers."""
        if self._spec is None:
            return {}
        kind = (parameter.shape, parameter.dtype, parameter.device, self._apart(parameter))
        if kind not in self._known:
            find = _torchao if self._spec.stored_as else _bitsandbytes
            self._known[kind] = {form.keys[0]: form for form in find(self._optimizer, self._spec, parameter)}
        return self._known[kind]

    def _apart(self, parameter: torch.Tensor) -> int | None:
        """What tells parameters apart where bitsandbytes was told to treat some in ways of their own."""
        manager = getattr(self._optimizer, "mng", None)
        told = ("pid2config", "index2config", "module_weight_config_triple")
        return id(parameter) if any(getattr(manager, each, None) for each in told) else None


# --- torchao: each slot is a tensor of a class of its own ---------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Subclass(Form):
    """`like` has the parameter's shape and type, and no memory; the momentum alone is signed."""

    optimizer: Any
    like: torch.Tensor
    signed: bool

    def quantise(self, values: torch.Tensor) -> Codes:
        buffer = self.optimizer._new_buffer(torch.empty_like(self.like, device=values.device), self.signed)
        buffer.copy_(values.float().contiguous())
        return Codes(buffer.codes, buffer.scale, self.qmap, self.shape, self.block)

    def hold(self, codes: Codes) -> dict[str, Any]:
        model = self.optimizer._new_buffer(self.like, self.signed)
        names, context = model.__tensor_flatten__()
        shaped = codes.codes.reshape(model.codes.shape)
        ours = {"codes": shaped, "scale": codes.scale.reshape(-1), "qmap": self._own_map(shaped.device)}
        return {self.keys[0]: type(model).__tensor_unflatten__({name: ours[name] for name in names}, context)}

    def _own_map(self, device: torch.device) -> torch.Tensor | None:
        return None if self.qmap is None else self.qmap.to(device, copy=True)


_LEAST = 4096
"""Elements from which torchao uses codes."""


def _torchao(optimizer: Any, spec: OptimizerSpec, parameter: torch.Tensor) -> Iterator[Form]:
    """Its `_new_buffer` makes a slot for a parameter: plain, or of the class."""
    like = torch.empty_like(parameter, device="meta", requires_grad=False)
    block: int = optimizer.block_size
    least = torch.empty(block * -(-_LEAST // block), dtype=parameter.dtype)
    for key, slot in spec.slots.items():
        signed = slot.role == "momentum"
        if slot.shape == "parameter" and is_quantised(optimizer._new_buffer(like, signed)):
            qmap = getattr(optimizer._new_buffer(least, signed), "qmap", None)
            yield _Subclass((key,), tuple(parameter.shape), block, 1, qmap, optimizer, like, signed)


# --- bitsandbytes: codes, scales and map are keys of the entry ---------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Keys(Form):
    """Two averages in one slot are stacked, and each has scales of its own."""

    scales: tuple[int, ...]

    def quantise(self, values: torch.Tensor) -> Codes:
        assert self.qmap is not None  # noqa: S101  # of all codes of this library
        library, qmap = sys.modules["bitsandbytes.functional"], self.qmap.to(values.device)
        parts = values.float().reshape(self.parts, -1).contiguous()
        done = [library.quantize_blockwise(part, qmap, blocksize=self.block) for part in parts]
        codes = torch.stack([codes for codes, _ in done]).reshape(self.shape)
        scales = torch.stack([state.absmax for _, state in done]).reshape(self.scales)
        return Codes(codes, scales, qmap, self.shape, self.block)

    def hold(self, codes: Codes) -> dict[str, Any]:
        assert self.qmap is not None  # noqa: S101  # as above
        qmap = self.qmap.to(codes.codes.device, copy=True)
        return dict(
            zip(self.keys, (codes.codes.reshape(self.shape), codes.scale.reshape(self.scales), qmap), strict=True)
        )


def _bitsandbytes(optimizer: Any, _: OptimizerSpec, parameter: torch.Tensor) -> Iterator[Form]:
    entry, maps = _first_entry(optimizer, parameter)
    for key, (scale, qmap) in PARTS.items():
        if qmap in entry:
            shape, scales = tuple(entry[key].shape), tuple(entry[scale].shape)
            yield _Keys((key, scale, qmap), shape, BLOCK, prod(scales[:-1]), maps[id(entry[qmap])], scales)


def _first_entry(optimizer: Any, parameter: torch.Tensor) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    """What its `init_state` makes for a parameter, without memory, and the map that each map in there stands for.

    Asked is a copy of the optimizer without state and pages, whose notes of overrides are its own.
    """
    asked = object.__new__(type(optimizer))
    asked.__dict__.update(optimizer.__dict__, state=defaultdict(dict), is_paged=False, mng=copy.copy(optimizer.mng))
    for name in ("pid2config", "index2config"):
        setattr(asked.mng, name, {key: dict(value) for key, value in getattr(optimizer.mng, name).items()})
    asked.check_overrides()  # which the optimizer itself does in its first step
    asked.name2qmap = dict(optimizer.name2qmap)
    if not asked.name2qmap:
        asked.fill_qmap()
    maps = dict(asked.name2qmap)
    group, member = next(
        (number, place)
        for number, each in enumerate(optimizer.param_groups)
        for place, other in enumerate(each["params"])
        if other is parameter
    )
    like = torch.empty_like(parameter, device="meta", requires_grad=False)
    asked.init_state(optimizer.param_groups[group], like, group, member)
    return asked.state[like], {id(asked.name2qmap[name]): maps[name] for name in maps}

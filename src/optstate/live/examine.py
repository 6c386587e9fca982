"""Looking at a running program for a diagnosis: everything as plain values, and nothing of it changed."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optstate.doctor.evidence import (
    LiveEvidence,
    LiveGroup,
    LiveOptimizer,
    LiveParameter,
    LiveSlot,
    OtherOptimizer,
    Stranger,
    Unowned,
)
from optstate.live.bind import names_by_identity
from optstate.live.examine_schedulers import examine_schedulers
from optstate.live.source import LiveSource, load_hooks
from optstate.live.tensors import dtype_name, held
from optstate.live.unwrap import unwrap_optimizer
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import live_weights
from optstate.optimizers.registry import by_class, qualified_name
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.optimizer_state import OptimizerState
from optstate.text import safe_text


def examine(optimizer: Any, model: Any, *, scheduler: Any = None, scaler: Any = None) -> LiveEvidence:
    """What a diagnosis needs to know of a running program.

    `optimizer` and `model` are what `attach` takes; `scheduler` is one scheduler or several. Nothing steps, no entry
    is created, no random number is drawn, no value of a tensor is read. Raises `BindError` as `attach` does.
    """
    optimizers, model = optimizers_by_name(optimizer), checked_model(model)
    source = LiveSource(optimizers, model)
    source.bind()
    names = source.names()
    slots = tuple(slot for name in names for slot in _slots(source, name))
    known, _ = names_by_identity(model)
    return LiveEvidence(
        state=_structure(source, names),
        optimizers={name: _optimizer(name, each, known) for name, each in optimizers.items()},
        parameters={name: _parameter(source, name) for name in names},
        slots=slots,
        unowned=tuple(_unowned(optimizers, model)),
        schedulers=examine_schedulers(scheduler, optimizers),
        others=tuple(_others(optimizers, {slot.memory for slot in slots} - {0})),
        scaled=scaler is not None and bool(scaler.is_enabled()),
    )


def _structure(source: LiveSource, names: Sequence[str]) -> OptimizerState:
    """Names, slots and groups as they are now; the values stay where they are and are read when asked for."""
    parameters = [FrozenParameter(source.facts(name), source.slots(name), source.absences(name)) for name in names]
    return OptimizerState(FrozenSource(parameters, source.optimizers(), source.left_out()))


# --- parameters and slots -------------------------------------------------------------------------------


def _parameter(source: LiveSource, name: str) -> LiveParameter:
    bound = source.bound(name)
    tensor = bound.tensor
    return LiveParameter(
        name=name,
        optimizer=bound.optimizer,
        group=bound.group,
        shape=_shape(tensor),
        dtype=dtype_name(tensor),
        device=str(tensor.device),
        memory=_memory(tensor),
        trainable=tensor.requires_grad,
        in_model=bound.certainty == "identity",
        has_gradient=tensor.grad is not None,
    )


def _slots(source: LiveSource, name: str) -> Iterator[LiveSlot]:
    bound = source.bound(name)
    for key, value in (source.live_optimizers[bound.optimizer].state.get(bound.tensor) or {}).items():
        if isinstance(value, Tensor):
            yield LiveSlot(name, str(key), tuple(value.shape), dtype_name(value), str(value.device), _memory(value))


def _unowned(optimizers: Mapping[str, torch.optim.Optimizer], model: nn.Module) -> Iterator[Unowned]:
    owned = {id(tensor) for optimizer in optimizers.values() for tensor in _members(optimizer)}
    for name, weight in live_weights(model).items():
        if weight.kind == "parameter" and id(weight.tensor) not in owned:
            yield Unowned(name, _shape(weight.tensor), dtype_name(weight.tensor), weight.tensor.requires_grad)


def _members(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if is_lazy(tensor) else tuple(tensor.shape)


def _memory(tensor: Tensor) -> int:
    """Where the values begin; 0 where there are none, or where a kind of tensor does not tell."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, fake, not yet shaped
        return 0


# --- optimizers -----------------------------------------------------------------------------------------


def _optimizer(name: str, optimizer: torch.optim.Optimizer, known: Mapping[int, str]) -> LiveOptimizer:
    defaults, spec = held(optimizer.defaults), by_class(type(optimizer))
    return LiveOptimizer(
        name=name,
        class_name=qualified_name(type(optimizer)),
        described_as=spec.name if spec is not None else None,
        container=qualified_name(type(optimizer.state)),
        creates_entries=getattr(optimizer.state, "default_factory", None) is not None,
        strangers=tuple(_strangers(optimizer, known)),
        groups=tuple(map(_group, optimizer.param_groups)),
        defaults=defaults,
        chosen=frozenset(key for key, value in defaults.items() if not _assumed(type(optimizer), key, value)),
        twice=tuple(_twice(optimizer, known)),
        step_hooks=len(optimizer._optimizer_step_post_hooks),
        scales_gradients=bool(getattr(optimizer, "_step_supports_amp_scaling", False)),
        loads_as_torch=type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict
        and not load_hooks(optimizer),
    )


def _group(group: Mapping[str, Any]) -> LiveGroup:
    recorded = group.get("param_names")
    return LiveGroup(None if recorded is None else tuple(map(str, recorded)), id(group))


def _assumed(cls: type, key: str, value: Any) -> bool:
    """Whether a constructor was given no other value than it assumes; True where it does not name the key."""
    constructor = next(vars(ancestor)["__init__"] for ancestor in cls.__mro__ if "__init__" in vars(ancestor))
    known = signature(constructor).parameters.get(key)
    return known is None or (type(value) in (type(known.default), float, int) and bool(value == known.default))


def _strangers(optimizer: torch.optim.Optimizer, known: Mapping[int, str]) -> Iterator[Stranger]:
    owned = set(map(id, _members(optimizer)))
    for key, entry in optimizer.state.items():
        slots = tuple(map(str, entry)) if isinstance(entry, Mapping) else ("?",)
        if not isinstance(key, Tensor):
            yield (
                Stranger("number", str(key), slots, key)
                if type(key) is int
                else Stranger("other", safe_text(key), slots)
            )
        elif id(key) not in owned:
            yield Stranger("tensor", safe_text(known.get(id(key)) or _tensor(key)), slots)


def _tensor(tensor: Tensor) -> str:
    return f"a {dtype_name(tensor)} tensor {list(_shape(tensor) or ())}"


def _twice(optimizer: torch.optim.Optimizer, known: Mapping[int, str]) -> Iterator[str]:
    times = Counter(map(id, _members(optimizer)))
    for number, tensor in enumerate({id(tensor): tensor for tensor in _members(optimizer)}.values()):
        if times[id(tensor)] > 1:
            yield known.get(id(tensor), f"#{number}")


def _others(optimizers: Mapping[str, torch.optim.Optimizer], memory: set[int]) -> list[OtherOptimizer]:
    """Optimizers elsewhere in the process that hold a group or the memory of a slot of these."""
    # To look through all objects takes a while; what somebody else holds as well shows in its count of references.
    if not any(map(_held_elsewhere, optimizers.values())) or not list(_rivals(optimizers, memory)):
        return []
    gc.collect()  # a scheduler and its optimizer hold each other: one that was dropped would be taken for a living one
    return list(_rivals(optimizers, memory))


def _held_elsewhere(optimizer: torch.optim.Optimizer) -> bool:
    entries = [entry for entry in optimizer.state.values() if isinstance(entry, Mapping)]
    alone = _references({"": torch.empty(0)})
    groups = dict(enumerate(optimizer.param_groups))
    return any(_references(entry) > alone for entry in entries) or _references(groups) > _references({0: {}}) + 1


def _references(values: Mapping[Any, Any]) -> int:
    """The most references that any of the tensors and dicts has."""
    return max((getrefcount(value) for value in values.values() if isinstance(value, (Tensor, dict))), default=0)


def _rivals(optimizers: Mapping[str, torch.optim.Optimizer], memory: set[int]) -> Iterator[OtherOptimizer]:
    mine = {id(optimizer) for optimizer in optimizers.values()}
    states = {id(optimizer.state) for optimizer in optimizers.values()}
    groups = {id(group) for optimizer in optimizers.values() for group in optimizer.param_groups}
    objects = gc.get_objects()
    kinds = {cls for cls in set(map(type, objects)) if issubclass(cls, torch.optim.Optimizer)}
    for found in [each for each in objects if type(each) in kinds]:
        other = unwrap_optimizer(found)
        # A wrapper that is not known by name shows the very state of the optimizer beneath it.
        if id(other) in mine or id(getattr(other, "state", None)) in states:
            continue
        shared = OtherOptimizer(
            qualified_name(type(other)),
            frozenset(groups.intersection(map(id, getattr(other, "param_groups", ())))),
            frozenset(memory.intersection(_addresses(other))),
        )
        if shared.groups or shared.memory:
            yield shared


def _addresses(optimizer: torch.optim.Optimizer) -> Iterator[int]:
    for entry in getattr(optimizer, "state", {}).values():
        for value in entry.values() if isinstance(entry, Mapping) else ():
            if isinstance(value, Tensor):
                yield _memory(value)

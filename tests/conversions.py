"""Optimizers of one parameter that are stepped, converted and stepped on, for the tests of conversions."""

from __future__ import annotations

import torch

from optstate.optimizers.conversion import converted, shared
from optstate.optimizers.registry import by_class

DOUBLE = torch.float64


def built(cls, weights, **options):
    """An optimizer of one parameter with these weights, without weight decay where the class has one of its own."""
    decay = {"weight_decay": 0.0} if cls.__name__ in ("AdamW", "Adafactor", "Muon") else {}
    return cls([torch.nn.Parameter(weights.clone())], **{**decay, **options})


def parameter_of(optimizer):
    return optimizer.param_groups[0]["params"][0]


def step(optimizer, gradient):
    """Take a step; how far the parameter moved, in units of the learning rate."""
    parameter = parameter_of(optimizer)
    before = parameter.detach().clone()
    parameter.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient.clone()
    optimizer.step()
    return (parameter.detach() - before) / float(optimizer.param_groups[0]["lr"] or 1.0)


def slots_of(optimizer):
    """The slots of the parameter, apart from the optimizer's own."""
    entry = optimizer.state.get(parameter_of(optimizer), {})
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in entry.items()}


def convert(former, target):
    """The slots that `target` would keep, had it been `former`; its group is changed as it asks."""
    before, after = by_class(type(former)), by_class(type(target))
    slots, groups = slots_of(former), (former.param_groups[0], target.param_groups[0])
    target.param_groups[0].update(own_types(target, shared(before, after, [(slots, groups[0])], groups[1])))
    return converted(before, after, slots, *groups, parameter_of(former).detach())


def own_types(target, values):
    if type(target).__name__ == "Lamb" and type(target).__module__.startswith("timm"):  # its count is a tensor
        return {key: torch.tensor(value) for key, value in values.items()}
    return {
        key: int(value) if isinstance(target.defaults.get(key, 0), int) and value == int(value) else value
        for key, value in values.items()
    }


def put(target, slots):
    """Give the optimizer these slots, in the types that its class has for them."""
    spec, parameter = by_class(type(target)), parameter_of(target)
    entry = target.state[parameter]
    entry.clear()
    for key, value in slots.items():
        slot = spec.slots[key]
        if slot.dtype == "python":
            entry[key] = int(value) if slot.role == "step" else value
        elif isinstance(value, torch.Tensor):
            entry[key] = value.detach().clone().to(parameter.dtype)
        else:
            entry[key] = torch.tensor(float(value), dtype=torch.get_default_dtype())


def continued(former, cls, **options):
    """An optimizer of another class that goes on from here: the same weights, the converted state."""
    target = built(cls, parameter_of(former).detach(), **options)
    put(target, convert(former, target))
    return target

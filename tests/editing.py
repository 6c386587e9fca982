"""What the tests of edits share: small models under every optimizer of torch, and all that an edit could change of them."""

from __future__ import annotations

import torch
from torch import nn

SPARSE = "SparseAdam"
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam amsgrad foreach": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.01),
    "Muon": lambda p: torch.optim.Muon([each for each in p if each.ndim == 2], lr=0.01),
}


def model_for(name):
    """A model that this optimizer can train: an embedding with sparse gradients for SparseAdam, layers for the others."""
    torch.manual_seed(0)
    if name == SPARSE:
        return nn.Sequential(nn.Embedding(6, 4, sparse=True))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def train(model, optimizer, steps=4, seed=0):
    """Some steps, always the same ones."""
    generator = torch.Generator().manual_seed(seed)
    sparse = isinstance(model[0], nn.Embedding)
    for _ in range(steps):
        batch = torch.randint(0, 6, (5,), generator=generator) if sparse else torch.randn(5, 4, generator=generator)

        def closure(batch=batch):
            optimizer.zero_grad()
            model.zero_grad()
            loss = (model(batch) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def trained(name, steps=4):
    """A model and its optimizer after some steps."""
    model = model_for(name)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, steps)
    return model, optimizer


def bits(value):
    """A value such that two of them are equal where every bit of it is; tensors with strides and address."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return (id(value), value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), raw)
    if isinstance(value, dict):
        return [(key if isinstance(key, str) else id(key), bits(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return (type(value), id(value) if isinstance(value, list) else None, [bits(item) for item in value])
    return repr(value)


def everything(model, *optimizers):
    """All that an edit could change: slots, their order and memory, groups, weights, random numbers."""
    return [
        [(bits(dict(optimizer.state)), bits(optimizer.param_groups), id(optimizer.state)) for optimizer in optimizers],
        bits(dict(model.named_parameters())),
        bits(dict(model.named_buffers())),
        torch.get_rng_state().numpy().tobytes(),
    ]


def slots(optimizer):
    """Every slot by the position of its parameter and its key, as bits without address."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return {
        (number, key): bits(value)[2:] if isinstance(value, torch.Tensor) else repr(value)
        for number, parameter in enumerate(parameters)
        for key, value in optimizer.state.get(parameter, {}).items()
    }

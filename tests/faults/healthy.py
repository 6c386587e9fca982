"""Files with nothing wrong in them, and the explanations that belong to some."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from tests.faults.making import State, adamw, contents, halving, net, one_cycle, scheduled, step, trained
from tests.faults.missing import frozen_from_the_start, saved_at_step_zero


def two_optimizers() -> State:
    """As those of a generator and a discriminator, whose steps differ."""
    model = net()
    first = torch.optim.Adam(list(model[0].named_parameters(prefix="0")))
    second = torch.optim.SGD(list(model[1].named_parameters(prefix="1")), lr=0.1, momentum=0.9)
    for optimizer in (first, first, second):
        step(model, optimizer)
    both = {"optimizer_g": first.state_dict(), "optimizer_d": second.state_dict()}
    return {"model": model.state_dict(), **both, "step": 2}


def two_schedulers() -> State:
    """The one that steps last sets the learning rate."""
    model, optimizer = trained(steps=0, lr=0.1)
    first, second = halving(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(3):
        step(model, optimizer)
        first.step()
        second.step()
    return contents(model, optimizer, schedulers=[first.state_dict(), second.state_dict()])


def sparse_rows() -> State:
    """Rows without a gradient have moments of zero, both of them."""
    torch.manual_seed(0)
    model = nn.Embedding(50, 4)
    optimizer = torch.optim.AdamW(list(model.named_parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 2, 3])).pow(2).mean().backward()
        optimizer.step()
    return contents(model, optimizer)


def low_rank() -> State:
    """The one factor starts at zero, so the other has a gradient of zero in the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    nn.init.zeros_(model[1].weight)
    optimizer = torch.optim.AdamW(list(model.named_parameters()))
    (model(torch.randn(3, 4)) - 1).pow(2).mean().backward()
    optimizer.step()
    return contents(model, optimizer, at=1)


HEALTHY: Mapping[str, tuple[Callable[[], State], frozenset[str]]] = {
    "AdamW": (adamw, frozenset()),
    "AdamW in bfloat16": (lambda: adamw(model=net().bfloat16()), frozenset()),
    "AdamW with float64": (lambda: adamw(model=net().double()), frozenset()),
    "AdamW, amsgrad": (lambda: adamw(amsgrad=True), frozenset()),
    "AdamW, maximize": (lambda: adamw(maximize=True), frozenset()),
    "AdamW, tensor lr": (lambda: adamw(lr=torch.tensor(1e-3)), frozenset()),
    "AdamW without names": (lambda: adamw(named=False), frozenset({"M201"})),
    "Adam": (lambda: contents(*trained(torch.optim.Adam)), frozenset()),
    "Adam, 200 steps": (lambda: contents(*trained(torch.optim.Adam, steps=200), at=200), frozenset()),
    "SGD": (lambda: contents(*trained(torch.optim.SGD, lr=0.1)), frozenset({"M109"})),
    "SGD with momentum": (lambda: contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9)), frozenset()),
    "SGD, nesterov": (lambda: contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)), frozenset()),
    "SGD, fused": (lambda: contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)), frozenset()),
    "SGD, dampening": (lambda: contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5)), frozenset()),
    "Muon": (lambda: contents(*trained(torch.optim.Muon, model=net(bias=False))), frozenset()),
    "LBFGS": (lambda: contents(*trained(torch.optim.LBFGS, named=False), at=None), frozenset({"M109", "M201"})),
    "NAdam": (lambda: contents(*trained(torch.optim.NAdam)), frozenset()),
    "NAdam, 150 steps": (lambda: contents(*trained(torch.optim.NAdam, steps=150), at=150), frozenset()),
    "RAdam": (lambda: contents(*trained(torch.optim.RAdam)), frozenset()),
    "Adamax": (lambda: contents(*trained(torch.optim.Adamax)), frozenset()),
    "Adagrad": (lambda: contents(*trained(torch.optim.Adagrad)), frozenset({"M109"})),
    "Adadelta": (lambda: contents(*trained(torch.optim.Adadelta)), frozenset({"M109"})),
    "Adafactor": (lambda: contents(*trained(torch.optim.Adafactor)), frozenset({"M109"})),
    "RMSprop": (lambda: contents(*trained(torch.optim.RMSprop)), frozenset({"M109"})),
    "RMSprop, centred": (
        lambda: contents(*trained(torch.optim.RMSprop, centered=True, momentum=0.9, steps=50), at=50),
        frozenset(),
    ),
    "Rprop": (lambda: contents(*trained(torch.optim.Rprop)), frozenset({"M109"})),
    "ASGD": (lambda: contents(*trained(torch.optim.ASGD)), frozenset({"M109", "M318"})),
    "frozen": (frozen_from_the_start, frozenset({"M110"})),
    "fresh": (saved_at_step_zero, frozenset({"M111"})),
    "StepLR": (lambda: scheduled(halving), frozenset()),
    "OneCycleLR": (lambda: scheduled(one_cycle), frozenset()),
    "OneCycleLR and SGD": (lambda: scheduled(one_cycle, torch.optim.SGD, momentum=0.9), frozenset()),
    "two schedulers of one optimizer": (two_schedulers, frozenset()),
    "ReduceLROnPlateau": (
        lambda: contents(*trained(), plateau=torch.optim.lr_scheduler.ReduceLROnPlateau(trained()[1]).state_dict()),
        frozenset(),
    ),
    "two optimizers": (two_optimizers, frozenset()),
    "an embedding with rows never used": (sparse_rows, frozenset()),
    "a low-rank adapter after its first step": (low_rank, frozenset()),
    "micro-batches": (lambda: adamw(steps=100, at=400), frozenset()),
}
"""What a healthy file is made by, and the explanations that belong to it."""

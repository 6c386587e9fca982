"""M3xx: values that no healthy run has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adam, Adamax, AdamW, RMSprop, Rprop

import optstate
from zoo.programs import held, members, moved, net, push, saved, taken, train, trained
from zoo.specimen import Scene, really, specimen


@specimen("M301", "one gradient is NaN")
def poisoned() -> Iterator[Scene | str]:
    """The average never recovers."""
    model, optimizer = trained(AdamW)
    push(optimizer, float("nan"))
    push(optimizer)
    yield Scene(optimizer, model)
    really(optimizer.state[model[0].weight]["exp_avg"].isnan().all())


@specimen("M303", "8-bit state is compared element by element", needs=("bitsandbytes",))
def quantised() -> Iterator[Scene | str]:
    """Its elements are codes, in blocks that have a scale each."""
    from bitsandbytes.optim import AdamW8bit

    model = net(80)
    yield Scene(saved(model, train(model, AdamW8bit(model.parameters(), min_8bit_size=64))))


@specimen("M304", "the second moment alone is reset late in a run")
def reset_alone() -> Iterator[Scene | str]:
    """Bias correction takes it for warm: the next update is 29 times too large."""
    model = net()
    optimizer = push(Adam(model.parameters(), 1.0), steps=2000)
    optimizer.state[model[0].weight]["exp_avg_sq"].zero_()
    yield Scene(optimizer, model)
    really(moved(optimizer, model[0].weight) > 29)


@specimen("M305", "the mean of squares of a centred RMSprop is reset, the mean is not")
def centred() -> Iterator[Scene | str]:
    """The root of a negative number."""
    model = net()
    optimizer = push(RMSprop(model.parameters(), centered=True), steps=20)
    optimizer.state[model[0].weight]["square_avg"].zero_()
    yield Scene(optimizer, model)
    push(optimizer)
    really(model[0].weight.isnan().all())


@specimen("M306", "the norm of Adamax is reset, its momentum is not")
def norm_zero() -> Iterator[Scene | str]:
    """Divided by eps alone."""
    model = net()
    optimizer = push(Adamax(model.parameters(), 1.0), steps=20)
    optimizer.state[model[0].weight]["exp_inf"].zero_()
    yield Scene(optimizer, model)
    before = model[0].weight.detach().clone()
    push(optimizer, 0.0)
    really((model[0].weight - before).abs().max() > 1e6)


@specimen("M307", "the step sizes of Rprop are zeroed")
def step_size_zero() -> Iterator[Scene | str]:
    """Clamped to the smallest: the parameter stands still."""
    model = net()
    optimizer = push(Rprop(model.parameters()))
    optimizer.state[model[0].weight]["step_size"].zero_()
    yield Scene(optimizer, model)
    really(push(optimizer).state[model[0].weight]["step_size"].max() < 1e-5)


@specimen("M308", "every slot of ASGD is zeroed")
def factor_zero() -> Iterator[Scene | str]:
    """`eta` is the rate of the next step."""
    model = net()
    optimizer = push(ASGD(model.parameters()))
    optimizer.state[model[0].weight]["eta"].zero_()
    yield Scene(optimizer, model)
    really(moved(optimizer, model[0].weight) == 0)


@specimen("M309", "the first step of a fused SGD is skipped because of an infinite gradient")
def uninitialised() -> Iterator[Scene | str]:
    """The buffers that it leaves behind were never written: here, memory that held large numbers before."""
    weight = nn.Parameter(torch.randn(1 << 16))
    optimizer, scaler = SGD([weight], 0.1, 0.9, fused=True), torch.amp.GradScaler("cpu")
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    buffer = optimizer.state[weight]["momentum_buffer"]
    really(buffer.shape == weight.shape)
    buffer.fill_(3e30)  # what such memory holds is chance, and a zoo is shown every day
    optimizer.zero_grad()
    yield Scene(optimizer, held(weight))


@specimen("M310", "second moments are saved in float16")
def underflowed() -> Iterator[Scene | str]:
    """What is below 6e-8 becomes zero, and the next update is divided by eps alone."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    squares = state["state"][0]["exp_avg_sq"]
    squares[0] = 1e-9
    state["state"][0]["exp_avg_sq"] = squares.half()
    yield Scene(saved(model, state))
    optimizer.load_state_dict(state)
    really(optimizer.state[model[0].weight]["exp_avg_sq"][0].max() == 0)


@specimen("M311", "the count of one parameter is lost")
def step_lost() -> Iterator[Scene | str]:
    """Bias correction takes warm moments for cold ones."""
    model = net()
    optimizer = push(Adam(model.parameters(), 1.0, (0.9, 0.95)), steps=500)
    optimizer.state[model[0].weight]["step"].zero_()
    yield Scene(optimizer, model)
    really(moved(optimizer, model[0].weight) > 2)


@specimen("M312", "a run is longer than float32 can count")
def saturated() -> Iterator[Scene | str]:
    """At 2**24 the count stands still."""
    model, optimizer = trained(AdamW)
    for entry in optimizer.state.values():
        entry["step"].fill_(2.0**24)
    yield Scene(optimizer, model)
    really(push(optimizer).state[model[0].weight]["step"] == 2**24)


@specimen("M313", "momentum is set to zero for a while")
def stale_buffer() -> Iterator[Scene | str]:
    """The buffer is neither used nor deleted, and comes back later."""
    model = net()
    optimizer = train(model, SGD(model.parameters(), 0.1, 0.9))
    before = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    optimizer.param_groups[0]["momentum"] = 0
    train(model, optimizer)
    yield Scene(optimizer, model)
    really(torch.equal(before, optimizer.state[model[0].weight]["momentum_buffer"]))


@specimen("M314", "a layer is frozen while its gradient is zero and not None")
def frozen_and_moving() -> Iterator[Scene | str]:
    """Momentum goes on moving it."""
    model = net()
    optimizer = train(model, SGD(model.parameters(), 0.1, 0.9))
    model[0].weight.grad = torch.zeros(4, 4)
    model[0].weight.requires_grad_(False)
    yield Scene(optimizer, model)
    before = model[0].weight.clone()
    optimizer.step()
    really(not torch.equal(before, model[0].weight))


@specimen("M315", "momentum is zeroed where there is dampening")
def zeroed() -> Iterator[Scene | str]:
    """Only an absent buffer takes the first gradient undamped: the next update is half of that of a fresh start."""
    model = net()
    optimizer = push(SGD(model.parameters(), 1.0, 0.9, 0.5), steps=2)
    optimizer.state[model[0].weight]["momentum_buffer"].zero_()
    yield Scene(optimizer, model)
    really(abs(moved(optimizer, model[0].weight) - 0.5) < 1e-5)


class Masters(torch.optim.Optimizer):
    """Steps copies of the weights in float32, and rounds them into the weights."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 - as torch has it
        """One update of the copies, then of the weights."""
        for each in members(self):
            master = self.state[each].setdefault("master", each.detach().float())
            master.sub_(each.grad, alpha=0.1)
            each.copy_(master)


@specimen("M316", "an adapter is written under an optimizer that keeps float32 copies of the weights")
def stale_masters() -> Iterator[Scene | str]:
    """The next step writes the old weights back."""
    optstate.register(Masters, {"master": optstate.SlotSpec(role="master_weights", reset="parameter")})
    model = net().bfloat16()
    optimizer = push(Masters(model.parameters()))
    model[0].weight.data.fill_(7.0)
    optstate.save("step-1", model=model, optimizer=optimizer, step=1)
    yield Scene(Path("step-1"))
    push(optimizer)
    really(model[0].weight.max() < 2)


@specimen("M317", "second moments become negative")
def negative() -> Iterator[Scene | str]:
    """Their root is NaN."""
    model, optimizer = trained(AdamW)
    optimizer.state[model[0].weight]["exp_avg_sq"].neg_()
    yield Scene(optimizer, model)
    push(optimizer, 1e-4)
    really(model[0].weight.isnan().any())


@specimen("M318", "every slot is taken for a moment")
def average_of_weights() -> Iterator[Scene | str]:
    """`ax` of ASGD is an average of the weights."""
    model = net()
    optimizer = push(ASGD(model.parameters()))
    yield Scene(optimizer, model)
    really(torch.equal(optimizer.state[model[0].weight]["ax"], model[0].weight))


@specimen("M319", "`maximize` is switched in the middle of a run", seen_as="M402")
def sign_flipped() -> Iterator[Scene | str]:
    """The buffers hold the negated gradient; seen is a flag that is not the one that the optimizer was built with."""
    model = net()
    optimizer = push(SGD(model.parameters(), 1.0, 0.9, maximize=True))
    optimizer.param_groups[0]["maximize"] = False
    yield Scene(optimizer, model)
    really(abs(moved(optimizer, model[0].weight) - 0.1) < 1e-5)


@specimen("M320", "momentum is zeroed late in a run")
def momentum_zero() -> Iterator[Scene | str]:
    """The next update is a tenth of the usual one."""
    model = net()
    optimizer = push(Adam(model.parameters(), 1.0), steps=2000)
    optimizer.state[model[0].weight]["exp_avg"].zero_()
    yield Scene(optimizer, model)
    really(abs(moved(optimizer, model[0].weight) - 0.1) < 1e-2)

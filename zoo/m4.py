"""M4xx: hyperparameters and schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import ASGD, SGD, Adagrad, Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from zoo.programs import held, moved, net, push, saved, taken, train, trained
from zoo.specimen import Scene, elsewhere, really, specimen


@specimen("M401", "a new learning rate is given, then the file is loaded")
def rate_overwritten() -> Iterator[Scene | str]:
    """Groups are replaced as a whole."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    fresh = AdamW(model.parameters(), lr=0.5)
    yield Scene(path, model, against=fresh)
    fresh.load_state_dict(torch.load(path)["optimizer"])
    really(fresh.param_groups[0]["lr"] == 0.001)


@specimen("M401", "the same with weight decay, seen afterwards")
def decay_overwritten() -> Iterator[Scene | str]:
    """What the constructor was given is in no group any more."""
    model, optimizer = trained(AdamW)
    fresh = AdamW(model.parameters(), weight_decay=0.5)
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)


@specimen("M402", "a file of a run that maximised is loaded")
def ascent() -> Iterator[Scene | str]:
    """Gradient ascent from now on."""
    model, optimizer = trained(AdamW)
    fresh = AdamW(model.parameters())
    optimizer.param_groups[0]["maximize"] = True
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    really(fresh.param_groups[0]["maximize"])


@specimen("M402", "a file of a run on a GPU is loaded on a CPU")
def captured() -> Iterator[Scene | str]:
    """`capturable` comes with it."""
    model, optimizer = trained(AdamW)
    fresh = AdamW(model.parameters())
    optimizer.param_groups[0]["capturable"] = True
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    train(model, fresh)


@specimen("M403", "a file of AdamW is loaded into Adam")
def decoupled() -> Iterator[Scene | str]:
    """Adam now decays as AdamW does, and by its amount."""
    model, optimizer = trained(AdamW)
    fresh = Adam(model.parameters())
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    really(fresh.param_groups[0]["decoupled_weight_decay"] and fresh.param_groups[0]["weight_decay"] == 0.01)


@specimen("M404", "a file of an ordinary run is loaded into a fused optimizer")
def no_longer_fused() -> Iterator[Scene | str]:
    """The groups say no, the optimizer still says yes."""
    model, optimizer = trained(AdamW)
    fresh = AdamW(model.parameters(), fused=True)
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    scaler.step(fresh)


@specimen("M405", "a scheduler is to go on over groups that never had one")
def without_initial_lr() -> Iterator[Scene | str]:
    """It asks for the rate that the run began with."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    fresh = AdamW(model.parameters())
    StepLR(fresh, 1)
    yield Scene(path, model, against=fresh)
    fresh.load_state_dict(torch.load(path)["optimizer"])
    StepLR(fresh, 1, last_epoch=3)


@specimen("M406", "the optimizer is loaded before the scheduler is built")
def wrong_order() -> Iterator[Scene | str]:
    """Building it writes over what was loaded, and loading it does not write again."""
    model = net()

    def build() -> tuple[Optimizer, OneCycleLR]:
        optimizer = push(SGD(model.parameters(), 0.1, 0.9))
        return optimizer, OneCycleLR(optimizer, 1.0, 10)

    optimizer, scheduler = build()
    for _ in range(5):
        push(optimizer)
        scheduler.step()
    fresh = push(SGD(model.parameters(), 0.1, 0.9))
    fresh.load_state_dict(taken(optimizer))
    late = OneCycleLR(fresh, 1.0, 10)
    late.load_state_dict(scheduler.state_dict())
    yield Scene(fresh, model, scheduler=late)
    really(optimizer.param_groups[0]["lr"] > 0.6 and fresh.param_groups[0]["lr"] < 0.05)


@specimen("M407", "the optimizer is built anew, the scheduler is kept")
def dead_optimizer() -> Iterator[Scene | str]:
    """It drives the old one."""
    model = net()
    scheduler = StepLR(AdamW(model.parameters(), 1.0), 1)
    optimizer = push(AdamW(model.parameters(), 1.0))
    scheduler.step()
    yield Scene(optimizer, model, scheduler=scheduler)
    really(optimizer.param_groups[0]["lr"] == 1.0)


@specimen("M408", "a group is added after the scheduler was built")
def late_group() -> Iterator[Scene | str]:
    """The scheduler knows nothing of where it began."""
    model, optimizer = trained(AdamW)
    scheduler = StepLR(optimizer, 1, 0.5)
    late = nn.Linear(2, 2)
    optimizer.add_param_group({"params": late.parameters()})
    yield Scene(optimizer, held(model, late), scheduler=scheduler)
    push(optimizer)
    scheduler.step()
    really("initial_lr" not in optimizer.param_groups[1])


@specimen("M409", "OneCycleLR is used for the learning rate")
def momentum_cycled() -> Iterator[Scene | str]:
    """It moves the momentum coefficient as well."""
    model, optimizer = trained(AdamW)
    scheduler = OneCycleLR(optimizer, 1.0, 10)
    yield Scene(optimizer, model, scheduler=scheduler)
    really(optimizer.param_groups[0]["betas"] == (0.95, 0.999))


@specimen("M410", "a file from before there was a scheduler is loaded")
def cycle_keys_lost() -> Iterator[Scene | str]:
    """Its keys leave the groups."""
    model, optimizer = trained(AdamW)
    fresh = AdamW(model.parameters())
    scheduler = OneCycleLR(fresh, 1.0, 10)
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model, scheduler=scheduler)
    push(fresh)
    scheduler.step()


@specimen("M411", "a file of an older version lacks a key")
def key_missing() -> Iterator[Scene | str]:
    """Muon fills nothing in."""
    model = net()
    optimizer = push(Muon(model.parameters()))
    state = taken(optimizer)
    del state["param_groups"][0]["ns_steps"]
    optimizer.load_state_dict(state)
    yield Scene(optimizer, model)
    push(optimizer)


@specimen("M412", "a learning rate comes from numpy")
def of_numpy() -> Iterator[Scene | str]:
    """The file does not load with `weights_only=True`."""
    model = net()
    optimizer = push(AdamW(model.parameters(), lr=np.float64(0.1)))
    yield Scene(optimizer, model)
    torch.save(optimizer.state_dict(), Path("numpy.pt"))
    torch.load(Path("numpy.pt"))


@specimen("M413", "momentum is lowered in the middle of a run")
def momentum_jump() -> Iterator[Scene | str]:
    """The buffer is a sum that grew under the old coefficient: three times the update of the steady state."""
    model = net()
    optimizer = push(SGD(model.parameters(), 1.0, 0.9), steps=300)
    optimizer.param_groups[0]["momentum"] = 0.5
    yield Scene(optimizer, model)
    really(abs(moved(optimizer, model[0].weight) - 6) < 1e-3)


@specimen("M414", "two optimizers are built from one list of groups")
def shared_groups() -> Iterator[Scene | str]:
    """The first one has filled in its learning rate."""
    model = net()
    groups = [{"params": list(model.parameters())}]
    first, second = SGD(groups, 0.5), SGD(groups, 0.1)
    yield Scene(second, model)
    really(second.param_groups[0]["lr"] == 0.5 and first.param_groups[0] is second.param_groups[0])


@specimen("M415", "an initial value is given for one group of Adagrad")
def value_ignored() -> Iterator[Scene | str]:
    """Only the constructor's own counts."""
    model = net()
    optimizer = Adagrad([{"params": list(model.parameters()), "initial_accumulator_value": 5.0}])
    yield Scene(optimizer, model)
    really(optimizer.state[model[0].weight]["sum"].max() == 0)


@specimen("M416", "betas are tensors, so that a compiled step need not be compiled again")
def tensor_replaced() -> Iterator[Scene | str]:
    """OneCycleLR puts a number in their place."""
    model = net()
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    optimizer = Adam(model.parameters(), torch.tensor(0.1), betas, foreach=False)
    scheduler = OneCycleLR(optimizer, 1.0, 10)
    yield Scene(optimizer, model, scheduler=scheduler)
    really(type(optimizer.param_groups[0]["betas"][0]) is float)


@specimen("M417", "steps are counted in a hook under a GradScaler")
def miscounted() -> Iterator[Scene | str]:
    """It is called in the step that a fused kernel skips."""
    model = net()
    optimizer, calls = Adam(model.parameters(), fused=True), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((model[0].weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    yield Scene(optimizer, model, scaler=scaler)
    really(len(calls) == 1 and optimizer.state[model[0].weight]["step"] == 0)


@specimen("M418", "the learning rate of ASGD is changed")
def one_step_late() -> Iterator[Scene | str]:
    """The next step still applies the old one."""
    model = net()
    optimizer = push(ASGD(model.parameters(), 0.1, lambd=0))
    optimizer.param_groups[0]["lr"] = 1.0
    yield Scene(optimizer, model)
    really(abs(moved(optimizer, model[0].weight) - 0.1) < 1e-5)


elsewhere("M419", "an adaptive value has a second, global copy", "needs an optimizer of another library that keeps one")
elsewhere(
    "M420", "overrides are undone by an automatic resume", "needs Composer; the file of the run holds no trace of it"
)

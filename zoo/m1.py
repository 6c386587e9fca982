"""M1xx: state that is missing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from zoo.programs import net, saved, train, trained
from zoo.specimen import Scene, attempt, really, specimen


@specimen("M101", "the state is taken before the first step")
def never_saved() -> Iterator[Scene | str]:
    """`optimizer.state_dict()` of a fresh instance."""
    model = net()
    yield Scene(saved(model, AdamW(model.parameters())))


@specimen("M102", "a file without state is loaded over a running optimizer")
def emptied() -> Iterator[Scene | str]:
    """Loading replaces the state by nothing."""
    model, optimizer = trained(AdamW)
    path = saved(model, AdamW(model.parameters()))
    yield Scene(path, model, against=optimizer)
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    really(not optimizer.state)


@specimen("M102", "the same, seen afterwards: the schedule has gone on and the optimizer begins anew")
def emptied_under_a_schedule() -> Iterator[Scene | str]:
    """A scheduler that has stepped over an optimizer without any state."""
    model, optimizer = trained(AdamW)
    scheduler = StepLR(optimizer, 100)
    train(model, optimizer)
    scheduler.step()
    optimizer.load_state_dict(AdamW(model.parameters()).state_dict())
    yield Scene(optimizer, model, scheduler=scheduler)


@specimen("M103", "a framework strips the optimizer from its final file")
def stripped() -> Iterator[Scene | str]:
    """The key is there, and None under it."""
    model = net()
    path = saved(model, None)
    yield attempt(lambda: AdamW(model.parameters()).load_state_dict(torch.load(path)["optimizer"]))
    yield Scene(path)


@specimen("M104", "a parameter is frozen while its state is loaded by name")
def frozen_at_load() -> Iterator[Scene | str]:
    """`set_optimizer_state_dict` skips what does not require a gradient."""
    model, optimizer = trained(AdamW)
    path = saved(model, get_optimizer_state_dict(model, optimizer))
    model[0].weight.requires_grad_(False)
    fresh = AdamW(model.parameters())
    yield Scene(path, model, against=fresh)
    set_optimizer_state_dict(model, fresh, torch.load(path)["optimizer"])
    really(model[0].weight not in fresh.state)


@specimen("M106", "a layer is replaced after the optimizer was built")
def replaced() -> Iterator[Scene | str]:
    """The optimizer goes on updating the old tensor."""
    model, optimizer = trained(AdamW)
    model[0] = nn.Linear(4, 4, bias=False)
    yield Scene(optimizer, model)
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    really(torch.equal(before, model[0].weight))


@specimen("M106", "weights are loaded with assign=True after the optimizer was built")
def assigned() -> Iterator[Scene | str]:
    """Every parameter of the model is a new tensor."""
    model, optimizer = trained(AdamW)
    model.load_state_dict(dict(model.state_dict()), assign=True)
    yield Scene(optimizer, model)


@specimen("M109", "momentum is looked for where there is none by nature")
def none_expected() -> Iterator[Scene | str]:
    """SGD without momentum keeps nothing."""
    model, optimizer = trained(SGD)
    yield Scene(optimizer, model)


@specimen("M110", "a layer takes no part in the loss")
def never_a_gradient() -> Iterator[Scene | str]:
    """No gradient, no state."""
    model = net()
    optimizer = AdamW(model.parameters())
    model[1](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    yield Scene(optimizer, model)
    really(model[0].weight not in optimizer.state)


@specimen("M111", "momentum is looked for before the first step")
def not_stepped() -> Iterator[Scene | str]:
    """State is created in the first step."""
    model = net()
    yield Scene(AdamW(model.parameters()), model)


@specimen("M114", "one slot is deleted, its companions stay")
def without_companion() -> Iterator[Scene | str]:
    """An entry that is not empty is taken for whole."""
    model, optimizer = trained(AdamW)
    del optimizer.state[model[0].weight]["exp_avg"]
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M115", "amsgrad is switched on in the middle of a run")
def flag_switched_on() -> Iterator[Scene | str]:
    """The maximum is created with the other slots or never."""
    model, optimizer = trained(AdamW)
    optimizer.param_groups[0]["amsgrad"] = True
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M116", "the momentum of one parameter of a fused SGD is reset")
def fused_in_part() -> Iterator[Scene | str]:
    """The kernel wants all buffers of a group or none."""
    model = net()
    optimizer = train(model, SGD(model.parameters(), 0.1, 0.9, fused=True))
    optimizer.state[model[0].weight].clear()
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M117", "a layer is forgotten when the optimizer is built")
def in_no_optimizer() -> Iterator[Scene | str]:
    """It requires gradients, gets them, and never moves."""
    model = net()
    optimizer = train(model, AdamW(model[1].parameters()))
    yield Scene(optimizer, model)
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    really(torch.equal(before, model[0].weight))


@specimen("M118", "the optimizer's file is missing from a trainer's folder", needs=("transformers", "accelerate"))
def file_absent() -> Iterator[Scene | str]:
    """The trainer resumes without it and does not say so."""
    from zoo.trainers import hugging_face

    folder = hugging_face(steps=2)
    (folder / "optimizer.pt").unlink()
    yield Scene(folder)
    hugging_face(steps=3, resume=folder)


@specimen("M119", "the state is reset with `optimizer.state = {}`")
def plain_mapping() -> Iterator[Scene | str]:
    """Common advice; the next step finds no entry to fill."""
    model, optimizer = trained(AdamW)
    optimizer.state = {}
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M120", "momentum is looked up by the parameter's number")
def by_number() -> Iterator[Scene | str]:
    """The numbers of a file are no keys of a running optimizer: reading one creates an entry."""
    model, optimizer = trained(AdamW)
    optimizer.state[0].get("exp_avg")
    yield Scene(optimizer, model)
    really(optimizer.state_dict()["state"][0] == {})

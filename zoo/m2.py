"""M2xx: state that does not fit what it is given to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, swap_in_optimizer_params_and_state

from zoo.programs import net, push, saved, taken, train, trained
from zoo.specimen import Scene, attempt, really, specimen


@specimen("M201", "a file holds an optimizer alone, and parameters of one shape")
def nameless() -> Iterator[Scene | str]:
    """Numbers are all that it knows."""
    _, optimizer = trained(AdamW)
    yield Scene(saved(None, optimizer))


@specimen("M202", "the parameters are listed in another order")
def swapped() -> Iterator[Scene | str]:
    """torch pairs by position."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    fresh = AdamW(list(model.parameters())[::-1])
    yield Scene(path, model, against=fresh)
    fresh.load_state_dict(torch.load(path)["optimizer"])
    first, second = model[0].weight, model[1].weight
    really(torch.equal(fresh.state[first]["exp_avg"], optimizer.state[second]["exp_avg"]))


@specimen("M202", "the same, seen afterwards against the file")
def swapped_already() -> Iterator[Scene | str]:
    """The optimizer holds for one parameter what the file has for the other."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    fresh = AdamW(list(model.parameters())[::-1])
    fresh.load_state_dict(torch.load(path)["optimizer"])
    yield Scene(fresh, model, against=path)


@specimen("M203", "the layers have grown since the file was written")
def shape_accepted() -> Iterator[Scene | str]:
    """torch checks no shape."""
    _, optimizer = trained(AdamW)
    wider = net(6)
    fresh = AdamW(wider.parameters())
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, wider)
    train(wider, fresh)


@specimen("M204", "a compiled model is saved, and its names with it")
def prefixed() -> Iterator[Scene | str]:
    """Wrappers rename every parameter."""
    model, optimizer = trained(AdamW)
    yield Scene(saved(torch.compile(model), optimizer), model, against=optimizer)


@specimen("M205", "a layer less than in the file")
def refused() -> Iterator[Scene | str]:
    """All or nothing."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    fresh = AdamW(model[0].parameters())
    yield attempt(lambda: fresh.load_state_dict(torch.load(path)["optimizer"]))
    yield Scene(path, model, against=fresh)


@specimen("M206", "named parameters are loaded in another order")
def names_lie() -> Iterator[Scene | str]:
    """The names of the file replace the live ones, and now are wrong."""
    model = net()
    names = list(model.named_parameters())
    state = taken(train(model, AdamW(names)))
    fresh = AdamW(names[::-1])
    fresh.load_state_dict(state)
    yield Scene(fresh, model)
    really(fresh.param_groups[0]["param_names"][0] == "0.weight")
    really(fresh.param_groups[0]["params"][0] is model[1].weight)


@specimen("M207", "state of AdamW is loaded into SGD")
def wrong_class() -> Iterator[Scene | str]:
    """The class is not written down."""
    model, optimizer = trained(AdamW)
    fresh = SGD(model.parameters(), 0.1, 0.9)
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    train(model, fresh)


@specimen("M208", "state of Adam is loaded into RAdam")
def compatible_by_accident() -> Iterator[Scene | str]:
    """The keys happen to be enough, and the learning rate is Adam's."""
    model, optimizer = trained(Adam)
    fresh = RAdam(model.parameters(), lr=0.5)
    fresh.load_state_dict(taken(optimizer))
    yield Scene(fresh, model)
    really(train(model, fresh).param_groups[0]["lr"] == 0.001)


@specimen("M209", "state of SGD is loaded into Adam, and the error is caught")
def half_loaded() -> Iterator[Scene | str]:
    """The old state is gone before the error is raised."""
    model, optimizer = trained(Adam)
    other = train(model, SGD(model.parameters(), 0.1, 0.9))
    yield attempt(lambda: optimizer.load_state_dict(taken(other)))
    yield Scene(optimizer, model)
    really(list(optimizer.state[model[0].weight]) == ["momentum_buffer"])


@specimen("M210", "moments in float32 are loaded beside weights in bfloat16")
def moments_cast() -> Iterator[Scene | str]:
    """They are rounded to the type of the weights."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    model.bfloat16()
    fresh = AdamW(model.parameters())
    yield Scene(path, model, against=fresh)
    fresh.load_state_dict(torch.load(path)["optimizer"])
    really(fresh.state[model[0].weight]["exp_avg"].dtype == torch.bfloat16)


@specimen("M211", "the product of NAdam's factors is loaded beside weights in bfloat16")
def scalars_cast() -> Iterator[Scene | str]:
    """Of all scalars only `step` is spared."""
    model = net().bfloat16()
    optimizer = push(NAdam(model.parameters()))
    optimizer.load_state_dict(taken(optimizer))
    yield Scene(optimizer, model)


@specimen("M212", "an integer counter is loaded")
def counter_cast() -> Iterator[Scene | str]:
    """It becomes a float, and above 2**24 another number."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    state["state"][0]["seen"] = torch.tensor(2**24 + 1)
    path = saved(model, state)
    yield Scene(path, model, against=optimizer)
    optimizer.load_state_dict(torch.load(path)["optimizer"])
    really(optimizer.state[model[0].weight]["seen"] == 2**24)


@specimen("M213", "text in the place of a slot is loaded")
def text_corrupted() -> Iterator[Scene | str]:
    """It becomes the name of a generator object."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    state["state"][0]["exp_avg"] = "x"
    optimizer.load_state_dict(state)
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M214", "the model is converted after the optimizer was built")
def converted() -> Iterator[Scene | str]:
    """The moments stay as they were."""
    model, optimizer = trained(AdamW)
    model.bfloat16()
    yield Scene(optimizer, model)
    train(model, optimizer)


@specimen("M215", "a file of an ordinary run is loaded into a capturable one, and the flag put back")
def step_on_the_host() -> Iterator[Scene | str]:
    """The count stays on the CPU. Shown with the meta device in place of an accelerator; a real one raises at the step."""
    _, optimizer = trained(AdamW)
    away = net().to("meta")
    fresh = AdamW(away.parameters(), capturable=True)
    fresh.load_state_dict(taken(optimizer))
    fresh.param_groups[0]["capturable"] = True
    yield Scene(saved(None, optimizer), away, against=AdamW(away.parameters(), capturable=True))
    really(fresh.state[away[0].weight]["step"].device.type == "cpu")


@specimen("M216", "a parameter is taken out of its group, its state stays")
def stale_entry() -> Iterator[Scene | str]:
    """The number that a file would need for it does not exist."""
    model, optimizer = trained(AdamW)
    optimizer.param_groups[0]["params"].pop(0)
    yield attempt(optimizer.state_dict)
    yield Scene(optimizer, model)


@specimen("M217", "the state of a stranger is looked up")
def phantom_entry() -> Iterator[Scene | str]:
    """Reading creates an entry."""
    model, optimizer = trained(AdamW)
    optimizer.state[nn.Parameter(torch.ones(1))].get("exp_avg")
    yield Scene(optimizer, model)
    optimizer.state_dict()


@specimen("M218", "state is written under a parameter's number")
def number_written() -> Iterator[Scene | str]:
    """It hides the real state in the next file."""
    model, optimizer = trained(AdamW)
    optimizer.state[0] = {"exp_avg": "junk"}
    yield Scene(optimizer, model)
    really(optimizer.state_dict()["state"][0] == {"exp_avg": "junk"})


@specimen("M219", "a file has state for one parameter more than its groups list")
def orphan() -> Iterator[Scene | str]:
    """It stays under its number and is saved again."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    state["state"][99] = state["state"][0]
    optimizer.load_state_dict(state)
    yield Scene(optimizer, model)
    really(99 in optimizer.state_dict()["state"])


@specimen("M220", "a named parameter is taken out of its group")
def names_left_behind() -> Iterator[Scene | str]:
    """The list of names stays as long as it was."""
    model = net()
    optimizer = train(model, AdamW(model.named_parameters()))
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop())
    yield Scene(optimizer, model)
    really(len(optimizer.param_groups[0]["param_names"]) == 2)


@specimen("M221", "the groups are listed in another order")
def groups_swapped() -> Iterator[Scene | str]:
    """Weight decay lands on the biases, and so do the moments of the weights."""
    model = net(bias=True)
    weights = [(name, each) for name, each in model.named_parameters() if each.ndim == 2]
    biases = [(name, each) for name, each in model.named_parameters() if each.ndim == 1]

    def build(*groups: Any) -> AdamW:
        return AdamW([{"params": members, "weight_decay": decay} for members, decay in groups])

    path = saved(model, train(model, build((weights, 0.1), (biases, 0.0))))
    fresh = build((biases, 0.0), (weights, 0.1))
    yield Scene(path, model, against=fresh)
    fresh.load_state_dict(torch.load(path)["optimizer"])
    really(fresh.param_groups[0]["weight_decay"] == 0.1 and fresh.state[biases[0][1]]["exp_avg"].shape == (4, 4))
    train(model, fresh)


@specimen("M222", "rows of a parameter are cut off in place")
def pruned() -> Iterator[Scene | str]:
    """Its moments keep theirs."""
    model, optimizer = trained(AdamW)
    model[0].weight.data = model[0].weight.data[:2]
    yield Scene(optimizer, model)
    push(optimizer)


@specimen("M223", "an optimizer is initialised from another one in the same process")
def shared_buffers() -> Iterator[Scene | str]:
    """Both now have the same tensors."""
    model, teacher = trained(AdamW)
    student = net()
    optimizer = AdamW(student.parameters())
    optimizer.load_state_dict(teacher.state_dict())
    yield Scene(optimizer, student)
    push(optimizer)
    really(teacher.state[model[0].weight]["step"] == 4)


@specimen("M224", "the best state is kept in memory", unseen="an optimizer does not know who else holds its tensors")
def live_snapshot() -> Iterator[Scene | str]:
    """`state_dict()` is no copy."""
    model, optimizer = trained(AdamW)
    best = optimizer.state_dict()
    train(model, optimizer, 1)
    yield Scene(optimizer, model)
    really(best["state"][0]["step"] == 4)


@specimen("M225", "one tensor counts the steps of several parameters")
def shared_step() -> Iterator[Scene | str]:
    """It counts once for each of them."""
    model, optimizer = trained(AdamW)
    count = torch.tensor(3.0)
    for entry in optimizer.state.values():
        entry["step"] = count
    yield Scene(optimizer, model)
    push(optimizer)
    really(count == 5)


@specimen(
    "M226", "a group is held while a file is loaded", unseen="who holds the old dict is not known to the optimizer"
)
def stale_reference() -> Iterator[Scene | str]:
    """Loading makes new groups and new tensors."""
    model, optimizer = trained(AdamW)
    group = optimizer.param_groups[0]
    optimizer.load_state_dict(taken(optimizer))
    yield Scene(optimizer, model)
    group["lr"] = 0.5
    really(optimizer.param_groups[0]["lr"] == 0.001)


@specimen("M227", "a parameter is listed twice")
def twice() -> Iterator[Scene | str]:
    """It is stepped twice."""
    model = net()
    optimizer = push(Adam([model[0].weight, model[0].weight, model[1].weight]))
    yield Scene(optimizer, model)
    really(optimizer.state[model[0].weight]["step"] == 2)


@specimen("M228", "a list of names beside the state leaves frozen parameters out")
def shifted_list() -> Iterator[Scene | str]:
    """Numbers run over all parameters, the list over those that are trained."""
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = train(model, AdamW(model.parameters()))
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    yield Scene(saved(model, optimizer, names=names))
    really(names[0] == "1.weight" and list(optimizer.state_dict()["state"]) == [1])


@specimen("M229", "state of another shape is swapped in for a while", seen_as="M203")
def swapped_in() -> Iterator[Scene | str]:
    """Seen while it lasts."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    for key in ("exp_avg", "exp_avg_sq"):
        state["state"][0][key] = torch.zeros(2, 2)
    with swap_in_optimizer_params_and_state(optimizer, dict(model.named_parameters()), state):
        yield Scene(optimizer, model)
        train(model, optimizer)


@specimen("M230", "an optimizer is copied with its hooks", seen_as="M106")
def copied() -> Iterator[Scene | str]:
    """The hooks are gone without a trace; seen is that the copy updates copies of the parameters."""
    model, optimizer = trained(AdamW)
    optimizer.register_step_post_hook(lambda *_: None)
    double = copy.deepcopy(optimizer)
    yield Scene(double, model)
    really(not double._optimizer_step_post_hooks)  # noqa: SLF001 - that they are gone is what is shown


@specimen("M231", "a model is converted under SGD with momentum")
def mixed() -> Iterator[Scene | str]:
    """The buffers stay in float32, and every step goes through."""
    model = net()
    optimizer = train(model, SGD(model.parameters(), 0.1, 0.9))
    model.bfloat16()
    yield Scene(optimizer, model)
    really(push(optimizer).state[model[0].weight]["momentum_buffer"].dtype == torch.float32)


@specimen("M232", "state is gathered into one buffer before it is saved")
def one_buffer() -> Iterator[Scene | str]:
    """As FSDP1 does on the CPU: the slot that came last is in the place of all."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg_sq"]
    yield Scene(saved(model, state))
    optimizer.load_state_dict(torch.load("checkpoint.pt")["optimizer"])
    really(not (optimizer.state[model[0].weight]["exp_avg"] < 0).any())

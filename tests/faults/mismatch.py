"""M2xx in files: order, names, shapes, types and classes that do not match."""

from __future__ import annotations

import torch
from torch import nn

from tests.faults.making import State, adamw, contents, entries, fault, net, step, trained


@fault("M201")
def no_names() -> State:
    return adamw(named=False)


@fault("M202")
def loaded_in_another_order() -> tuple[State, State]:
    earlier, later = adamw(), adamw()
    state = later["optimizer"]["state"]
    state[0]["exp_avg"], state[2]["exp_avg"] = state[2]["exp_avg"], state[0]["exp_avg"]
    return earlier, later


@fault("M203")
def one_weight_resized() -> State:
    saved = adamw()
    saved["model"]["0.weight"] = torch.zeros(6, 4)
    return saved


@fault("M203", "M311")
def another_width() -> tuple[State, State]:
    return adamw(), contents(*trained(model=net(6), steps=2), at=4)


@fault("M204")
def saved_from_a_compiled_model() -> State:
    saved = adamw()
    saved["model"] = {f"_orig_mod.{name}": weight for name, weight in saved["model"].items()}
    return saved


@fault("M205")
def a_layer_less() -> tuple[State, State]:
    model = net()
    step(model, optimizer := torch.optim.AdamW(list(model[1].named_parameters(prefix="1"))), 4)
    return adamw(), contents(model, optimizer, at=4)


@fault("M206")
def names_of_another_order() -> State:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    named = list(model.named_parameters())
    step(model, saved := torch.optim.AdamW(named), 3)
    loaded = torch.optim.AdamW(named[::-1])
    loaded.load_state_dict(saved.state_dict())
    state = dict(enumerate(reversed(entries(contents(model, saved)))))
    return contents(model, loaded) | {
        "optimizer": {"state": state, "param_groups": loaded.state_dict()["param_groups"]}
    }


@fault("M207")
def slots_of_adam_under_groups_of_sgd() -> State:
    model, adam = trained()
    sgd = torch.optim.SGD(list(model.named_parameters()), lr=0.1, momentum=0.9)
    return contents(model, adam) | {"optimizer": {**sgd.state_dict(), "state": adam.state_dict()["state"]}}


@fault("M207", "M401")
def another_class_in_the_later() -> tuple[State, State]:
    return adamw(), contents(*trained(torch.optim.SGD, lr=1e-3, momentum=0.9, steps=4), at=4)


@fault("M210")
def moments_in_bfloat16() -> State:
    saved = adamw()
    for entry in entries(saved):
        entry["exp_avg"] = entry["exp_avg"].bfloat16()
    return saved


@fault("M210")
def moments_cast_in_the_later() -> tuple[State, State]:
    model, optimizer = trained()
    earlier = contents(model, optimizer)
    later_model = net().bfloat16()
    loaded = torch.optim.AdamW(list(later_model.named_parameters()))
    loaded.load_state_dict(optimizer.state_dict())
    return earlier, contents(later_model, loaded)


@fault("M211")
def nadam_loaded_into_bfloat16() -> State:
    _, optimizer = trained(torch.optim.NAdam)
    model = net().bfloat16()
    loaded = torch.optim.NAdam(list(model.named_parameters()))
    loaded.load_state_dict(optimizer.state_dict())
    return contents(model, loaded)


@fault("M212")
def steps_in_bfloat16() -> State:
    saved = adamw()
    for entry in entries(saved):
        entry["step"] = entry["step"].bfloat16()
    return saved


@fault("M213")
def text_where_a_tensor_was() -> State:
    model, optimizer = trained()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = "x"
    optimizer.load_state_dict(saved)
    return contents(model, optimizer)


@fault("M219")
def state_of_a_stranger() -> State:
    saved = adamw()
    saved["optimizer"]["state"][99] = saved["optimizer"]["state"][0]
    return saved


@fault("M221")
def groups_in_another_order() -> tuple[State, State]:
    model = net()
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    biases = [(name, p) for name, p in model.named_parameters() if p.ndim == 1]

    def saved(first: float, second: float, steps: int) -> State:
        groups = [{"params": weights, "weight_decay": first}, {"params": biases, "weight_decay": second}]
        step(model, optimizer := torch.optim.AdamW(groups), steps)
        return contents(model, optimizer, at=steps)

    return saved(0.1, 0.0, 3), saved(0.0, 0.1, 4)


@fault("M225")
def one_step_tensor_for_all() -> State:
    saved = adamw()
    count = torch.tensor(3.0)
    for entry in entries(saved):
        entry["step"] = count
    return saved


@fault("M228", "M110")
def names_of_the_trainable_only() -> State:
    model = net()
    model[0].bias.requires_grad_(False)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return contents(*trained(model=model), trainable=names)


@fault("M232")
def one_tensor_for_both_moments() -> State:
    saved = adamw()
    for entry in entries(saved):
        entry["exp_avg"] = entry["exp_avg_sq"]
    return saved

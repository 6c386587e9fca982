"""M4xx in files: hyperparameters, flags and schedulers."""

from __future__ import annotations

import numpy as np
import torch

from tests.faults.making import State, adamw, contents, fault, halving, net, one_cycle, scheduled, step, trained


@fault("M401")
def decay_changed() -> tuple[State, State]:
    return adamw(), adamw(at=4, steps=4, weight_decay=0.5)


@fault("M402", "M115")
def amsgrad_in_the_later() -> tuple[State, State]:
    later = adamw(at=4, steps=4)
    later["optimizer"]["param_groups"][0]["amsgrad"] = True
    return adamw(), later


@fault("M403")
def adam_became_adamw() -> tuple[State, State]:
    later = adamw(at=4, steps=4)
    return contents(*trained(torch.optim.Adam, weight_decay=0.01)), later


@fault("M405", "M406")
def groups_from_before_the_scheduler() -> State:
    saved = scheduled(halving)
    saved["optimizer"] = adamw(lr=0.1)["optimizer"]
    return saved


@fault("M406")
def rate_of_another_moment() -> State:
    saved = scheduled(halving)
    saved["optimizer"]["param_groups"][0]["lr"] = 0.1
    return saved


@fault("M408")
def group_added_after_the_scheduler() -> State:
    model = net()
    optimizer = torch.optim.AdamW(list(model[0].named_parameters(prefix="0")), lr=0.1)
    schedule = halving(optimizer)
    optimizer.add_param_group({"params": list(model[1].named_parameters(prefix="1"))})
    step(model, optimizer, 3)
    return contents(model, optimizer, scheduler=schedule.state_dict())


@fault("M410", "M406")
def one_cycle_with_older_groups() -> State:
    saved = scheduled(one_cycle)
    saved["optimizer"] = adamw()["optimizer"]
    return saved


@fault("M411")
def a_key_of_muon_lost() -> State:
    model = net(bias=False)
    saved = contents(*trained(torch.optim.Muon, model=model))
    del saved["optimizer"]["param_groups"][0]["ns_steps"]
    return saved


@fault("M411")
def a_key_lost_by_one_group() -> State:
    model = net()
    step(model, optimizer := torch.optim.AdamW([{"params": list(each.parameters())} for each in model]), 3)
    saved = contents(model, optimizer)
    del saved["optimizer"]["param_groups"][1]["eps"]
    return saved


@fault("M412")
def learning_rate_out_of_numpy() -> State:
    return adamw(lr=np.float64(1e-3))


@fault("M413")
def coefficient_jumped() -> tuple[State, State]:
    later = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.5, steps=4), at=4)
    return contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9)), later


@fault("M418", "M109", "M318")
def rate_of_asgd_changed() -> State:
    saved = contents(*trained(torch.optim.ASGD))
    saved["optimizer"]["param_groups"][0]["lr"] = 1.0
    return saved

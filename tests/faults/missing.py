"""M1xx in files: state that is missing, or rightly not there."""

from __future__ import annotations

import torch

from tests.faults.making import State, adamw, contents, entries, fault, net, trained


@fault("M101")
def saved_before_the_first_step() -> State:
    return contents(*trained(steps=0), at=100)


@fault("M101", "M109")
def lbfgs_saved_before_the_first_step() -> State:
    return contents(*trained(torch.optim.LBFGS, steps=0, named=False), at=None)


@fault("M103")
def none_where_the_optimizer_was() -> State:
    return {"model": net().state_dict(), "optimizer": None, "step": 3}


@fault("M103")
def weights_alone() -> State:
    return net().state_dict()


@fault("M103", "M101")
def state_gone_in_the_later() -> tuple[State, State]:
    return adamw(at=3), contents(*trained(steps=0), at=6)


@fault("M104", "M110")
def two_parameters_lost_their_state() -> tuple[State, State]:
    later = adamw(at=6, steps=6)
    del later["optimizer"]["state"][0], later["optimizer"]["state"][2]
    return adamw(), later


@fault("M109")
def momentum_zero() -> State:
    return contents(*trained(torch.optim.SGD, lr=0.1))


@fault("M109")
def a_class_without_momentum() -> State:
    return contents(*trained(torch.optim.Adagrad))


@fault("M110")
def frozen_from_the_start() -> State:
    model = net()
    model[0].requires_grad_(False)
    return contents(*trained(model=model))


@fault("M111")
def saved_at_step_zero() -> State:
    return contents(*trained(steps=0), at=0)


@fault("M114")
def one_slot_pruned() -> State:
    saved = adamw()
    del entries(saved)[0]["exp_avg"]
    return saved


@fault("M114")
def one_slot_lost_by_an_unknown_optimizer() -> tuple[State, State]:
    earlier, later = adamw(), adamw(at=4, steps=4)
    for saved in (earlier, later):
        for group in saved["optimizer"]["param_groups"]:
            del group["betas"], group["eps"], group["weight_decay"]
    del entries(later)[1]["exp_avg"]
    return earlier, later


@fault("M115")
def amsgrad_switched_on() -> State:
    saved = adamw()
    saved["optimizer"]["param_groups"][0]["amsgrad"] = True
    return saved


@fault("M115")
def momentum_switched_on() -> State:
    saved = contents(*trained(torch.optim.RMSprop))
    saved["optimizer"]["param_groups"][0]["momentum"] = 0.9
    return saved


@fault("M115", "M109")
def centred_switched_on() -> State:
    saved = contents(*trained(torch.optim.RMSprop))
    saved["optimizer"]["param_groups"][0]["centered"] = True
    return saved


@fault("M116", "M110")
def fused_sgd_with_one_buffer_less() -> State:
    saved = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True))
    del saved["optimizer"]["state"][0]
    return saved

"""M3xx in files: values that no healthy run has."""

from __future__ import annotations

import torch

from tests.faults.making import State, adamw, contents, entries, fault, trained


@fault("M301")
def one_gradient_of_nan() -> State:
    model, optimizer = trained()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].weight.grad[0, 0] = float("nan")
    optimizer.step()
    return contents(model, optimizer, at=4)


@fault("M301")
def learning_rate_of_nan() -> State:
    saved = adamw()
    saved["optimizer"]["param_groups"][0]["lr"] = float("nan")
    return saved


@fault("M304")
def second_moment_reset_alone() -> State:
    saved = adamw()
    entries(saved)[0]["exp_avg_sq"].zero_()
    return saved


@fault("M305", "M109")
def centred_squares_reset_alone() -> State:
    saved = contents(*trained(torch.optim.RMSprop, centered=True))
    entries(saved)[0]["square_avg"][0].zero_()
    return saved


@fault("M306")
def norm_of_adamax_reset_alone() -> State:
    saved = contents(*trained(torch.optim.Adamax))
    entries(saved)[0]["exp_inf"].zero_()
    return saved


@fault("M307", "M109")
def step_sizes_of_rprop_reset_to_zero() -> State:
    saved = contents(*trained(torch.optim.Rprop))
    entries(saved)[0]["step_size"].zero_()
    return saved


@fault("M308", "M109", "M318")
def factors_of_asgd_reset_to_zero() -> State:
    saved = contents(*trained(torch.optim.ASGD))
    for entry in entries(saved):
        entry["eta"].zero_()
    return saved


@fault("M308")
def product_of_nadam_reset_to_zero() -> State:
    saved = contents(*trained(torch.optim.NAdam))
    entries(saved)[0]["mu_product"].zero_()
    return saved


@fault("M309")
def memory_that_nobody_wrote() -> State:
    saved = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9))
    entries(saved)[0]["momentum_buffer"].fill_(3e38)
    return saved


@fault("M310", "M210")
def second_moment_kept_in_float16() -> State:
    saved = adamw()
    for entry in entries(saved):
        entry["exp_avg_sq"] = (entry["exp_avg_sq"] / 50).half()
    return saved


@fault("M311")
def one_parameter_counts_less() -> State:
    saved = adamw()
    entries(saved)[0]["step"].fill_(1)
    return saved


@fault("M311")
def the_trainer_went_on_alone() -> State:
    return adamw(at=4200)


@fault("M311")
def steps_went_back() -> tuple[State, State]:
    return adamw(at=30, steps=30), adamw(at=31, steps=31) | {"optimizer": contents(*trained(steps=29))["optimizer"]}


@fault("M312")
def steps_at_the_end_of_float32() -> State:
    saved = adamw(at=None)
    for entry in entries(saved):
        entry["step"].fill_(2**24)
    return saved


@fault("M313")
def momentum_switched_off() -> State:
    saved = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9))
    saved["optimizer"]["param_groups"][0]["momentum"] = 0
    return saved


@fault("M315", "M320")
def buffers_zeroed_under_dampening() -> State:
    saved = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5))
    entries(saved)[0]["momentum_buffer"].zero_()
    return saved


@fault("M316")
def masters_of_other_weights() -> State:
    model, optimizer = trained()
    saved = contents(model.bfloat16(), optimizer)
    for entry, weight in zip(entries(saved), saved["model"].values(), strict=True):
        entry["master_param"] = weight.float() + 1
    return saved


@fault("M317")
def second_moment_negated() -> State:
    saved = adamw()
    entries(saved)[0]["exp_avg_sq"].neg_()
    return saved


@fault("M318", "M109")
def averaged_weights_of_asgd() -> State:
    return contents(*trained(torch.optim.ASGD))


@fault("M319")
def maximize_switched_on() -> tuple[State, State]:
    later = adamw(at=4, steps=4)
    later["optimizer"]["param_groups"][0]["maximize"] = True
    return adamw(), later


@fault("M320")
def one_buffer_of_sgd_zeroed() -> State:
    saved = contents(*trained(torch.optim.SGD, lr=0.1, momentum=0.9))
    entries(saved)[0]["momentum_buffer"].zero_()
    return saved


@fault("M320")
def momentum_zeroed() -> State:
    saved = adamw()
    entries(saved)[0]["exp_avg"].zero_()
    return saved

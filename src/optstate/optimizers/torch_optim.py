"""Every optimizer that `torch.optim` exports, one row per slot.

Read a row as: key, what kind of slot, which coefficient drives it, and how it differs from its kind; a fresh slot
holds 0 unless `reset` says otherwise. Slots inside `together` are coherent only as a whole. `kinds` has the kinds.
`tests/test_registry.py` holds each row against the numeric probe of the real class.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import (
    ADAM,
    ADAM_GROUP,
    COUNT,
    DEBIASED_SQUARE,
    INTEGER_COUNT,
    MEAN,
    SQUARE,
    SUM,
    together,
)
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

_SCALAR = SlotSpec(role="other", shape="scalar", dtype="scalar")  # on the parameter's device, unlike a count
_FACTOR = replace(SQUARE, role="factored_row", shape="row", dtype="gradient", when="matrix", age="weighted")
_HISTORY = SlotSpec(
    role="preconditioner",
    dtype="gradient",
    created="after first step",
    reset="delete",
    gradient_degree=None,
    lr_degree=None,
)

TORCH_OPTIM = (
    OptimizerSpec(
        name="torch.optim.sgd.SGD",
        update="sgd",
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        slots={
            # Deleted, not zeroed: the first gradient enters an absent buffer undamped.
            "momentum_buffer": replace(SUM, coefficient="momentum", when="momentum", dtype="gradient", reset="delete"),
        },
    ),
    OptimizerSpec(
        name="torch.optim.adam.Adam",
        update="adam",
        decoupled="decoupled_weight_decay",
        hyperparameters=(*ADAM_GROUP, "amsgrad"),
        slots=ADAM,
    ),
    OptimizerSpec(
        name="torch.optim.adamw.AdamW",
        update="adam",
        decoupled=True,
        hyperparameters=(*ADAM_GROUP, "amsgrad"),
        fixed={"decoupled_weight_decay": True},
        slots=ADAM,
    ),
    OptimizerSpec(
        name="torch.optim.nadam.NAdam",
        update="nadam",
        decoupled="decoupled_weight_decay",
        hyperparameters=(*ADAM_GROUP, "momentum_decay"),
        slots=together(
            step=COUNT,
            mu_product=replace(COUNT, role="other", coefficient="betas[0]", reset=1.0),
            exp_avg=replace(MEAN, coefficient="betas[0]", age="stored"),  # corrected by mu_product
            exp_avg_sq=replace(DEBIASED_SQUARE, coefficient="betas[1]"),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.radam.RAdam",
        update="radam",
        decoupled="decoupled_weight_decay",
        # Many fused Adams of other libraries write the same four keys and the same slots, but no `foreach`.
        hyperparameters=(*ADAM_GROUP, "foreach"),
        slots=together(
            step=COUNT,
            exp_avg=replace(MEAN, coefficient="betas[0]"),
            exp_avg_sq=replace(DEBIASED_SQUARE, coefficient="betas[1]"),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.adamax.Adamax",
        update="adamax",
        hyperparameters=ADAM_GROUP,
        slots=together(
            step=COUNT,
            exp_avg=replace(MEAN, coefficient="betas[0]"),
            exp_inf=SlotSpec(role="infinity_norm", coefficient="betas[1]", gradient_degree=1),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.adagrad.Adagrad",
        update="adagrad",
        hyperparameters=("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"),
        slots=together(
            step=replace(COUNT, created="constructor"),
            sum=replace(SQUARE, created="constructor", reset="initial_accumulator_value"),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.adadelta.Adadelta",
        update="adadelta",
        hyperparameters=("lr", "rho", "eps", "weight_decay"),
        slots={
            "step": COUNT,  # counted, never used
            **together(
                square_avg=replace(SQUARE, coefficient="rho"),
                acc_delta=SlotSpec(role="update_average", coefficient="rho"),
            ),
        },
    ),
    OptimizerSpec(
        name="torch.optim.rmsprop.RMSprop",
        update="rmsprop",
        hyperparameters=("lr", "momentum", "alpha", "eps", "centered", "weight_decay"),
        slots={
            "step": COUNT,  # counted, never used
            "momentum_buffer": replace(
                SUM, of="preconditioned", coefficient="momentum", when="momentum", gradient_degree=0
            ),
            **together(
                square_avg=replace(SQUARE, coefficient="alpha"),
                # The mean that centring subtracts: a statistic of the gradient, not the direction of the update.
                grad_avg=replace(MEAN, convention="ema", coefficient="alpha", when="centered", primary=False),
            ),
        },
    ),
    OptimizerSpec(
        name="torch.optim.rprop.Rprop",
        update="rprop",
        hyperparameters=("lr", "etas", "step_sizes"),
        slots={
            "step": COUNT,  # counted, never used
            **together(
                prev=SlotSpec(role="previous_gradient", gradient_degree=1),
                step_size=SlotSpec(role="step_size", coefficient="etas", dtype="gradient", reset="lr", lr_degree=1),
            ),
        },
    ),
    OptimizerSpec(
        name="torch.optim.asgd.ASGD",
        update="asgd",
        hyperparameters=("lr", "lambd", "alpha", "t0", "weight_decay"),
        slots=together(
            step=replace(_SCALAR, role="step"),
            eta=replace(_SCALAR, role="step_size", coefficient="lr", reset="lr", lr_degree=1),
            mu=replace(_SCALAR, coefficient="t0", reset=1.0),
            ax=SlotSpec(role="averaged_weights", reset="parameter", gradient_degree=None, lr_degree=None),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.sparse_adam.SparseAdam",
        update="sparse_adam",
        hyperparameters=("lr", "betas", "eps"),
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(MEAN, coefficient="betas[0]"),
            exp_avg_sq=replace(DEBIASED_SQUARE, coefficient="betas[1]"),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.Adafactor",
        update="adafactor",
        decoupled=True,
        hyperparameters=("lr", "beta2_decay", "eps", "d", "weight_decay"),
        slots=together(
            step=COUNT,
            row_var=replace(_FACTOR, coefficient="beta2_decay"),
            col_var=replace(_FACTOR, coefficient="beta2_decay", role="factored_column", shape="column"),
            variance=replace(SQUARE, coefficient="beta2_decay", when="vector", dtype="gradient", age="weighted"),
        ),
    ),
    OptimizerSpec(
        name="torch.optim.Muon",
        update="muon",
        decoupled=True,
        hyperparameters=("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps"),
        slots={"momentum_buffer": replace(MEAN, convention="ema", coefficient="momentum", dtype="gradient")},
    ),
    OptimizerSpec(
        name="torch.optim.lbfgs.LBFGS",
        hyperparameters=("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"),
        order_matters=True,
        slots=together(
            func_evals=SlotSpec(role="counter", shape="scalar", dtype="python", reset="delete"),
            n_iter=SlotSpec(role="counter", shape="scalar", dtype="python", reset="delete"),
            prev_loss=replace(_HISTORY, role="other", shape="scalar", dtype="python"),
            prev_flat_grad=replace(_HISTORY, role="previous_gradient", shape="flat", gradient_degree=1, lr_degree=0),
            d=replace(_HISTORY, shape="flat"),
            t=replace(_HISTORY, shape="scalar", dtype="python"),  # a tensor while there was a single iteration
            H_diag=replace(_HISTORY, shape="scalar"),  # the number 1 while there was a single iteration
            old_dirs=replace(_HISTORY, shape="list"),
            old_stps=replace(_HISTORY, shape="list"),
            ro=replace(_HISTORY, shape="list"),
            al=replace(_HISTORY, shape="list"),
        ),
    ),
)

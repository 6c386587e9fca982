"""timm's own optimizers; see `torch_optim` for how to read a row, and `kinds` for the kinds of slots."""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import (
    ADAM,
    ADAM_GROUP,
    COLUMN,
    COUNT,
    DEBIASED_SQUARE,
    DIRECTION,
    INTEGER_COUNT,
    MEAN,
    OWN,
    PLAIN_MEAN,
    PREVIOUS,
    ROW,
    SQUARE,
    SUM,
    WEIGHTS,
    together,
)
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

_MEAN, _PLAIN = replace(MEAN, coefficient="betas[0]"), replace(PLAIN_MEAN, coefficient="betas[0]")
_SQUARE = replace(DEBIASED_SQUARE, coefficient="betas[1]")
_VALUE = SlotSpec(role="other", shape="scalar", dtype="python")
_INTEGER_ADAM = together(step=INTEGER_COUNT, exp_avg=_MEAN, exp_avg_sq=_SQUARE)
_SGD_BUFFER = replace(SUM, coefficient="momentum", when="momentum")

TIMM = (
    OptimizerSpec(
        name="timm.optim.adabelief.AdaBelief",
        update="adabelief",
        decoupled="decoupled_decay",
        hyperparameters=(*ADAM_GROUP, "amsgrad", "degenerated_to_sgd", "decoupled_decay", "rectify", "fixed_decay"),
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(_MEAN, dtype="gradient"),
            exp_avg_var=replace(_SQUARE, dtype="gradient"),  # of the difference from the mean
            max_exp_avg_var=replace(DEBIASED_SQUARE, role="max_second_moment", dtype="gradient", when="amsgrad"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.adafactor.Adafactor",
        hyperparameters=(
            "lr",
            "eps",
            "eps_scale",
            "clip_threshold",
            "decay_rate",
            "beta1",
            "weight_decay",
            "scale_parameter",
            "relative_step",
            "warmup_init",
        ),
        # Factored from 16 elements along both of the last dimensions.
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(DIRECTION, coefficient="beta1", when="beta1", dtype="gradient"),
            exp_avg_sq=replace(SQUARE, when="sometimes", dtype="gradient", age="weighted"),
            exp_avg_sq_row=replace(ROW, when="sometimes", age="weighted"),
            exp_avg_sq_col=replace(COLUMN, when="sometimes", age="weighted"),
            RMS=replace(_VALUE, dtype="gradient"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.adafactor_bv.AdafactorBigVision",
        hyperparameters=(
            "lr",
            "min_dim_size_to_factor",
            "decay_rate",
            "decay_offset",
            "beta2_cap",
            "momentum",
            "momentum_dtype",
            "eps",
            "weight_decay",
            "clipping_threshold",
            "unscaled_wd",
        ),
        slots=together(
            step=COUNT,
            exp_avg_sq=replace(SQUARE, when="sometimes", dtype="gradient", age="weighted"),
            # Averages along the two longest dimensions, which of them is not always the last.
            exp_avg_sq_r=replace(OWN, when="sometimes", dtype="gradient", gradient_degree=2, lr_degree=0),
            exp_avg_sq_c=replace(OWN, when="sometimes", dtype="gradient", gradient_degree=2, lr_degree=0),
            exp_avg=replace(DIRECTION, when="momentum", dtype="scalar"),  # bfloat16 unless told otherwise
        ),
    ),
    OptimizerSpec(
        name="timm.optim.adahessian.Adahessian",
        hyperparameters=(*ADAM_GROUP, "hessian_power"),
        slots={
            **together(
                step=INTEGER_COUNT,
                exp_avg=_MEAN,
                exp_hessian_diag_sq=replace(
                    OWN, role="preconditioner", shape="parameter", coefficient="betas[1]", age="debiased"
                ),
            ),
            "hessian step": replace(INTEGER_COUNT, role="counter"),
        },
    ),
    OptimizerSpec(
        name="timm.optim.adamp.AdamP",
        hyperparameters=(*ADAM_GROUP, "delta", "wd_ratio", "nesterov"),
        slots=_INTEGER_ADAM,
    ),
    OptimizerSpec(
        name="timm.optim.adamw.AdamWLegacy",
        update="adam",
        decoupled=True,
        aliases=("timm.optim.adamw.AdamW",),
        hyperparameters=(*ADAM_GROUP, "amsgrad", "caution"),
        slots=ADAM,
    ),
    OptimizerSpec(
        name="timm.optim.adan.Adan",
        update="adan",
        decoupled=True,
        hyperparameters=(*ADAM_GROUP, "no_prox"),
        group_step="step",
        slots=together(
            exp_avg=_MEAN,
            exp_avg_diff=replace(DIRECTION, gradient_degree=1, primary=False, coefficient="betas[1]", age="debiased"),
            exp_avg_sq=replace(DEBIASED_SQUARE, coefficient="betas[2]"),
            neg_pre_grad=replace(PREVIOUS, dtype="gradient", reset="delete"),  # with its sign turned round
        ),
    ),
    OptimizerSpec(
        name="timm.optim.adopt.Adopt",
        hyperparameters=(*ADAM_GROUP, "clip_exp", "decoupled"),
        # A parameter without any state is one that takes its first step: of a reset nothing may be left.
        slots=together(
            step=replace(COUNT, reset="delete"),
            exp_avg=replace(_PLAIN, of="preconditioned", gradient_degree=0, dtype="gradient", reset="delete"),
            exp_avg_sq=replace(_SQUARE, dtype="gradient", age=None, reset="delete"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.kron.Kron",
        hyperparameters=(
            "lr",
            "momentum",
            "weight_decay",
            "preconditioner_update_probability",
            "max_size_triangular",
            "min_ndim_triangular",
            "memory_save_mode",
            "momentum_into_precond_update",
            "precond_lr",
        ),
        slots=together(
            step=INTEGER_COUNT,
            update_counter=replace(OWN, role="counter", shape="scalar", dtype="python"),
            momentum_buffer=replace(PLAIN_MEAN, coefficient="momentum", dtype="gradient"),
            Q=replace(OWN, role="preconditioner", dtype="gradient"),
            expressions=replace(OWN, when="sometimes", dtype="python"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.lamb.Lamb",
        update="lamb",
        hyperparameters=(
            *ADAM_GROUP,
            "bias_correction",
            "grad_averaging",
            "max_grad_norm",
            "trust_clip",
            "always_adapt",
        ),
        group_step="step",
        # Of gradients that are clipped together, to a norm of `max_grad_norm`.
        slots=together(exp_avg=_MEAN, exp_avg_sq=_SQUARE),
    ),
    OptimizerSpec(
        name="timm.optim.laprop.LaProp",
        hyperparameters=(*ADAM_GROUP, "caution"),
        slots=together(
            step=COUNT,
            exp_avg=replace(
                _MEAN,
                convention="lr_in_buffer",
                of="preconditioned",
                gradient_degree=0,
                lr_degree=1,
                averages=True,
                age="stored",
            ),
            exp_avg_sq=replace(_SQUARE, age="stored"),
            exp_avg_lr_1=replace(_VALUE, role="step_size", lr_degree=1),
            exp_avg_lr_2=replace(_VALUE, dtype="scalar"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.lars.Lars",
        update="lars",
        hyperparameters=(
            "lr",
            "momentum",
            "dampening",
            "weight_decay",
            "nesterov",
            "trust_coeff",
            "eps",
            "trust_clip",
            "always_adapt",
        ),
        # With weight decay, gradients are scaled to the weights first: then it has neither degree nor gain of its own.
        slots={
            "momentum_buffer": replace(
                DIRECTION,
                coefficient="momentum",
                when="momentum",
                dtype="gradient",
                reset="delete",
                gradient_degree=None,
            )
        },
    ),
    OptimizerSpec(
        name="timm.optim.lion.Lion",
        update="lion",
        decoupled=True,
        hyperparameters=("lr", "betas", "weight_decay", "maximize", "foreach"),
        optional=("caution", "corrected_weight_decay", "max_lr_snapshot"),
        closed=True,
        slots={"exp_avg": replace(PLAIN_MEAN, coefficient="betas[1]")},
    ),
    OptimizerSpec(
        name="timm.optim.madgrad.MADGRAD",
        hyperparameters=("lr", "eps", "momentum", "weight_decay", "decoupled_decay"),
        slots=together(
            step=INTEGER_COUNT,
            grad_sum_sq=replace(SQUARE, lr_degree=1),
            s=replace(SUM, convention="lr_in_buffer", lr_degree=1),  # a sum that forgets nothing
            x0=replace(WEIGHTS, when="momentum"),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.mars.Mars",
        hyperparameters=(*ADAM_GROUP, "mars_type", "gamma", "optimize_1d", "lr_1d_factor", "betas_1d"),
        slots=together(
            step=INTEGER_COUNT,
            # Of a corrected gradient that is clipped.
            exp_avg=replace(DIRECTION, gradient_degree=None, age="debiased"),
            exp_avg_sq=replace(DEBIASED_SQUARE, gradient_degree=None),
            last_grad=PREVIOUS,
        ),
    ),
    OptimizerSpec(
        name="timm.optim.muon.Muon",
        hyperparameters=(
            "lr",
            "weight_decay",
            "momentum",
            "nesterov",
            "ns_steps",
            "ns_coefficients",
            "eps",
            "algo",
            "betas",
        ),
        # Matrices have a momentum buffer, and with `algo` adamuon a step and a square; the others are AdamW's.
        slots={
            "use_muon": replace(
                _VALUE, gradient_degree=None, lr_degree=None, reset="delete"
            ),  # decided where it is missing
            "momentum_buffer": replace(PLAIN_MEAN, coefficient="momentum", when="sometimes"),
            **together(
                step=replace(COUNT, when="sometimes"),
                exp_avg=replace(_MEAN, when="sometimes", primary=False),
                exp_avg_sq=replace(_SQUARE, when="sometimes"),
            ),
        },
    ),
    OptimizerSpec(
        name="timm.optim.nadam.NAdamLegacy",
        aliases=("timm.optim.nadam.Nadam",),
        hyperparameters=(*ADAM_GROUP, "schedule_decay"),
        slots=together(
            step=INTEGER_COUNT,
            m_schedule=replace(_VALUE, reset=1.0),
            exp_avg=replace(_MEAN, age="stored"),
            exp_avg_sq=_SQUARE,
        ),
    ),
    OptimizerSpec(
        name="timm.optim.nadamw.NAdamW",
        update="nadamw",
        decoupled=True,
        hyperparameters=(*ADAM_GROUP, "caution", "capturable", "maximize"),
        slots=together(step=COUNT, exp_avg=_MEAN, exp_avg_sq=_SQUARE),
    ),
    OptimizerSpec(
        name="timm.optim.nvnovograd.NvNovoGrad",
        hyperparameters=(*ADAM_GROUP, "grad_averaging", "amsgrad"),
        optional=("decoupled_decay", "corrected_weight_decay", "max_lr_snapshot"),
        closed=True,
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(DIRECTION, coefficient="betas[0]"),
            exp_avg_sq=replace(OWN, shape="scalar", dtype="scalar", gradient_degree=2, lr_degree=0),
            max_exp_avg_sq=replace(OWN, shape="scalar", dtype="scalar", when="amsgrad", gradient_degree=2, lr_degree=0),
        ),
    ),
    OptimizerSpec(
        name="timm.optim.radam.RAdamLegacy",
        aliases=("timm.optim.radam.RAdam",),
        hyperparameters=ADAM_GROUP,
        optional=("buffer",),
        closed=True,
        slots=together(
            step=INTEGER_COUNT, exp_avg=replace(_MEAN, dtype="scalar"), exp_avg_sq=replace(_SQUARE, dtype="scalar")
        ),
    ),
    OptimizerSpec(
        name="timm.optim.rmsprop_tf.RMSpropTF",
        update="rmsprop_tf",
        decoupled="decoupled_decay",
        hyperparameters=(
            "lr",
            "momentum",
            "alpha",
            "eps",
            "centered",
            "weight_decay",
            "decoupled_decay",
            "lr_in_momentum",
        ),
        slots={
            "step": replace(COUNT, when="sometimes"),  # counted by newer versions, never used
            # A plain sum without `lr_in_momentum`, which is on unless switched off.
            "momentum_buffer": replace(
                _SGD_BUFFER, convention="lr_in_buffer", of="preconditioned", gradient_degree=0, lr_degree=1
            ),
            **together(
                square_avg=replace(SQUARE, coefficient="alpha", reset=1.0),
                grad_avg=replace(PLAIN_MEAN, coefficient="alpha", when="centered", primary=False),
            ),
        },
    ),
    OptimizerSpec(
        name="timm.optim.sgdp.SGDP",
        decoupled=True,
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov", "eps", "delta", "wd_ratio"),
        slots={"momentum": replace(_SGD_BUFFER, when=None)},
    ),
    OptimizerSpec(
        name="timm.optim.sgdw.SGDW",
        update="sgd",
        decoupled=True,
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov", "caution"),
        slots={"momentum_buffer": replace(_SGD_BUFFER, dtype="gradient", reset="delete")},
    ),
)

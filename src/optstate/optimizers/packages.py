"""Optimizers that come in a package of their own, and those inside larger libraries; see `torch_optim`."""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import (
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
    WEIGHTS,
    together,
)
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

_MEAN = replace(MEAN, coefficient="betas[0]")
_SQUARE = replace(DEBIASED_SQUARE, coefficient="betas[1]")
_VALUE = SlotSpec(role="other", shape="scalar", dtype="gradient")
_DISTANCE = SlotSpec(role="other", gradient_degree=None, lr_degree=None)  # sums from which the step size is estimated

# Of the gradient times an estimated step size: no gain is known, and another estimate would need another scale.
_SCALED = replace(DIRECTION, gradient_degree=1, lr_degree=None, age="debiased")
_D = ("lr", "weight_decay", "d", "k", "growth_rate", "fsdp_in_use")

PACKAGES = (
    OptimizerSpec(
        name="lion_pytorch.lion_pytorch.Lion",
        update="lion",
        decoupled=True,
        hyperparameters=("lr", "betas", "weight_decay"),
        closed=True,
        slots={"exp_avg": replace(PLAIN_MEAN, coefficient="betas[1]")},
    ),
    OptimizerSpec(
        name="adan_pytorch.adan.Adan",
        hyperparameters=(*ADAM_GROUP, "restart_cond"),
        # Its betas are the weights of the new gradient, one minus what others call so: no coefficient fits.
        slots=together(
            step=INTEGER_COUNT,
            prev_grad=replace(PREVIOUS, dtype="gradient"),
            m=replace(MEAN, dtype="gradient"),
            v=replace(DIRECTION, dtype="gradient", gradient_degree=1, primary=False, age="debiased"),  # of differences
            n=replace(DEBIASED_SQUARE, dtype="gradient"),
        ),
    ),
    OptimizerSpec(
        name="came_pytorch.CAME.CAME",
        hyperparameters=("lr", "eps", "clip_threshold", "betas", "weight_decay"),
        closed=True,
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(DIRECTION, coefficient="betas[0]", dtype="gradient"),
            exp_avg_sq=replace(_SQUARE, when="vector", dtype="gradient", age=None),
            exp_avg_sq_row=replace(ROW, coefficient="betas[1]"),
            exp_avg_sq_col=replace(COLUMN, coefficient="betas[1]"),
            exp_avg_res_row=replace(
                _DISTANCE, shape="squeezed row", when="matrix", dtype="gradient", gradient_degree=0, lr_degree=0
            ),
            exp_avg_res_col=replace(
                _DISTANCE, shape="squeezed column", when="matrix", dtype="gradient", gradient_degree=0, lr_degree=0
            ),
            RMS=replace(_VALUE, dtype="parameter"),
        ),
    ),
    OptimizerSpec(
        name="transformers.optimization.Adafactor",
        aliases=("fairseq.optim.adafactor.Adafactor",),
        hyperparameters=(
            "lr",
            "eps",
            "clip_threshold",
            "decay_rate",
            "beta1",
            "weight_decay",
            "scale_parameter",
            "relative_step",
            "warmup_init",
        ),
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(
                DIRECTION,
                convention="lr_in_buffer",
                of="preconditioned",
                coefficient="beta1",
                when="beta1",
                dtype="gradient",
                lr_degree=1,
                averages=True,
            ),
            exp_avg_sq=replace(SQUARE, when="vector", dtype="gradient", age="weighted"),
            exp_avg_sq_row=replace(ROW, age="weighted"),
            exp_avg_sq_col=replace(COLUMN, age="weighted"),
            RMS=_VALUE,
        ),
    ),
    OptimizerSpec(
        name="prodigyopt.prodigy.Prodigy",
        group_state=("k", "d", "d_max", "d_numerator"),
        update="prodigy",
        decoupled="decouple",
        hyperparameters=(*ADAM_GROUP, "beta3", "d", "d0", "d_max", "d_numerator", "d_coef", "k", "growth_rate"),
        slots=together(
            step=INTEGER_COUNT,
            s=replace(_DISTANCE, shape="list", gradient_degree=1, lr_degree=1),
            p0=replace(
                _DISTANCE, shape="list", gradient_degree=0, lr_degree=0
            ),  # weights at the start, every few of them
            exp_avg=replace(_SCALED, coefficient="betas[0]", lr_degree=0),
            exp_avg_sq=_SQUARE,
        ),
    ),
    OptimizerSpec(
        name="dadaptation.dadapt_adam.DAdaptAdam",
        group_state=("k", "d", "numerator_weighted"),
        hyperparameters=(*_D, "betas", "eps", "layer_scale", "numerator_weighted", "use_bias_correction", "decouple"),
        slots=together(
            step=INTEGER_COUNT,
            s=replace(_DISTANCE, gradient_degree=1),
            exp_avg=replace(_SCALED, coefficient="betas[0]"),
            exp_avg_sq=_SQUARE,
        ),
    ),
    OptimizerSpec(
        name="dadaptation.dadapt_sgd.DAdaptSGD",
        group_state=("d", "numerator_weighted"),
        hyperparameters=(*_D, "momentum", "numerator_weighted", "log_every"),
        group_step="k",
        slots=together(z=WEIGHTS, s=replace(_DISTANCE, gradient_degree=0), x0=replace(WEIGHTS, primary=False)),
    ),
    OptimizerSpec(
        name="dadaptation.dadapt_lion.DAdaptLion",
        group_state=("d", "numerator_weighted"),
        hyperparameters=("lr", "betas", "weight_decay", "d", "k", "numerator_weighted", "fsdp_in_use"),
        group_step="k",
        slots=together(exp_avg=replace(_SCALED, coefficient="betas[1]"), s=replace(_DISTANCE, gradient_degree=0)),
    ),
    OptimizerSpec(
        name="dadaptation.dadapt_adagrad.DAdaptAdaGrad",
        group_state=("d", "gsq_weighted", "sksq_weighted", "skl1"),
        hyperparameters=(
            "lr",
            "momentum",
            "eps",
            "weight_decay",
            "gsq_weighted",
            "d",
            "growth_rate",
            "k",
            "sksq_weighted",
            "skl1",
        ),
        group_step="k",
        slots=together(alphak=replace(SQUARE, reset=1e-6), sk=replace(_DISTANCE, gradient_degree=1), x0=WEIGHTS),
    ),
    OptimizerSpec(
        name="dadaptation.dadapt_adan.DAdaptAdan",
        group_state=("k", "d", "gsq_weighted"),
        hyperparameters=("lr", "betas", "eps", "weight_decay", "no_prox", "d", "k", "gsq_weighted", "growth_rate"),
        slots=together(
            step=INTEGER_COUNT,
            s=replace(_DISTANCE, gradient_degree=1),
            exp_avg=replace(_SCALED, coefficient="betas[0]"),
            exp_avg_diff=replace(_SCALED, primary=False),
            exp_avg_sq=SQUARE,
            pre_grad=replace(PREVIOUS, dtype="gradient", reset="delete"),
        ),
    ),
    OptimizerSpec(
        name="galore_torch.adamw.AdamW",
        hyperparameters=(*ADAM_GROUP, "correct_bias"),
        # In groups with a rank, moments are those of a projected gradient, in its shape.
        slots=together(
            step=INTEGER_COUNT,
            exp_avg=replace(_MEAN, shape="list"),
            exp_avg_sq=replace(_SQUARE, shape="list"),
            projector=replace(OWN, when="sometimes", dtype="python"),
        ),
    ),
    OptimizerSpec(
        name="muon.Muon",
        aliases=("muon.SingleDeviceMuon",),
        hyperparameters=("lr", "weight_decay", "momentum"),
        closed=True,
        slots={"momentum_buffer": replace(PLAIN_MEAN, coefficient="momentum")},
    ),
    OptimizerSpec(
        name="muon.MuonWithAuxAdam",
        aliases=("muon.SingleDeviceMuonWithAuxAdam",),
        hyperparameters=("lr", "weight_decay", "use_muon"),
        optional=("momentum", "betas", "eps"),
        closed=True,
        slots={
            "momentum_buffer": replace(PLAIN_MEAN, coefficient="momentum", when="sometimes"),
            **together(
                step=replace(INTEGER_COUNT, when="sometimes"),
                exp_avg=replace(_MEAN, when="sometimes", primary=False),
                exp_avg_sq=replace(_SQUARE, when="sometimes"),
            ),
        },
    ),
    OptimizerSpec(
        name="sophia.SophiaG",
        hyperparameters=("lr", "betas", "rho", "weight_decay", "maximize", "capturable"),
        slots=together(
            step=COUNT,
            exp_avg=replace(PLAIN_MEAN, coefficient="betas[0]"),
            hessian=replace(_DISTANCE, role="preconditioner", coefficient="betas[1]"),
        ),
    ),
)

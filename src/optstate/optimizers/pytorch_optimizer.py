"""The optimizers of the package pytorch_optimizer; nearly all count steps in the group. See `torch_optim`.

Its classes share keys and not meanings: those that are not here stay unknown, which is better than a guess.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import (
    ADAM_GROUP,
    COLUMN,
    DEBIASED_SQUARE,
    DIRECTION,
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
_LARGEST = replace(DEBIASED_SQUARE, role="max_second_moment", when="ams_bound")
_SCALED = replace(DIRECTION, gradient_degree=1, lr_degree=None, age="debiased")  # by an estimated step size
_DISTANCE = SlotSpec(role="other", gradient_degree=None, lr_degree=None)
_VALUE = SlotSpec(role="other", shape="scalar", dtype="parameter")
_DECAY = ("weight_decouple", "fixed_decay")


_STATE = ("weight_sum", "lr_max", "d", "d_max", "d_numerator", "numerator_weighted")
"""Group keys that stepping changes, those of them that a class has."""


def _row(place: str, slots: dict[str, SlotSpec], *keys: str, update: str | None = None) -> OptimizerSpec:
    return OptimizerSpec(
        name=f"pytorch_optimizer.optimizer.{place}",
        slots=slots,
        hyperparameters=keys,
        group_step="step",
        group_state=_STATE,
        update=update,
        decoupled="weight_decouple",
    )


PYTORCH_OPTIMIZER = (
    _row(
        "adabelief.AdaBelief",
        together(exp_avg=_MEAN, exp_avg_var=_SQUARE, max_exp_avg_var=_LARGEST),
        *ADAM_GROUP,
        *_DECAY,
        "rectify",
        "ams_bound",
    ),
    _row(
        "adabound.AdaBound",
        together(exp_avg=_MEAN, exp_avg_sq=_SQUARE, max_exp_avg_sq=_LARGEST),
        *ADAM_GROUP,
        *_DECAY,
        "final_lr",
        "gamma",
        "ams_bound",
    ),
    _row(
        "adafactor.AdaFactor",
        together(
            exp_avg=replace(DIRECTION, dtype="scalar"),
            exp_avg_sq=replace(SQUARE, when="vector", dtype="gradient", age="weighted"),
            exp_avg_sq_row=replace(ROW, age="weighted"),
            exp_avg_sq_col=replace(COLUMN, age="weighted"),
            exp_avg_sq_hat=replace(_LARGEST, dtype="gradient", age="weighted"),
            RMS=replace(_VALUE, dtype="python", gradient_degree=None, lr_degree=None),
        ),
        "lr",
        "betas",
        "weight_decay",
        *_DECAY,
        "ams_bound",
        "scale_parameter",
        "relative_step",
        "warmup_init",
        "eps1",
        "eps2",
    ),
    _row(
        "adamp.AdamP",
        together(exp_avg=_MEAN, exp_avg_sq=_SQUARE),
        *ADAM_GROUP,
        *_DECAY,
        "delta",
        "wd_ratio",
        "nesterov",
    ),
    _row(
        "adan.Adan",
        together(  # whatever is there, it takes for all: of a reset nothing may be left
            exp_avg=replace(_MEAN, reset="delete"),
            exp_avg_diff=replace(
                DIRECTION, gradient_degree=1, primary=False, coefficient="betas[1]", age="debiased", reset="delete"
            ),
            exp_avg_sq=replace(_SQUARE, coefficient="betas[2]", reset="delete"),
            previous_grad=replace(PREVIOUS, dtype="gradient", reset="delete"),  # with its sign turned round
        ),
        *ADAM_GROUP,
        "weight_decouple",
        "max_grad_norm",
        update="adan",
    ),
    _row(
        "adapnm.AdaPNM",
        together(
            # Two means that take turns, so that none has a decay for each step.
            exp_avg=replace(DIRECTION, gradient_degree=1, age="debiased"),
            neg_exp_avg=replace(DIRECTION, gradient_degree=1, primary=False, age="debiased"),
            exp_avg_sq=_SQUARE,
            max_exp_avg_sq=_LARGEST,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "ams_bound",
    ),
    _row(
        "ademamix.AdEMAMix",
        together(
            exp_avg=_MEAN,
            exp_avg_slow=replace(PLAIN_MEAN, coefficient="betas[2]", primary=False),
            exp_avg_sq=_SQUARE,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "alpha",
        "t_alpha_beta3",
        update="ademamix",
    ),
    _row(
        "adopt.ADOPT",
        together(
            exp_avg=replace(_PLAIN, of="preconditioned", gradient_degree=0), exp_avg_sq=replace(_SQUARE, age=None)
        ),
        *ADAM_GROUP,
        *_DECAY,
    ),
    _row(
        "came.CAME",
        together(
            exp_avg=replace(DIRECTION, coefficient="betas[0]"),
            exp_avg_sq=replace(_SQUARE, when="vector", dtype="gradient", age=None),
            exp_avg_sq_row=replace(ROW, coefficient="betas[1]"),
            exp_avg_sq_col=replace(COLUMN, coefficient="betas[1]"),
            exp_avg_res_row=replace(_VALUE, shape="squeezed row", when="matrix", dtype="gradient"),
            exp_avg_res_col=replace(_VALUE, shape="squeezed column", when="matrix", dtype="gradient"),
            exp_avg_sq_hat=replace(_LARGEST, dtype="gradient", age=None),
            RMS=_VALUE,
        ),
        "lr",
        "betas",
        "weight_decay",
        *_DECAY,
        "ams_bound",
        "eps1",
        "eps2",
    ),
    _row(
        "dadapt.DAdaptAdam",
        together(
            s=replace(_DISTANCE, gradient_degree=1),
            exp_avg=replace(_SCALED, coefficient="betas[0]"),
            exp_avg_sq=_SQUARE,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "d",
        "growth_rate",
        "bias_correction",
    ),
    _row(
        "dadapt.DAdaptLion",
        together(exp_avg=replace(_SCALED, coefficient="betas[1]"), s=replace(_DISTANCE, gradient_degree=0)),
        "lr",
        "betas",
        "weight_decay",
        *_DECAY,
        "d",
        "step",
    ),
    _row(
        "dadapt.DAdaptSGD",
        together(z=WEIGHTS, s=replace(_DISTANCE, gradient_degree=0), x0=replace(WEIGHTS, primary=False)),
        "lr",
        "momentum",
        "weight_decay",
        *_DECAY,
        "d",
        "growth_rate",
    ),
    _row(
        "diffgrad.DiffGrad",
        together(exp_avg=_MEAN, exp_avg_sq=_SQUARE, previous_grad=PREVIOUS, max_exp_avg_sq=_LARGEST),
        *ADAM_GROUP,
        *_DECAY,
        "rectify",
        "ams_bound",
    ),
    _row(
        "lamb.Lamb",
        together(
            exp_avg=_MEAN,
            exp_avg_sq=replace(_SQUARE, age=None),
            weight_norm=_VALUE,
            adam_norm=_VALUE,
            trust_ratio=_VALUE,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "rectify",
        "grad_averaging",
        "max_grad_norm",
        "adam",
    ),
    _row(
        "laprop.LaProp",
        together(
            exp_avg=replace(
                _MEAN,
                convention="lr_in_buffer",
                of="preconditioned",
                gradient_degree=0,
                lr_degree=1,
                averages=True,
                age="stored",
            ),
            exp_avg_sq=_SQUARE,
            exp_avg_lr_1=replace(_VALUE, role="step_size", dtype="python", lr_degree=1),
            exp_avg_lr_2=replace(_VALUE, dtype="python"),
            exp_mean_avg_beta2=replace(PLAIN_MEAN, coefficient="betas[1]", when="centered", primary=False),
            max_exp_avg_sq=_LARGEST,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "centered",
        "ams_bound",
    ),
    _row(
        "lion.Lion",
        {"exp_avg": replace(PLAIN_MEAN, coefficient="betas[1]")},
        "lr",
        "betas",
        "weight_decay",
        *_DECAY,
        update="lion",
    ),
    _row(
        "madgrad.MADGRAD",
        together(
            grad_sum_sq=replace(SQUARE, lr_degree=1),
            s=replace(SUM, convention="lr_in_buffer", lr_degree=1),
            x0=replace(WEIGHTS, when="momentum"),
        ),
        "lr",
        "momentum",
        "eps",
        "weight_decay",
        "weight_decouple",
    ),
    _row(
        "prodigy.Prodigy",
        together(
            s=replace(_DISTANCE, gradient_degree=1, lr_degree=1),
            p0=WEIGHTS,
            exp_avg=replace(_SCALED, coefficient="betas[0]", lr_degree=0),
            exp_avg_sq=_SQUARE,
        ),
        *ADAM_GROUP,
        *_DECAY,
        "beta3",
        "d",
        "d0",
        "d_max",
        "d_coef",
        "growth_rate",
        "bias_correction",
        update="prodigy",
    ),
    _row("radam.RAdam", together(exp_avg=_MEAN, exp_avg_sq=_SQUARE), *ADAM_GROUP, *_DECAY),
    _row(
        "qhm.QHM",
        {"momentum_buffer": replace(PLAIN_MEAN, coefficient="momentum")},
        "lr",
        "momentum",
        "nu",
        "weight_decay",
        *_DECAY,
    ),
    _row(
        "schedulefree.ScheduleFreeAdamW",
        together(z=WEIGHTS, exp_avg_sq=_SQUARE, max_exp_avg_sq=_LARGEST),
        *ADAM_GROUP,
        "r",
        "weight_lr_power",
        "warmup_steps",
        "decoupling_c",
        "train_mode",
        "weight_sum",
        "lr_max",
    ),
    _row(
        "schedulefree.ScheduleFreeSGD",
        {"z": WEIGHTS},
        "lr",
        "momentum",
        "weight_decay",
        "r",
        "weight_lr_power",
        "warmup_steps",
        "eps",
        "train_mode",
        "weight_sum",
        "lr_max",
    ),
    _row(
        "schedulefree.ScheduleFreeRAdam",
        together(z=WEIGHTS, exp_avg_sq=_SQUARE),
        *ADAM_GROUP,
        "silent_sgd_phase",
        "r",
        "weight_lr_power",
        "train_mode",
        "weight_sum",
        "lr_max",
        "use_palm",
    ),
    _row(
        "sgd.SGDSaI",
        together(
            momentum_buffer=replace(PLAIN_MEAN, coefficient="momentum"),
            gsnr=replace(OWN, shape="scalar", dtype="gradient", reset="delete", lr_degree=0),
        ),
        "lr",
        "momentum",
        "weight_decay",
        "weight_decouple",
        "eps",
    ),
    _row(
        "sgd.SignSGD",
        {"momentum_buffer": replace(PLAIN_MEAN, coefficient="momentum")},
        "lr",
        "momentum",
        "weight_decay",
        "weight_decouple",
    ),
    _row(
        "tiger.Tiger",
        {"exp_avg": replace(PLAIN_MEAN, coefficient="beta", dtype="gradient")},
        "lr",
        "beta",
        "weight_decay",
        *_DECAY,
    ),
)

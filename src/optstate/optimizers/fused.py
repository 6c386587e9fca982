"""Adams and SGD in fused kernels: apex, Transformer Engine, DeepSpeed, and Composer's variants of torch's own.

None of them runs without its kernels, so these rows come from the classes' sources; see `torch_optim` for how to read
them. Several write the same keys: what a file does not tell apart is named together.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import ADAM, ADAM_GROUP, DEBIASED_SQUARE, INTEGER_COUNT, MEAN, SUM, together
from optstate.optimizers.spec import OptimizerSpec

_MEAN = replace(MEAN, coefficient="betas[0]")
_SQUARE = replace(DEBIASED_SQUARE, coefficient="betas[1]")
_MOMENTS = together(exp_avg=_MEAN, exp_avg_sq=_SQUARE)
_COUNTED = together(step=INTEGER_COUNT, exp_avg=_MEAN, exp_avg_sq=_SQUARE)
_PACKAGES = ("apex.optimizers", "transformer_engine.pytorch.optimizers")

FUSED = (
    *(
        OptimizerSpec(
            name=f"{package}.fused_adam.FusedAdam",
            update="adam",
            hyperparameters=(*ADAM_GROUP, "bias_correction"),
            closed=True,
            group_step="step",
            slots=_MOMENTS,
        )
        for package in _PACKAGES
    ),
    *(
        OptimizerSpec(
            name=f"{package}.fused_sgd.FusedSGD",
            update="sgd",
            hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
            closed=True,
            # Unlike torch's, the buffer starts at zero.
            slots={"momentum_buffer": replace(SUM, coefficient="momentum", when="momentum")},
        )
        for package in _PACKAGES
    ),
    OptimizerSpec(
        name="deepspeed.ops.adam.fused_adam.FusedAdam",
        update="adam",
        hyperparameters=(*ADAM_GROUP, "bias_correction"),
        optional=("step",),
        closed=True,
        slots=_COUNTED,
    ),
    OptimizerSpec(
        name="deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam",
        update="adam",
        hyperparameters=(*ADAM_GROUP, "bias_correction", "amsgrad"),
        closed=True,
        slots={key: replace(slot, dtype="scalar") if key != "step" else slot for key, slot in _COUNTED.items()},
    ),
    OptimizerSpec(
        name="composer.optim.decoupled_weight_decay.DecoupledAdamW",
        update="adam",
        decoupled=True,
        hyperparameters=(*ADAM_GROUP, "amsgrad"),
        closed=True,
        slots=ADAM,
    ),
    OptimizerSpec(
        name="composer.optim.decoupled_weight_decay.DecoupledSGDW",
        update="sgd",
        decoupled=True,
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        closed=True,
        slots={
            "momentum_buffer": replace(SUM, coefficient="momentum", when="momentum", dtype="gradient", reset="delete")
        },
    ),
)

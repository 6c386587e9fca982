"""schedulefree: the momentum lies between two sequences of weights; the group says which of them a file has.

With `train_mode` the model's weights are where gradients are taken, without it their average. See `torch_optim`.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import DEBIASED_SQUARE, WEIGHTS, together
from optstate.optimizers.spec import OptimizerSpec

_GROUP = ("lr", "weight_decay", "r", "k", "weight_sum", "lr_max", "weight_lr_power", "train_mode")
_AVERAGING = ("weight_sum", "lr_max")
_SQUARE = replace(DEBIASED_SQUARE, coefficient="betas[1]")
_TWO = together(z=WEIGHTS, exp_avg_sq=_SQUARE)

SCHEDULE_FREE = (
    OptimizerSpec(
        name="schedulefree.adamw_schedulefree.AdamWScheduleFree",
        aliases=("schedulefree.adamw_schedulefree_paper.AdamWScheduleFreePaper",),
        hyperparameters=(*_GROUP, "betas", "eps", "warmup_steps", "foreach"),
        group_step="k",
        group_state=_AVERAGING,
        slots=_TWO,
    ),
    OptimizerSpec(
        name="schedulefree.radam_schedulefree.RAdamScheduleFree",
        hyperparameters=(*_GROUP, "betas", "eps", "silent_sgd_phase"),
        group_step="k",
        group_state=_AVERAGING,
        slots=_TWO,
    ),
    OptimizerSpec(
        name="schedulefree.sgd_schedulefree.SGDScheduleFree",
        hyperparameters=(*_GROUP, "momentum", "warmup_steps"),
        group_step="k",
        group_state=_AVERAGING,
        slots={"z": WEIGHTS},
    ),
    OptimizerSpec(
        name="schedulefree.adamw_schedulefree_reference.AdamWScheduleFreeReference",
        hyperparameters=(*_GROUP, "betas", "eps", "warmup_steps", "decay_at_z"),
        group_step="k",
        group_state=_AVERAGING,
        # All three sequences of weights, of which the model holds one.
        slots=together(
            x=WEIGHTS, y=replace(WEIGHTS, primary=False), z=replace(WEIGHTS, primary=False), exp_avg_sq=_SQUARE
        ),
    ),
)

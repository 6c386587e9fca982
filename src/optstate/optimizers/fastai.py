"""Optimizers of fastai: functions that put callbacks together, so that only files tell one from another.

Verified against files in `tests/test_dict_layouts.py`. `do_wd` and `force_train` are what `Learner` marks norms with.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import DIRECTION, INTEGER_COUNT, MEAN, SQUARE, SUM, together
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

_FLAG = SlotSpec(role="other", shape="scalar", dtype="python", when="sometimes")
_FLAGS = {"do_wd": _FLAG, "force_train": _FLAG}
_SQUARE = replace(SQUARE, coefficient="sqr_mom")
_SUM = replace(SUM, coefficient="mom", when="mom")
_ADAM = together(
    grad_avg=replace(MEAN, coefficient="mom"), sqr_avg=replace(_SQUARE, age="debiased"), step=INTEGER_COUNT
)

FASTAI = (
    OptimizerSpec(
        name="fastai.optimizer.Adam",
        hyperparameters=("lr", "mom", "sqr_mom", "eps", "wd"),
        closed=True,
        aliases=("fastai.optimizer.Lamb",),
        slots={**_ADAM, **_FLAGS},
    ),
    OptimizerSpec(
        name="fastai.optimizer.RAdam",
        hyperparameters=("lr", "mom", "sqr_mom", "eps", "wd", "beta"),
        closed=True,
        slots={**_ADAM, **_FLAGS},
    ),
    OptimizerSpec(
        name="fastai.optimizer.QHAdam",
        hyperparameters=("lr", "mom", "sqr_mom", "eps", "wd", "nu_1", "nu_2"),
        closed=True,
        slots={**_ADAM, **_FLAGS},
    ),
    OptimizerSpec(
        name="fastai.optimizer.RMSProp",
        hyperparameters=("lr", "mom", "sqr_mom", "eps", "wd"),
        closed=True,
        slots={"grad_avg": _SUM, "sqr_avg": _SQUARE, **_FLAGS},
    ),
    OptimizerSpec(
        name="fastai.optimizer.SGD",
        hyperparameters=("lr", "mom", "wd"),
        closed=True,
        slots={"grad_avg": _SUM, **_FLAGS},
    ),
    OptimizerSpec(
        name="fastai.optimizer.Larc",
        hyperparameters=("lr", "mom", "trust_coeff", "eps", "wd"),
        closed=True,
        slots={
            "grad_avg": replace(DIRECTION, gradient_degree=1, coefficient="mom", when="mom"),
            "local_lr": replace(_FLAG, when=None),
            **_FLAGS,
        },
    ),
)

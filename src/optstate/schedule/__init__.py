"""Schedules: hyperparameters, and buffers, as functions of the number of steps taken.

curves    constant, linear, cosine, exponential, polynomial, inverse_power, multistep, one_cycle, triangular, demon,
          piecewise, function → Curve
of them   join, repeat, scale, epochs
at work   Scheduler, BufferSchedule, Preview

>>> from optstate import schedule as s
>>> scheduler = s.Scheduler(optimizer, {"momentum": s.linear(0.85, 0.95, 300)}, model=model)
>>> optimizer.param_groups[0]["betas"]
(0.85, 0.999)
"""

from optstate.schedule.buffer import BufferSchedule
from optstate.schedule.combine import epochs, function, join, repeat, scale
from optstate.schedule.curve import Curve
from optstate.schedule.curves import (
    constant,
    cosine,
    demon,
    exponential,
    inverse_power,
    linear,
    multistep,
    one_cycle,
    piecewise,
    polynomial,
    triangular,
)
from optstate.schedule.preview import Preview
from optstate.schedule.scheduler import Scheduler

__all__ = [
    "BufferSchedule",
    "Curve",
    "Preview",
    "Scheduler",
    "constant",
    "cosine",
    "demon",
    "epochs",
    "exponential",
    "function",
    "inverse_power",
    "join",
    "linear",
    "multistep",
    "one_cycle",
    "piecewise",
    "polynomial",
    "repeat",
    "scale",
    "triangular",
]

"""Courses: how the rates of a schedule hang on its base rates, so that what another base rate gives can be told."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optstate.optimizers.spec import number
from optstate.resume.schedulers import Driver


@dataclass(frozen=True, slots=True)
class Course:
    """How a rate hangs on its base rate: rate = floor + (base - floor)·f, where f is the same for every base.

    `bases` are the base rates of the saved groups that this was made with, where there is a floor.
    """

    floor: float = 0.0
    bases: Sequence[float] = ()

    def moved(self, rate: Any, index: int, ratio: float) -> Any:
        """What the rate of a saved group would be, had its base rate been `ratio` times what it was."""
        if not self.floor:
            return rate * ratio
        base = self.bases[index]
        return self.floor + (rate - self.floor) * ((base * ratio - self.floor) / (base - self.floor))

    def stands(self, index: int) -> bool:
        """Whether the saved rate was on its floor from the start, or from where is not known: it says nothing of another base."""
        return bool(self.floor) and (index >= len(self.bases) or self.bases[index] == self.floor)


def course_of(drivers: Sequence[Driver]) -> Course | str:
    """How the rates of one optimizer hang on their base rates, or why that cannot be told from what was saved.

    All schedulers of torch multiply the base rate, except that cosine annealing measures it from `eta_min`: the
    rate is eta_min + (base - eta_min)·f, which no further factor may be multiplied with.
    """
    try:
        courses = [course_in(each.item, each.state) for each in drivers]
    except (KeyError, IndexError, TypeError, ValueError):
        return "the saved state of its scheduler is not as torch makes it"
    wrong = next((each for each in courses if isinstance(each, str)), None)
    floored = [each for each in courses if isinstance(each, Course) and each.floor]
    if wrong is not None or not floored:
        return wrong or Course()
    return floored[0] if len(courses) == 1 else "several schedulers multiply a rate that is measured from eta_min"


def course_in(item: Any, state: Mapping[str, Any]) -> Course | str:
    """The same of one scheduler; of several in a row, of the one that is at work."""
    children = getattr(item, "_schedulers", None)
    if children is None:
        floor = number(state.get("eta_min", 0.0)) or 0.0
        return Course(floor, [number(base) or 0.0 for base in state.get("base_lrs", ())]) if floor else Course()
    courses = [course_in(child, below) for child, below in zip(children, state["_schedulers"], strict=True)]
    wrong = next((each for each in courses if isinstance(each, str)), None)
    if wrong is not None or not any(isinstance(each, Course) and each.floor for each in courses):
        return wrong or Course()
    if len(courses) == 1:
        return courses[0]
    if "_milestones" not in state:
        return "ChainedScheduler multiplies a rate that is measured from eta_min"
    if any(isinstance(child, torch.optim.lr_scheduler.MultiplicativeLR) for child in children):
        return "MultiplicativeLR goes on from a rate that is measured from eta_min"
    return courses[bisect_right(state["_milestones"], state["last_epoch"])]

"""The first values of a schedule, where slots are there already: they follow when the optimizer's next step begins.

Until then a checkpoint may be loaded, whose slots know of its own values; had they followed at once, they would not be
those of the checkpoint again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optstate.live.coupling import plain
from optstate.schedule.couple import Coupling, work_of
from optstate.schedule.follow import before_next_step
from optstate.schedule.log import Log


@dataclass(frozen=True, slots=True)
class Opening:
    """The hyperparameters of a group before the first values and with them."""

    group: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]

    def saved(self) -> dict[str, Any]:
        """What has moved, both ways."""
        moved = [key for key, value in self.after.items() if value != self.before[key]]
        return {"before": {key: self.before[key] for key in moved}, "after": {key: self.after[key] for key in moved}}


class Openings:
    """Those that slots have not followed yet; when they do, it is written to the log."""

    def __init__(self, optimizer: torch.optim.Optimizer, coupling: Coupling, log: Log) -> None:
        self._optimizer = optimizer
        self._coupling = coupling
        self._log = log
        self._waiting: Sequence[Opening] = ()
        self._call_off: Callable[[], None] = lambda: None

    def wait(self, openings: Sequence[Opening]) -> None:
        """Have these, and no others, wait for the next step."""
        self._call_off()
        self._waiting = openings
        if openings:
            self._call_off = before_next_step(self._optimizer, self.settle)

    def settle(self) -> None:
        """Have the slots follow now, but not those of groups that a load has replaced: these came with slots of their own."""
        if not self._waiting:
            return
        groups = self._optimizer.param_groups
        here = [each for each in self._waiting if any(each.group is group for group in groups)]
        works = [work_of(self._coupling, self._optimizer, each.group, each.before, each.after) for each in here]
        self.wait(())
        for work in works:
            work.do()
        self._log.count(works, 0)

    def state(self) -> list[dict[str, Any]]:
        """For each group what waits, to be saved; empty where nothing does."""
        waiting = {id(each.group): each for each in self._waiting}
        groups = [waiting.get(id(group)) for group in self._optimizer.param_groups]
        return [{} if each is None else each.saved() for each in groups] if any(groups) else []

    def load(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Wait for what waited when it was saved."""
        self.wait([
            Opening(group, {**plain(group), **each["before"]}, {**plain(group), **each["after"]})
            for group, each in zip(self._optimizer.param_groups, saved, strict=False)
            if each
        ])  # fmt: skip

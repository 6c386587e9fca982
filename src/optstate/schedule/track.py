"""A track: the curves of one optimizer, and how far they have come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch

from optstate.errors import ScheduleError
from optstate.live.coupling import Work, plain
from optstate.optimizers.spec import number
from optstate.schedule.couple import Coupling, work_of
from optstate.schedule.drive import Drive, Target, match, write
from optstate.schedule.follow import refuse_inside
from optstate.schedule.log import Log
from optstate.schedule.opening import Opening, Openings
from optstate.schedule.owners import refuse_torch_schedulers
from optstate.schedule.quick import Quick
from optstate.text import safe_text


@dataclass(slots=True)
class Moves:
    """All that will be written when a track comes to `t`: to hyperparameters, to slots, to hyperparameters that follow."""

    t: int
    writes: list[tuple[Drive, Target, float]]
    works: list[tuple[dict[str, Any], Work]] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)


class Track:
    """Drives the hyperparameters of one optimizer; `steps` is how many of its steps it has followed.

    Moves are prepared, which changes nothing, then made: what is refused has changed nothing.
    """

    def __init__(
        self, name: str, optimizer: torch.optim.Optimizer, drives: Sequence[Drive], coupling: Coupling
    ) -> None:
        self.optimizer = optimizer
        self.drives = drives
        self.steps = 0
        self._owns: set[tuple[int, str]] = set()
        self.notes: tuple[str, ...] = ()
        self._coupling = coupling
        self._log = Log(
            name, optimizer, {**{drive.label: repr(drive.curve) for drive in drives}, "on_change": coupling.on_change}
        )
        self._openings = Openings(optimizer, coupling, self._log)
        self._by_members = any(drive.only is not None for drive in drives)
        self._groups: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._coupled: set[int] = set()
        self._coupled_at_zero: set[int] = set()
        self.quick: Quick | None = None
        """How to take the next step where it only writes numbers; what it refuses, `prepare` understands."""

    def __repr__(self) -> str:
        return f"Scheduler({', '.join(f'{drive.label}: {drive.curve}' for drive in self.drives)})"

    # --- which groups -------------------------------------------------------------------------------------

    @property
    def owns(self) -> set[tuple[int, str]]:
        """What it drives, or writes with that, as `id` of a group and path."""
        if not self._is_bound():
            self.bind()
        return self._owns

    def bind(self) -> None:
        """Match the drives with the groups as they are now. Raises `ScheduleError` where they do not fit."""
        groups = self.optimizer.param_groups
        self._owns = match(self.drives, groups)
        asked = {id(group): self._coupling.may_ask(self._variants(group, 0.5, 0.25)) for group in groups}
        at_zero = {id(group): self._coupling.may_ask(self._variants(group, 0.5, 0.0)) for group in groups}
        self._coupled = {group for group, carries in asked.items() if any(carries)}
        self._coupled_at_zero = {group for group, carries in at_zero.items() if any(carries)}
        self._owns |= {
            (group, key) for group, carries in asked.items() for each in carries for key in each.hyperparameters
        }
        self.notes = tuple(dict.fromkeys(note for carries in asked.values() for each in carries for note in each.notes))
        self._groups, self._sizes = list(groups), _sizes(groups)
        self.quick = None

    def _variants(
        self, group: Mapping[str, Any], before: float, after: float
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """A change of each driven hyperparameter of a group by itself."""
        now = plain(group)
        return [(drive.replaced(now, before), drive.replaced(now, after)) for drive, _ in self._in(group)]

    def _in(self, group: Mapping[str, Any]) -> list[tuple[Drive, Target]]:
        return [(drive, target) for drive in self.drives for target in drive.targets if target.group is group]

    def _is_bound(self) -> bool:
        """Whether the groups are still those: loading makes new ones, regrouping and adding change them."""
        groups = self.optimizer.param_groups
        same = len(groups) == len(self._groups) and all(map(is_, groups, self._groups))
        return same and (not self._by_members or _sizes(groups) == self._sizes)

    # --- a step -------------------------------------------------------------------------------------------

    def step(self, *, inside: bool = False) -> None:
        """Follow one step of the optimizer; `inside` says that this is called from within it, by a hook.

        Raises `ScheduleError` where slots would change while a step uses them.
        """
        if self.quick is None or not self.quick.step(self):
            moves = self.prepare(self.steps + 1)
            if not inside:
                self.refuse_inside(moves)
            self.make(moves)

    def refuse_inside(self, moves: Moves) -> None:
        """Raise `ScheduleError` where slots would change although the optimizer is in the middle of a step."""
        if any(work for _, work in moves.works):
            refuse_inside(self.optimizer)

    def prepare(self, t: int) -> Moves:
        """All that the values after t steps ask for; nothing is changed. Raises what stands against it."""
        if self.quick is not None:
            self.quick.tell()
        if not self._is_bound():
            self.bind()
        moves = Moves(t, [])
        disturbed = False
        for drive, value in [(drive, drive.value(t)) for drive in self.drives]:
            for target in drive.targets:
                touched = target.is_touched(drive.key, drive.index)
                if touched or value != target.value:
                    moves.writes.append((drive, target, value))
                disturbed = disturbed or (touched and target.held is not None)
        if disturbed:  # by hand, or by another schedule?
            refuse_torch_schedulers(self.optimizer, self)
        for group in self._groups_that_couple(moves):
            self._couple(group, moves)
        return moves

    def _groups_that_couple(self, moves: Moves) -> list[dict[str, Any]]:
        """The groups in which something besides the driven hyperparameters may have to change."""
        moved = {id(target.group): target.group for _, target, _ in moves.writes}
        at_zero = {id(target.group) for _, target, value in moves.writes if 0.0 in (value, target.value)}
        return [
            group
            for key, group in moved.items()
            if key in self._coupled or (key in self._coupled_at_zero and key in at_zero)
        ]

    def _couple(self, group: dict[str, Any], moves: Moves) -> None:
        """Add to the moves what those in this group ask of slots and of other hyperparameters."""
        before = plain(group)
        values, asked = self._settled(group, before, moves.t)
        work = work_of(self._coupling, self.optimizer, group, before, asked)
        work.hyperparameters = {key: value for key, value in work.hyperparameters.items() if key not in values}
        moves.writes = [
            (drive, target, values.get(drive.key, value) if target.group is group else value)
            for drive, target, value in moves.writes
        ]
        moves.works.append((group, work))
        if work:
            moves.openings.append(Opening(group, before, asked))

    def _settled(
        self, group: Mapping[str, Any], before: Mapping[str, Any], t: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """See `Coupling.settled`: driven hyperparameters that the coupling moves, and what to ask for."""
        start, after = dict(before), dict(before)
        drives = [drive for drive, _ in self._in(group)]
        for drive in drives:
            start, after = drive.replaced(start, drive.value(0)), drive.replaced(after, drive.value(t))
        return self._coupling.settled(start, before, after, [drive.key for drive in drives if drive.index is None])

    def make(self, moves: Moves) -> None:
        """Carry out what was prepared."""
        self._openings.settle()
        for _, work in moves.works:
            work.do()
        self._write(moves)
        self._log.count([work for _, work in moves.works], moves.t)

    def _write(self, moves: Moves) -> None:
        for drive, target, value in moves.writes:
            target.write(drive.key, drive.index, value)
        for group, work in moves.works:
            for key, value in work.hyperparameters.items():
                write(group, key, None, value)
        simple = not self._coupled and all(to.value for drive in self.drives for to in drive.targets)
        self.quick = Quick(self.drives, self._groups, self._is_bound if self._by_members else None) if simple else None
        self.steps = moves.t

    # --- the first values, those of a checkpoint, those to come -----------------------------------------------

    def check(self) -> None:
        """Look at the curves where their extremes are. Raises `CoefficientError` for a value out of range."""
        for drive in self.drives:
            for t in drive.curve.probes():
                drive.value(t)

    def open(self, moves: Moves) -> None:
        """Write the first values; slots that are there already follow when the optimizer's next step begins."""
        self._write(moves)
        self._openings.wait(moves.openings)

    def state(self) -> dict[str, Any]:
        """Steps and fingerprints; besides, where there are any, hyperparameters that follow and first values that wait."""
        further = {"follows": self._follows(), "opening": self._openings.state()}
        return {
            "steps": self.steps,
            "curves": {drive.label: drive.curve.fingerprint for drive in self.drives},
            **{key: value for key, value in further.items() if any(value)},
        }

    def _follows(self) -> list[dict[str, float | None]]:
        """For each group the hyperparameters that the coupling writes and no curve drives."""
        driven = {(id(to.group), drive.key) for drive in self.drives for to in drive.targets}
        return [
            {key: number(group[key]) for owned, key in sorted(self._owns) if owned == id(group) and "[" not in key and (owned, key) not in driven}
            for group in self.optimizer.param_groups
        ]  # fmt: skip

    def refuse_other_curves(self, saved: Mapping[str, str]) -> None:
        """Raise `ScheduleError` where a checkpoint is of other curves."""
        here = {drive.label: drive.curve.fingerprint for drive in self.drives}
        for label in sorted(saved.keys() | here.keys()):
            if saved.get(label) != here.get(label):
                raise ScheduleError(
                    f"the checkpoint is of another schedule of {safe_text(label)}",
                    expected=safe_text(saved.get(label, "none")),
                    found=safe_text(here.get(label, "none")),
                    todo="build the schedule as it was, or load with strict=False to go on with this one",
                )

    def load(self, saved: Mapping[str, Any]) -> None:
        """Be as far as the track whose `state` this was. No slot is touched: a checkpoint's are as they should be."""
        t = int(saved["steps"])
        self.bind()
        groups = self.optimizer.param_groups
        writes = [each for group in groups for each in self._values(group, t)]
        self._openings.wait(())
        self._write(Moves(t, writes))
        for group, follows in zip(groups, saved.get("follows", ()), strict=False):
            for key, value in follows.items():
                write(group, key, None, value)
        self._openings.load(saved.get("opening", ()))

    def _values(self, group: dict[str, Any], t: int) -> Iterator[tuple[Drive, Target, float]]:
        """What the drives of a group give after t steps."""
        values, _ = self._settled(group, plain(group), t)
        for drive, target in self._in(group):
            yield drive, target, values.get(drive.path, drive.value(t))

    def values(self, t: int) -> list[dict[str, float]]:
        """What is driven in each group, and its value after t steps; nothing is changed."""
        return [
            {drive.path: value for drive, _, value in self._values(group, t)} for group in self.optimizer.param_groups
        ]

    def preview(self, steps: int) -> dict[str, tuple[float, ...]]:
        """What each drive gives in the first steps, and the hyperparameters of each group that then follow."""
        lines = {
            drive.label if drive.path in drive.label else f"{drive.label} ({drive.path})": tuple(
                self._line(drive, steps)
                if self._coupling.on_change == "equivalent"
                else map(drive.curve.at, range(steps))
            )
            for drive in self.drives
        }
        for place, follows in enumerate(self._follows()):
            for key in follows:
                lines[f"{key} of group {place}" if place else key] = tuple(self._following(place, key, steps))
        return lines

    def _line(self, drive: Drive, steps: int) -> Iterator[float]:
        """What a drive gives in the first group that it drives, where that depends on the others."""
        for t in range(steps):
            values, _ = (
                self._settled(drive.targets[0].group, plain(drive.targets[0].group), t) if drive.targets else ({}, {})
            )
            yield values.get(drive.path, drive.curve.at(t))

    def _following(self, place: int, key: str, steps: int) -> Iterator[float]:
        """What a hyperparameter that no curve drives is then, given what it is now."""
        now = plain(self.optimizer.param_groups[place])
        for t in range(steps):
            after = now
            for drive, _ in self._in(self.optimizer.param_groups[place]):
                after = drive.replaced(after, drive.curve.at(t))
            yield self._coupling.asks(now, after, None, ()).hyperparameters.get(key, now[key])


def _sizes(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]

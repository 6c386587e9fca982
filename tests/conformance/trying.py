"""A row, tried: in fresh processes it is run, saved, restored and gone on with, by optstate and by its peers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from optstate.proof.job import Answer, Job
from optstate.proof.judge import diverged, first_after, first_of, restored_state
from optstate.proof.moments import BUFFERS, SLOTS, WEIGHTS, Run, differences
from optstate.proof.program import Program, program
from optstate.proof.prove import asked
from optstate.proof.workers import Workers
from tests.conformance.building import build
from tests.conformance.columns import LOOKS, look, save_and_look
from tests.conformance.peers import PEERS
from tests.conformance.programs import AFTER, BEFORE, TRIED
from tests.conformance.row import Cell, Result, Row

LAST = BEFORE + AFTER
BY_NAME = (WEIGHTS, BUFFERS, *SLOTS)
"""What must come back under its name where the modules have another order."""


class Way(NamedTuple):
    """How to save and to restore; "" is optstate itself."""

    name: str
    save: Program
    load: Program | str


OURS = Way("", program(save_and_look, "save"), "optstate")
OTHERS = [Way(name, program(save, "save"), program(load, "load")) for name, (save, load) in PEERS.items()]


def tried(workers: Workers, row: Row, peers: bool = False) -> Result:
    """All cells of a row; with `peers` those of the others beside them, as `PEER column`."""
    folder = workers.new_folder()
    try:
        ways = [OURS, *(OTHERS if peers else [])]
        for name in [row.program] if row.program else TRIED:
            trial = _Trial(workers, replace(row, program=name), folder)
            refused = trial.run(ways)
            if refused is None:
                return Result(trial.row, dict(trial.cells(ways)))
            if row.program or name == TRIED[0]:
                first = refused
        return Result(row, refused=first)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Trial:
    """A row in one program."""

    def __init__(self, workers: Workers, row: Row, folder: Path) -> None:
        self.workers = workers
        self.row = row
        self.folder = folder
        self.ask = asked(partial(build, row), BEFORE, AFTER)
        self.changed = asked(partial(build, row, changed=True), BEFORE, AFTER)

    def run(self, ways: Sequence[Way]) -> str | None:
        """The uninterrupted run and one with a save for each way. Returns why there is none."""
        looks = program(partial(look, self.row), "look")
        jobs = [self.ask.job(save=(looks, LAST, self._path("looks")))]
        jobs += [self.ask.job(save=(way.save, BEFORE, self._path(way.name))) for way in ways]
        reference, *savers = self.workers.answers(jobs)
        self.savers = dict(zip(ways, savers, strict=True))
        self.crashed = None
        if reference.run is None:
            self.crashed = said(reference)
            reference = self.workers.answers([self.ask.job()])[0]  # was it the program, or looking at it?
        if reference.run is None:
            return said(reference)
        self.reference = reference.run
        return None

    def cells(self, ways: Sequence[Way]) -> Iterator[tuple[str, Cell]]:
        """Every cell by column."""
        yield from self._looks()
        answers = self.workers.answers([job for way in ways for job in self._resumes(way)])
        for way, restored, reordered in zip(ways, answers[::2], answers[1::2], strict=True):
            saver = self.savers[way].run
            name = f"{way.name} " if way.name else ""
            if saver is None:
                cell = Cell("fails", f"cannot be saved: {said(self.savers[way])}")
                yield from ((f"{name}{column}", cell) for column in ("saving", "state", "trajectory", "reordered"))
                continue
            yield f"{name}saving", self._saving(saver)
            state = self._state(saver, restored)
            yield f"{name}state", state
            yield f"{name}trajectory", self._trajectory(saver, restored, state)
            yield f"{name}reordered", self._reordered(saver, reordered)

    def _resumes(self, way: Way) -> list[Job]:
        checkpoint = (way.load, self._path(way.name))
        return [self.ask.job(BEFORE, load=checkpoint), self.changed.job(BEFORE, stop=BEFORE, load=checkpoint)]

    def _path(self, name: str) -> str:
        folder = self.folder / f"way-{name}"
        folder.mkdir(exist_ok=True)
        return str(folder / "saved")

    def _looks(self) -> Iterator[tuple[str, Cell]]:
        if self.crashed is not None:
            yield from ((name, Cell("fails", self.crashed)) for name in LOOKS)
            return
        found: Mapping[str, Mapping[str, str]] = json.loads(Path(self._path("looks")).read_text())
        for name, cell in found.items():
            yield name, Cell(cell["verdict"], cell["text"])

    def _saving(self, saver: Run) -> Cell:
        other = diverged(self.reference, saver, ())
        if other is None:
            return Cell("holds")
        if self._unsteady():
            return Cell("none", UNSTEADY)
        step, found = other
        return Cell("fails", f"{first_of(step, found).text}, after step {step}")

    def _unsteady(self) -> bool:
        """Whether the program does not compute the same twice."""
        again = self.workers.run([self.ask.job()])[0]
        return diverged(self.reference, again, ()) is not None

    def _state(self, saver: Run, restored: Answer) -> Cell:
        if restored.run is None:
            return Cell("fails", said(restored))
        found = restored_state(saver.moments[BEFORE], restored.run.moments[BEFORE], ())
        return Cell("fails", f"as restored: {first_of(0, found).text}") if found else Cell("holds")

    def _trajectory(self, saver: Run, restored: Answer, state: Cell) -> Cell:
        if restored.run is None or state.verdict != "holds":
            return state
        first = first_after(saver, restored.run, BEFORE, AFTER, ())
        if first is None:
            return Cell("holds")
        if self._unsteady():
            return Cell("none", UNSTEADY)
        return Cell("fails", f"+{first.after}: {restored.run.failed or first.text}")

    def _reordered(self, saver: Run, reordered: Answer) -> Cell:
        if reordered.run is None:
            text = said(reordered)
            return Cell("none", text) if ORDER in text else Cell("fails", text)
        expected, found = (
            {name: each.get(name, {}) for name in BY_NAME}
            for each in (saver.moments[BEFORE], reordered.run.moments[BEFORE])
        )
        wrong = differences(expected, found, (*BY_NAME, None))
        return Cell("fails", f"as restored: {first_of(0, wrong).text}") if wrong else Cell("holds")


UNSTEADY = "it does not compute the same twice"
ORDER = "over all parameters in their order"
"""What a restore says where the state of an optimizer has no names and the order is another: it is refused."""


def said(answer: Answer) -> str:
    """Why a process has no result, in a line."""
    failure = answer.failure
    assert failure is not None
    return " ".join(f"{failure.what}: {failure.found}".split() if failure.found else failure.what.split())

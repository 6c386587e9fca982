"""A folder over a long life: saves, crashes, resumes, people who rename, damage and put things beside; in any order."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from optstate.store.files import RealFiles
from optstate.store.folder import contents, damage, look
from optstate.store.shelf import Shelf
from optstate.store.writer import write_checkpoint
from tests.checkpoints import recovered, sample
from tests.torture.taps import CHANGES, Tapped


class Killed(BaseException):
    """The process has ended: it does nothing any more, not even tidy up."""


def dead_from(at):
    """A tap that ends the process, as far as its files can tell, before its change of that number."""
    left = count()

    def tap(number, what):
        if what in CHANGES and next(left) >= at:
            raise Killed

    return tap


class Life(RuleBasedStateMachine):
    """`acknowledged` are steps whose save returned, the newest last, unless somebody took them away since."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "run"
        self.acknowledged: list[int] = []
        self.foreign: dict[Path, bytes] = {}
        self.options = {"keep": 2, "keep_every": None, "strip": False, "full": False}
        self.numbers = count(1)

    def teardown(self):
        shutil.rmtree(self.root)

    @contextmanager
    def process(self, files):
        """A process of the run, as a checkpointer is one: it opens the folder and goes on from the newest."""
        shelf = Shelf(self.folder, **self.options, files=files)
        try:
            shelf.open()
            for damaged in shelf.read():
                shelf.put_aside(damaged)
            if shelf.known:
                shelf.goes_on_from(shelf.known[0])
            yield shelf
        finally:
            shelf.close()

    def save(self, shelf):
        step = (shelf.known[0].step if shelf.known else 0) + 1
        body, payloads = sample(step, 1)
        body = msgspec.structs.replace(body, run=shelf.run, lineage=shelf.lineage)
        path, mine = shelf.place(step)
        write_checkpoint(path, body, payloads, shelf.files, replace=mine)
        shelf.add(path, body.save_id)
        self.acknowledged.append(step)

    @rule(times=st.integers(1, 3))
    def saves(self, times):
        with self.process(RealFiles()) as shelf:
            for _ in range(times):
                self.save(shelf)

    @rule(at=st.integers(0, 40))
    def is_killed(self, at):
        try:
            with self.process(Tapped(dead_from(at))) as shelf:
                self.save(shelf)
                self.save(shelf)
        except Killed:
            pass

    @rule(
        keep=st.integers(2, 4), keep_every=st.sampled_from([None, 2, 5]), strip=st.booleans(), full=st.booleans()
    )  # fmt: skip
    def is_told_otherwise(self, **options):
        self.options = options

    @precondition(lambda self: self.acknowledged)
    @rule(name=st.sampled_from(["best", "step-7-mine", "a b", "step-03"]))
    def somebody_renames_the_newest(self, name):
        newest = contents(self.folder)[0]
        ours = newest.path.exists() and newest.path.name == f"step-{newest.step}"
        if ours and newest.fault is None and not (self.folder / name).exists():
            newest.path.rename(self.folder / name)
            self.foreign |= {path: path.read_bytes() for path in (self.folder / name).iterdir()}

    @rule(kind=st.sampled_from(["file", "folder", "dangling", "link out", "other manifest"]))
    def somebody_puts_something_there(self, kind):
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{kind} {next(self.numbers)}"
        if kind == "file":
            path.write_bytes(b"mine")
            self.foreign[path] = b"mine"
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "link out":
            outside = self.root / f"outside-{next(self.numbers)}"
            outside.mkdir()
            (outside / "file").write_bytes(b"mine")
            path.symlink_to(outside)
            self.foreign[outside / "file"] = b"mine"
        else:
            path.mkdir()
            inside = path / ("manifest.json" if kind == "other manifest" else "file")
            inside.write_bytes(b'{"name": "a web app"}')
            self.foreign[inside] = b'{"name": "a web app"}'

    @precondition(lambda self: len(self.acknowledged) > 1)
    @rule(at=st.sampled_from([0, 20, 60]))
    def the_newest_is_damaged(self, at):
        newest = contents(self.folder)[0]
        target = newest.path / "weights.safetensors"
        if newest.path.name != f"step-{newest.step}" or not target.exists() or len(contents(self.folder)) < 2:
            return
        raw = bytearray(target.read_bytes())
        raw[at] ^= 1
        target.write_bytes(raw)
        self.acknowledged = [each.step or 0 for each in contents(self.folder) if each.fault is None][:1]

    @invariant()
    def what_was_acknowledged_is_there(self):
        found = [each for each in contents(self.folder) if each.fault is None]
        assert all(damage(each.path) is None and recovered(each.path) == each.step for each in found)
        if self.acknowledged:
            assert found[0].step >= self.acknowledged[-1], (found, self.acknowledged)
            assert len(found) >= min(2, len(set(self.acknowledged))), (found, self.acknowledged)

    @invariant()
    def what_is_not_ours_is_untouched(self):
        for path, raw in self.foreign.items():
            assert path.read_bytes() == raw, path


def test_long_lives(whole):
    """The newest that was saved and the one before are there, whole, and nothing of anybody else's is touched."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(was to go, and stays|cannot be removed)")
        run_state_machine_as_test(
            Life,
            settings=hypothesis.settings(
                max_examples=1_000 if whole else 25, stateful_step_count=50 if whole else 15, deadline=None
            ),
        )


def test_lives_see_what_is_lost(tmp_path):
    """The rules above fail where a checkpoint is gone that was acknowledged."""
    life = Life()
    life.saves(2)
    life.what_was_acknowledged_is_there()
    shutil.rmtree(look(life.folder / "step-2").path)
    try:
        with pytest.raises(AssertionError):
            life.what_was_acknowledged_is_there()
    finally:
        life.teardown()

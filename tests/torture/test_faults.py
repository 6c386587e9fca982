"""The system refuses something: nothing is lost, nothing changed is called unchanged, and nothing undone is called done."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from optstate.errors import WriteFailed
from tests.disk import Disk
from tests.torture.counts import COUNTS
from tests.torture.deeds import DEEDS
from tests.torture.faults import FAULTS, Broken, Gate, attempts, refused, tried
from tests.torture.taps import Tapped
from tests.trainings import Training, uninterrupted

SMALL = [name for name in DEEDS if "hundred" not in name]
MET: Counter[str] = Counter()


CASES = [
    (fault, for_ever)
    for fault in FAULTS
    for for_ever in (False, True)
    if (fault, for_ever) != ("one byte is written", True)
]
"""Byte by byte for ever takes long, and `test_short_writes_are_continued` does it."""


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "for_ever"), CASES)
def test_fault_at_any_operation(fault, for_ever, tmp_path, whole):
    """One operation fails, or all from that on: what was there is, errno and path are told, and trying again succeeds.

    `tests.torture.faults` has what is held against each attempt: it includes that the power goes right after it.
    """
    stride = 1 if whole else 3 if fault == "EIO" else 12
    for name in SMALL:
        for met in attempts(DEEDS[name], tmp_path / name, FAULTS[fault], for_ever=for_ever, stride=stride):
            told(met, fault)
            MET[f"{fault} {for_ever}"] += 1
    assert MET[f"{fault} {for_ever}"] > 25


def told(met, fault, *, real=False):
    """An error has the system's errno, or its words where only a report tells of it; a short write is none."""
    if "written" in fault:
        assert met.raised is None, (met.what, met.raised)
    elif met.raised is not None:
        assert getattr(met.raised, "errno", None) == getattr(errno, fault) or os.strerror(getattr(errno, fault)) in str(
            met.raised
        )
        if isinstance(met.raised, WriteFailed):
            assert met.raised.filename
            full = fault in ("ENOSPC", "EDQUOT") and "was not saved" in met.raised.what
            assert not full or ("free space" in met.raised.expected and (real or "12.3 MB free" in met.raised.found))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "half is written"])
def test_fault_on_real_files(fault, tmp_path, whole):
    """The same on the real file system, where errors meet real handles, locks and links."""
    met = 0
    for name in SMALL:
        for attempt in attempts(
            DEEDS[name], tmp_path / name, FAULTS[fault], for_ever=False, real=True, stride=1 if whole else 12
        ):
            told(attempt, fault, real=True)
            met += 1
    assert met > 20


@pytest.mark.slow
def test_a_failed_sync_is_never_success(tmp_path):
    """Each sync of a file fails once, whatever is done: an error each time, and what was there still is."""

    def fault(what):
        return OSError(errno.EIO, os.strerror(errno.EIO)) if what == "sync" else None

    for name in SMALL:
        if name == "prune, leaving weights":
            continue  # the new checkpoint is saved, whatever becomes of the copy of the old one
        met = list(attempts(DEEDS[name], tmp_path / name, fault, for_ever=False))
        assert met, name
        assert all(each.raised is not None and each.seen == DEEDS[name].stages[0] for each in met), name


def test_a_file_whose_sync_failed_is_not_synced_again():
    """The system may report a failed sync once and forget it, so a second one would prove nothing."""
    failed = 0
    for number in range(40):
        gate, root = Gate(), Path()
        disk = Disk(gate)
        DEEDS["save six files"].prepare(root, disk)
        gate.open(Broken(refused(errno.EIO), number, for_ever=False))
        if tried(DEEDS["save six files"], root, disk) is not None:
            synced = [path for what, path in disk.calls if what == "sync"]
            assert len(synced) == len(set(synced))
            failed += 1
    assert failed > 20


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
@pytest.mark.filterwarnings("ignore:.*(was to go, and stays|cannot be removed):RuntimeWarning")
def test_training_goes_on_after_a_failed_save(fault, tmp_path, whole):
    """A save that fails anywhere leaves the live training bit for bit as it was, and the next save succeeds."""
    at, failed = 0, []
    while True:
        training, gate = Training(), Gate()
        with training.checkpointer(tmp_path / str(at), keep=2, block=True) as run:
            run._shelf.files = Tapped(gate)
            for step in (1, 2, 3):
                training.step()
                run.save(step)
            training.step()
            before = training.digest()
            broken = Broken(FAULTS[fault], at, for_ever=False)
            gate.open(broken)
            try:
                run.save(4)
            except WriteFailed as error:
                failed.append(error.errno)
            finally:
                gate.close()
            assert training.digest() == before
            training.step()
            run.save(5)
        again = Training()
        with again.checkpointer(tmp_path / str(at)) as run:
            assert run.restore().step == 5
        assert again.digest() == training.digest() == uninterrupted(5)
        if broken.hit is None:
            break
        at += 1 if whole else 3
    assert len(failed) > 3
    assert set(failed) == {getattr(errno, fault)}


@pytest.mark.slow
def test_so_many_faults_were_met():
    """The number that the page on durability states is what is really tried."""
    if len(MET) < len(CASES):
        pytest.skip("only some of the faults were tried")
    assert MET.total() >= COUNTS["operations that the system refuses"]

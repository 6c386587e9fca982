"""The power goes at any moment: whatever of the unsynced changes is lost, torn or garbage, no checkpoint is lost with it."""

from __future__ import annotations

import os
import shutil

import pytest

from optstate.store.files import RealFiles
from optstate.store.lock import LOCK
from tests.disk import Step, plant
from tests.torture.counts import COUNTS
from tests.torture.deeds import DEEDS, RUN
from tests.torture.power_cuts import recorded, states, survey, verdict

TRIED: dict[str, int] = {}


def large(name):
    """Whether a deed has so many states that only a part of them is tried each time."""
    return "hundred" in name


@pytest.mark.parametrize("name", DEEDS)
def test_power_cut_at_any_step(name, tmp_path, whole):
    """Until a deed is over what was there before can be read, or what comes after it; then that; never anything else."""
    deed = DEEDS[name]
    found = survey(deed, tmp_path, 2 if large(name) else 3 + whole, stride=5 if large(name) and not whole else 1)
    assert found.wrong == []
    assert found.verdicts == set(deed.stages)
    TRIED[name] = found.states


def test_so_many_states_were_tried():
    """The number that the page on durability states is what is really tried."""
    if len(TRIED) < len(DEEDS):
        pytest.skip("only some of the deeds were tried")
    assert sum(TRIED.values()) >= COUNTS["states that a power cut can leave"]


def test_after_any_power_cut_the_next_program_finishes(tmp_path, whole):
    """Whatever a power cut left: doing it again succeeds, and leaves nothing but its result."""
    tried = 0
    for name, deed in DEEDS.items():
        if large(name):
            continue
        (tmp_path / "log").mkdir()
        for number, tree in enumerate(states(deed, tmp_path / "log", 1)):
            if number % 11 and not whole:
                continue
            plant(tree, tmp_path / "disk")
            deed.again(tmp_path / "disk", RealFiles())
            assert verdict(tmp_path / "disk") == deed.stages[-1], name
            left = [each for each in os.listdir(tmp_path / "disk" / RUN) if each.startswith(".") and each != LOCK]
            assert left == [], name
            shutil.rmtree(tmp_path / "disk")
            tried += 1
        shutil.rmtree(tmp_path / "log")
    assert tried > 60


# --- broken on purpose ----------------------------------------------------------------------------------------


def without(what, which):
    """The steps of one kind whose number is given, from the end when negative, never happened."""

    def broken(log, before):
        numbers = [number for number, step in enumerate(log) if number >= before and step.what == what]
        del log[numbers[which]]

    return broken


def old_removed_first(log, before):
    """The old checkpoint goes before the new one is there."""
    removal = [step for step in log[before:] if step.what == "unlink"]
    rest = [step for step in log[before:] if step.what != "unlink"]
    aside = next(number for number, step in enumerate(rest) if step.what == "rename")
    log[before:] = [*rest[: aside + 1], *removal, *rest[aside + 1 :]]


def renamed_too_early(log, before):
    """The new checkpoint gets its name before its files are synced."""
    number = max(number for number, step in enumerate(log) if step.what == "rename")
    commit = log.pop(number)
    first_sync = next(number for number, step in enumerate(log) if number >= before and step.what == "sync")
    log.insert(first_sync, commit)


def manifest_first(log, before):
    """The manifest is written and synced before the data are, and the name is given by then."""
    manifest = next(step.inode for step in log[before:] if step.name == "manifest.json")
    commit = next(step for step in log[before:] if step.what == "rename")
    early = [step for step in log[before:] if manifest in (step.target, step.inode)]
    rest = [step for step in log[before:] if step not in early and step is not commit]
    first = next(number for number, step in enumerate(rest) if step.what == "write")
    log[before:] = [*rest[:first], *early, commit, *rest[first:]]


def going(log, before):
    """Where a checkpoint is renamed to what goes."""
    return next(number for number, step in enumerate(log) if number >= before and ".del-" in step.new_name)


def unlinked_where_it_is(log, before):
    """What goes is not renamed first."""
    del log[going(log, before)]


def gone_before_it_is_synced(log, before):
    """The rename of what goes may be lost while its removal is not."""
    assert log[going(log, before) + 1].what == "sync directory"
    del log[going(log, before) + 1]


def gone_before_its_copy_is_there(log, before):
    """The copy's name may be lost when its checkpoint is gone."""
    copied = next(number for number, step in enumerate(log) if number >= before and ".weights" in step.new_name)
    log.insert(copied, log.pop(going(log, before)))


BROKEN = {
    "first data file not synced": ("save two files", without("sync", 0)),
    "second data file not synced": ("save two files", without("sync", 1)),
    "manifest not synced": ("save two files", without("sync", -1)),
    "directory not synced": ("save two files", without("sync directory", -2)),
    "parent not synced": ("save two files", without("sync directory", -1)),
    "renamed too early": ("save two files", renamed_too_early),
    "manifest written first": ("save two files", manifest_first),
    "parent not synced when replacing": ("replace two files", without("sync directory", -1)),
    "directory not synced when replacing": ("replace two files", without("sync directory", -2)),
    "old one removed first": ("replace two files", old_removed_first),
    "new run's checkpoint not synced": ("begin a run", without("sync", -1)),
    "what goes unlinked where it is": ("prune", unlinked_where_it_is),
    "what goes not synced away": ("prune", gone_before_it_is_synced),
    "gone before its copy is there": ("strip a directory of ours", gone_before_its_copy_is_there),
    "copy not synced": ("strip a file of torch", without("sync", 0)),
    "converted file not synced": ("convert to safetensors", without("sync", 0)),
    "converted file's name not synced": ("convert to a file of torch", without("sync directory", -1)),
    "converted file not synced when replacing": ("convert to safetensors, replacing", without("sync", 0)),
    "edited checkpoint not synced": ("edit into ours", without("sync", -1)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_step_of_the_protocol_is_needed(name, tmp_path):
    """Take any sync away, or change the order, and the simulation finds a power cut that loses a checkpoint."""
    deed, broken = BROKEN[name]
    assert survey(DEEDS[deed], tmp_path, 2, broken=broken).wrong


def test_manifest_is_written_last_and_everything_is_synced(tmp_path):
    """The order of steps: each file synced, the manifest after the data, then the directory, the name, its parent."""
    log, before = recorded(DEEDS["save two files"], tmp_path)
    assert [step.what for step in log[before:]][-3:] == ["sync directory", "rename", "sync directory"]
    files = {step.inode: step.name for step in log if isinstance(step, Step) and step.data == b"f"}
    synced = [files[step.target] for step in log[before:] if step.what == "sync"]
    assert synced == ["weights.safetensors", "optimizer.safetensors", "manifest.json"]


def test_space_is_set_aside_before_it_is_filled(tmp_path):
    """A large file has its length before it has its bytes, so states in which it is all zeros are among those tried."""
    log, before = recorded(DEEDS["save two hundred tensors"], tmp_path)
    assert any(step.what == "write" and not any(step.data) for step in log[before:])

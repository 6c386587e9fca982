"""A `Checkpointer` that saves beside the training: what its status says, what is skipped, who hears of a failure."""

from __future__ import annotations

import errno
import os
import threading
import warnings

import pytest

import optstate
from optstate.errors import OptstateError, WriteFailed
from optstate.live.fence import standing
from optstate.resume.checkpointer import Checkpointer
from tests.held import PATIENCE, Held
from tests.test_checkpointer import names
from tests.trainings import Training, uninterrupted


def held(folder, what="create", name="weights.safetensors", *, fault=None, **options):
    """A run whose files stop at a moment."""
    training = Training()
    run = training.checkpointer(folder, **options)
    run._shelf.files = files = Held(what, name, fault=fault)
    return training, run, files


def test_status_tells_of_a_save_in_flight(tmp_path):
    """A step is `saving` until it is durable, and no checkpoint before, although it may have its name by then."""
    _, run, files = held(tmp_path, "rename", "step-2")
    run.save(1)
    run.wait()
    run.save(2)
    assert files.reached.wait(PATIENCE)
    status = run.status()
    assert status.saving == 2
    assert [found.step for found in status.checkpoints] == [1]
    assert "being written: step 2" in str(status)
    files.let_go()
    run.wait()
    status = run.status()
    assert status.saving is None
    assert [found.step for found in status.checkpoints] == [2, 1]
    run.close()


def test_old_ones_go_when_the_new_one_was_read_back(tmp_path):
    """While a checkpoint is written nothing goes."""
    training, run, files = held(tmp_path, "rename", "step-3", keep=2)
    for step in (1, 2, 3):
        training.step()
        run.save(step)
    assert files.reached.wait(PATIENCE)
    assert [name for name in names(tmp_path) if name[0] != "."] == ["step-1", "step-2"]
    files.let_go()
    run.close()
    assert names(tmp_path) == ["step-2", "step-3"]


def test_busy_skip_leaves_out_what_falls_due_meanwhile(tmp_path):
    """With `busy="skip"` a due save is left out while another is written; the last step is saved."""
    training, run, files = held(tmp_path, "sync", "objects.safetensors", busy="skip", keep=9)
    for step in run.steps(7, every=1):
        training.step()
        if step >= 5:
            files.let_go()
            run.wait()
    run.close()
    assert names(tmp_path) == ["step-1", "step-5", "step-6", "step-7"]
    assert training.digest() == uninterrupted(7)


def test_busy_wait_takes_all_of_them(tmp_path):
    """By default the next one waits until the one before is over."""
    training, run, files = held(tmp_path, "sync", "objects.safetensors", keep=9)
    threading.Thread(target=files.let_go).start()
    training.go(run.steps(5, every=1))
    assert names(tmp_path) == [f"step-{number}" for number in range(1, 6)]
    run.close()


def test_loop_ends_with_a_durable_checkpoint(tmp_path):
    """After the last step nothing is being written, also where the body took that save."""
    training = Training()
    run = training.checkpointer(tmp_path)
    for step in run.steps(4, every=3):
        training.step()
        if step == 4:
            run.save(4)
    assert run.status().saving is None
    assert optstate.verify(tmp_path / "step-4").ok
    run.close()


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_failure_stops_the_run_at_the_next_step(tmp_path):
    """The next `optimizer.step()` raises, once; `status` keeps telling; a later save makes it good."""
    training, run, files = held(tmp_path, "write", "weights.safetensors", fault=FULL)
    files.let_go()
    seen: list[int] = []
    with pytest.raises(WriteFailed, match="No space left"):
        training.go(run.steps(9, every=2), seen.append)
    assert seen in ([1, 2, 3], [1, 2, 3, 4])
    assert "No space left" in run.status().error
    run._shelf.files = Held("never")
    training.step()
    run.save(4)
    run.wait()
    assert run.status().error is None
    run.close()


def test_failure_is_told_and_the_run_goes_on(tmp_path):
    """With `on_error="warn"` each failure is one warning, and the training is what it would have been."""
    training, run, files = held(tmp_path, "write", "weights.safetensors", fault=FULL, on_error="warn", block=False)
    files.let_go()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.go(run.steps(7, every=2))
        run.close()
    said = [str(each.message).split("\n")[0] for each in caught]
    assert [line.partition("/step-")[2][0] for line in said] == ["2", "4", "6", "7"]
    assert all("the training goes on without a checkpoint" in line for line in said)
    assert training.digest() == uninterrupted(7)
    assert standing() == ()


NEXT = {
    "save": lambda run: run.save(2),
    "wait": Checkpointer.wait,
    "close": Checkpointer.close,
    "the end of the block": lambda run: None,
}


def within(run, then):
    """Save in the background, then something else, in a block."""
    with run:
        run.save(1)
        then(run)


@pytest.mark.parametrize("then", NEXT.values(), ids=NEXT)
def test_failure_is_raised_wherever_the_run_is_asked_next(then, tmp_path):
    """Once; the folder is given back by `close` all the same."""
    _, run, files = held(tmp_path, "write", "weights.safetensors", fault=FULL)
    files.let_go()
    with pytest.raises(WriteFailed):
        within(run, then)
    with Training().checkpointer(tmp_path) as other:
        other.save(1)


def test_failure_does_not_hide_what_ended_the_block(tmp_path):
    """An error of the training stays the error; the failed save is a note on it."""
    _, run, files = held(tmp_path, "write", "weights.safetensors", fault=FULL)
    files.let_go()
    with pytest.raises(ZeroDivisionError) as caught:
        within(run, lambda run: 1 / 0)
    assert "No space left" in caught.value.__notes__[0]


def test_restore_waits_for_what_is_being_written(tmp_path):
    """The newest is then that one; a run that goes back does not race with its own save."""
    training, run, files = held(tmp_path, "sync", "objects.safetensors")
    training.step()
    run.save(1)
    after = training.digest()
    threading.Thread(target=files.let_go).start()
    training.step()
    run.restore()
    assert run.status().step == 1
    assert training.digest() == after
    run.close()


def test_wait_gives_up_waiting_only(tmp_path):
    """`wait(timeout)` raises, and the save goes on."""
    _, run, files = held(tmp_path, "rename", "step-1")
    run.save(1)
    with pytest.raises(TimeoutError):
        run.wait(0)
    files.let_go()
    run.close()
    assert names(tmp_path) == ["step-1"]


def test_child_process_closes_nothing_and_waits_for_nothing(tmp_path):
    """A worker that is forked off during a save and ends leaves run and save alone."""
    _, run, files = held(tmp_path, "rename", "step-1")
    run.save(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run.close()
            run.save(2)
        except OptstateError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    files.let_go()
    run.close()
    assert names(tmp_path) == ["step-1"]


@pytest.mark.parametrize("options", [{"mode": "fast"}, {"busy": "never"}], ids=str)
def test_words_are_known(options, tmp_path):
    """A word that means nothing is refused at once."""
    with pytest.raises(OptstateError, match="is not known"):
        Training().checkpointer(tmp_path, **options)

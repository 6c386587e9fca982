"""A training that is told to stop, or killed: it saves where it can, and goes on exactly as if it had not been."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from optstate.errors import TargetExists
from optstate.resume.signals import Signals
from tests.test_checkpointer import names
from tests.trainings import Training, uninterrupted


@pytest.fixture(autouse=True)
def put_back():
    """What the handlers were before a test, they are after it, whatever it did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    left = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == before


@pytest.fixture
def heard():
    """Handlers of the program's own for SIGTERM and SIGUSR1, and what they heard."""
    calls: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda number, frame: calls.append(number)) for number in numbers}
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def press(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_saves_at_the_next_boundary(number, tmp_path, heard):
    """The step that is running is finished and saved; SIGTERM ends the loop, SIGUSR1 does not; who listened before hears it."""
    training, seen = Training(), []
    run = training.checkpointer(tmp_path, keep=9)
    for step in run.steps(6, every=100):
        seen.append(step)
        if step == 3:
            press(number)
            assert heard == []
        training.step()
    ends = number == signal.SIGTERM
    assert seen == ([1, 2, 3] if ends else [1, 2, 3, 4, 5, 6])
    assert names(tmp_path) == (["step-3"] if ends else ["step-3", "step-6"])
    assert run.status().stopped_by == ("SIGTERM" if ends else None)
    assert heard == [number]
    run.close()
    again = Training()
    with again.checkpointer(tmp_path) as run:
        for _ in run.steps(9, every=100):
            again.step()
    assert again.digest() == uninterrupted(9)


def test_ctrl_c_saves_then_interrupts(tmp_path):
    """Ctrl-C in a step: the step is finished and saved, then it is the KeyboardInterrupt that it always was."""
    training = Training()
    run = training.checkpointer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.go(run.steps(9, every=100), lambda step: press(signal.SIGINT) if step == 4 else None)
    assert names(tmp_path) == ["step-4"]
    assert run.status().stopped_by == "SIGINT"


def test_ctrl_c_twice_interrupts_at_once(tmp_path):
    """Who presses again does not wait for the step; the checkpoint of the last boundary is there, whole."""
    training = Training()
    after: list[int] = []
    run = training.checkpointer(tmp_path)

    def twice(step):
        if step == 3:
            press(signal.SIGINT)
            press(signal.SIGINT)
            after.append(step)

    with pytest.raises(KeyboardInterrupt):
        training.go(run.steps(9, every=2), twice)
    run.wait()
    assert after == []
    assert names(tmp_path) == ["step-2"]


def test_signal_while_saving_is_answered_after_it(tmp_path, heard):
    """A signal that comes during a save has its checkpoint already: no second one, and the loop ends."""
    training = Training()
    run = training.checkpointer(tmp_path)
    state_dict = training.loader.state_dict

    def slow():
        press(signal.SIGTERM)
        return state_dict()

    for step in run.steps(9, every=2):
        training.step()
        training.loader.state_dict = slow if step == 2 else state_dict
    assert step == 2
    assert names(tmp_path) == ["step-2"]
    assert set(heard) == {signal.SIGTERM}


def test_failed_save_after_sigterm_is_raised(tmp_path, heard):
    """Where the last save fails too, the error is not lost with the signal."""
    training = Training()
    run = training.checkpointer(tmp_path)

    def block(step):
        if step == 2:
            (tmp_path / "step-2").mkdir()
            press(signal.SIGTERM)

    with pytest.raises(TargetExists):
        training.go(run.steps(9, every=100), block)


@pytest.mark.parametrize("left", ["break", "an error", "the end", "close"])
def test_handlers_are_back(left, tmp_path):
    """However the loop is left, signals mean what they meant before."""
    before = signal.getsignal(signal.SIGTERM)
    run = Training().checkpointer(tmp_path)
    loop = run.steps(3, every=100)
    with suppress(ZeroDivisionError):
        for step in loop:
            assert signal.getsignal(signal.SIGTERM) != before
            if left == "break":
                break
            assert left != "an error" or 1 / (2 - step)
            if left == "close":
                loop.close()
    del loop
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("over", ["close", "another loop"])
def test_loop_that_a_traceback_keeps_alive_watches_no_longer(over, tmp_path):
    """As in a notebook, where the traceback of the last error holds the loop: the next Ctrl-C must not be lost on it."""
    before, training = signal.getsignal(signal.SIGINT), Training()
    run = training.checkpointer(tmp_path)
    loop = run.steps(9, every=100)
    next(loop)  # and nobody goes on with it
    assert signal.getsignal(signal.SIGINT) != before
    if over == "close":
        run.close()
        assert signal.getsignal(signal.SIGINT) == before
        return
    with pytest.raises(KeyboardInterrupt):
        training.go(run.steps(9, every=100), lambda step: press(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) == before
    run.close()


def test_sigterm_that_only_a_loop_left_behind_heard_ends_the_process_on_close(tmp_path, heard):
    """It was noted, and there is no next step that would answer it."""
    run = Training().checkpointer(tmp_path)
    loop = run.steps(9, every=100)
    next(loop)
    press(signal.SIGTERM)
    assert heard == []
    run.close()
    assert heard == [signal.SIGTERM]


def test_handler_of_somebody_else_stays():
    """One that the program sets while the loop runs is not taken away."""

    def mine(number, frame):
        pass

    before = signal.getsignal(signal.SIGUSR1)
    with Signals():
        signal.signal(signal.SIGUSR1, mine)
    assert signal.getsignal(signal.SIGUSR1) is mine
    signal.signal(signal.SIGUSR1, before)


def test_ignored_ctrl_c_stays_ignored():
    """What runs in the background with Ctrl-C ignored goes on when it is pressed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals() as signals:
        press(signal.SIGINT)
        assert not signals.pending
    signal.signal(signal.SIGINT, before)


def test_children_die_of_signals_as_they_would(tmp_path):
    """A worker that is forked from the loop can be terminated: it has nothing to save."""
    with Signals():
        child = os.fork()
        if child == 0:
            press(signal.SIGTERM)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_sigterm_that_comes_too_late_is_not_swallowed(heard):
    """One that no boundary answered means, after the loop, what it meant before."""
    with Signals():
        press(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]

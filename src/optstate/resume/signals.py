"""Signals that ask a training loop to save: noted when they come, answered between two steps."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from types import FrameType
from typing import Any, Self

STOP = (signal.SIGTERM, signal.SIGINT)
"""After these a loop ends; after `SIGUSR1` it goes on."""

WATCHED = (*STOP, signal.SIGUSR1)


class Signals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C while its block runs; then the handlers that were there before are back.

    What was there before hears of each signal when `pass_on` is called. A second Ctrl-C goes there at once, so that one can
    always get out. In a child process, and after the block, all is as if this had never been. Only the main thread can
    watch: in another one a warning says that nothing is.
    """

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._before: dict[int, Any] = {}
        self._process: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "signals reach the main thread only: SIGTERM will end this run without a checkpoint",
                RuntimeWarning,
                stacklevel=4,
            )
            return self
        self._process = os.getpid()
        for number in WATCHED:
            before = signal.getsignal(number)
            # None: not Python's, and could not be put back. Who ignores Ctrl-C, as what runs in the background does, goes on.
            if before is not None and not (number == signal.SIGINT and before is signal.SIG_IGN):
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        mine, self._process = self._process == os.getpid(), None
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._note:
                    signal.signal(number, before)
        for number in self.take() if mine else ():
            # It came too late to be answered here. While a loop is left by `break` or an error, nothing can be interrupted.
            if number == signal.SIGTERM or (number == signal.SIGINT and kind is None):
                signal.raise_signal(number)

    @property
    def pending(self) -> bool:
        """Whether a signal came that was not taken."""
        return bool(self._seen)

    def take(self) -> list[int]:
        """The signals that came since the last time."""
        seen, self._seen = self._seen, []
        return seen

    def pass_on(self, seen: list[int]) -> None:
        """Let the handlers that were there before hear of signals; Python's own raises `KeyboardInterrupt` for Ctrl-C."""
        for number in dict.fromkeys(seen):
            before = self._before[number]
            if callable(before):
                before(number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        mine = self._process == os.getpid()
        if mine and not (number == signal.SIGINT and number in self._seen):
            self._seen.append(number)
        elif callable(before):
            self._seen = [each for each in self._seen if each != number]
            before(number, frame)
        elif before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

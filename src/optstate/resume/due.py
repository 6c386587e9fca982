"""When a training loop saves."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from optstate.errors import OptstateError
from optstate.text import safe_text


class Due:
    """Whether a checkpoint is due after a step: at every so many steps, or once so many seconds have passed.

    Raises `OptstateError` where neither is given, or what is given is not above zero.
    """

    def __init__(self, every: int | None, seconds: float | None, clock: Callable[[], float] = monotonic) -> None:
        if every is None and seconds is None:
            raise OptstateError(
                "when to save is not said", expected="every=500 (steps), seconds=600, or both: whichever comes first"
            )
        for name, value in (("every", every), ("seconds", seconds)):
            if value is not None and not value > 0:
                raise OptstateError(f"{name} must be above zero", found=safe_text(value))
        self._every = every
        self._seconds = seconds
        self._clock = clock
        self._saved = clock()

    def after(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        by_step = self._every is not None and step % self._every == 0
        return by_step or (self._seconds is not None and self._clock() - self._saved >= self._seconds)

    def saved(self) -> None:
        """One was taken now."""
        self._saved = self._clock()

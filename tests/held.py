"""Real files that stop at a chosen moment until they are let go: what a program does meanwhile happens during the save."""

from __future__ import annotations

from threading import Event

from optstate.store.files import RealFiles

PATIENCE = 60.0
"""Seconds after which a test has failed rather than waited."""


class Held(RealFiles):
    """Satisfies `optstate.store.files.Files`; waits before the first call of `what` for a file of this name.

    At `("create", "weights.safetensors")` nothing was read yet; at `("create", "manifest.json")` everything was. `fault` is
    raised there afterwards.
    """

    buffer = 1 << 16

    def __init__(self, what="create", name="weights.safetensors", *, fault=None):
        super().__init__()
        self._moment = (what, name)
        self._fault = fault
        self._names = {}
        self.reached, self.gate = Event(), Event()

    def let_go(self):
        """Go on."""
        self.gate.set()

    def create(self, path):
        self._at("create", path.name)
        handle = super().create(path)
        self._names[handle] = path.name
        return handle

    def write(self, handle, data, offset):
        self._at("write", self._names[handle])
        return super().write(handle, data, offset)

    def sync(self, handle):
        self._at("sync", self._names[handle])
        super().sync(handle)

    def rename(self, source, target):
        self._at("rename", target.name)
        super().rename(source, target)

    def _at(self, what, name):
        if (what, name) == self._moment:
            self.reached.set()
            if not self.gate.wait(PATIENCE):
                raise TimeoutError("the test never let the save go on")
            if self._fault is not None:
                raise self._fault

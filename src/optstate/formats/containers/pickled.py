"""What one pickle holds, whichever container it lies in: a torch zip, the older stream of torch, or a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from optstate.formats.containers.pickle_machine import Node
from optstate.formats.containers.regular import ByteSource


@dataclass(slots=True)
class Pickled:
    """The tree that was pickled, tensors as references, and what is to be said about reading it.

    `source` is the file it came from; `container` says how it lay there: `torch zip`, `torch stream`, `pickle`.
    """

    root: Node
    source: ByteSource
    container: str
    notes: list[str] = field(default_factory=list)

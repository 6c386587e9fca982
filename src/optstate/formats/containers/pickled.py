"""What one pickle holds, whichever container it lies in: a torch zip, the older stream of torch, or a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from optstate.errors import Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.constructors import known_global
from optstate.formats.containers.pickle_machine import Global, Machine, Node
from optstate.formats.containers.records import is_value
from optstate.formats.containers.regular import ByteSource
from optstate.text import count, listing, size

PICKLE_LIMIT = 1 << 28
"""Bytes of the longest pickle that is read; one that describes 100,000 tensors has 10 MB."""


@dataclass(slots=True)
class Pickled:
    """The tree that was pickled, tensors as references, and what is to be said about reading it.

    `source` is the file it came from; `container` says how it lay there: `torch zip`, `torch stream`, `pickle`.
    """

    root: Node
    source: ByteSource
    container: str
    notes: list[str] = field(default_factory=list)
    clues: list[Clue] = field(default_factory=list)


def check_length(name: str, nbytes: int) -> None:
    """Raise `Refused` for a pickle longer than `PICKLE_LIMIT`; `name` is the file that has it, safe to print."""
    if nbytes > PICKLE_LIMIT:
        raise Refused(
            f"the pickle in {name} takes {size(nbytes)}",
            expected=f"at most {size(PICKLE_LIMIT)}: tensors lie beside the pickle, not in it",
            todo="save large data that is no tensor in a file of its own",
        )


def check_end(where: str, end: int, nbytes: int, last: str = "pickle") -> None:
    """Raise `Refused` where something follows the `last` thing that a container's format has."""
    if end != nbytes:
        raise Refused(f"something hides behind the end of the {last}", where=where, found=count(nbytes - end, "byte"))


def notes_on_calls(machine: Machine, expected: Callable[[Global], bool] = lambda _: False) -> list[str]:
    """What a pickle would have called and imported, and was not, but for what is `expected` in a format."""
    found = [each for each in machine.globals.values() if not expected(each)]
    kinds = [call.kind for call in machine.calls]
    called = {str(kind): None for kind in kinds if kind is not None and not (is_value(kind) or expected(kind))}
    named = [str(each) for each in found if not known_global(each) and str(each) not in called]
    return [
        *([f"not called: {listing(called)}"] if called else []),
        *([f"not imported: {listing(named)}"] if named else []),
    ]


def clues_on_calls(machine: Machine) -> list[Clue]:
    """What `torch.load` refuses by default although it is read here: numbers of numpy."""
    numbers = [
        str(each) for each in machine.globals.values() if each.name == "scalar" and each.module.startswith("numpy")
    ]
    return [Clue("M412", f"the file holds numbers of numpy, made by {listing(numbers)}")] if numbers else []

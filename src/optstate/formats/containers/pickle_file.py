"""A file that is one pickle and nothing else, as Python's own `pickle.dump` writes it."""

from __future__ import annotations

import re
from collections.abc import Callable

from optstate.formats.containers.constructors import CONSTRUCTORS
from optstate.formats.containers.pickle_machine import Global, Machine, Node
from optstate.formats.containers.pickle_opcodes import OPCODES, run
from optstate.formats.containers.pickled import Pickled, check_end, check_length, notes_on_calls
from optstate.formats.containers.regular import ByteSource

# Protocols 2 to 5 say so in two bytes. Those before start with their first object at once: an empty dict or list, a
# dict or list behind a mark, or a class and what an opcode may do with it; two words on two lines are a text.
_NAME = rb"[A-Za-z_][\w.]*\n"
_START = re.compile(
    rb"\x80[\x02-\x05]|[}\]](q.|\.)|\([dl](p\d|\.)|\(?[ci]" + _NAME + _NAME + rb"([().]|p\d|q[^a-z])", re.DOTALL
)


def is_pickle(head: bytes) -> bool:
    """Whether a file that starts with `head` is a pickle, of any protocol."""
    return _START.match(head) is not None


def read_pickle(
    source: ByteSource, expected: Callable[[Global], bool] = lambda _: False, most: int = OPCODES
) -> Pickled:
    """Read the structure of a pickle of any protocol; nothing in it is called or imported.

    `expected` tells the names that the format is made of, which need no note; `most` how many opcodes it may have.

    Raises `Damaged` for a malformed one, `Refused` for one that is too long, has persistent ids, which mean something
    to its writer only, or does not end with the file.
    """
    check_length(source.name, source.size)
    machine = Machine(_no_persistent_id, CONSTRUCTORS, source.name, source.size)
    root, end = run(source.read(0, source.size), machine, most=most)
    check_end(source.name, end, source.size)
    return Pickled(root, source, "pickle", notes_on_calls(machine, expected))


def _no_persistent_id(_: Node) -> Node:
    raise ValueError("a persistent id, which only its writer could resolve")

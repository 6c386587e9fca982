"""An inert pickle machine: it keeps what a pickle describes and does nothing of what the pickle asks.

It imports nothing, calls nothing that a pickle names, and hashes nothing whose hash a pickle can choose. A
global is a name (`Global`), a call is a record (`Call`); only the few names that `Machine` is given constructors for
are interpreted, by those constructors. Dictionaries, lists and tuples become Python's own, and share and
contain each other as the pickle says: who walks the result must expect cycles (`optstate.formats.containers.unfolding`).

The opcodes that drive it are in `optstate.formats.containers.pickle_opcodes`. One pass, no recursion, time and memory in
proportion to the bytes given.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from optstate.errors import Refused
from optstate.text import safe_text

Node: TypeAlias = Any
"""What a pickle describes: a number, text, bytes, None, dict, list, tuple, a record, or what a constructor made."""

OBJECTS = 500_000
"""Containers and records that a pickle may build, besides one for every eight of its bytes."""

NESTING = 10_000
"""Marks that may be open at once; a genuine pickle is no deeper than the recursion of what wrote it."""

CHOSEN_KEYS = 20_000
"""What keys may cost whose hashes a file can make collide: integers beyond 32 bits, floats, tuples of numbers.

Python's hash of an integer below 2**60 is the integer itself, so two of them collide in part and cost 1; all others
can collide outright and cost 10. The oldest state dicts have addresses as keys, one for each parameter.
"""

UNSET = object()
"""What the memo has under a number that was left out."""

_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2 writes modules by their old names


class Malformed(ValueError):
    """What is wrong with a pickle, without the place; running it turns this into `Damaged`."""


class Buildable:
    """A record that takes the state that the BUILD opcode has for it."""

    __slots__ = ()

    @abstractmethod
    def set_state(self, state: Node) -> None:
        """Take the state. Raises `ValueError` where it cannot be one."""


class Global:
    """The name of a class or function; there is one `Global` for each name in a pickle."""

    __slots__ = ("constructor", "module", "name")

    def __init__(self, module: str, name: str, constructor: Constructor | None) -> None:
        self.module = module
        self.name = name
        self.constructor = constructor

    def __str__(self) -> str:
        # Names in Python's own libraries are ASCII; a letter that only looks like one must not pass for it.
        return safe_text(f"{self.module}.{self.name}".encode("ascii", "backslashreplace").decode())

    __repr__ = __str__


class Call(Buildable):
    """A call or an object that a pickle describes and that was not made.

    `function` is what it calls, mostly a `Global`; `state` is what the object was to be filled with, None
    where there is nothing; `items` are elements, or pairs of key and value, that were to be added to it.
    """

    __slots__ = ("arguments", "function", "items", "state")

    def __init__(self, function: Node, arguments: Node) -> None:
        self.function = function
        self.arguments = arguments
        self.state: Node = None
        self.items: list[Node] = []

    def set_state(self, state: Node) -> None:
        self.state = state

    @property
    def kind(self) -> Global | None:
        """The class of the object; of a call, the function. None where that is no name but another call."""
        kind = self.function
        if type(kind) is Global and (kind.module, kind.name) in MAKERS and self.arguments:
            kind = self.arguments[0]
        return kind if type(kind) is Global else None

    def __str__(self) -> str:
        what = str(self.kind or "call of a call")
        return f"{what}(…)" if self.state is None else f"<{what}>"

    __repr__ = __str__


MAKERS = {("copyreg", "_reconstructor"), ("copyreg", "__newobj__"), ("copyreg", "__newobj_ex__")}
"""Functions of Python that make an object of the class that is their first argument."""


Constructor: TypeAlias = Callable[..., Node]
"""Interprets a call: takes its arguments, gives a node, or NotImplemented to leave the call as a record.
Raises `ValueError` or `TypeError` for arguments that no genuine file has."""


class Machine:
    """The stack, the memo and the rules; one for each pickle.

    resolve
        Gives the node for a persistent id. Raises `ValueError` for one that cannot be genuine.
    constructors
        The calls that are interpreted, by (module, name) in Python 3's spelling.
    where
        The file and what of it this is, for messages; safe to print.
    nbytes
        How long the pickle is: what it may ask for grows with it.

    Methods raise `Malformed` for what no genuine pickle does, `Refused` for what asks for too much.
    """

    def __init__(
        self,
        resolve: Callable[[Node], Node],
        constructors: Mapping[tuple[str, str], Constructor],
        where: str,
        nbytes: int,
    ) -> None:
        self.resolve = resolve
        self.constructors = constructors
        self.where = where
        self.globals: dict[tuple[str, str], Global] = {}
        self.calls: list[Call] = []
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        self.memo: list[Node] = []
        self._memo_limit = nbytes
        self._objects_left = OBJECTS + nbytes // 8
        self._work_left = 1_000_000 + 4 * nbytes
        self._chosen_keys_left = CHOSEN_KEYS

    def push(self, node: Node) -> None:
        """A new container or record onto the stack."""
        self._objects_left -= 1
        if self._objects_left < 0:
            raise Refused("the pickle builds more objects than its size explains", where=self.where)
        self.stack.append(node)

    def mark(self) -> None:
        """What follows stands apart, until it is popped."""
        if len(self.marks) >= NESTING:
            raise Malformed(f"nesting deeper than {NESTING:,}")
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Node]:
        """Everything above the topmost mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, index: int) -> None:
        """Remember the top of the stack; writers number without gaps, from 0 or from 1."""
        memo, node = self.memo, self.stack[-1]
        if index == len(memo):
            memo.append(node)
            return
        if not 0 <= index <= self._memo_limit:
            raise Malformed(f"number {index} for something to remember")
        memo.extend([UNSET] * (index + 1 - len(memo)))
        memo[index] = node

    def get(self, index: int) -> None:
        """Push what was remembered under a number."""
        node = self.memo[index] if index >= 0 else UNSET
        if node is UNSET:
            raise Malformed(f"nothing is remembered under number {index}")
        self.stack.append(node)

    def name(self, module: Node, name: Node) -> None:
        """Push the `Global` of a name."""
        if type(module) is not str or type(name) is not str:
            raise Malformed("a global whose name is no text")
        key = _PYTHON2.get(module, module), name
        known = self.globals.get(key)
        if known is None:
            known = self.globals[key] = Global(*key, self.constructors.get(key))
            self.push(known)
        else:
            self.stack.append(known)

    def call(self, function: Node, arguments: Node) -> None:
        """Push what a call stands for: what its constructor makes of it, or a record of it."""
        if type(function) is Global and function.constructor is not None and type(arguments) is tuple:
            node = self._construct(function, arguments)
            if node is not NotImplemented:
                self.push(node)
                return
        self.record(function, arguments)

    def _construct(self, function: Global, arguments: tuple[Node, ...]) -> Node:
        # A constructor may look at each element of an argument, so a shared one is paid for each time.
        for each in arguments:
            if type(each) is tuple:  # perhaps the arguments of another constructor
                self._work_left -= len(each)
                for inner in each:
                    if type(inner) in _SIZED:
                        self._work_left -= len(inner) * (_SHARD if type(inner) is list else 1)
            elif type(each) in _SIZED:
                self._work_left -= len(each)
        if self._work_left < 0:
            raise Refused("the pickle uses the same data more often than its size explains", where=self.where)
        try:
            return function.constructor(*arguments)  # type: ignore[misc]
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            reason = str(error) if isinstance(error, ValueError) else "arguments that it does not take"
            raise Malformed(f"{function} with {reason}") from error

    def record(self, function: Node, arguments: Node) -> None:
        """Push a call that is not made."""
        if type(function) not in (Global, Call) or type(arguments) is not tuple:
            raise Malformed("a call of something that is no function, or without a tuple of arguments")
        call = Call(function, arguments)
        self.calls.append(call)
        self.push(call)

    def set_items(self, target: Node, items: list[Node]) -> None:
        """Put alternating keys and values into a dict, or beside a record."""
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise Malformed("a key without a value")
        if type(target) is Call:
            target.items.extend(zip(keys, values, strict=True))
            return
        if type(target) is not dict:
            raise Malformed(f"items for a {_kind(target)}")
        for key, value in zip(keys, values, strict=True):
            if type(key) is not str:
                self._check_key(key)
            if key in target:
                raise Malformed(f"the key {_brief(key)} twice in one dict")
            target[key] = value

    def _check_key(self, key: Node) -> None:
        kind = type(key)
        if kind in _SAFE_KEYS or (kind is int and -_SMALL <= key < _SMALL) or kind.__hash__ is _BY_IDENTITY:
            return
        if kind is tuple:
            if len(key) > 16 or any(type(part) not in _KEY_PARTS for part in key):
                raise Malformed("a key of a dict that is a nested or long tuple")
            if any(type(part) is str and part for part in key):
                return
        elif kind not in (int, float):
            raise Malformed(f"a key of a dict that is a {_kind(key)}")
        self._chosen_keys_left -= 1 if kind is int and abs(key) < _OWN_HASH else 10
        if self._chosen_keys_left < 0:
            raise Refused("the pickle has dicts with more large numbers as keys than any checkpoint", where=self.where)

    def extend(self, target: Node, items: list[Node]) -> None:
        """Append elements to a list, or beside a record."""
        if type(target) is Call:
            target.items.extend(items)
        elif type(target) is list:
            target.extend(items)
        else:
            raise Malformed(f"elements for a {_kind(target)}")

    def build(self, target: Node, state: Node) -> None:
        """Give an object its state. A dict's is what Python keeps beside its items, such as `_metadata`: ignored."""
        if isinstance(target, Buildable):
            target.set_state(state)
        elif type(target) is not dict or type(state) not in (dict, tuple):
            raise Malformed(f"a state for a {_kind(target)}")


_SIZED = {dict, list, tuple, str, bytes, bytearray}
_SHARD = 50  # what it costs to put a shard of a tensor in its place, in elements that are looked at
_SMALL = 1 << 31
_OWN_HASH = 1 << 60
# Python hashes text and bytes with a secret, records by their address, small integers to no one's harm.
_BY_IDENTITY: object = object.__hash__
_SAFE_KEYS = {str, bytes, bool, type(None)}
_KEY_PARTS = {str, bytes, bool, type(None), int, float}


def _kind(node: Node) -> str:
    return str(node) if isinstance(node, (Global, Call)) else type(node).__name__


def _brief(key: Node) -> str:
    return safe_text(key, 60) if type(key) in (str, int) else f"a {_kind(key)}"

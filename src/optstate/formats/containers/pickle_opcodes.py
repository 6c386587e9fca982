"""The opcodes of pickle protocols 0 to 5, and the loop that runs them on the inert machine."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import TypeAlias

from optstate.errors import Damaged, ReadError, Refused
from optstate.formats.containers.pickle_machine import UNSET, Machine, Malformed, Node
from optstate.text import safe_text

OPCODES = 20_000_000
"""Opcodes that a pickle may have; a tensor takes about thirty."""

INTEGER_BYTES = 255
"""Bytes of the longest integer; generators of random numbers keep state in integers of 16."""


class Tape:
    """The bytes of a pickle. `limit` is the end of the frame, or of the bytes outside of frames."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.limit = len(data)
        self.framed = False

    def take(self, at: int, length: int) -> bytes:
        """`length` bytes, checked before anything is allocated."""
        if length > self.limit - at:
            raise Malformed(f"{length} bytes of text or data where {self.limit - at} are left")
        return self.data[at : at + length]

    def line(self, at: int) -> tuple[bytes, int]:
        """The bytes before the next line feed, and where the one behind it is."""
        stop = self.data.find(b"\n", at, self.limit)
        if stop < 0:
            raise Malformed("a line without an end")
        return self.data[at:stop], stop + 1

    def leave_frame(self, at: int) -> None:
        """The end of a frame, or of everything, was reached or passed."""
        if at > self.limit:
            raise Malformed("an opcode that reaches beyond the end of the pickle or of its frame")
        if at == len(self.data):
            raise Malformed("it ends without STOP")
        self.framed = False
        self.limit = len(self.data)


def run(data: bytes, machine: Machine, at: int = 0, most: int = OPCODES) -> tuple[Node, int]:
    """What the pickle at byte `at` describes, and the byte behind its STOP; it may have `most` opcodes.

    Raises `Damaged` with the byte where it stops making sense, `Refused` when it asks for too much or for what
    must not be done.
    """
    tape = Tape(data)
    plain, with_argument = _PLAIN, _WITH_ARGUMENT
    try:
        for _ in range(most):
            if at >= tape.limit:
                tape.leave_frame(at)
            opcode = data[at]
            act = plain[opcode]
            if act is not None:
                act(machine)
                at += 1
            elif opcode == _STOP:
                return _result(machine, tape, at + 1), at + 1
            else:
                at = with_argument[opcode](machine, tape, at + 1)
    except (IndexError, struct.error, ValueError, TypeError, OverflowError) as error:
        raise _damaged(machine.where, data, at, error) from error
    raise Refused(
        "the pickle is longer than any checkpoint's",
        where=machine.where,
        expected=f"at most {most:,} opcodes",
    )


def _result(m: Machine, tape: Tape, at: int) -> Node:
    result = m.stack.pop()
    if m.stack or m.marks or (tape.framed and at != tape.limit):
        raise Malformed("something is left over at its end")
    return result


def _damaged(where: str, data: bytes, at: int, error: Exception) -> ReadError:
    opcode = data[at] if at < len(data) else None
    reason = f": {safe_text(error)}" if isinstance(error, ValueError) else ""
    return Damaged(
        f"the pickle is malformed{reason}",
        where=f"{where}, byte {at}",
        found="its end" if opcode is None else f"opcode {_NAMES.get(opcode, f'0x{opcode:02x}')}",
        todo="the file is damaged or made to deceive: fetch or copy it again",
    )


# --- opcodes without an argument: they act on the machine -------------------------------------------------

Plain: TypeAlias = Callable[[Machine], None]


def _constant(node: Node) -> Plain:
    return lambda m: m.stack.append(node)


def _container(make: Callable[[], Node]) -> Plain:
    return lambda m: m.push(make())


def _from_mark(make: Callable[[list[Node]], Node]) -> Plain:
    return lambda m: m.push(make(m.pop_mark()))


def _tuple_of(length: int) -> Plain:
    def handler(m: Machine) -> None:
        stack = m.stack
        if len(stack) < length:
            raise Malformed("a tuple of more than there is")
        items = tuple(stack[-length:])
        del stack[-length:]
        m.push(items)

    return handler


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _pop_mark(m: Machine) -> None:
    m.pop_mark()


def _reduce(m: Machine) -> None:
    arguments = m.stack.pop()
    m.call(m.stack.pop(), arguments)


def _new(m: Machine) -> None:
    arguments = m.stack.pop()
    m.call(m.stack.pop(), arguments)


def _new_with_keywords(m: Machine) -> None:
    keywords = m.stack.pop()
    arguments = m.stack.pop()
    m.record(m.stack.pop(), (arguments, keywords))


def _object(m: Machine) -> None:
    function, *arguments = m.pop_mark()
    m.record(function, tuple(arguments))


def _stack_global(m: Machine) -> None:
    name = m.stack.pop()
    m.name(m.stack.pop(), name)


def _dict_from_mark(m: Machine) -> None:
    items = m.pop_mark()
    m.push({})
    m.set_items(m.stack[-1], items)


def _append(m: Machine) -> None:
    item = m.stack.pop()
    m.extend(m.stack[-1], [item])


def _extend(m: Machine) -> None:
    items = m.pop_mark()
    m.extend(m.stack[-1], items)


def _set_item(m: Machine) -> None:
    value = m.stack.pop()
    key = m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _set_items(m: Machine) -> None:
    items = m.pop_mark()
    m.set_items(m.stack[-1], items)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    m.build(m.stack[-1], state)


def _refused(what: str) -> Plain:
    def handler(m: Machine) -> None:
        raise Refused(f"the pickle {what}", where=m.where)

    return handler


_BY_NUMBER = _refused("names classes by number, in a registry that only its writer has")
_OUT_OF_BAND = _refused("has its data in another file")

_PLAIN_OPCODES: dict[bytes, tuple[str, Plain]] = {
    b"(": ("MARK", Machine.mark),
    b"0": ("POP", _pop),
    b"1": ("POP_MARK", _pop_mark),
    b"2": ("DUP", lambda m: m.stack.append(m.stack[-1])),
    b"N": ("NONE", _constant(None)),
    b"\x88": ("NEWTRUE", _constant(True)),
    b"\x89": ("NEWFALSE", _constant(False)),
    b")": ("EMPTY_TUPLE", _constant(())),
    b"}": ("EMPTY_DICT", _container(dict)),
    b"]": ("EMPTY_LIST", _container(list)),
    b"\x8f": ("EMPTY_SET", _container(list)),
    b"d": ("DICT", _dict_from_mark),
    b"l": ("LIST", _from_mark(list)),
    b"\x91": ("FROZENSET", _from_mark(list)),
    b"t": ("TUPLE", _from_mark(tuple)),
    b"\x85": ("TUPLE1", _tuple_of(1)),
    b"\x86": ("TUPLE2", _tuple_of(2)),
    b"\x87": ("TUPLE3", _tuple_of(3)),
    b"a": ("APPEND", _append),
    b"e": ("APPENDS", _extend),
    b"\x90": ("ADDITEMS", _extend),
    b"s": ("SETITEM", _set_item),
    b"u": ("SETITEMS", _set_items),
    b"b": ("BUILD", _build),
    b"R": ("REDUCE", _reduce),
    b"\x81": ("NEWOBJ", _new),
    b"\x92": ("NEWOBJ_EX", _new_with_keywords),
    b"o": ("OBJ", _object),
    b"\x93": ("STACK_GLOBAL", _stack_global),
    b"\x94": ("MEMOIZE", lambda m: m.put(len(m.memo))),
    b"Q": ("BINPERSID", lambda m: m.push(m.resolve(m.stack.pop()))),
    b"P": ("PERSID", _refused("has a persistent id as text, which not even torch can read back")),
    b"\x82": ("EXT1", _BY_NUMBER),
    b"\x83": ("EXT2", _BY_NUMBER),
    b"\x84": ("EXT4", _BY_NUMBER),
    b"\x97": ("NEXT_BUFFER", _OUT_OF_BAND),
    b"\x98": ("READONLY_BUFFER", _OUT_OF_BAND),
}


# --- opcodes with an argument: given the byte where it starts, they return the byte behind it ----------------

WithArgument: TypeAlias = Callable[[Machine, Tape, int], int]


def _number(format: str, use: Callable[[Machine, Node], None]) -> WithArgument:
    """A number of fixed width."""
    layout = struct.Struct(format)
    unpack, width = layout.unpack_from, layout.size

    def handler(m: Machine, tape: Tape, at: int) -> int:
        use(m, unpack(tape.data, at)[0])
        return at + width

    return handler


# The next three are half of what a pickle of tensors is made of, so they do without a further call.


def _push_byte(m: Machine, tape: Tape, at: int) -> int:
    m.stack.append(tape.data[at])
    return at + 1


def _get_byte(m: Machine, tape: Tape, at: int) -> int:
    node = m.memo[tape.data[at]]
    if node is UNSET:
        raise Malformed(f"nothing is remembered under number {tape.data[at]}")
    m.stack.append(node)
    return at + 1


def _put_wide(m: Machine, tape: Tape, at: int) -> int:
    (index,) = _unpack_wide(tape.data, at)
    memo = m.memo
    if index == len(memo):
        memo.append(m.stack[-1])
    else:
        m.put(index)
    return at + 4


_unpack_wide = struct.Struct("<I").unpack_from


def _sized(width: int, decode: Callable[[bytes], Node]) -> WithArgument:
    """Text or bytes behind their own length."""

    def handler(m: Machine, tape: Tape, at: int) -> int:
        start = at + width
        raw = tape.take(start, int.from_bytes(tape.data[at:start], "little"))
        m.stack.append(decode(raw))
        return start + len(raw)

    return handler


def _line(decode: Callable[[bytes], Node], use: Callable[[Machine, Node], None]) -> WithArgument:
    """Text up to a line feed."""

    def handler(m: Machine, tape: Tape, at: int) -> int:
        line, behind = tape.line(at)
        use(m, decode(line))
        return behind

    return handler


def _push(m: Machine, node: Node) -> None:
    m.stack.append(node)


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it can be."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _quoted(line: bytes) -> str | bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Malformed("a text without quotes")
    return _old_text(codecs.escape_decode(line[1:-1])[0])


def _raw_unicode(line: bytes) -> str:
    return line.decode("raw-unicode-escape")


def _wide(raw: bytes) -> int:
    if len(raw) > INTEGER_BYTES:
        raise Malformed(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _digits(line: bytes) -> int:
    # Reading a decimal takes time with the square of its length.
    if len(line) > 2 * INTEGER_BYTES:
        raise Malformed(f"an integer of {len(line)} digits")
    return int(line.removesuffix(b"L"))


def _integer(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else _digits(line)


def _global(m: Machine, tape: Tape, at: int) -> int:
    module, at = tape.line(at)
    name, at = tape.line(at)
    m.name(_utf8(module), _utf8(name))
    return at


def _instance(m: Machine, tape: Tape, at: int) -> int:
    arguments = tuple(m.pop_mark())
    at = _global(m, tape, at)
    m.record(m.stack.pop(), arguments)
    return at


def _protocol(_: Machine, tape: Tape, at: int) -> int:
    if tape.data[at] > 5:
        raise Malformed(f"protocol {tape.data[at]}, where 5 is the newest")
    return at + 1


def _frame(_: Machine, tape: Tape, at: int) -> int:
    length = int.from_bytes(tape.take(at, 8), "little")
    at += 8
    if tape.framed or not 0 < length <= tape.limit - at:
        raise Malformed(f"a frame of {length} bytes that does not fit where it is")
    tape.framed = True
    tape.limit = at + length
    return at


def _unknown(_: Machine, __: Tape, ___: int) -> int:
    raise Malformed("no opcode of any protocol")


_ARGUMENT_OPCODES: dict[bytes, tuple[str, WithArgument]] = {
    b"I": ("INT", _line(_integer, _push)),
    b"L": ("LONG", _line(_digits, _push)),
    b"F": ("FLOAT", _line(float, _push)),
    b"J": ("BININT", _number("<i", _push)),
    b"K": ("BININT1", _push_byte),
    b"M": ("BININT2", _number("<H", _push)),
    b"G": ("BINFLOAT", _number(">d", _push)),
    b"\x8a": ("LONG1", _sized(1, _wide)),
    b"\x8b": ("LONG4", _sized(4, _wide)),
    b"S": ("STRING", _line(_quoted, _push)),
    b"T": ("BINSTRING", _sized(4, _old_text)),
    b"U": ("SHORT_BINSTRING", _sized(1, _old_text)),
    b"V": ("UNICODE", _line(_raw_unicode, _push)),
    b"X": ("BINUNICODE", _sized(4, _utf8)),
    b"\x8c": ("SHORT_BINUNICODE", _sized(1, _utf8)),
    b"\x8d": ("BINUNICODE8", _sized(8, _utf8)),
    b"B": ("BINBYTES", _sized(4, bytes)),
    b"C": ("SHORT_BINBYTES", _sized(1, bytes)),
    b"\x8e": ("BINBYTES8", _sized(8, bytes)),
    b"\x96": ("BYTEARRAY8", _sized(8, bytes)),
    b"g": ("GET", _line(_digits, Machine.get)),
    b"h": ("BINGET", _get_byte),
    b"j": ("LONG_BINGET", _number("<I", Machine.get)),
    b"p": ("PUT", _line(_digits, Machine.put)),
    b"q": ("BINPUT", _number("<B", Machine.put)),
    b"r": ("LONG_BINPUT", _put_wide),
    b"c": ("GLOBAL", _global),
    b"i": ("INST", _instance),
    b"\x80": ("PROTO", _protocol),
    b"\x95": ("FRAME", _frame),
}

_STOP = ord(".")
_NAMES = {
    _STOP: "STOP",
    **{code[0]: name for code, (name, _) in (*_PLAIN_OPCODES.items(), *_ARGUMENT_OPCODES.items())},
}
_PLAIN: list[Plain | None] = [None] * 256
_WITH_ARGUMENT: list[WithArgument] = [_unknown] * 256
for _code, (_, _plain) in _PLAIN_OPCODES.items():
    _PLAIN[_code[0]] = _plain
for _code, (_, _handler) in _ARGUMENT_OPCODES.items():
    _WITH_ARGUMENT[_code[0]] = _handler

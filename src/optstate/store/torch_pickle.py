"""A pickle of plain values and tensors, as `torch.save` writes it and `torch.load(weights_only=True)` reads it.

Opcodes are written one by one; nothing of Python's own pickle is used, so nothing else can get into the file.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from struct import pack
from types import MappingProxyType
from typing import Any

from optstate.formats.ours import nodes
from optstate.state.tensors import is_tensor
from optstate.store.runs import Run, View

# Classes of storages, by element type. What is not here is an untyped storage, with the type beside it.
STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "float64": "DoubleStorage",
        "float32": "FloatStorage",
        "float16": "HalfStorage",
        "bfloat16": "BFloat16Storage",
        "complex128": "ComplexDoubleStorage",
        "complex64": "ComplexFloatStorage",
        "int64": "LongStorage",
        "int32": "IntStorage",
        "int16": "ShortStorage",
        "int8": "CharStorage",
        "uint8": "ByteStorage",
        "bool": "BoolStorage",
    }
)


def pickled(tree: Any, runs: list[Run], views: Mapping[int, View]) -> bytes:
    """The pickle, protocol 2, of a tree whose tensors are `views` of `runs`. Raises `TypeError` for what it cannot hold."""
    writer = _Writer(runs, views)
    writer.value(tree)
    return b"\x80\x02" + b"".join(writer.out) + b"."


class _Writer:
    def __init__(self, runs: list[Run], views: Mapping[int, View]) -> None:
        self.out: list[bytes] = []
        self._runs = runs
        self._views = views
        self._globals: dict[str, int] = {}

    def value(self, value: Any) -> None:
        write = _WRITERS.get(type(value))
        if write is not None:
            write(self, value)
        elif is_tensor(value):
            self._tensor(self._views[id(value)])
        else:
            raise TypeError(f"a {type(value).__name__} in a pickle for torch")

    # --- plain values -------------------------------------------------------------------------------------

    def constant(self, value: bool | None) -> None:
        self.out.append({None: b"N", True: b"\x88", False: b"\x89"}[value])

    def integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out.append(pack("<cB", b"K", value))
        elif -1 << 31 <= value < 1 << 31:
            self.out.append(pack("<ci", b"J", value))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(raw) > 255:
                raise TypeError("an integer of more than 255 bytes in a pickle for torch")
            self.out.append(pack("<cB", b"\x8a", len(raw)) + raw)

    def real(self, value: float) -> None:
        self.out.append(pack(">cd", b"G", value))

    def complex_number(self, value: complex) -> None:
        self.call("__builtin__ complex", value.real, value.imag)

    def text(self, value: str) -> None:
        raw = value.encode("utf-8", "surrogatepass")
        self.out.append(pack("<cI", b"X", len(raw)) + raw)

    def raw(self, value: bytes) -> None:
        self.call("_codecs encode", value.decode("latin-1"), "latin1")

    # --- containers ---------------------------------------------------------------------------------------

    def items(self, value: Iterable[Any], opcode: bytes) -> None:
        self.out.append(b"(")
        self._values(*value)
        self.out.append(opcode)

    def pairs(self, value: Mapping[Any, Any]) -> None:
        if value:
            self.items((part for pair in value.items() for part in pair), b"u")

    def array(self, value: list[Any]) -> None:
        self.out.append(b"]")
        if value:
            self.items(value, b"e")

    def dictionary(self, value: dict[Any, Any]) -> None:
        self.out.append(b"}")
        self.pairs(value)

    def ordered(self, value: Mapping[Any, Any]) -> None:
        self.call("collections OrderedDict")
        self.pairs(value)

    # --- calls --------------------------------------------------------------------------------------------

    def name(self, place: str) -> None:
        """A global, `module name`: spelled out the first time, then by its number in the memo."""
        if place in self._globals:
            self.out.append(pack("<cI", b"j", self._globals[place]))
            return
        module, _, name = place.partition(" ")
        number = self._globals[place] = len(self._globals)
        self.out.append(f"c{module}\n{name}\n".encode() + pack("<cI", b"r", number))

    def call(self, place: str, *arguments: Any) -> None:
        self.name(place)
        self.items(arguments, b"tR")

    def _values(self, *values: Any) -> None:
        for value in values:
            self.value(value)

    def _tensor(self, view: View) -> None:
        run = self._runs[view.run]
        kind = STORAGES.get(run.dtype)
        self.name(f"torch._utils _rebuild_tensor_v{2 if kind else 3}")
        self.out.append(b"((")
        self.text("storage")
        self.name(f"torch {kind}" if kind else "torch.storage UntypedStorage")
        self._values(str(view.run), "cpu", run.elements if kind else run.nbytes)
        self.out.append(b"tQ")
        self._values(view.offset, view.shape, view.stride, False)
        self.call("collections OrderedDict")  # hooks
        if not kind:
            self.name(f"torch {run.dtype}")
        self.out.append(b"tR")


_WRITERS: Mapping[type, Callable[[_Writer, Any], None]] = {
    type(None): _Writer.constant,
    bool: _Writer.constant,
    int: _Writer.integer,
    float: _Writer.real,
    complex: _Writer.complex_number,
    str: _Writer.text,
    bytes: _Writer.raw,
    tuple: lambda writer, value: writer.items(value, b"t"),
    list: _Writer.array,
    dict: _Writer.dictionary,
    OrderedDict: _Writer.ordered,
    Counter: lambda writer, value: writer.call("collections Counter", dict(value)),
    set: lambda writer, value: writer.call("__builtin__ set", list(value)),
    nodes.Size: lambda writer, value: writer.call("torch Size", value.v),
    nodes.Dtype: lambda writer, value: writer.name(f"torch {value.v}"),
    nodes.Device: lambda writer, value: writer.call("torch device", *_device(value.v)),
}

PLAIN = frozenset(_WRITERS)
"""The types, besides tensors, that such a pickle holds."""


def _device(name: str) -> tuple[str | int, ...]:
    kind, colon, index = name.partition(":")
    return (kind, int(index)) if colon else (kind,)

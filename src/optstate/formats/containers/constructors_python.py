"""What calls of Python's own classes in a pickle stand for, and those of a few small libraries.

A collection takes over the list or dict that it is made of, as no genuine pickle uses that a second time: copying it
would let a small file ask for the same copy a million times.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from optstate.formats.containers.pickle_machine import Constructor, Global, Node
from optstate.formats.containers.records import Config, Plain
from optstate.text import safe_text


def expect(node: Node, *kinds: type) -> Node:
    """`node`, which must be of one of these types. Raises `ValueError`."""
    if type(node) not in kinds:
        raise ValueError(f"{type(node).__name__} where {kinds[0].__name__} is due")
    return node


# --- collections ------------------------------------------------------------------------------------------


def _ordered_dict(pairs: Node = ()) -> Node:
    return {} if not expect(pairs, tuple, list) else NotImplemented


def _dict(items: Node = None) -> Node:
    return {} if items is None else expect(items, dict)


def _default_dict(factory: Node = None, items: Node = None) -> Node:
    return _dict(items)


def _list(items: Node = (), most: Node = None) -> Node:
    return [] if type(items) is tuple and not items else expect(items, list)


def _tuple(items: Node = ()) -> Node:
    return NotImplemented if type(items) is list else expect(items, tuple)


# --- numbers and text -------------------------------------------------------------------------------------


def _complex(real: Node, imaginary: Node) -> complex:
    return complex(expect(real, float, int), expect(imaginary, float, int))


def _bytes(content: Node = b"", encoding: Node = "latin-1") -> bytes:
    if type(content) is str:
        return _encode(content, encoding)
    return bytes(expect(content, bytes))


def _encode(text: Node, encoding: Node) -> bytes:
    """Protocol 2 writes bytes as text in which each character stands for one byte."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding of bytes that pickle does not write")
    return bytes(expect(text, str).encode("latin-1"))


def _path(*parts: Node) -> str:
    text = "/".join(expect(part, str) for part in parts)
    return text[1:] if text.startswith("//") else text


def text(value: Node = "") -> Node:
    """A class of someone's own that is text with methods, such as `torch.torch_version.TorchVersion`."""
    return expect(value, str)


# --- dates, as text in the manner of ISO 8601 -------------------------------------------------------------


def _packed(content: Node, length: int) -> bytes:
    """The bytes in which Python packs a date or a time."""
    raw = content.encode("latin-1") if type(content) is str else expect(content, bytes)
    if len(raw) != length:
        raise ValueError(f"{len(raw)} bytes for a date or a time")
    return bytes(raw)


def _date(content: Node) -> str:
    raw = _packed(content, 4)
    year, month, day = int.from_bytes(raw[:2]), raw[2], raw[3]
    if not (1 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
        raise ValueError("a date that is none")
    return f"{year:04}-{month:02}-{day:02}"


def _time(content: Node, zone: Node = None) -> str:
    raw = _packed(content, 6)
    # The upper half of the first byte tells two times apart that a clock shows twice.
    hour, minute, second, fraction = raw[0] & 0x7F, raw[1], raw[2], int.from_bytes(raw[3:])
    if hour > 23 or minute > 59 or second > 59 or fraction > 999_999:
        raise ValueError("a time that is none")
    clock = f"{hour:02}:{minute:02}:{second:02}{f'.{fraction:06}' if fraction else ''}"
    return clock if zone is None else f"{clock} {safe_text(zone, 60)}"


def _datetime(content: Node, zone: Node = None) -> str:
    raw = _packed(content, 10)
    return f"{_date(raw[:2] + bytes([raw[2] & 0x7F]) + raw[3:4])}T{_time(raw[4:], zone)}"


def _duration(days: Node = 0, seconds: Node = 0, fraction: Node = 0) -> str:
    parts = expect(days, int), expect(seconds, int), expect(fraction, int)
    if abs(parts[0]) > 999_999_999 or not 0 <= parts[1] < 86_400 or not 0 <= parts[2] < 1_000_000:
        raise ValueError("a duration that is none")
    return f"{parts[0]} days {parts[1]}.{parts[2]:06} s"


def _zone(offset: Node, name: Node = None) -> str:
    return "UTC" if expect(offset, str) == _duration() else f"UTC + {safe_text(offset, 40)}"


# --- names and objects ------------------------------------------------------------------------------------

_LONGEST = 200
"""Characters that a dotted name may grow to."""


def _attribute(owner: Node, name: Node, *default: Node) -> Node:
    """`getattr(class, name)`, as members of enums and nested classes are written: the dotted name."""
    if type(owner) is not Global:
        return NotImplemented
    if len(expect(name, str)) + len(owner.name) > _LONGEST:
        raise ValueError("a name longer than any")
    return Global(owner.module, f"{owner.name}.{name}", None)


def _config(module: str, name: str, *arguments: Node) -> Config:
    return Config(Global(module, name, None), arguments)


def _plain(module: str, name: str, *arguments: Node) -> Plain:
    return Plain(Global(module, name, None), arguments)


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_CONFIGS = (("omegaconf.dictconfig", "DictConfig"), ("omegaconf.listconfig", "ListConfig"))
_VALUES = (
    "AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode", "PathNode", "EnumNode",
)  # fmt: skip

PYTHON: Mapping[tuple[str, str], Constructor] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): _default_dict,
        ("collections", "Counter"): _dict,
        ("collections", "deque"): _list,
        ("builtins", "dict"): _dict,
        ("builtins", "list"): _list,
        ("builtins", "set"): _list,
        ("builtins", "frozenset"): _list,
        ("builtins", "tuple"): _tuple,
        ("builtins", "complex"): _complex,
        ("builtins", "bytes"): _bytes,
        ("builtins", "bytearray"): _bytes,
        ("builtins", "getattr"): _attribute,
        ("_codecs", "encode"): _encode,
        ("datetime", "date"): _date,
        ("datetime", "time"): _time,
        ("datetime", "datetime"): _datetime,
        ("datetime", "timedelta"): _duration,
        ("datetime", "timezone"): _zone,
        **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
        **{kind: partial(_config, *kind) for kind in _CONFIGS},
        **{("omegaconf.nodes", name): partial(_plain, "omegaconf.nodes", name) for name in _VALUES},
    }
)

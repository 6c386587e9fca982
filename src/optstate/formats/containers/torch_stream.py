"""The layout of `torch.save` before torch 1.6: pickles back to back, then the storages.

Nothing in such a file says where the pickle ends or where a storage lies, and nothing has a checksum: it is read from
its start, and each storage is found behind the one before.
"""

from __future__ import annotations

from typing import NamedTuple

from optstate.errors import Damaged, NewerFormat, ReadError, Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.constructors import CONSTRUCTORS
from optstate.formats.containers.persistent import Storages
from optstate.formats.containers.pickle_machine import Global, Machine, Node
from optstate.formats.containers.pickle_opcodes import run
from optstate.formats.containers.pickled import PICKLE_LIMIT, Pickled, check_end, clues_on_calls, notes_on_calls
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.span import Span
from optstate.formats.containers.storages import Storage
from optstate.text import count, safe_text, size

VERSION = 1001
"""The version of the layout; there never was another one."""

_COUNT = 8  # bytes before each storage that say how many elements it has

UNCHECKED = "no checksums: files that torch wrote before 1.6 have none, so damage to values would not show"

_MAGIC = 0x1950A86A20F9469CFC6C
_LONG = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
_STARTS = (
    *(bytes((0x80, protocol)) + _LONG for protocol in (2, 3)),
    *(bytes((0x80, protocol, 0x95)) + len(_LONG).to_bytes(8, "little") + _LONG for protocol in (4, 5)),
    b"L%dL\n." % _MAGIC,  # protocols 0 and 1
)

# Bytes in which the pickles are looked for. A pickle that is cut there may be refused for anything, so any refusal
# is taken back when there is more to look at.
_WINDOWS = (1 << 20, 1 << 24, PICKLE_LIMIT)


def is_torch_stream(head: bytes) -> bool:
    """Whether a file that starts with `head` is such a stream."""
    return head.startswith(_STARTS)


def read_torch_stream(source: ByteSource) -> Pickled:
    """Read the structure of what was given to `torch.save`, and none of its values.

    Raises `Damaged` for a file that is cut short or contradicts itself, `Refused` for what the pickle machine refuses
    and for bytes behind the last storage, `NewerFormat`.
    """
    front = _read_front(source)
    end = front.storages.place(front)
    check_end(source.name, end, source.size, "last storage")
    return Pickled(front.root, source, "torch stream", [*front.notes, UNCHECKED], front.clues)


class _Front(NamedTuple):
    """What stands before the storages, where the first of them begins, and the bytes that were read to find that."""

    root: Node
    keys: list[Node]
    storages: _StreamStorages
    notes: list[str]
    clues: list[Clue]
    end: int
    data: bytes


def _read_front(source: ByteSource) -> _Front:
    for window in _WINDOWS:
        data = source.read(0, min(window, source.size))
        try:
            return _parse(data, source)
        except ReadError as error:
            if len(data) == source.size:
                raise
            refused = error
    raise Refused(
        f"the pickle in {source.name} is malformed or too long",
        expected=f"at most {size(PICKLE_LIMIT)}: tensors lie behind the pickle, not in it",
        found=refused.what,
    )


def _parse(data: bytes, source: ByteSource) -> _Front:
    """The five pickles at the start of a file, of which `data` is all or the first part."""
    storages = _StreamStorages(source)
    machine = Machine(storages.resolve, CONSTRUCTORS, source.name, len(data))
    magic, at = _plain(data, 0, source)
    version, at = _plain(data, at, source)
    if magic == _MAGIC and type(version) is int and version != VERSION:
        raise NewerFormat(f"{source.name} has a layout of its own", expected=str(VERSION), found=safe_text(version, 40))
    about, at = _plain(data, at, source)
    root, at = run(data, machine, at)
    keys, at = _plain(data, at, source)
    if (magic, version) != (_MAGIC, VERSION) or type(about) is not dict or type(keys) is not list:
        raise Damaged(
            f"{source.name} is damaged: its parts are not those that torch writes",
            expected="a number, a version, a description of the machine, what was saved, a list of storages",
            todo="fetch or copy it again, or use an earlier checkpoint",
        )
    return _Front(root, keys, storages, notes_on_calls(machine), clues_on_calls(machine), at, data)


def _plain(data: bytes, at: int, source: ByteSource) -> tuple[Node, int]:
    """A pickle of torch's own, in which nothing is called."""
    return run(data, Machine(_no_persistent_id, {}, source.name, len(data)), at)


def _no_persistent_id(_: Node) -> Node:
    raise ValueError("a persistent id outside of what was saved")


class _Place(Span):
    """The bytes of a storage, or of a part of one, found once it is known where that lies."""

    __slots__ = ()

    @property
    def start(self) -> int:
        """Where they are in the file."""
        return self._start

    def found(self, start: int) -> None:
        """The file has them from byte `start`."""
        self._start = start


class _View(NamedTuple):
    """A part of a storage, which begins `offset` bytes behind its start."""

    key: str
    offset: int
    place: _Place
    storage: Storage


class _StreamStorages(Storages):
    """The storages of a stream. torch writes them in the byte order of small machines, on every machine."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._places: dict[str, _Place] = {}
        self._views: dict[str, _View] = {}

    def resolve(self, identity: Node) -> Storage | Global:
        """The storage, or part of one, of ("storage", class, key, location, number of elements, view).

        The class of a module comes as ("module", class, file, source text) where it is first used; it stands for
        itself. Raises `ValueError`.
        """
        match identity:
            case ("module", Global() as kind, _, _):
                return kind
            case ("storage", kind, key, _, elements, None):
                return self.get(kind, key, elements)
            case ("storage", kind, key, _, elements, (str() as name, int() as offset, int() as length)):
                return self._view(key, self.get(kind, key, elements), name, offset, length)
        raise ValueError("a persistent id that is no storage")

    def find(self, key: str, nbytes: int | None) -> _Place:
        if nbytes is None:
            raise ValueError(f"storage {safe_text(key, 40)}, whose elements have no size that is known")
        if nbytes > self._source.size:
            raise ValueError(f"storage {safe_text(key, 40)} of {nbytes} bytes in a file of {self._source.size}")
        place = self._places[key] = _Place(self._source, 0, nbytes)
        return place

    def _view(self, key: str, whole: Storage, name: str, offset: int, length: int) -> Storage:
        elements = self.lengths[key]
        if offset < 0 or length < 0 or offset + length > elements:
            raise ValueError(f"a view of elements {offset} to {offset + length} of a storage that has {elements}")
        width = whole.record.nbytes // max(elements, 1)
        place = _Place(self._source, 0, length * width)
        view = _View(key, offset * width, place, Storage(place, whole.dtype, swap=False))
        known = self._views.setdefault(name, view)
        if (known.key, known.offset, known.place.nbytes) != (key, view.offset, place.nbytes):
            raise ValueError(f"view {safe_text(name, 40)} in two places")
        return known.storage

    def place(self, front: _Front) -> int:
        """Find every storage, the first behind the pickles; returns the byte behind the last one. Raises `Damaged`."""
        source, keys, at = self._source, front.keys, front.end
        if any(type(key) is not str for key in keys) or sorted(keys) != sorted(self._places):
            raise Damaged(f"{source.name} is damaged: its list of storages is not that of its pickle")
        for key in keys:
            place, start = self._places[key], at + _COUNT
            raw = front.data[at:start] if start <= len(front.data) else source.read(at, _COUNT)
            elements = int.from_bytes(raw, "little", signed=True)
            at = start + place.nbytes
            if elements != self.lengths[key] or at > source.size:
                raise Damaged(
                    f"{source.name} is damaged: storage {safe_text(key, 40)} is not as long as its pickle says",
                    where=f"byte {start - _COUNT:,}",
                    expected=count(self.lengths[key], "element"),
                    found=f"{count(elements, 'element')}, and {size(source.size - start)} behind them",
                    todo="the copy is incomplete: fetch or copy it again",
                )
            place.found(start)
        for view in self._views.values():
            view.place.found(self._places[view.key].start + view.offset)
        return at

"""The zip layout of `torch.save`: one folder with `data.pkl`, and one member of raw bytes for each storage."""

from __future__ import annotations

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, Refused
from optstate.formats.containers.constructors import CONSTRUCTORS, Storage, known_global, storage_dtype
from optstate.formats.containers.pickle_machine import Global, Machine, Node
from optstate.formats.containers.pickle_opcodes import run
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.state.tensors import DTYPES
from optstate.text import count, listing, safe_text, size

PICKLE_LIMIT = 1 << 28
"""Bytes of the longest pickle that is read; one that describes 100,000 tensors has 10 MB."""

FORMAT_VERSION = "1"
"""The `.format_version` that torch writes, where it writes one."""


def read_torch_zip(archive: ZipArchive) -> Pickled:
    """Read the structure of what was given to `torch.save`, and none of its values.

    Raises `NotACheckpoint` for a zip archive of something else, `Refused` for a TorchScript program and for what
    `ZipArchive` and the pickle machine refuse, `Damaged`, `NewerFormat`.
    """
    source = archive.source
    folder = _folder(archive)
    pickle = archive.record(f"{folder}/data.pkl")
    if pickle.nbytes > PICKLE_LIMIT:
        raise Refused(
            f"the pickle in {source.name} takes {size(pickle.nbytes)}",
            expected=f"at most {size(PICKLE_LIMIT)}: tensors lie beside the pickle, not in it",
            todo="save large data that is no tensor in a file of its own",
        )
    storages = _Storages(archive, folder, _big_endian(archive, folder))
    machine = Machine(storages.resolve, CONSTRUCTORS, pickle.where, pickle.nbytes)
    root, end = run(pickle.read(0, pickle.nbytes), machine)
    if end != pickle.nbytes:
        behind = count(pickle.nbytes - end, "byte")
        raise Refused("something hides behind the end of the pickle", where=pickle.where, found=behind)
    return Pickled(root, source, "torch zip", [*notes_on_calls(machine), *_notes_on_checksums(archive)])


def _folder(archive: ZipArchive) -> str:
    """The folder that holds `data.pkl`."""
    name, members = archive.source.name, archive.members
    pickles = [member for member in members if member.endswith("/data.pkl")]
    if not pickles:
        raise NotACheckpoint(
            f"{name} is a zip archive of something else",
            expected="<folder>/data.pkl, as torch.save writes",
            found=listing(members),
            todo="if it is a bundle with a checkpoint inside, unpack it and open that",
        )
    folder = archive.root()
    program = (f"{folder}/code/", f"{folder}/constants.pkl")
    code = [member for member in members if member.startswith(program)]
    if code:
        raise Refused(
            f"{name} is a TorchScript program: it contains code",
            found=listing(code, 3),
            todo="where you trust it, torch.jit.load it and save its state_dict with torch.save",
        )
    if f"{folder}/data.pkl" not in members:
        raise Refused(f"{name} is a zip archive with its pickle in an odd place", found=listing(pickles, 3))
    return folder


def _small(archive: ZipArchive, name: str, absent: str) -> str:
    """The text of a member of a few bytes."""
    if name not in archive.members:
        return absent
    record = archive.record(name)
    return safe_text(record.read(0, min(record.nbytes, 40)).decode("latin-1").strip())


def _big_endian(archive: ZipArchive, folder: str) -> bool:
    version = _small(archive, f"{folder}/.format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise NewerFormat(
            f"{archive.source.name} was written by a newer torch",
            expected=f".format_version {FORMAT_VERSION}",
            found=version,
            todo="upgrade optstate, or save the file again with an older torch",
        )
    order = _small(archive, f"{folder}/byteorder", "little")
    if order not in ("little", "big"):
        raise Damaged(f"{archive.source.name} has no byte order", expected="little or big", found=order)
    return order == "big"


class _Storages:
    """What the persistent ids of a file stand for, one `Storage` for each."""

    def __init__(self, archive: ZipArchive, folder: str, swap: bool) -> None:
        self._archive = archive
        self._prefix = f"{folder}/data/"
        self._swap = swap
        self._known: dict[str, tuple[Storage, int]] = {}

    def resolve(self, identity: Node) -> Storage:
        """The storage of ("storage", class, key, location, number of elements). Raises `ValueError`."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, elements = identity
        if type(key) is not str or type(elements) is not int:
            raise ValueError("a storage whose key or length is none")
        dtype = storage_dtype(kind)
        if key not in self._known:
            self._known[key] = self._storage(key, dtype, elements), elements
        storage, length = self._known[key]
        if (storage.dtype, length) != (dtype, elements):
            raise ValueError(f"storage {safe_text(key, 40)} with two types or lengths")
        return storage

    def _storage(self, key: str, dtype: str | None, elements: int) -> Storage:
        name = self._prefix + key
        if name not in self._archive.members:
            raise ValueError(f"storage {safe_text(key, 40)}, which the archive does not hold")
        record = self._archive.record(name)
        width = 1 if dtype is None else DTYPES.get(dtype, (None,))[0]
        if width is not None and elements * width != record.nbytes:
            raise ValueError(
                f"storage {safe_text(key, 40)} of {elements * width} bytes, where the archive holds {record.nbytes}"
            )
        return Storage(record, dtype, self._swap)


def notes_on_calls(machine: Machine) -> list[str]:
    """What a pickle would have called and imported, and was not."""
    called = {str(call.function): None for call in machine.calls if type(call.function) is Global}
    named = [str(found) for found in machine.globals.values() if not known_global(found) and str(found) not in called]
    return [
        *([f"not called: {listing(called)}"] if called else []),
        *([f"not imported: {listing(named)}"] if named else []),
    ]


def _notes_on_checksums(archive: ZipArchive) -> list[str]:
    unchecked = archive.unchecked
    if not unchecked:
        return []
    return [f"no checksum on {unchecked:,} of {count(len(archive.members), 'member')}: damage to them would not show"]

"""The zip layout of `torch.save`: one folder with `data.pkl`, and one member of raw bytes for each storage."""

from __future__ import annotations

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, Refused
from optstate.formats.containers.constructors import CONSTRUCTORS
from optstate.formats.containers.persistent import Storages
from optstate.formats.containers.pickle_machine import Machine, Node
from optstate.formats.containers.pickle_opcodes import run
from optstate.formats.containers.pickled import Pickled, check_end, check_length, clues_on_calls, notes_on_calls
from optstate.formats.containers.storages import Storage
from optstate.formats.containers.zip_archive import ZipArchive, ZipRecord
from optstate.text import count, listing, safe_text

FORMAT_VERSION = "1"
"""The `.format_version` that torch writes, where it writes one."""


def is_torch_zip(archive: ZipArchive) -> bool:
    """Whether an archive is meant as a file of torch: it has a pickle in a folder, its first member as a rule."""
    return any(name.endswith("/data.pkl") for name in archive.members)


def read_torch_zip(archive: ZipArchive) -> Pickled:
    """Read the structure of what was given to `torch.save`, and none of its values.

    Raises `NotACheckpoint` for a zip archive of something else, `Refused` for a TorchScript program and for what
    `ZipArchive` and the pickle machine refuse, `Damaged`, `NewerFormat`.
    """
    source = archive.source
    folder = _folder(archive)
    pickle = archive.record(f"{folder}/data.pkl")
    check_length(source.name, pickle.nbytes)
    storages = _ZipStorages(archive, folder)
    machine = Machine(storages.resolve, CONSTRUCTORS, pickle.where, pickle.nbytes)
    root, end = run(pickle.read(0, pickle.nbytes), machine)
    check_end(pickle.where, end, pickle.nbytes)
    notes = [*notes_on_calls(machine), *_notes_on_checksums(archive)]
    return Pickled(root, source, "torch zip", notes, clues_on_calls(machine))


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


class _ZipStorages(Storages):
    """The storages of an archive: members beside the pickle."""

    def __init__(self, archive: ZipArchive, folder: str) -> None:
        super().__init__(swap=_big_endian(archive, folder))
        self._archive = archive
        self._prefix = f"{folder}/data/"

    def resolve(self, identity: Node) -> Storage:
        """The storage of ("storage", class, key, location, number of elements). Raises `ValueError`."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, elements = identity
        return self.get(kind, key, elements)

    def find(self, key: str, nbytes: int | None) -> ZipRecord:
        name = self._prefix + key
        if name not in self._archive.members:
            raise ValueError(f"storage {safe_text(key, 40)}, which the archive does not hold")
        record = self._archive.record(name)
        if nbytes not in (None, record.nbytes):
            raise ValueError(f"storage {safe_text(key, 40)} of {nbytes} bytes, where the archive holds {record.nbytes}")
        return record


def _notes_on_checksums(archive: ZipArchive) -> list[str]:
    unchecked = archive.unchecked
    if not unchecked:
        return []
    return [f"no checksum on {unchecked:,} of {count(len(archive.members), 'member')}: damage to them would not show"]

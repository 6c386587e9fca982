"""What a file is, by its first bytes: one of the containers that are read, or one of the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optstate.errors import NotACheckpoint, ReadError, Refused
from optstate.formats.containers.pickle_file import is_pickle
from optstate.formats.containers.torch_stream import is_torch_stream
from optstate.formats.containers.zip_directory import MAGIC
from optstate.text import safe_text

HEAD = 512
"""Bytes that recognising needs."""


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is meant as safetensors: a length that is one, and JSON behind it."""
    return int.from_bytes(head[:8], "little") < 1 << 40 and head[8:].lstrip(b" ")[:1] == b"{"


ZIP, STREAM, PICKLE, SAFETENSORS = "a zip archive", "a torch stream", "a pickle", "a safetensors file"

# A torch stream is pickles, so it comes before them.
CONTAINERS: Mapping[str, Callable[[bytes], bool]] = {
    ZIP: lambda head: head.startswith(MAGIC),
    STREAM: is_torch_stream,
    PICKLE: is_pickle,
    SAFETENSORS: looks_like_safetensors,
}


def container_of(head: bytes) -> str | None:
    """Which container a file is whose first `HEAD` bytes are `head`; None for anything else."""
    return next((name for name, fits in CONTAINERS.items() if fits(head)), None)


# What suffixes promise, those that promise one thing. `.pt` and its like are whatever torch or pickle writes.
_PROMISES: Mapping[str, tuple[str, ...]] = {
    ".safetensors": (SAFETENSORS,),
    ".zip": (ZIP,),
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".mdl"), (ZIP, STREAM, PICKLE)),
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".onnx", ".gguf", ".npy", ".npz", ".json", ".html", ".txt", ".gz"), ()),
}


def note_on_suffix(path: Path, container: str) -> list[str]:
    """What is to be said where a name promises something else than the file is."""
    promised = _PROMISES.get(path.suffix.lower(), (container,))
    return [] if container in promised else [f"named {path.suffix.lower()}, but its content is {container}"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: the bytes that tell it, where they are, what it is, and what a user can do."""

    magic: bytes
    what: str
    todo: str
    at: int = 0
    error: type[ReadError] = NotACheckpoint


_UNPACK = "unpack it, and open the checkpoint inside"
_RE_SAVE = "where you trust it, load it with torch.load(path, weights_only=False) and save it again with torch.save"
_TORCH_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")  # whichever member comes first

KINDS: Sequence[Kind] = (
    Kind(
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer: the checkpoint itself was not fetched",
        "run `git lfs pull` in the repository it came from",
    ),
    Kind(b"\x1f\x8b", "a gzip archive", _UNPACK),
    Kind(b"BZh", "a bzip2 archive", _UNPACK),
    Kind(b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    Kind(b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    Kind(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    Kind(b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    *(
        Kind(name.ljust(100, b"\0"), "a tar file of torch before 0.1.11", _RE_SAVE, error=Refused)
        for name in _TORCH_TAR
    ),
    Kind(b"ustar", "a tar archive", _UNPACK, at=257),
    Kind(b"PK\x05\x06", "an empty zip archive", "the save or the download did not finish: use another copy"),
    Kind(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "load it with what wrote it"),
    Kind(b"\x93NUMPY", "a numpy array", "load it with numpy.load"),
    Kind(b"\x89PNG\r\n\x1a\n", "a PNG image", "check the path"),
    Kind(b"\xff\xd8\xff", "a JPEG image", "check the path"),
    Kind(b"%PDF-", "a PDF document", "check the path"),
    Kind(b"\x7fELF", "an executable or a library", "check the path"),
    Kind(b"GGUF", "a GGUF model for inference, which holds no optimizer state", "open the checkpoint it was made from"),
)

_WEB_PAGE = Kind(
    b"<",
    "a web page, as a download gives instead of the file when it fails or asks for a login",
    "open the address in a browser, and fetch the file again",
)
_JSON = Kind(b"{", "a JSON text", "name the checkpoint that lies beside it")
_ZEROS = Kind(b"\0", "nothing but zeros so far: a power cut or a failed copy leaves such files", "use another copy")


def kind_of(head: bytes) -> Kind | None:
    """What a file is whose first `HEAD` bytes are `head`; None where nothing fits."""
    for kind in KINDS:
        if head.startswith(kind.magic, kind.at):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")):
        return _WEB_PAGE
    if text.startswith((b"{", b"[")):
        return _JSON
    return _ZEROS if not head.strip(b"\0") else None


def wrong_kind(name: str, head: bytes) -> ReadError:
    """The error for a file that is no checkpoint; `name` is safe to print already."""
    kind = kind_of(head)
    if kind is not None:
        return kind.error(f"{name} is {kind.what}", todo=kind.todo)
    return NotACheckpoint(
        f"{name} is no checkpoint that optstate knows",
        expected="a checkpoint directory, or a file that torch.save, pickle or safetensors wrote",
        found=f"a file that starts with {safe_text(head[:16])}",
        todo="check the path; a name such as .pt says nothing, only the content counts",
    )

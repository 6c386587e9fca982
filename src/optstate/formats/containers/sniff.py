"""What a file that is no checkpoint is instead: the usual mistakes, recognised by their first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optstate.errors import NotACheckpoint, ReadError, Refused
from optstate.text import safe_text

HEAD = 512
"""Bytes that recognising needs."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: the bytes that tell it, where they are, what it is, and what a user can do."""

    magic: bytes
    what: str
    todo: str
    at: int = 0
    error: type[ReadError] = NotACheckpoint


_UNPACK = "unpack it, and open the checkpoint inside"
_TRUSTED = "where you trust it, load it with what wrote it and save its state_dict with torch.save"

KINDS: Sequence[Kind] = (
    Kind(
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e",
        "written by torch before 1.6 or with _use_new_zipfile_serialization=False, a layout without checksums",
        "load and save it again with torch.save where you trust it",
        error=Refused,
    ),
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
    Kind(b"ustar", "a tar archive", f"{_UNPACK}; torch before 0.1.11 wrote such files itself: {_TRUSTED}", at=257),
    Kind(b"PK\x05\x06", "an empty zip archive", "the save or the download did not finish: use another copy"),
    Kind(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "load it with what wrote it"),
    Kind(b"\x93NUMPY", "a numpy array", "load it with numpy.load"),
    Kind(b"\x89PNG\r\n\x1a\n", "a PNG image", "check the path"),
    Kind(b"\xff\xd8\xff", "a JPEG image", "check the path"),
    Kind(b"%PDF-", "a PDF document", "check the path"),
    Kind(b"\x7fELF", "an executable or a library", "check the path"),
    Kind(b"GGUF", "a GGUF model for inference, which holds no optimizer state", "open the checkpoint it was made from"),
    *(Kind(bytes([0x80, protocol]), "a bare pickle", _TRUSTED, error=Refused) for protocol in range(6)),
)

_WEB_PAGE = Kind(
    b"<",
    "a web page, as a download gives instead of the file when it fails or asks for a login",
    "open the address in a browser, and fetch the file again",
)
_JSON = Kind(b"{", "a JSON text", "name the checkpoint that lies beside it")
_SAFETENSORS = Kind(
    b"{", "a safetensors file, which holds tensors and no optimizer", "open the checkpoint that it belongs to"
)
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
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _SAFETENSORS
    return _ZEROS if not head.strip(b"\0") else None


def wrong_kind(name: str, head: bytes) -> ReadError:
    """The error for a file that is no checkpoint; `name` is safe to print already."""
    kind = kind_of(head)
    if kind is not None:
        return kind.error(f"{name} is {kind.what}", todo=kind.todo)
    return NotACheckpoint(
        f"{name} is no checkpoint that optstate knows",
        expected="a checkpoint directory with a manifest.json, or a file that torch.save wrote",
        found=f"a file that starts with {safe_text(head[:16])}",
        todo="check the path; a name such as .pt says nothing, only the content counts",
    )

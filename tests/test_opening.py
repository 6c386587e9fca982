"""The door: every path that is no checkpoint gets its own plain answer, at once."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import lzma
import os
import pickle
import re
import socket
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

import optstate
from optstate.errors import Damaged, NotACheckpoint, ReadError, Refused
from optstate.formats.containers.regular import open_regular
from optstate.formats.opening import open_checkpoint
from tests.forged import PROTOCOL_2, STOP, stream_storage


def tar(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def torch_saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


STREAM = {"_use_new_zipfile_serialization": False}


# Content → what the message says it is, and what to do.
WRONG_THINGS = {
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", NotACheckpoint, "a web page", "open the address in a browser"),
    "html after blanks": (b"\xef\xbb\xbf\n <HTML>", NotACheckpoint, "a web page", "fetch the file again"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", NotACheckpoint, "a web page", "login"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", NotACheckpoint, "Git LFS pointer", "git lfs pull"),
    "gzip": (gzip.compress(b"x"), NotACheckpoint, "gzip", "unpack it"),
    "bzip2": (bz2.compress(b"x"), NotACheckpoint, "bzip2", "unpack it"),
    "xz": (lzma.compress(b"x"), NotACheckpoint, "xz archive", "unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd\0\0", NotACheckpoint, "Zstandard", "unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0", NotACheckpoint, "7-Zip", "unpack it"),
    "tar": (tar("ck.pt"), NotACheckpoint, "tar archive", "unpack it"),
    "tar of torch": (tar("sys_info", "pickle", "tensors", "storages"), Refused, "a tar file of torch before 0.1.11", "save it again"),
    "empty zip": (b"PK\5\6" + bytes(18), NotACheckpoint, "empty zip archive", "another copy"),
    "png": (b"\x89PNG\r\n\x1a\n\0", NotACheckpoint, "PNG image", "check the path"),
    "elf": (b"\x7fELF\2\1\1", NotACheckpoint, "executable", "check the path"),
    "json": (b'{"global_step": 3}', NotACheckpoint, "JSON text", "beside it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", NotACheckpoint, "HDF5", "load it with what wrote it"),
    "npy": (b"\x93NUMPY\1\0", NotACheckpoint, "numpy array", "numpy.load"),
    "zeros": (bytes(4096), NotACheckpoint, "nothing but zeros", "another copy"),
    "words": (b"checkpoint\nlatest\nquick\n", NotACheckpoint, "no checkpoint that optstate knows", "only the content counts"),
    "noise": (b"\x01\x02\x03noise", NotACheckpoint, "no checkpoint that optstate knows", "only the content counts"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", WRONG_THINGS)
def test_wrong_things(kind, suffix, tmp_path):
    """What people open by mistake is named for what it is, whatever its suffix says."""
    content, error, what, todo = WRONG_THINGS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(error, match=rf"model\{suffix} is {re.escape('')}[\s\S]*{re.escape(what)}") as caught:
        open_checkpoint(path)
    assert todo in f"{caught.value.what}{caught.value.todo}"


def test_empty_file(tmp_path):
    """An empty file is called empty."""
    path = tmp_path / "model.pt"
    path.touch()
    with pytest.raises(NotACheckpoint, match=r"model\.pt is empty"):
        open_checkpoint(path)


def test_missing_file(tmp_path):
    """A missing file is reported with the names beside it that are close."""
    (tmp_path / "step-400.pt").touch()
    with pytest.raises(NotACheckpoint, match=r"there is no file .*step-40\.pt[\s\S]*beside it: step-400\.pt"):
        open_checkpoint(tmp_path / "step-40.pt")
    with pytest.raises(NotACheckpoint, match=r"no directory .*nowhere either"):
        open_checkpoint(tmp_path / "nowhere" / "ck.pt")
    with pytest.raises(NotACheckpoint, match="there is no file"):
        open_checkpoint(tmp_path / "step-400.pt" / "below a file")


def test_no_path_at_all():
    """A path that no system accepts is an error of ours too."""
    with pytest.raises(NotACheckpoint, match="is no path"):
        open_checkpoint("a\0b")
    with pytest.raises(ReadError, match="File name too long"):
        open_checkpoint("a" * 5000)


WEIGHT = {"w": torch.arange(3.0)}
CONTENTS = {
    "a zip archive": torch_saved(WEIGHT),
    "a torch stream": torch_saved(WEIGHT, **STREAM),
    "a pickle": pickle.dumps({"w": WEIGHT["w"].numpy()}, 0),
    "a safetensors file": save(WEIGHT),
}
WRONG_SUFFIX = {
    ".safetensors": ["a zip archive", "a torch stream", "a pickle"],
    ".pt": ["a safetensors file"],
    ".PKL": ["a safetensors file"],
    ".zip": ["a torch stream", "a pickle", "a safetensors file"],
    ".h5": [*CONTENTS],
    ".tar": [],  # `.pth.tar` was a fashion
    ".7": [],
    "": [],
}


@pytest.mark.parametrize("suffix", WRONG_SUFFIX)
@pytest.mark.parametrize("content", CONTENTS)
def test_content_decides(content, suffix, tmp_path):
    """A file is read for what it holds, whatever its name promises; a promise that is broken is mentioned."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(CONTENTS[content])
    checkpoint = open_checkpoint(path)
    values = checkpoint.weights["w"] if checkpoint.weights else checkpoint.objects["w"]
    assert values.array().tolist() == [0.0, 1.0, 2.0]
    said = [note for note in checkpoint.notes if note.startswith("named ")]
    wrong = content in WRONG_SUFFIX[suffix]
    assert said == ([f"named {suffix.lower()}, but its content is {content}"] if wrong else [])


@pytest.mark.parametrize("protocol", range(6))
def test_pickle(protocol, tmp_path):
    """A file that is one pickle, as Detectron and others write, opens in every protocol; what follows it is refused."""
    blobs = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "conv1_w_momentum": np.ones((2, 3), np.float32)}
    for saved in (
        {"blobs": blobs, "cfg": "MODEL: {}"},
        [blobs, 3],
        OrderedDict(blobs=blobs),
        Holder(blobs),
        blobs["conv1_w"],
    ):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps(saved, protocol))
        checkpoint = open_checkpoint(path)
        assert checkpoint.objects or checkpoint.weights
        path.write_bytes(pickle.dumps(saved, protocol) + b"cos\nsystem\n.")
        with pytest.raises(Refused, match="hides behind the end of the pickle"):
            open_checkpoint(path)
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol))
    checkpoint = open_checkpoint(path)
    inner: Any = checkpoint.objects.get("blobs", {})
    found = {**inner, **checkpoint.weights}
    assert {key: found[key].array().tolist() for key in blobs} == {key: value.tolist() for key, value in blobs.items()}


class Holder:
    """An object of somebody's own."""

    def __init__(self, blobs):
        self.blobs = blobs


def test_persistent_id_in_a_pickle(tmp_path):
    """An id that only its writer could resolve is refused: the data it stands for is not in the file."""
    path = tmp_path / "model.pkl"
    path.write_bytes(PROTOCOL_2 + stream_storage() + STOP)
    with pytest.raises(Damaged, match="a persistent id, which only its writer could resolve"):
        open_checkpoint(path)


def test_directory(tmp_path):
    """A directory without a manifest is described by what is in it."""
    with pytest.raises(NotACheckpoint, match="nothing in it"):
        open_checkpoint(tmp_path)
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(NotACheckpoint, match=r"manifest\.json[\s\S]*optimizer\.pt"):
        open_checkpoint(tmp_path)


def commands(folder):
    """What the error for a folder tells to run, without the path of the folder."""
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(folder)
    lines = str(caught.value).splitlines()
    return [line.strip().replace(f"{folder}/", "") for line in lines if line.strip().startswith("optstate show")]


def test_candidates(tmp_path):
    """A folder of checkpoints lists them, the highest step first, each with the command that opens it."""
    for name, content in zip(("a_9.pt", "a_100.pt", "a_20.ckpt"), [*CONTENTS.values()], strict=False):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "events.log").write_bytes(b"no checkpoint")
    (tmp_path / ".hidden.pt").write_bytes(CONTENTS["a pickle"])
    (tmp_path / "with space 7.safetensors").write_bytes(CONTENTS["a safetensors file"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_bytes(b"none")
    below = tmp_path / "run-50"
    below.mkdir()
    (below / "weights.pt").write_bytes(CONTENTS["a zip archive"])
    model = torch.nn.Linear(2, 1)
    optstate.save(tmp_path / "step-300", model=model, optimizer=torch.optim.SGD(model.parameters()), step=300)
    (tmp_path / "outside").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe-500.pt")
    assert commands(tmp_path) == [
        "optstate show step-300",
        "optstate show a_100.pt",
        "optstate show run-50/weights.pt",
        "optstate show a_20.ckpt",
        "optstate show a_9.pt",
        "optstate show 'with space 7.safetensors'",
    ]


def test_one_candidate(tmp_path):
    """A folder with a single candidate is not opened as if it were the candidate."""
    (tmp_path / "model.pt").write_bytes(CONTENTS["a zip archive"])
    assert commands(tmp_path) == ["optstate show model.pt"]


def test_many_candidates(tmp_path):
    """Of more than twenty candidates the latest are listed, and that there are more."""
    for step in range(30):
        (tmp_path / f"epoch_{step}.pt").write_bytes(CONTENTS["a pickle"])
    assert commands(tmp_path) == [f"optstate show epoch_{step}.pt" for step in range(29, 9, -1)]
    with pytest.raises(NotACheckpoint, match="20 candidates in it, and more"):
        open_checkpoint(tmp_path)


def test_candidates_in_time(tmp_path):
    """Without numbers in their names, the file that was changed last comes first."""
    for index, name in enumerate(("best.pt", "first.pt", "last.pt")):
        (tmp_path / name).write_bytes(CONTENTS["a pickle"])
        os.utime(tmp_path / name, (index, index))
    assert commands(tmp_path) == ["optstate show last.pt", "optstate show first.pt", "optstate show best.pt"]


def test_garbage_collection_is_as_before(tmp_path):
    """Opening leaves Python's garbage collector as it was, also when it fails."""
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENTS["a zip archive"])
    (tmp_path / "noise.pt").write_bytes(b"noise")
    for turn in (gc.enable, gc.disable):
        turn()
        try:
            before = gc.isenabled()
            open_checkpoint(path)
            with pytest.raises(NotACheckpoint):
                open_checkpoint(tmp_path / "noise.pt")
            assert gc.isenabled() is before
        finally:
            gc.enable()


def test_pipe(tmp_path):
    """A pipe that nobody writes to is refused at once, not waited for."""
    path = tmp_path / "pipe.pt"
    os.mkfifo(path)
    outcome: list[object] = []

    def attempt():
        try:
            open_checkpoint(path)
        except NotACheckpoint as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert "is a pipe, not a file" in str(outcome[0])


def test_socket_and_device(tmp_path):
    """A socket and a device are called what they are, also behind a symbolic link."""
    server = socket.socket(socket.AF_UNIX)
    path = tmp_path / "s"
    try:
        server.bind(str(path))
    except OSError:
        pytest.skip("the path of the temporary folder is too long for a socket")
    with server, pytest.raises(NotACheckpoint, match="is a socket"):
        open_checkpoint(path)
    link = tmp_path / "zero.pt"
    link.symlink_to("/dev/zero")
    with pytest.raises(NotACheckpoint, match="is a device"):
        open_checkpoint(link)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file of Linux")
def test_memory_of_the_process(tmp_path):
    """A link to the memory of the process is not read, though the system calls it a regular file."""
    (tmp_path / "mem.pt").symlink_to("/proc/self/mem")
    with pytest.raises(NotACheckpoint, match="is empty"):
        open_checkpoint(tmp_path / "mem.pt")


def test_symbolic_link(tmp_path):
    """A path that the user names may be a link; one that leads in a circle is an error."""
    torch.save({"w": torch.ones(2)}, tmp_path / "real.pt")
    (tmp_path / "latest.pt").symlink_to("real.pt")
    assert open_checkpoint(tmp_path / "latest.pt").weights["w"].array().tolist() == [1.0, 1.0]
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(ReadError, match="symbolic links"):
        open_checkpoint(tmp_path / "loop.pt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    """A file that may not be read says so, and what to look at."""
    path = tmp_path / "ck.pt"
    torch.save({}, path)
    path.chmod(0)
    with pytest.raises(ReadError, match="Permission denied"):
        open_checkpoint(path)


def test_path_that_would_harm_a_terminal(tmp_path):
    """A path with control characters is printed harmless."""
    path = tmp_path / "x\x1b[2J\n.pt"
    path.write_bytes(b"noise")
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(path)
    assert "\x1b" not in str(caught.value)
    assert r"x\x1b[2J\x0a.pt" in str(caught.value)


def test_file_that_changes(tmp_path):
    """A file that is written to after it was opened is not read on as if nothing had happened."""
    path = tmp_path / "ck.pt"
    torch.save({"w": torch.ones(1000)}, path)
    weight = open_checkpoint(path).weights["w"]
    with path.open("r+b") as file:
        file.truncate(500)
    with pytest.raises(Damaged, match="changed while it was read"):
        weight.array()


def test_file_that_is_replaced(tmp_path):
    """A file that is replaced by another one stays readable for who has opened it."""
    path = tmp_path / "ck.pt"
    torch.save({"w": torch.ones(3)}, path)
    weight = open_checkpoint(path).weights["w"]
    torch.save({"w": torch.zeros(3)}, tmp_path / "new.pt")
    (tmp_path / "new.pt").rename(path)
    assert weight.array().tolist() == [1.0, 1.0, 1.0]


def test_reading_beyond_the_end(tmp_path):
    """Bytes that the file does not have are refused before anything is allocated for them."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    source = open_regular(path)
    assert source.read(3, 4) == b"3456"
    for offset, length in ((8, 3), (-1, 2), (0, 1 << 62), (1 << 62, 0)):
        with pytest.raises(Damaged, match="ends too early"):
            source.read(offset, length)


def test_sparse_file_of_an_exbibyte(tmp_path):
    """A file that is mostly holes is looked at, not read through."""
    path = tmp_path / "ck.pt"
    with Path(path).open("wb") as file:
        file.write(b"PK\3\4")
        try:
            file.truncate(1 << 43)
        except OSError:
            pytest.skip("this file system has no files of that size")
    with pytest.raises(Damaged, match="ends with its directory"):
        open_checkpoint(path)


def test_a_dangling_link_is_said_to_be_one(tmp_path):
    """A link to nothing is there and is not; the message says which."""
    (tmp_path / "last.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(NotACheckpoint, match="a symbolic link to something that is not there"):
        open_checkpoint(tmp_path / "last.pt")

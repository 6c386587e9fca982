"""Files inside archives: read in place, by the same readers, and checked like any other."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from optstate.errors import Damaged, Refused
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive

SAVED = {"w": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)}


def torch_saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def bundle(tmp_path):
    """An archive that Python wrote, with small members and large ones, whose size it did not know when it began."""
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"steps": 3}))
        for name, content in (
            ("policy.pth", torch_saved(SAVED)),
            ("old.pth", torch_saved(SAVED, _use_new_zipfile_serialization=False)),
            ("plain.pkl", pickle.dumps({"lr": 0.1})),
        ):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    return path


def test_files_inside(bundle):
    """A torch file, a stream and a pickle inside an archive are read as if they were files, values included."""
    archive = ZipArchive(open_regular(bundle))
    assert list(archive.members) == ["data", "policy.pth", "old.pth", "plain.pkl"]
    assert json.loads(archive.record("data").read(0, archive.members["data"].size)) == {"steps": 3}
    for name, container in (("policy.pth", "torch zip"), ("old.pth", "torch stream")):
        found = read_any_pickle(archive.source_of(name))
        assert found.container == container
        for key, value in SAVED.items():
            np.testing.assert_array_equal(found.root[key].array(), value.numpy(), strict=True)
        assert f"bundle.zip, {name}" in found.root["w"].record.where
    assert read_any_pickle(archive.source_of("plain.pkl")).root == {"lr": 0.1}


def test_files_inside_files_inside(bundle, tmp_path):
    """An archive inside an archive is read in place, and so is what is inside of that."""
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("readme.txt", "one more")
        archive.write(bundle, "inner.zip")
    inner = ZipArchive(ZipArchive(open_regular(outer)).source_of("inner.zip"))
    found = read_torch_zip(ZipArchive(inner.source_of("policy.pth")))
    assert found.root["w"].array().tolist() == SAVED["w"].tolist()


def test_damage_inside(bundle):
    """A flipped bit inside a file inside an archive is found by the checksum that covers it."""
    raw = bundle.read_bytes()
    for content, name in ((b"\x8c\x02lr", "plain.pkl"), (SAVED["w"].numpy().tobytes(), "policy.pth")):
        at = raw.index(content)
        bundle.write_bytes(raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :])
        archive = ZipArchive(open_regular(bundle))
        with pytest.raises(Damaged, match="its bytes are not those that were saved"):
            read_any_pickle(archive.source_of(name)).root["w"].array()
        source = archive.source_of(name)
        with pytest.raises(Damaged, match=rf"{name} is damaged"):
            source.read(0, source.size)


def test_sizes_that_contradict(bundle):
    """The sizes that Python writes as a precaution must be those of the directory."""
    raw = bundle.read_bytes()
    at = raw.index(b"policy.pth") + len("policy.pth") + 4
    assert raw[at - 4 : at] == b"\x01\x00\x10\x00"
    bundle.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    with pytest.raises(Damaged, match="contradicts the directory"):
        ZipArchive(open_regular(bundle)).source_of("policy.pth")


def test_compressed_members(tmp_path):
    """A member that is compressed is refused, with the way to store it."""
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", torch_saved(SAVED))
    with pytest.raises(Refused, match=r"is compressed[\s\S]*zip -0"):
        ZipArchive(open_regular(path))


def test_streamed_archive(tmp_path):
    """An archive written to a pipe, with each size behind its member, reads like any other."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = b""

        def writable(self):
            return True

        def write(self, raw):
            self.content += bytes(raw)
            return len(raw)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("a.pth", torch_saved(SAVED))
        with archive.open("b.pth", "w", force_zip64=True) as member:
            member.write(torch_saved(SAVED))
    path = tmp_path / "bundle.zip"
    path.write_bytes(pipe.content)
    opened = ZipArchive(open_regular(path))
    for name in ("a.pth", "b.pth"):
        assert read_any_pickle(opened.source_of(name)).root["w"].array().tolist() == SAVED["w"].tolist()

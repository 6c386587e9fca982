"""What is recognised and not read: named for what it is, with what to do now; never taken for something else."""

from __future__ import annotations

import zipfile

import pytest

from optstate.errors import Refused
from optstate.formats.layouts.recognised import FOLDERS, ZIPS
from optstate.formats.opening import open_checkpoint

CASES = {
    "Orbax": ("manifest.ocdbt", "_METADATA", "d/", "ocdbt.process_0/"),
    "Orbax checkpoint that was not finished": ("default.orbax-checkpoint-tmp-7/",),
    "TensorFlow checkpoint": ("checkpoint", "ck-1.index", "ck-1.data-00000-of-00001"),
    "SavedModel": ("saved_model.pb", "variables/", "assets/"),
    "NeMo 2": ("weights/", "context/"),
    "folder of Megatron-LM": ("latest_checkpointed_iteration.txt", "iter_0000003/"),
    "iteration of Megatron-LM": ("mp_rank_00/", "mp_rank_01/"),
    "T5X": ("checkpoint", "target.decoder.kernel/", "state.step/"),
}


@pytest.mark.parametrize("what", CASES)
def test_folders(what, tmp_path):
    """A folder by the names that its writer gives (layout from source): its own name, and what to do."""
    folder = tmp_path / "ck"
    for name in CASES[what]:
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
        else:
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
    with pytest.raises(Refused, match=what.split()[-1]) as refusal:
        open_checkpoint(folder)
    assert refusal.value.todo


ARCHIVES = {
    "Keras 3": ("metadata.json", "config.json", "model.weights.h5"),
    "torch.export": ("m/archive_format", "m/archive_version", "m/models/model.json"),
    "numpy": ("w.npy", "b.npy"),
    "ordinary archive": ("run/last.ckpt", "run/log.txt"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives(what, tmp_path):
    """A zip archive by the names in it."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ARCHIVES[what]:
            archive.writestr(name, b"x" * 64)
    with pytest.raises(Refused, match=what) as refusal:
        open_checkpoint(tmp_path / "a.zip")
    assert refusal.value.todo


def test_every_row_has_a_case():
    """No row of the tables is without a folder or archive that it recognises."""
    names = [[*case] for case in (*CASES.values(), *ARCHIVES.values())]
    for known in (*FOLDERS, *ZIPS):
        assert any(known.fits(each) for each in names), known.what

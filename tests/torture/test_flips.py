"""Every bit of a checkpoint is flipped, every length cut, files swapped: it is told by name, or nothing at all has changed."""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path

import pytest

import optstate
from optstate.errors import OptstateError, ReadError
from optstate.formats.ours.manifest import MANIFEST
from optstate.formats.ours.verify import verify
from optstate.resume.checkpointer import Checkpointer
from optstate.store.folder import contents, damage
from tests.checkpoints import content, write
from tests.torture.counts import COUNTS

FILES = ("weights.safetensors", "optimizer.safetensors", MANIFEST)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of one parameter and its momentum, and all that is in it."""
    path = tmp_path_factory.mktemp("good") / "ck"
    write(path, 3, tensors=1)
    return path, content(path)


def named(error):
    """Whether an error says which file or tensor it is about."""
    return (
        re.search(r"(weights|optimizer)[-\w]*\.safetensors|manifest\.json|layers\.\d\.weight", str(error)) is not None
    )


def holds(path, wanted):
    """Whether everything is bit for bit as it was; False for an error that names what is damaged.

    Raises `AssertionError` for anything that is neither: wrong values without a word, or an error that names nothing.
    """
    found = refusal = None
    try:
        found = content(path)
    except ReadError as error:
        refusal = error
    if refusal is not None:
        assert named(refusal), refusal
        assert not_intact(path), "open refuses it, and verify finds nothing"
        return False
    assert found == wanted, "other content, without a word"
    assert verify(path).ok
    return True


def not_intact(path):
    try:
        return not verify(path).ok
    except ReadError:
        return True


@pytest.mark.slow
def test_every_bit(good, tmp_path, whole):
    """Each bit in turn, of manifest, headers and data: an error that names tensor or file, never another value."""
    path, wanted = good
    flips = unharmed = 0
    for name in FILES:
        target = tmp_path / "ck" / name
        shutil.copytree(path, tmp_path / "ck", dirs_exist_ok=True)
        raw = target.read_bytes()
        handle = os.open(target, os.O_WRONLY)
        # A step that has no factor in common with the eight bits of a byte meets each of them.
        for bit in range(0, 8 * len(raw), 1 if whole else 5):
            os.pwrite(handle, bytes([raw[bit // 8] ^ 1 << bit % 8]), bit // 8)
            unharmed += holds(tmp_path / "ck", wanted)
            os.pwrite(handle, raw[bit // 8 : bit // 8 + 1], bit // 8)
            flips += 1
        os.close(handle)
        assert holds(tmp_path / "ck", wanted)
    assert flips >= COUNTS["bits that are flipped"]
    assert unharmed == 0  # each byte is under a digest, and each digest is checked


@pytest.mark.slow
def test_every_length(good, tmp_path, whole):
    """Cut to any length, or longer by a byte, a page, or another checkpoint: an error that names the file."""
    path, wanted = good
    other = tmp_path / "other"
    write(other, 4, tensors=1)
    cuts = 0
    for name in FILES:
        raw = (path / name).read_bytes()
        lengths = range(0, len(raw), 1 if whole else 3)
        extended = [raw + bytes(1), raw + bytes(4096), raw + (other / name).read_bytes()]
        for harmed in (*(raw[:length] for length in lengths), *extended):
            shutil.copytree(path, tmp_path / "ck", dirs_exist_ok=True)
            (tmp_path / "ck" / name).write_bytes(harmed)
            assert not holds(tmp_path / "ck", wanted), (name, len(harmed))
            cuts += 1
        (tmp_path / "ck" / name).write_bytes(raw)
    assert cuts >= COUNTS["lengths that a file is cut to"]


def swap(folder, first, second):
    os.rename(folder / first, folder / "between")
    os.rename(folder / second, folder / first)
    os.rename(folder / "between", folder / second)


def instead(path, make):
    path.unlink()
    make(path)


def shards(path):
    return sorted(name for name in os.listdir(path) if name.startswith("weights-"))


MIXED = {
    "two shards of one size swapped": lambda path, other: swap(path, *shards(path)[:2]),
    "a shard missing": lambda path, other: (path / shards(path)[1]).unlink(),
    "a shard of another step": lambda path, other: shutil.copy(other / shards(path)[1], path / shards(path)[1]),
    "all shards of another step": lambda path, other: [shutil.copy(other / name, path / name) for name in shards(path)],
    "the manifest of another step": lambda path, other: shutil.copy(other / MANIFEST, path / MANIFEST),
    "a shard twice": lambda path, other: shutil.copy(path / shards(path)[0], path / shards(path)[1]),
    "a shard that is a folder": lambda path, other: instead(path / shards(path)[0], Path.mkdir),
    "a shard that is a pipe": lambda path, other: instead(path / shards(path)[0], os.mkfifo),
}


@pytest.mark.parametrize("harm", MIXED.values(), ids=MIXED)
def test_files_that_do_not_belong_together(harm, tmp_path):
    """Whole files in the wrong place are told: sizes and headers may agree, the save that they belong to does not."""
    for name, step in (("ck", 3), ("other", 4)):
        write(tmp_path / name, step, header_limit=1)
    wanted = content(tmp_path / "ck")
    sizes = {(tmp_path / "ck" / name).stat().st_size for name in shards(tmp_path / "ck")}
    assert len(sizes) == 1
    harm(tmp_path / "ck", tmp_path / "other")
    assert not holds(tmp_path / "ck", wanted)


def test_a_file_too_many_does_no_harm(tmp_path):
    """What the manifest does not name is not read: the content is what was saved."""
    write(tmp_path / "ck", 3, header_limit=1)
    wanted = content(tmp_path / "ck")
    shutil.copy(tmp_path / "ck" / shards(tmp_path / "ck")[0], tmp_path / "ck" / "weights-00009-of-00009.safetensors")
    (tmp_path / "ck" / "notes.txt").write_text("mine")
    assert holds(tmp_path / "ck", wanted)


# --- what a resume makes of it --------------------------------------------------------------------------------


def model_and_optimizer():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    return model, optimizer


def bits(model, optimizer):
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    return [value.detach().numpy().tobytes() for value in (*model.state_dict().values(), *state)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run with two checkpoints, and the bits of a training that is restored from each."""
    folder = tmp_path_factory.mktemp("two") / "run"
    model, optimizer = model_and_optimizer()
    states = {}
    with Checkpointer(folder, model=model, optimizer=optimizer, rng=False, block=True) as run:
        for step in (1, 2):
            model.weight.grad, model.bias.grad = model.weight.detach() + step, model.bias.detach() + step
            optimizer.step()
            run.save(step)
            states[step] = bits(model, optimizer)
    return folder, states


@pytest.mark.slow
def test_restore_and_resume_of_flipped_bits(two, tmp_path, whole):
    """A restore is exact or an error that leaves the training bit for bit alone; a resume is exact, from the older one if need be."""
    folder, states = two
    tried = 0
    for name in FILES:
        raw = (folder / "step-2" / name).read_bytes()
        for bit in range(5, 8 * len(raw), 211 if whole else 2_003):
            shutil.copytree(folder, tmp_path / "run")
            target = tmp_path / "run" / "step-2" / name
            target.write_bytes(raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :])
            model, optimizer = model_and_optimizer()
            before = bits(model, optimizer)
            with pytest.raises(OptstateError) as caught:
                optstate.restore(tmp_path / "run" / "step-2", model=model, optimizer=optimizer)
            assert named(caught.value), caught.value
            assert bits(model, optimizer) == before
            with Checkpointer(tmp_path / "run", model=model, optimizer=optimizer, rng=False) as run, pytest.warns(RuntimeWarning, match="step-2 is damaged"):  # fmt: skip
                assert run.restore().step == 1
            assert bits(model, optimizer) == states[1]
            shutil.rmtree(tmp_path / "run")
            tried += 1
    assert tried > 10


def test_newest_is_chosen_without_the_damaged_one(tmp_path):
    """A folder whose newest has a flipped bit anywhere lists it as damaged at a glance, or once its bytes are read."""
    for step in (1, 2):
        write(tmp_path / f"step-{step}", step, tensors=1)
    target = tmp_path / "step-2" / "weights.safetensors"
    raw = target.read_bytes()
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    for byte in range(0, len(raw), 7):
        target.write_bytes(raw[:byte] + bytes([raw[byte] ^ 16]) + raw[byte + 1 :])
        found = {each.path.name: each.fault for each in contents(tmp_path)}
        assert found["step-1"] is None
        assert (found["step-2"] is not None) == (byte < header)
        assert damage(tmp_path / "step-2")

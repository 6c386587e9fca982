"""Restoring without keeping what was there: large tensors are verified, then read again straight into the live ones."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import optstate
from optstate.errors import Damaged, Refused, RestoreFailed, StalePlan
from optstate.formats.ours.manifest import Chunk, decode_manifest, digest_of, encode_manifest
from tests.test_plan_damage import damage, tensors

LARGE = ("0.weight", "2.weight")
"""The parameters whose tensors, of 2 MB each, are read in place; the biases are small."""


def build(seed=0, optimizer=torch.optim.AdamW):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
    return model, optimizer(model.parameters(), lr=1e-2)


def trained(seed=0, steps=2, **arguments):
    model, optimizer = build(seed, **arguments)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 512, generator=torch.Generator().manual_seed(step))).pow(2).mean().backward()
        optimizer.step()
    return model, optimizer


def picture(model, optimizer):
    """Every tensor that a restore could change, by name, as bytes."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {name: bytes(tensor.detach().numpy()) for name, tensor in model.named_parameters()} | {
        f"{names[parameter]}/{key}": bytes(value.numpy())
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }


class Between:
    """An object whose loading does something: it is loaded after everything was verified, before anything is read again."""

    def __init__(self, deed):
        self.deed = deed

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        deed, self.deed = self.deed, lambda: None
        deed()


@pytest.fixture
def saved(tmp_path):
    """What was saved, as a picture, and the checkpoint; among its objects one that does nothing."""
    model, optimizer = trained()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=2, between=Between(None))
    return picture(model, optimizer), path


# --- what comes back ------------------------------------------------------------------------------------------


def test_every_bit_comes_back_in_the_memory_that_was_there(saved):
    """Weights and slots of a run that went elsewhere are those of the checkpoint, where they were."""
    was, path = saved
    model, optimizer = trained(seed=9, steps=3)
    places = [each.data_ptr() for each in model.parameters()]
    slots = {id(value): value.data_ptr() for entry in optimizer.state.values() for value in entry.values()}
    assert optstate.restore(path, model=model, optimizer=optimizer, between=Between(lambda: None)).exact
    assert picture(model, optimizer) == was
    assert places == [each.data_ptr() for each in model.parameters()]
    assert slots == {id(value): value.data_ptr() for entry in optimizer.state.values() for value in entry.values()}


def test_files_of_torch_are_read_in_place_as_well(tmp_path):
    """What has no digest of ours goes the same way, through the blocks of its reader."""
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "theirs.pt")
    other, others = trained(seed=9, steps=3)
    plan = optstate.restore(tmp_path / "theirs.pt", model=other, optimizer=others)
    assert "12.6 MB) last" in str(plan)
    assert picture(other, others) == picture(model, optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_any_type_of_element_is_read_in_place(tmp_path, dtype):
    """The bytes in the file are those in memory, whatever they mean."""
    model = nn.ParameterList([torch.randn(1024, 1024).to(dtype)])
    path = optstate.save(tmp_path / "ck", model=model)
    was = model[0].detach().clone()
    with torch.no_grad():
        model[0].zero_()
    optstate.restore(path, model=model)
    assert torch.equal(model[0], was)


def test_memory_in_another_order_takes_its_values(tmp_path):
    """A channels-last weight and its moments are not in the order of the file, on either side."""

    def convolution(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(64, 512, 3)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 64, 4, 4)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = convolution(0)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer)
    other, others = convolution(1)
    place = others.state[other[0].weight]["exp_avg"].data_ptr()
    optstate.restore(path, model=other, optimizer=others)
    assert torch.equal(other[0].weight, model[0].weight)
    for key, value in optimizer.state[model[0].weight].items():
        assert torch.equal(others.state[other[0].weight][key], value)
    assert others.state[other[0].weight]["exp_avg"].data_ptr() == place
    plain = nn.Sequential(nn.Conv2d(64, 512, 3))
    optstate.restore(path, model=plain)
    assert torch.equal(plain[0].weight, model[0].weight)


def test_many_small_tensors_are_read_in_place_too(tmp_path):
    """What is staged is bounded: of a hundred thousand small tensors the most are read twice, several in one turn."""
    model = nn.ParameterList(torch.full((1 << 15,), float(number)) for number in range(800))  # 105 MB
    path = optstate.save(tmp_path / "ck", model=model)
    with torch.no_grad():
        torch._foreach_zero_(list(model))
    plan = optstate.restore(path, model=model)
    assert "288 large tensors" in str(plan)
    assert [each[5].item() for each in model] == list(map(float, range(800)))


def rewritten(path, key, pieces):
    """The checkpoint with a tensor in other pieces: the start and shape of each, within one file that it still has."""
    manifest = path / "manifest.json"
    body = decode_manifest(manifest.read_bytes(), "")
    entry = body.tensors[key]
    (whole,) = entry.chunks
    chunks, offset = [], whole.offset
    for start, shape in pieces:
        nbytes = 4 * shape[0] * shape[1]
        with (path / whole.file).open("rb") as file:
            file.seek(offset)
            chunks.append(Chunk(whole.file, offset, nbytes, start, shape, digest_of(file.read(nbytes))))
        offset += nbytes
    split = msgspec.structs.replace(entry, chunks=tuple(chunks))
    changed = msgspec.structs.replace(body, tensors={**body.tensors, key: split})
    manifest.write_bytes(b"".join(encode_manifest(changed)))


def test_a_tensor_in_several_pieces_is_put_together_in_place(tmp_path):
    """Halves by columns lie in the file one after the other, and in memory side by side."""
    model = nn.Linear(1024, 512, bias=False)
    path = optstate.save(tmp_path / "ck", model=model)
    halves = model.weight.detach().reshape(2, 512, 512)  # the two runs of bytes in the file
    rewritten(path, "weights/weight", [((0, 0), (512, 512)), ((0, 512), (512, 512))])
    other = nn.Linear(1024, 512, bias=False)
    optstate.restore(path, model=other)
    assert torch.equal(other.weight[:, :512], halves[0])
    assert torch.equal(other.weight[:, 512:], halves[1])


@pytest.mark.parametrize("second", [((0, 256), (512, 512)), ((0, 0), (512, 512))], ids=["half", "wholly"])
def test_pieces_on_top_of_each_other_are_refused(tmp_path, second):
    """Which of them is right nobody could tell: such a checkpoint is not opened."""
    path = optstate.save(tmp_path / "ck", model=nn.Linear(1024, 512, bias=False))
    rewritten(path, "weights/weight", [((0, 0), (512, 512)), second])
    with pytest.raises(Refused, match="contradicts itself"):
        optstate.open(path)


@pytest.mark.parametrize("field", ["offset", "nbytes"])
def test_a_place_before_the_file_is_refused(tmp_path, field):
    """A negative number in an intact manifest is the fault of whoever wrote it."""
    path = optstate.save(tmp_path / "ck", model=nn.Linear(2, 2))
    document = json.loads((path / "manifest.json").read_text())["body"]
    next(iter(document["tensors"].values()))["chunks"][0][field] = -8
    body = msgspec.json.encode(document)
    (path / "manifest.json").write_bytes(
        b'{"format":"optstate/1","digest":"%s","body":%s}' % (digest_of(body).encode(), body)
    )
    with pytest.raises(Refused, match="not as optstate/1 is defined"):
        optstate.open(path)


# --- what the plan says, and what torch sees --------------------------------------------------------------------


def test_the_plan_says_what_cannot_be_put_back(saved):
    """How many tensors, how much, and how to have it otherwise; nothing where all of it is staged."""
    _, path = saved
    model, optimizer = trained(seed=9)
    live = {"model": model, "between": Between(lambda: None)}
    line = "restore() writes 6 large tensors (12.6 MB) last, and cannot put them back; plan(...).apply() keeps what was there"
    assert line in str(optstate.plan(path, optimizer=optimizer, **live)).splitlines()
    assert "writes 2 large tensors" in str(optstate.plan(path, optimizer=build()[1], **{**live, "model": build()[0]}))


def test_apply_still_keeps_what_was_there(saved):
    """`apply()` without a word stages everything, and `revert` gives it back."""
    was, path = saved
    model, optimizer = trained(seed=9)
    before = picture(model, optimizer)
    plan = optstate.plan(path, model=model, optimizer=optimizer, between=Between(lambda: None)).apply()
    assert picture(model, optimizer) == was
    plan.revert()
    assert picture(model, optimizer) == before


def test_other_plans_are_stale_afterwards(saved):
    """torch's counters rise for what was written round them, so nobody takes it for what it was."""
    _, path = saved
    model, optimizer = trained(seed=9)
    live = {"model": model, "between": Between(lambda: None)}
    plans = [optstate.plan(path, **live), optstate.plan(path, optimizer=optimizer, **live)]
    versions = [each._version for each in model.parameters()]
    optstate.restore(path, optimizer=optimizer, **live)
    assert all(each._version > before for each, before in zip(model.parameters(), versions, strict=True))
    for plan in plans:
        with pytest.raises(StalePlan, match="was written to"):
            plan.apply()


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["weights/0.weight", "optimizer/2.weight/exp_avg_sq", "optimizer/2.bias/exp_avg"])
def test_damage_is_found_before_anything_is_written(saved, key):
    """Every digest is verified in the first pass, of large tensors and of small ones."""
    _, path = saved
    damage(path, key)
    model, optimizer = trained(seed=9)
    before = picture(model, optimizer)
    with pytest.raises(Damaged, match=key.partition("/")[2]):
        optstate.restore(path, model=model, optimizer=optimizer, between=Between(lambda: None))
    assert picture(model, optimizer) == before


def refuse():
    raise ValueError("not me")


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("deed", "error"), [(refuse, RestoreFailed), (interrupt, KeyboardInterrupt)])
def test_an_object_that_raises_leaves_everything_as_it_was(saved, deed, error):
    """What may fail for reasons of the program comes first; what cannot be put back comes after it."""
    _, path = saved
    model, optimizer = trained(seed=9)
    before = picture(model, optimizer)
    with pytest.raises(error):
        optstate.restore(path, model=model, optimizer=optimizer, between=Between(deed))
    assert picture(model, optimizer) == before


def test_a_tensor_that_cannot_be_written_to_any_more_undoes_all(saved):
    """An object that gives a weight another shape while it is loaded: said, and nothing is half done."""
    _, path = saved
    model, optimizer = trained(seed=9)
    before = picture(model, optimizer)
    weight = model[2].weight.data

    def reshape():
        model[2].weight.data = torch.zeros(3, 3)

    with pytest.raises(RestoreFailed, match=r"2\.weight is float32 \[3, 3\] by now"):
        optstate.restore(path, model=model, optimizer=optimizer, between=Between(reshape))
    model[2].weight.data = weight
    assert picture(model, optimizer) == before


def change(path, key, *, silently):
    """Change a byte in the middle of a tensor; silently: with the time of the file as it was."""
    file = path / tensors(path)[key]["chunks"][0]["file"]
    status = file.stat()
    damage(path, key)
    if silently:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path, key):
    """Cut a file within a tensor, and leave its time as it was."""
    chunk = tensors(path)[key]["chunks"][0]
    file = path / chunk["file"]
    os.truncate(file, chunk["offset"] + chunk["nbytes"] // 2)


def break_descriptors(path):
    """Have every read of the data files fail, as a disk does that is gone: the descriptors lead to a folder."""
    folder = os.open(path, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that lists them
        if target.startswith(str(path)) and target.endswith(".safetensors"):
            os.dup2(folder, int(name))
    os.close(folder)


BETWEEN = {
    "a byte, seen by its digest": (
        lambda path: change(path, "optimizer/0.weight/exp_avg", silently=True),
        {"0.weight/exp_avg"},
        "was changed since it was written",
    ),
    "a byte, seen by the time of the file": (
        lambda path: change(path, "weights/2.weight", silently=False),
        {"0.weight", "2.weight"},
        "changed while it was read",
    ),
    "the end of a file": (
        lambda path: truncate(path, "weights/2.weight"),
        {"0.weight", "2.weight"},
        "changed while it was read",
    ),
    "all descriptors": (
        break_descriptors,
        {f"{name}{slot}" for name in LARGE for slot in ("", "/exp_avg", "/exp_avg_sq")},
        "the system cannot read",
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_fails_between_the_passes_is_named_and_all_else_is_restored(saved, case):
    """The error names every tensor that is not as it was saved, and no other is otherwise."""
    was, path = saved
    deed, named, why = BETWEEN[case]
    model, optimizer = trained(seed=9, steps=3)
    with pytest.raises(RestoreFailed, match="could not be read again") as caught:
        optstate.restore(path, model=model, optimizer=optimizer, between=Between(lambda: deed(path)))
    now = picture(model, optimizer)
    assert {name for name in was if now[name] != was[name]} <= named
    assert all(f"{name} (" in caught.value.found for name in named)
    assert caught.value.found.count(" (") == len(named)
    assert why in caught.value.found
    assert "restore again" in caught.value.todo


def test_a_restore_after_a_failed_one_heals_it(saved, tmp_path):
    """The live side is as good a place to restore into as any other."""
    was, path = saved
    model, optimizer = trained(seed=9, steps=3)
    spare = tmp_path / "spare"
    subprocess.run(["cp", "-r", path, spare], check=True)
    with pytest.raises(RestoreFailed):
        optstate.restore(
            path, model=model, optimizer=optimizer, between=Between(lambda: truncate(path, "weights/0.weight"))
        )
    optstate.restore(spare, model=model, optimizer=optimizer, between=Between(lambda: None))
    assert picture(model, optimizer) == was


def test_salvage_reads_in_place_what_is_whole(saved):
    """What is damaged is found while planning; a slot starts fresh with its companions, all else is read in place."""
    was, path = saved
    damage(path, "optimizer/0.weight/exp_avg_sq")
    model, optimizer = trained(seed=9)
    policy = optstate.Policy(damaged="salvage")
    plan = optstate.restore(path, model=model, optimizer=optimizer, between=Between(lambda: None), policy=policy)
    assert "4 large tensors" in str(plan)
    now = picture(model, optimizer)
    anew = {"0.weight/step", "0.weight/exp_avg", "0.weight/exp_avg_sq"}
    assert {name for name in was if now[name] != was[name]} == anew
    assert not any(optimizer.state[model[0].weight][key].any() for key in ("step", "exp_avg", "exp_avg_sq"))


def test_an_interrupt_in_the_second_pass_waits_for_its_end(tmp_path):
    """Ctrl-C while tensors are read in place: all of them are read, then it is raised."""
    model = nn.ParameterList(torch.full((1 << 22,), 1.0 + number) for number in range(12))  # 200 MB
    path = optstate.save(tmp_path / "ck", model=model)
    with torch.no_grad():
        torch._foreach_zero_(list(model))
    first = model[0].detach()

    def press():
        while first[0].item() == 0:  # until the second pass has begun
            pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def restore():
        pressing.start()
        optstate.restore(path, model=model)
        pressing.join()  # where the key comes when all is done

    pressing = threading.Thread(target=press)
    with pytest.raises(KeyboardInterrupt):
        restore()
    pressing.join()
    assert [(each.min().item(), each.max().item()) for each in model] == [(1.0 + n, 1.0 + n) for n in range(12)]


# --- objects ----------------------------------------------------------------------------------------------------


class Master:
    """Keeps a copy of the weights, and makes it anew of them when it is loaded, as some wrappers of optimizers do."""

    def __init__(self, model):
        self.model = model
        self.copies = {}

    def state_dict(self):
        return {"scale": 3.0}

    def load_state_dict(self, state):
        self.scale = state.pop("scale")  # rude, but seen
        self.copies = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}


class Shared(Master):
    """Holds the model's own tensors, and writes into them."""

    def state_dict(self):
        return {name: tensor.detach() for name, tensor in self.model.named_parameters()}

    def load_state_dict(self, state):
        with torch.no_grad():
            for name, tensor in self.model.named_parameters():
                tensor.copy_(state[name])


class Derived(nn.Linear):
    """A module that computes something of its weight when its extra state is set, as quantised ones do."""

    norm = None

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        self.norm = self.weight.detach().norm().item()


@pytest.mark.parametrize("kind", [Master, Shared])
def test_objects_that_look_at_weights_see_those_of_the_checkpoint(tmp_path, kind):
    """They are loaded again once everything is there, each time from a state of its own."""
    source, _ = trained()
    path = optstate.save(tmp_path / "ck", model=source, master=kind(source))
    model, _ = trained(seed=9)
    master = kind(model)
    optstate.restore(path, model=model, master=master)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert all(torch.equal(copy, model.get_parameter(name)) for name, copy in master.copies.items())


def test_extra_state_is_set_when_the_weights_are_there(tmp_path):
    """torch promises that to modules, and so does a restore."""
    source, model = Derived(512, 1024), Derived(512, 1024)
    path = optstate.save(tmp_path / "ck", model=source)
    optstate.restore(path, model=model)
    assert model.norm == source.weight.detach().norm().item()


def test_an_object_that_refuses_the_second_time_is_named(saved):
    """By then nothing can be put back: the error says that all else is as in the checkpoint, which is true."""
    was, path = saved
    model, optimizer = trained(seed=9)
    twice = Between(None)
    twice.deed = lambda: setattr(twice, "deed", refuse)
    with pytest.raises(RestoreFailed, match=r"between \(ValueError: not me\); all else is as in the checkpoint"):
        optstate.restore(path, model=model, optimizer=optimizer, between=twice)
    assert picture(model, optimizer) == was


def test_the_random_state_is_the_saved_one_at_the_end(tmp_path):
    """Also where an object draws numbers while it is loaded."""
    model, optimizer = trained()
    drawing = Between(lambda: (random.random(), torch.rand(7)))
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, rng=True, between=drawing)
    expected = (random.random(), torch.rand(3))
    optstate.restore(path, model=model, optimizer=optimizer, rng=True, between=drawing)
    again = (random.random(), torch.rand(3))
    assert expected[0] == again[0]
    assert torch.equal(expected[1], again[1])


def test_schedulers_keep_what_a_split_of_groups_gave_them(tmp_path):
    """They are loaded once: what a policy does to their lists comes after that, and stays."""
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler)
    policy = optstate.Policy(overrides={"*.bias": {"weight_decay": 0.0}})
    optstate.restore(path, model=model, optimizer=optimizer, scheduler=scheduler, policy=policy)
    assert len(optimizer.param_groups) == len(scheduler.base_lrs) == 2
    optimizer.step()
    scheduler.step()


# --- how much is read, how much is held ---------------------------------------------------------------------------

linux = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what is read")


def bytes_read(work):
    """Bytes that this process asked the system for meanwhile."""

    def count():
        return int(Path("/proc/self/io").read_text().split()[1])

    work()  # imports what it needs
    before = count()
    work()
    return count() - before


@linux
def test_one_slot_reads_no_other(saved):
    """A checkpoint opened and one slot read: the manifest, the headers and the bytes of that slot."""
    _, path = saved
    slot = trained()[0][0].weight.nbytes
    files = json.loads((path / "manifest.json").read_text())["body"]["files"]
    headers = sum(entry["header_nbytes"] for entry in files.values())
    about = (path / "manifest.json").stat().st_size + headers

    def look():
        return optstate.open(path).state["0.weight"].momentum.array()

    read = bytes_read(look)
    assert slot + about <= read <= slot + about + 20_000


@linux
def test_weights_alone_read_weights_alone(saved):
    """Twice what is read in place, and nothing of the optimizer's slots."""
    _, path = saved
    model, _ = build()
    weights = sum(each.nbytes for each in model.parameters())
    read = bytes_read(lambda: optstate.restore(path, model=model))
    assert 2 * weights < read < 2 * weights + 100_000


@linux
def test_nothing_is_read_twice_for_an_empty_optimizer(saved):
    """Slots go straight into their new tensors; weights, which are there, are read in place."""
    _, path = saved
    model, _ = build()
    weights = sum(each.nbytes for each in model.parameters())

    def restore():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optstate.restore(path, model=model, optimizer=optimizer, between=Between(lambda: None))

    assert 4 * weights < bytes_read(restore) < 4 * weights + 100_000


CHILD = """
import sys
from pathlib import Path

import torch
from torch import nn

import optstate

def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3

def extra(restore):
    before = field("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    restore()
    print(field("VmHWM:") - before)

path = sys.argv[1]
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12)))
optimizer = torch.optim.AdamW(model.parameters())
for parameter in model.parameters():
    moments = {key: torch.ones_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
    optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
optstate.save(path, model=model, optimizer=optimizer)
extra(lambda: optstate.restore(path, model=model, optimizer=optimizer))
extra(lambda: optstate.plan(path, model=model, optimizer=optimizer).apply())
optimizer.state.clear()
extra(lambda: optstate.restore(path, model=model, optimizer=optimizer))
"""


@pytest.mark.slow
@linux
def test_memory_is_bounded(tmp_path):
    """600 MB of state: into a live one 150 MB more at the most, into an empty one that besides the slots themselves."""
    command = [sys.executable, "-c", CHILD, tmp_path / "ck"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    live, kept, empty = map(float, done.stdout.split())
    slots = 12 * 2048 * 2049 * 4 * 2 / 1e6
    assert live < 150
    assert empty < slots + 150
    assert kept > slots  # what would be seen if it were not so

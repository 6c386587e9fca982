"""Stripping old checkpoints: all but the optimizer stays, bit for bit, and what can be resumed from is never touched."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import optstate
from optstate.cli.app import main
from optstate.errors import InUse, OptstateError, WriteFailed
from optstate.store.files import RealFiles
from optstate.store.folder import contents
from optstate.store.lock import LOCK, Lock
from optstate.store.strip import strip
from tests.disk import crashes, failing, plant
from tests.hf import library, model_of, trained
from tests.mirror import Mirror
from tests.test_accelerate import run as accelerated
from tests.test_dcp import NO_GROUP
from tests.test_dcp import save as saved_by_dcp
from tests.test_deepspeed import forge
from tests.trainings import Training

ROOT = Path(__file__).parents[1]


def names(folder):
    return sorted(set(os.listdir(folder)) - {LOCK})


def tree(folder):
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_and_optimizer():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def ours(tmp_path):
    """Four checkpoints of a run."""
    training = Training()
    with training.checkpointer(tmp_path / "a", keep=9) as run:
        for _ in run.steps(4, every=1):
            training.step()
    return tmp_path / "a"


@pytest.fixture
def files(tmp_path):
    """Four files of torch.save, with what belongs to the weights of each."""
    folder = tmp_path / "b"
    folder.mkdir()
    model, optimizer = model_and_optimizer()
    weights = {}
    for number in range(1, 5):
        step(model, optimizer)
        weights[number] = {name: value.clone() for name, value in model.state_dict().items()}
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number, "config": {"width": 4}},
            folder / f"ck-{number}.pt",
        )
    return folder, weights


def test_all_but_the_newest(ours):
    """The two newest stay as they are; the others become copies with everything but the optimizer."""
    before = {name: tree(ours / name) for name in ("step-3", "step-4")}
    old = optstate.open(ours / "step-1")
    weights = {name: ref.array().tobytes() for name, ref in old.weights.items()}
    report = strip(ours)
    assert names(ours) == ["step-1.weights", "step-2.weights", "step-3", "step-4"]
    assert {name: tree(ours / name) for name in before} == before
    new = optstate.open(ours / "step-1.weights")
    assert {name: ref.array().tobytes() for name, ref in new.weights.items()} == weights
    assert (new.step, len(new.state), sorted(new.objects)) == (1, 0, ["loader", "rng", "scheduler"])
    assert optstate.verify(ours / "step-1.weights").ok
    assert [item.fate for item in report.items] == ["kept", "kept", "stripped", "stripped"]
    slots = [slot for each in optstate.open(ours / "step-3").state.values() for slot in each.slots.values()]
    assert report.nbytes == 2 * sum(slot.array().nbytes for slot in slots)
    assert str(report).startswith(f"{ours}: 2 checkpoints stripped, ")


def test_a_copy_knows_where_it_comes_from(ours):
    """What is copied or edited has the checkpoint that it was made of in its lineage, before itself."""
    before = optstate.open(ours / "step-1").lineage
    strip(ours)
    after = optstate.open(ours / "step-1.weights").lineage
    assert (after[:-1], after[-1].step) == (before, 1)
    assert after[-1].save_id != before[-1].save_id


def test_twice_is_once(ours):
    """Nothing is left to do the second time, nor for the run itself, which goes on."""
    strip(ours)
    before = tree(ours)
    assert [item.fate for item in strip(ours).items] == ["kept", "kept"]
    assert tree(ours) == before
    training = Training()
    with training.checkpointer(ours, keep=2) as run:
        assert list(run.steps(6, every=1)) == [5, 6]
    assert names(ours) == ["step-1.weights", "step-2.weights", "step-5", "step-6"]


def test_dry_run_changes_nothing(ours, files):
    """It says what would become of each, and touches nothing."""
    before = tree(ours.parent)
    report = strip(ours.parent, keep_last=3, dry_run=True)
    assert tree(ours.parent) == before
    assert [(item.path.name, item.fate) for item in report.items if item.fate == "stripped"] == [
        ("step-1", "stripped"), ("ck-1.pt", "stripped"),
    ]  # fmt: skip
    assert "2 checkpoints would be stripped" in str(report)
    assert [item.copy for item in strip(ours.parent, keep_last=3).items] == [item.copy for item in report.items]


def test_files_of_torch(files):
    """A file becomes one with the same weights and everything else but the optimizer, which torch loads."""
    folder, weights = files
    strip(folder)
    assert names(folder) == ["ck-1.weights.pt", "ck-2.weights.pt", "ck-3.pt", "ck-4.pt"]
    loaded = torch.load(folder / "ck-1.weights.pt", weights_only=True)
    assert "optimizer" not in loaded
    assert (loaded["step"], loaded["config"]) == (1, {"width": 4})
    assert all(torch.equal(loaded["model"][name], value) for name, value in weights[1].items())
    assert sorted(loaded["model"]) == sorted(weights[1])


@pytest.mark.slow
def test_folders_of_the_trainer(tmp_path):
    """A folder keeps every file but the optimizer's, byte for byte, and transformers loads it; the best stays whole."""
    transformers = library("transformers")
    model = model_of("GPT2LMHeadModel")
    runs = [trained(tmp_path / str(number), model, steps=number) for number in (1, 2, 3, 4)]
    folder = tmp_path / "run"
    folder.mkdir()
    for number, run in enumerate(runs, 1):
        run.folder.rename(folder / f"checkpoint-{number}")
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = "run/checkpoint-2"
    (folder / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    (folder / "checkpoint-1" / "extra").mkdir()
    (folder / "checkpoint-1" / "extra" / "notes.txt").write_text("mine")
    (folder / "checkpoint-1" / "extra" / "empty").touch()
    before = tree(folder / "checkpoint-1")
    report = strip(folder)
    assert names(folder) == ["checkpoint-1.weights", "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert {name: raw for name, raw in before.items() if name != "optimizer.pt"} == tree(
        folder / "checkpoint-1.weights"
    )
    assert [item.why for item in report.items if item.path.name == "checkpoint-2"] == ["the Trainer's best"]
    loaded = transformers.GPT2LMHeadModel.from_pretrained(folder / "checkpoint-1.weights")
    assert len(loaded.state_dict()) == len(model.state_dict())


def test_runs_are_told_apart_by_name(tmp_path):
    """The newest of each series of names: neither `last.pt` nor another model's files push a run's out."""
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    for name, number in (("a-1.pt", 1), ("a-2.pt", 2), ("b-7.pt", 7), ("b-8.pt", 8), ("b-9.pt", 9), ("last.pt", 9)):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number}, tmp_path / name)
    strip(tmp_path)
    assert names(tmp_path) == ["a-1.pt", "a-2.pt", "b-7.weights.pt", "b-8.pt", "b-9.pt", "last.pt"]


def test_newest_is_what_the_file_says(tmp_path):
    """The step in the file, not the number in its name."""
    model, optimizer = model_and_optimizer()
    step(model, optimizer)
    for name, number in (("ck-1.pt", 900), ("ck-2.pt", 10), ("ck-3.pt", 20)):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number}, tmp_path / name)
    strip(tmp_path, keep_last=1)
    assert names(tmp_path) == ["ck-1.pt", "ck-2.weights.pt", "ck-3.weights.pt"]


def test_links_protect_and_are_not_followed(ours, files):
    """What a link beside it leads to stays; a linked folder is not gone into."""
    (ours / "best").symlink_to("step-1")
    (ours.parent / "linked").symlink_to(files[0])
    report = strip(ours, keep_last=1)
    assert names(ours) == ["best", "step-1", "step-2.weights", "step-3.weights", "step-4"]
    assert [item.why for item in report.items if item.path.name == "step-1"] == ["a link leads to it"]


def test_damaged_newest_does_not_count(ours):
    """One that cannot be resumed from is left alone, and an older one is kept in its place."""
    raw = bytearray((ours / "step-4" / "optimizer.safetensors").read_bytes())
    raw[-1] ^= 1
    (ours / "step-4" / "optimizer.safetensors").write_bytes(raw)
    report = strip(ours)
    assert names(ours) == ["step-1.weights", "step-2", "step-3", "step-4"]
    assert [item.path.name for item in report.left] == ["step-4"]


def test_damaged_file_of_torch_is_left(files):
    """A truncated file is no copy of anything."""
    folder, _ = files
    os.truncate(folder / "ck-1.pt", 3000)
    report = strip(folder)
    assert names(folder) == ["ck-1.pt", "ck-2.weights.pt", "ck-3.pt", "ck-4.pt"]
    assert "cannot be read" in report.left[0].why


def test_damaged_old_one_is_left(files):
    """A changed value is found while the copy is written; the checkpoint stays, and no copy does."""
    folder, weights = files
    raw = bytearray((folder / "ck-1.pt").read_bytes())
    raw[raw.index(weights[1]["0.weight"].numpy().tobytes())] ^= 1
    (folder / "ck-1.pt").write_bytes(raw)
    report = strip(folder)
    assert names(folder) == ["ck-1.pt", "ck-2.weights.pt", "ck-3.pt", "ck-4.pt"]
    assert [item.path.name for item in report.left] == ["ck-1.pt"]


def test_what_a_copy_cannot_hold_is_left(files):
    """Nothing is lost for the sake of space: a file whose other contents cannot be copied stays, with the reason."""
    folder, _ = files
    content = torch.load(folder / "ck-1.pt", weights_only=False)
    content["args"] = argparse.Namespace(width=4)
    torch.save(content, folder / "ck-1.pt")
    report = strip(folder)
    assert "ck-1.pt" in names(folder)
    assert "would not be in the target" in report.left[0].why


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_without_a_step_nothing_is_guessed(kind, tmp_path):
    """Files that state no step, and whose optimizers count none or the same, are left alone: nobody can tell which is the newest."""
    model, _ = model_and_optimizer()
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    step(model, optimizer)
    for number in range(3):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"ck-{number}.pt")
    report = strip(tmp_path, keep_last=1)
    assert len(names(tmp_path)) == len(report.left) == 3
    assert all(item.why.startswith("it states no step, ") for item in report.left)


def test_what_the_optimizer_counted_tells_the_newest(tmp_path):
    """Where no step is stated, the optimizer's own count orders checkpoints, whatever their names say."""
    model, optimizer = model_and_optimizer()
    for number in (3, 2, 1):
        step(model, optimizer)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"ck-{number}.pt")
    assert strip(tmp_path, keep_last=1).nbytes
    assert names(tmp_path) == ["ck-1.pt", "ck-2.weights.pt", "ck-3.weights.pt"]


def folder_of(writer, path, model, optimizer, number):
    """A checkpoint of step `number` as one of several programs writes it."""
    if writer == "DCP":
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number}
        saved_by_dcp(path, content)
    elif writer == "Accelerate":
        accelerated(path, [(model, optimizer)])
    else:
        forge(path.parent / "made", stage=2, ranks=2, step=number)
        (path.parent / "made" / f"global_step{number}").rename(path)
        shutil.rmtree(path.parent / "made")


@pytest.mark.filterwarnings(f"ignore:{NO_GROUP}")
@pytest.mark.parametrize("writer", ["DCP", "Accelerate", "DeepSpeed"])
def test_folders_of_others(writer, tmp_path):
    """Folders in pieces are stripped to one of ours, or to themselves without the optimizer's files; all weights stay bit for bit."""
    model, optimizer = model_and_optimizer()
    for number in (1, 2, 3):
        step(model, optimizer)
        folder_of(writer, tmp_path / f"ck-{number}", model, optimizer, number)
    wanted = {name: ref.array().tobytes() for name, ref in optstate.open(tmp_path / "ck-1").weights.items()}
    kept = tree(tmp_path / "ck-3")
    report = strip(tmp_path, keep_last=1)
    assert (report.left, names(tmp_path)) == ((), ["ck-1.weights", "ck-2.weights", "ck-3"])
    opened = optstate.open(tmp_path / "ck-1.weights")
    assert {name: ref.array().tobytes() for name, ref in opened.weights.items()} == wanted
    assert (len(opened.state), tree(tmp_path / "ck-3")) == (0, kept)


def test_what_deepspeed_calls_the_latest_stays(tmp_path):
    """The folder above the tags is a run of them, and the one that `latest` names is kept however old it is."""
    for number in (1, 2, 3):
        folder_of("DeepSpeed", tmp_path / f"global_step{number}", None, None, number)
    (tmp_path / "latest").write_text("global_step1")
    strip(tmp_path, keep_last=1)
    assert names(tmp_path) == ["global_step1", "global_step2.weights", "global_step3", "latest"]


def test_a_copy_in_the_way_is_compared(ours):
    """A copy that a killed program had finished is used; one that is another checkpoint's is not."""
    shutil.copytree(ours / "step-4", ours / "step-1.weights")
    report = strip(ours)
    assert names(ours) == ["step-1", "step-1.weights", "step-2.weights", "step-3", "step-4"]
    assert [item.path.name for item in report.left] == ["step-1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["ours", "files"])
@pytest.mark.filterwarnings("ignore:.*cannot be removed:RuntimeWarning")
def test_one_failing_call_loses_nothing(kind, code, request, tmp_path):
    """Each call fails once: the checkpoint or its whole copy is there, and trying again finishes."""
    source = request.getfixturevalue(kind)
    folder = source if kind == "ours" else source[0]
    weights = {name: optstate.open(folder / name).weights for name in names(folder)[:1]}
    wanted = {key: ref.array().tobytes() for refs in weights.values() for key, ref in refs.items()}
    number = 0
    while True:
        here = tmp_path / "tries" / str(number)
        shutil.copytree(folder, here)
        mirror = Mirror(here.parent)
        seed(mirror, here)
        mirror.disk.calls.clear()
        mirror.disk.fault = failing(number, code)
        try:
            strip(here, keep_last=3, files=mirror)
            raised = None
        except WriteFailed as error:
            raised = error.errno
        assert raised in (None, code)
        if len(mirror.disk.calls) <= number:
            break
        first = [name for name in names(here) if name.startswith(("step-1", "ck-1"))]
        read = optstate.open(here / first[-1])
        assert {key: ref.array().tobytes() for key, ref in read.weights.items()} == wanted
        strip(here, keep_last=3)
        assert len([name for name in names(here) if not name.startswith(".")]) == 4
        shutil.rmtree(here)
        number += 1
    assert number > 15


def seed(mirror, folder):
    """Tell a recorded disk of what lies in a folder already."""
    disk = mirror.disk
    for path in [folder, *sorted(folder.rglob("*"))]:
        place = path.relative_to(mirror.root)
        if path.is_dir():
            disk.make_directory(place)
        elif path.name != LOCK:
            handle = disk.create(place)
            disk.write(handle, path.read_bytes(), 0)
            disk.sync(handle)
    for path in [mirror.root, folder, *folder.rglob("*")]:
        if path.is_dir():
            disk.sync_directory(path.relative_to(mirror.root))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "files"])
def test_power_cut_at_any_step(kind, request, tmp_path):
    """In every state that a power cut leaves, the checkpoint or its copy is there, whole, and the kept ones are untouched."""
    source = request.getfixturevalue(kind)
    folder = source if kind == "ours" else source[0]
    mirror = Mirror(folder.parent)
    seed(mirror, folder)
    before = len(mirror.disk.log)
    old = names(folder)[0]
    wanted = {key: ref.array().tobytes() for key, ref in optstate.open(folder / old).weights.items()}
    rest = {name: raw for name, raw in tree(folder).items() if not name.startswith((old, LOCK))}
    strip(folder, keep_last=3, files=mirror)
    copy = next(name for name in names(folder) if ".weights" in name)
    seen = set()
    for end in range(before, len(mirror.disk.log) + 1):
        for state in crashes(mirror.disk.log, end, most=1):
            key = tuple(sorted(state.items()))
            if key in seen:
                continue
            seen.add(key)
            plant(state, tmp_path / "disk")
            there = tmp_path / "disk" / folder.name
            whole = [name for name in (old, copy) if reads_as(there / name, wanted)]
            assert whole
            assert not (there / copy).exists() or copy in whole
            assert rest.items() <= tree(there).items()
            shutil.rmtree(tmp_path / "disk")
    assert len(seen) > 25


def reads_as(path, wanted):
    """Whether a checkpoint is at a path and has these weights; a damaged one is none."""
    try:
        return {key: ref.array().tobytes() for key, ref in optstate.open(path).weights.items()} == wanted
    except OptstateError:
        return False


def test_leftover_of_a_killed_removal_is_removed(ours):
    """What a killed program had begun to remove is gone after the next one."""
    left = ours / f".step-1.del-{RealFiles().boot}-01234567"
    (ours / "step-1").rename(left)
    strip(ours)
    assert not left.exists()


def test_folder_in_use_is_left(ours):
    """While a run saves into it, nothing in a folder is stripped."""
    lock = Lock(ours, RealFiles())
    before = tree(ours)
    with pytest.raises(InUse):
        strip(ours)
    assert tree(ours) == before
    lock.free()
    assert [found.step for found in contents(ours)] == [4, 3, 2, 1]


# --- the command ----------------------------------------------------------------------------------------------


def test_command(ours, capsys):
    """What is done is printed; a dry run says how to do it; then nothing is left to do."""
    assert main(["strip", str(ours), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert f"stripped  {ours / 'step-2'} → step-2.weights" in out
    assert f"hint: optstate strip {ours} --keep-last 2 " in err
    assert main(["strip", str(ours)]) == 0
    assert "2 checkpoints stripped" in capsys.readouterr().out
    assert main(["strip", str(ours), "--keep-last", "1"]) == 0


def test_command_says_what_it_left(files, capsys):
    """Exit code 1 when something should have been stripped and was not, with the reason."""
    folder, _ = files
    os.truncate(folder / "ck-1.pt", 3000)
    assert main(["strip", str(folder)]) == 1
    assert "left      " in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "a file", "a checkpoint", "none to keep", "in use"])
def test_command_that_cannot(what, ours, files, capsys):
    """Exit code 2 and one error that says what to do."""
    lock = Lock(ours, RealFiles()) if what == "in use" else None
    path = {"missing": ours / "no", "a file": files[0] / "ck-1.pt", "a checkpoint": ours / "step-1"}.get(what, ours)
    assert main(["strip", str(path), *(["--keep-last", "0"] if what == "none to keep" else [])]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    if lock is not None:
        lock.free()


def test_document_keeps_its_schema(ours, files, capsys):
    """What `--json` prints is what the published schema promises, and the schema bites."""
    schema = json.loads((ROOT / "docs" / "schema" / "optstate-strip-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    os.truncate(files[0] / "ck-1.pt", 3000)
    assert main(["strip", str(ours.parent), "--json", "--dry-run"]) == 1
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema)
    assert {item["fate"] for item in document["checkpoints"]} == {"kept", "stripped", "left"}
    document["checkpoints"][0]["fate"] = "lost"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)

"""`Checkpointer`: a run that is cut short anywhere goes on as if it had not been, and is never without a good checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import optstate
from optstate.errors import (
    BindError,
    Damaged,
    InUse,
    OptstateError,
    RestoreError,
    RestoreRefused,
    SaveError,
    TargetExists,
    WriteFailed,
)
from optstate.formats.ours.manifest import MANIFEST
from optstate.resume.checkpointer import Checkpointer
from optstate.resume.due import Due
from optstate.store.files import RealFiles
from optstate.store.lock import LOCK
from tests.mirror import Mirror
from tests.trainings import Training, uninterrupted

TOTAL = 17


def names(folder):
    return sorted(set(os.listdir(folder)) - {LOCK}, key=lambda name: (len(name), name))


def flip(path, at=-1):
    """Change one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def train(folder, total=TOTAL, *, stop=None, every=1, **options):
    """A process of a run: it resumes, trains, and may be left after a step."""
    training = Training()
    with training.checkpointer(folder, **options) as run:
        for step in run.steps(total, every=every):
            training.step()
            if step == stop:
                break
    return training, run


# --- exactness ----------------------------------------------------------------------------------------------


def test_a_checkpointer_changes_nothing(tmp_path):
    """A run with checkpoints at every step is, bit for bit, the run without any."""
    training, _ = train(tmp_path)
    assert training.digest() == uninterrupted(TOTAL)


STOPS = [
    stop if stop in (1, 2, 3, 6, 9, 16) else pytest.param(stop, marks=pytest.mark.whole) for stop in range(1, TOTAL)
]


@pytest.mark.parametrize("stop", STOPS)
def test_interrupted_run_is_the_uninterrupted_one(stop, tmp_path):
    """Left in any step, in the middle of an epoch or at its end, and resumed: every bit is as if nothing had happened."""
    train(tmp_path, stop=stop)
    training, run = train(tmp_path)
    assert run.status().resumed_from == (f"step-{stop - 1}" if stop > 1 else None)
    assert training.digest() == uninterrupted(TOTAL)


@pytest.mark.parametrize("left_out", [{"rng": False}, {"loader": None}, {"scheduler": None}], ids=str)
def test_the_test_sees_what_is_left_out(left_out, tmp_path):
    """Any part that is not saved makes the resumed run another one."""
    train(tmp_path, stop=8, **left_out)
    training, _ = train(tmp_path, **left_out)
    assert training.digest() != uninterrupted(TOTAL)


def test_interrupted_again_and_again(tmp_path):
    """However many lives a run has, it ends the same."""
    for stop in (3, 4, 9, 10, 16):
        train(tmp_path, stop=stop, every=2)
    training, _ = train(tmp_path, every=2)
    assert training.digest() == uninterrupted(TOTAL)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "stop"), [*((0, stop) for stop in range(2, 12)), (2, 4), (2, 6)])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_loader_of_torchdata_goes_on_mid_epoch(stop, workers, tmp_path):
    """`StatefulDataLoader`, shuffled, with and without workers: each batch of the resumed run is that of the other."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def life(folder, stop=None):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        data = [torch.tensor([index / 10]) for index in range(10)]
        loader = stateful.StatefulDataLoader(data, batch_size=3, shuffle=True, num_workers=workers)
        stream = (batch for _ in range(100) for batch in loader)
        seen = []
        with Checkpointer(folder, model=model, optimizer=optimizer, loader=loader) as run:
            for step in run.steps(12, every=1):
                batch = next(stream)
                seen.append(batch.tolist())
                optimizer.zero_grad()
                model(batch).square().sum().backward()
                optimizer.step()
                if step == stop:
                    break
        return seen, [weight.tolist() for weight in model.parameters()], torch.rand(2).tolist()

    straight = life(tmp_path / "straight")
    life(tmp_path / "run", stop)
    seen, weights, drawn = life(tmp_path / "run")
    assert (seen, weights, drawn) == (straight[0][stop - 1 :], *straight[1:])


def test_gradients_of_nothing_are_needed_before_resuming(tmp_path):
    """A resume makes the optimizer's state from nothing: no dummy step."""
    train(tmp_path, 5)
    training = Training()
    with training.checkpointer(tmp_path) as run:
        plan = run.restore()
    assert plan is not None
    assert plan.exact
    assert len(training.optimizer.state) == len(list(training.model.parameters()))


# --- the loop -----------------------------------------------------------------------------------------------


def test_steps_count_from_one_and_go_on(tmp_path):
    """The first step is 1; a run that was done has no more; one that shall do more goes on."""
    training = Training()
    run = training.checkpointer(tmp_path)
    assert list(run.steps(3, every=2)) == [1, 2, 3]
    assert list(run.steps(3, every=2)) == []
    assert list(run.steps(5, every=2)) == [4, 5]
    assert names(tmp_path) == ["step-3", "step-4", "step-5"]


def test_saves_at_every_so_many_steps_and_at_the_end(tmp_path):
    """The steps that `every` divides, and the last."""
    train(tmp_path, 11, every=3, keep=9)
    assert names(tmp_path) == ["step-3", "step-6", "step-9", "step-11"]


def test_saves_by_time():
    """Once so many seconds have passed since the last save, whatever the step; or at a step, whichever comes first."""
    now = [100.0]
    due = Due(10, 60.0, lambda: now[0])
    assert not due.after(1)
    now[0] = 160.0
    assert due.after(2)
    due.saved()
    assert not due.after(3)
    assert due.after(10)
    assert Due(None, 1e-9).after(1)


def test_saves_by_time_in_a_run(tmp_path):
    """A time that always has passed saves after each step."""
    training = Training()
    run = training.checkpointer(tmp_path, keep=9)
    assert list(run.steps(3, seconds=1e-9)) == [1, 2, 3]
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]


@pytest.mark.parametrize("left", ["break", "an error"])
def test_a_loop_that_is_left_saves_nothing(left, tmp_path):
    """Nobody knows whether the step was done: what is there is the checkpoint of the last boundary."""
    training = Training()
    run = training.checkpointer(tmp_path)
    if left == "break":
        for step in run.steps(9, every=2):
            training.step()
            if step == 4:
                break
    else:
        with pytest.raises(ZeroDivisionError):
            training.go(run.steps(9, every=2), lambda step: 1 / (4 - step))
    run.wait()
    assert names(tmp_path) == ["step-2"]


def test_body_may_save(tmp_path):
    """A checkpoint that the body takes is not taken twice, and is one like the others."""
    training = Training()
    run = training.checkpointer(tmp_path)
    for step in run.steps(4, every=4):
        training.step()
        if step in (1, 4):
            assert run.save(step) == tmp_path / f"step-{step}"
            run.wait()
            first = (tmp_path / f"step-{step}" / MANIFEST).read_bytes()
    assert (tmp_path / "step-4" / MANIFEST).read_bytes() == first


def test_body_may_go_back(tmp_path):
    """After a `restore` in the body the loop goes on from the checkpoint: the steps since are done again, exactly."""
    training = Training()
    run = training.checkpointer(tmp_path)
    seen = []
    for step in run.steps(7, every=2):
        seen.append(step)
        training.step()
        if seen.count(5) == 1 and step == 5:
            run.restore()
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7]
    assert training.digest() == uninterrupted(7)


def test_several_optimizers_and_objects(tmp_path):
    """A mapping of optimizers and any object with a state are saved and resumed together."""

    def life(total):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        average = torch.optim.swa_utils.AveragedModel(model)
        optimizers = {
            "first": torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
            "second": torch.optim.AdamW(model[1].parameters(), lr=1e-2),
        }
        with Checkpointer(tmp_path, model=model, optimizer=optimizers, average=average) as run:
            for _ in run.steps(total, every=2):
                model.zero_grad()
                model(torch.randn(3, 4)).square().sum().backward()
                for optimizer in optimizers.values():
                    optimizer.step()
                average.update_parameters(model)
        return [value.tolist() for value in (*model.state_dict().values(), *average.state_dict().values())]

    life(4)
    resumed = life(7)
    for name in names(tmp_path):
        shutil.rmtree(tmp_path / name)
    assert resumed == life(7)


def test_saving_by_hand(tmp_path):
    """Without `steps`: `restore` says where the run is, `save` saves a step, also the same one again."""
    training = Training()
    with training.checkpointer(tmp_path) as run:
        assert run.restore() is None
        for step in (1, 2, 3, 3):
            training.step()
            run.save(step)
        after = training.digest()
    again = Training()
    with again.checkpointer(tmp_path) as run:
        plan = run.restore()
        assert plan is not None
        assert plan.step == 3
        assert run.status().step == 3
    assert again.digest() == after


def test_going_back_by_hand_is_refused(tmp_path):
    """A run that starts anew in an old folder does not have its new checkpoints taken for old ones."""
    train(tmp_path, 6)
    run = Training().checkpointer(tmp_path)
    with pytest.raises(SaveError, match="step 1 was not saved"):
        run.save(1)
    assert names(tmp_path) == ["step-4", "step-5", "step-6"]


def test_something_foreign_in_the_way_is_not_replaced(tmp_path):
    """A folder that has the name of the next checkpoint stays, and the save says so."""
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-2" / "notes.txt").write_text("mine")
    optstate.save(tmp_path / "step-4", model=nn.Linear(1, 1))
    with pytest.raises(TargetExists, match="step-2 exists"):
        train(tmp_path, 3)
    assert (tmp_path / "step-2" / "notes.txt").read_text() == "mine"


# --- keeping ------------------------------------------------------------------------------------------------


def test_keeps_the_newest_and_the_marks(tmp_path):
    """`keep` of the newest, and each that `keep_every` divides."""
    train(tmp_path, 12, keep=2, keep_every=5)
    assert names(tmp_path) == ["step-5", "step-10", "step-11", "step-12"]


def test_keeps_across_lives(tmp_path):
    """What an earlier process of the run saved is let go as well; what was renamed is not."""
    train(tmp_path, stop=7)
    (tmp_path / "step-6").rename(tmp_path / "best")
    train(tmp_path, 9)
    assert names(tmp_path) == ["best", "step-7", "step-8", "step-9"]


def test_renamed_newest_is_resumed_from(tmp_path):
    """A new name does not hide a checkpoint."""
    train(tmp_path, 4)
    (tmp_path / "step-4").rename(tmp_path / "mine")
    _, run = train(tmp_path, 5)
    assert run.status().resumed_from == "mine"


def test_stripping(tmp_path):
    """With `strip`, what goes leaves all but its optimizer: weights bit for bit, and nobody resumes from it."""
    straight = Training()
    for _ in range(2):
        straight.step()
    train(tmp_path, 5, strip=True)
    assert names(tmp_path) == ["step-3", "step-4", "step-5", "step-1.weights", "step-2.weights"]
    bare = optstate.open(tmp_path / "step-2.weights")
    assert len(bare.state) == 0
    assert bare.step == 2
    for name, weight in straight.model.state_dict().items():
        assert bare.weights[name].array().tobytes() == weight.numpy().tobytes()
    for number in (3, 4, 5):
        (tmp_path / f"step-{number}").rename(tmp_path.parent / f"{tmp_path.name}-{number}")
    with pytest.raises(RestoreError, match="not started anew"):
        train(tmp_path, 6)


def test_reading_everything_back(tmp_path):
    """`verify="full"` finds a value that the disk changed, before an older checkpoint goes."""
    training = Training()
    run = training.checkpointer(tmp_path / "run", verify="full", keep=2)

    class Careless(RealFiles):
        def sync_directory(self, path):
            super().sync_directory(path)
            if (path / "step-3").is_dir():
                flip(path / "step-3" / "optimizer.safetensors")

    run._shelf.files = Careless()
    with pytest.raises(Damaged, match="reads back as something else"):
        training.go(run.steps(9, every=1))
    assert names(tmp_path / "run") == ["step-1", "step-2", "step-3.damaged"]


def test_everything_goes_by_the_seam(tmp_path):
    """Every change that a run makes is one that the crash tests know of: the recorded disk is the real one."""
    training = Training()
    run = training.checkpointer(tmp_path / "run", keep=2)
    mirror = Mirror(tmp_path)
    run._shelf.files = mirror
    for _ in run.steps(5, every=1):
        training.step()
    real = {
        str(path.relative_to(tmp_path)) + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.name != LOCK
    }
    assert mirror.disk.tree() == real


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "objects.safetensors", MANIFEST])
def test_damaged_newest_is_passed_over(file, tmp_path):
    """One bit of the newest: the next older is used, loudly; the damaged one is put aside with the reason; and it is exact."""
    train(tmp_path, 6)
    flip(tmp_path / "step-6" / file, -1 if file != MANIFEST else 400)
    with pytest.warns(RuntimeWarning, match=r"step-6 is damaged and was passed over(.|\n)*step-5, step 5"):
        training, run = train(tmp_path, 8)
    assert training.digest() == uninterrupted(8)
    status = run.status()
    assert status.out_of_use == ("step-6.damaged",)
    assert status.resumed_from == "step-5"
    assert "out of use: step-6.damaged" in str(status)
    assert (tmp_path / "step-6.damaged" / "damaged.txt").read_text()
    assert names(tmp_path)[:3] == ["step-6", "step-7", "step-8"]


def test_all_damaged_is_an_error_until_somebody_decides(tmp_path):
    """Nothing is restored, renamed or trained, each fault is listed, and asking again says the same."""
    train(tmp_path, 5)
    for number in (3, 4, 5):
        flip(tmp_path / f"step-{number}" / "weights.safetensors")
    training = Training()
    before = training.digest()
    for _ in range(2):
        with training.checkpointer(tmp_path) as run, pytest.raises(RestoreError, match="not started anew") as caught:
            next(run.steps(9, every=1))
        for number in (3, 4, 5):
            assert f"step-{number}: damaged: " in caught.value.found
        assert "salvage" in caught.value.todo
    assert training.digest() == before
    assert names(tmp_path) == ["step-3", "step-4", "step-5"]
    plan = optstate.plan(
        tmp_path / "step-5", model=training.model, optimizer=training.optimizer,
        policy=optstate.Policy(damaged="salvage"),
    )  # fmt: skip
    assert plan.faults == []


def test_foreign_damaged_one_is_not_renamed(tmp_path):
    """A checkpoint that has another name than a run gives is passed over, and stays where it is."""
    train(tmp_path, 4)
    (tmp_path / "step-4").rename(tmp_path / "mine")
    flip(tmp_path / "mine" / "weights.safetensors")
    with pytest.warns(RuntimeWarning, match="mine is damaged and was passed over"):
        train(tmp_path, 5)
    assert "mine" in names(tmp_path)


def test_another_model_is_refused(tmp_path):
    """The plan's faults, all of them; nothing is touched, no older checkpoint is tried, and a second try says the same."""
    train(tmp_path, 3)
    training = Training(width=16)
    before = training.digest()
    with training.checkpointer(tmp_path) as run:
        for _ in range(2):
            with pytest.raises(RestoreRefused) as caught:
                next(run.steps(9, every=1))
            assert len(caught.value.faults) > 3
    assert training.digest() == before
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]


def test_policy_is_the_resume_s(tmp_path):
    """What may differ is said by a policy, as for `restore`."""
    train(tmp_path, 3)
    training = Training()
    training.optimizer.param_groups[0]["weight_decay"] = 0.5
    policy = optstate.Policy(hyperparameters={"weight_decay": "live"})
    with training.checkpointer(tmp_path, policy=policy) as run:
        run.restore()
    assert training.optimizer.param_groups[0]["weight_decay"] == 0.5


# --- failing saves ------------------------------------------------------------------------------------------


def full_disk(training, tmp_path, **options):
    """A run on a disk that is full for its second save."""
    run = training.checkpointer(tmp_path / "run", **options)
    mirror = Mirror(tmp_path)
    run._shelf.files = mirror
    saves = [0]

    def fault(number, what):
        saves[0] += what == "make_directory"
        return OSError(errno.ENOSPC, "No space left on device") if what == "write" and saves[0] == 3 else None

    mirror.disk.fault = fault
    return run


def test_full_disk_stops_the_run(tmp_path):
    """The error says how much is missing; the earlier checkpoint is whole, nothing else is left, `status` tells."""
    training = Training()
    run = full_disk(training, tmp_path)
    with pytest.raises(WriteFailed, match="No space left") as caught:
        training.go(run.steps(9, every=2))
    assert caught.value.errno == errno.ENOSPC
    assert "free" in caught.value.found
    assert names(tmp_path / "run") == ["step-2"]
    assert "No space left" in run.status().error
    assert "the last save failed" in str(run.status())
    run.save(4)
    assert run.status().error is None


def test_full_disk_is_told_and_the_run_goes_on(tmp_path):
    """With `on_error="warn"` the training goes on, exactly, and saves again when it can."""
    training = Training()
    run = full_disk(training, tmp_path, on_error="warn")
    with pytest.warns(RuntimeWarning, match=r"goes on without a checkpoint: \S*step-4 was not saved: No space left"):
        training.go(run.steps(9, every=2))
    assert training.digest() == uninterrupted(9)
    assert names(tmp_path / "run") == ["step-6", "step-8", "step-9"]
    assert run.status().error is None


# --- whose folder -------------------------------------------------------------------------------------------


def test_nothing_happens_before_it_is_used(tmp_path):
    """Making one reads and writes nothing, so that it can be made anywhere."""
    run = Training().checkpointer(tmp_path / "run")
    assert str(run.status()) == f"{tmp_path / 'run'}: step 0"
    assert not (tmp_path / "run").exists()


def test_two_on_one_folder(tmp_path):
    """The second is refused before it reads or writes anything; when the first is closed, it can begin."""
    first, second = Training().checkpointer(tmp_path), Training().checkpointer(tmp_path)
    first.save(1)
    with pytest.raises(InUse, match="in use"):
        second.restore()
    with pytest.raises(InUse):
        next(second.steps(3, every=1))
    first.close()
    assert list(second.steps(3, every=1)) == [2, 3]


def test_closed_is_closed(tmp_path):
    """After `close` nothing is saved any more: the folder may be another's."""
    run = Training().checkpointer(tmp_path)
    run.save(1)
    run.close()
    run.close()
    with pytest.raises(OptstateError, match="is closed"):
        run.save(2)


def test_child_process_does_not_save(tmp_path):
    """A fork of the training is not the run."""
    run = Training().checkpointer(tmp_path)
    run.save(1)
    child = os.fork()
    if child == 0:
        try:
            run.save(2)
            os._exit(1)
        except OptstateError as error:
            os._exit(0 if "belongs to process" in str(error) else 2)
    assert os.waitpid(child, 0)[1] == 0
    run.save(2)


def test_lineage_is_in_the_manifest(tmp_path):
    """A checkpoint knows those that its run was resumed from, with step and versions, and the edits in its journal."""
    train(tmp_path, stop=3)
    train(tmp_path, stop=6)
    train(tmp_path, 7)
    from optstate.formats.ours.directory import read_manifest

    body = read_manifest(tmp_path / "step-7")
    assert [entry.step for entry in body.lineage] == [2, 5]
    assert all(entry.environment == body.environment for entry in body.lineage)
    assert [entry.verb for entry in body.journal] == ["restore", "restore"]


# --- what is refused ----------------------------------------------------------------------------------------

WRONG = {
    "keep=1": ({"keep": 1}, OptstateError, "leaves none while a new one is written"),
    "keep_every=0": ({"keep_every": 0}, OptstateError, "keep_every must be above zero"),
    "verify": ({"verify": "slow"}, OptstateError, "verify is not known"),
    "on_error": ({"on_error": "ignore"}, OptstateError, "on_error is not known"),
    "an object without state": ({"ema": object()}, BindError, "ema cannot be restored into"),
    "a name that means something else": ({"source": nn.Linear(1, 1)}, BindError, "an object cannot be named source"),
    "a loader without state": ({"loader": DataLoader([1, 2])}, BindError, "cannot say where in the data it is"),
}


@pytest.mark.parametrize(("options", "error", "said"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_refused_at_once(options, error, said, tmp_path):
    """What could not be saved after five hundred steps is told before the first."""
    with pytest.raises(error, match=said):
        Training().checkpointer(tmp_path, **options)


@pytest.mark.parametrize("when", [{}, {"every": 0}, {"seconds": -1.0}], ids=repr)
def test_when_to_save_is_said(when, tmp_path):
    """A run that would never save is refused before it begins."""
    with pytest.raises(OptstateError):
        Training().checkpointer(tmp_path).steps(10, **when)


@pytest.mark.parametrize("step", [-1, 1.5, "3", None])
def test_steps_are_whole_numbers(step, tmp_path):
    """Anything else is no step."""
    with pytest.raises(SaveError, match="no whole number"):
        Training().checkpointer(tmp_path).save(step)


def test_in_a_thread_signals_are_not_watched(tmp_path):
    """A loop in another thread works, and a warning says that SIGTERM will not be noticed."""
    said: list[str] = []
    done: list[int] = []

    def work():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done.extend(Training().checkpointer(tmp_path).steps(2, every=1))
            said.extend(str(each.message) for each in caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1, 2]
    assert any("main thread only" in line for line in said)

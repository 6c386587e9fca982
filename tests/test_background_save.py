"""`save(..., block=False)`: what it saves is, to the last bit, what was there at the call, or it saves nothing and says why."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optstate
from optstate.errors import OptstateError, SaveError, TargetExists, WriteFailed
from optstate.live.fence import put_up, standing, take_down
from optstate.store.device import Beside, checksum
from optstate.store.save import save_beside, save_live
from optstate.store.streaming import SMALL
from tests.held import PATIENCE, Held

ROOT = Path(__file__).parents[1]
WIDTH = 160
assert WIDTH * WIDTH * 4 > SMALL


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves a save behind that another one would wait for."""
    yield
    left = standing()
    for each in left:
        take_down(each)
    assert left == ()


class Job:
    """A model with parameters that are streamed and some that are copied, buffers that forward changes, and an average."""

    def __init__(self, optimizer=torch.optim.AdamW, **options):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 1e-2, **options})
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.step()

    def backward(self):
        self.optimizer.zero_grad()
        loss = self.model(torch.rand(4, WIDTH)).square().sum()
        loss.backward()
        return loss

    def step(self):
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(self.backward)
        else:
            self.backward()
            self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)

    @property
    def what(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "rng": True,
            "objects": {"average": self.average, "scheduler": self.scheduler},
        }

    def begin(self, path, files=None, **options):
        return save_beside(path, files or Held(), **self.what, **options)


def content(path):
    """Every byte of a checkpoint's tensors by name, and what the manifest says beside them."""
    from optstate.formats.ours.directory import read_manifest

    body = read_manifest(path)
    found = {}
    for key, entry in body.tensors.items():
        raw = b"".join(
            (path / chunk.file).read_bytes()[chunk.offset : chunk.offset + chunk.nbytes] for chunk in entry.chunks
        )
        found[key] = entry.dtype, entry.shape, entry.stride, raw.hex()
    return found, body.parameters, body.optimizers, body.objects, body.weights


def reference(job, path):
    """What a save that blocks writes now."""
    save_live(path, Held("never", ""), **job.what)
    return content(path)


class Arrival:
    """A fence that lets everybody pass, and says that somebody came."""

    def __init__(self):
        self.came = threading.Event()

    def before_step(self, optimizer):
        self.came.set()

    def before_write(self):
        self.came.set()


@pytest.fixture
def arrival():
    """Put up before a save's own fence, so that it is passed first."""
    fence = Arrival()
    put_up(fence)
    yield fence
    take_down(fence)


def open_on(arrival, files):
    """Let a save go on once somebody stands at the fence, who can only pass when it is read."""

    def wait():
        arrival.came.wait(PATIENCE)
        files.let_go()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# --- what is saved ------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW, fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW, amsgrad, a loop": (torch.optim.AdamW, {"amsgrad": True, "foreach": False}),
    "AdamW, tensor rate": (torch.optim.AdamW, {"lr": torch.tensor(1e-2), "capturable": False}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "LBFGS": (torch.optim.LBFGS, {"max_iter": 3}),
    "Adafactor": (torch.optim.Adafactor, {}),
}


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_saved_is_what_was_there_at_the_call(optimizer, options, tmp_path, arrival):
    """The training goes on before anything is read; the step waits; every byte is that of a save which blocks."""
    job = Job(optimizer, **options)
    expected = reference(job, tmp_path / "blocking")
    files = Held()
    saving = job.begin(tmp_path / "beside", files)
    assert files.reached.wait(PATIENCE)
    opener = open_on(arrival, files)
    for _ in range(3):
        job.step()
    opener.join()
    assert saving.wait() == tmp_path / "beside"
    assert content(tmp_path / "beside") == expected


@pytest.mark.parametrize("moment", [("create", "manifest.json"), ("sync", "weights.safetensors"), ("rename", "it")])
def test_steps_go_on_while_the_disk_is_waited_for(moment, tmp_path):
    """What was read needs no waiting: any number of steps are taken before it is durable."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held(*moment)
    saving = job.begin(tmp_path / "it", files)
    assert files.reached.wait(PATIENCE)
    for _ in range(5):
        job.step()
    assert not saving.done
    assert not (tmp_path / "it").exists()
    files.let_go()
    saving.wait()
    assert content(tmp_path / "it") == expected


def test_a_fence_that_does_not_wait_is_noticed(tmp_path):
    """Without its fence the same training voids the save, and each tensor that the step changed is named."""
    job = Job(torch.optim.SGD, momentum=0.9)
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    assert files.reached.wait(PATIENCE)
    take_down(saving)
    job.step()
    files.let_go()
    with pytest.raises(SaveError, match="4 tensors changed") as caught:
        saving.wait()
    assert caught.value.found == "0.weight, 2.weight, 0.weight/momentum_buffer, 2.weight/momentum_buffer"
    assert 'mode="copy"' in caught.value.todo
    assert os.listdir(tmp_path) == []


def test_fence_stands_while_only_a_part_was_read(tmp_path, arrival):
    """A step in the middle of the copying waits for the rest of it."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held("write", "optimizer.safetensors")
    saving = job.begin(tmp_path / "it", files)
    assert files.reached.wait(PATIENCE)
    opener = open_on(arrival, files)
    job.step()
    opener.join()
    saving.wait()
    assert content(tmp_path / "it") == expected


def weight(job):
    return job.model[0].weight


def moment(job):
    return job.optimizer.state[weight(job)]["exp_avg"]


def by_numpy(job):
    moment(job).numpy()[3, 5] += 1


def other_optimizer(job):
    other = torch.optim.SGD([weight(job)], lr=0.5)
    weight(job).grad = torch.ones_like(weight(job))
    other.step()


def other_memory(job):
    weight(job).data = torch.zeros(WIDTH, WIDTH)


def other_slot(job):
    job.optimizer.state[weight(job)]["exp_avg"] = torch.zeros(WIDTH, WIDTH)


def small_ones(job):
    job.optimizer.state[weight(job)]["step"].fill_(99)
    job.model[0].bias.data.fill_(7)


def there_and_back(job):
    with torch.no_grad():
        weight(job).neg_()
        weight(job).neg_()


def schedule(job):
    job.optimizer.param_groups[0]["lr"] = 5.0
    job.optimizer.param_groups[0]["betas"] = (0.1, 0.2)


def memory_given_back(job):
    weight(job).untyped_storage().resize_(0)


SAME = {
    "batch norm": lambda job: job.model(torch.rand(9, WIDTH)),
    "the average": lambda job: job.average.update_parameters(job.model),
    "gradients": lambda job: job.backward(),
    "random numbers": lambda job: torch.rand(9),
    "other memory": other_memory,
    "another slot": other_slot,
    "no slots": lambda job: job.optimizer.state.clear(),
    "load_state_dict of the optimizer": lambda job: job.optimizer.load_state_dict(
        copy.deepcopy(torch.optim.AdamW(job.model.parameters()).state_dict())
    ),
    "small tensors": small_ones,
    "hyperparameters": schedule,
    "another group": lambda job: job.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]}),
    "there and back": there_and_back,
}

VOID = {
    "one element of a slot, by numpy": (by_numpy, "1 tensor changed", "0.weight/exp_avg"),
    ".data.mul_": (lambda job: weight(job).data.mul_(1.5), "1 tensor changed", "0.weight"),
    "one bit": (
        lambda job: weight(job).data[-1, -1:].view(torch.int32).bitwise_xor_(1),
        "1 tensor changed",
        "0.weight",
    ),
    "load_state_dict of the model": (
        lambda job: job.model.load_state_dict({name: value + 1 for name, value in job.model.state_dict().items()}),
        "2 tensors changed",
        "0.weight, 2.weight",
    ),
    "memory given back": (memory_given_back, "the memory of 0.weight was given back", None),
}


@pytest.mark.parametrize("mode", ["stream", "copy"])
@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_changes_that_no_save_minds(change, mode, tmp_path):
    """Whatever else goes on between the call and the reading leaves no trace in the checkpoint."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held()
    saving = job.begin(tmp_path / "it", files, mode=mode)
    assert files.reached.wait(PATIENCE)
    change(job)
    files.let_go()
    saving.wait()
    assert content(tmp_path / "it") == expected


@pytest.mark.parametrize(("change", "said", "found"), VOID.values(), ids=VOID)
def test_changes_beside_the_step_void_the_save(change, said, found, tmp_path):
    """A write that nothing can make wait is seen, to the last bit, before or in the middle of reading; nothing is left."""
    job = Job()
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    assert files.reached.wait(PATIENCE)
    change(job)
    files.let_go()
    with pytest.raises(SaveError, match=said) as caught:
        saving.wait()
    assert caught.value.found == found
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("change", "said", "found"), VOID.values(), ids=VOID)
def test_copy_minds_nothing(change, said, found, tmp_path):
    """With `mode="copy"` the same writes leave no trace, and no step waits."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held()
    saving = job.begin(tmp_path / "it", files, mode="copy")
    assert files.reached.wait(PATIENCE)
    job.step()
    change(job)
    files.let_go()
    saving.wait()
    assert content(tmp_path / "it") == expected


def test_an_optimizer_that_was_not_passed_waits_as_well(tmp_path, arrival):
    """Whoever steps one of the parameters waits: torch tells of every optimizer's steps."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    opener = open_on(arrival, files)
    other_optimizer(job)
    opener.join()
    saving.wait()
    assert content(tmp_path / "it") == expected


def test_an_optimizer_of_other_parameters_does_not_wait(tmp_path):
    """Two models train side by side: the save of one does not hold up the other."""
    job, other = Job(), Job()
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    other.step()
    assert not files.gate.is_set()
    files.let_go()
    saving.wait()


def test_odd_layouts(tmp_path, arrival):
    """Transposed, tied, strided and double tensors are streamed as they are."""
    torch.manual_seed(0)
    model = nn.Module()
    model.a = nn.Parameter(torch.rand(WIDTH, WIDTH).t())
    model.b = model.a
    model.c = nn.Parameter(torch.rand(WIDTH, 2 * WIDTH)[:, ::2])
    model.d = nn.Parameter(torch.rand(WIDTH, WIDTH, dtype=torch.complex128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        sum(each.abs().square().sum() for each in model.parameters()).backward()
        optimizer.step()

    step()
    save_live(tmp_path / "blocking", Held("never"), model=model, optimizer=optimizer)
    files = Held()
    saving = save_beside(tmp_path / "it", files, model=model, optimizer=optimizer)
    opener = open_on(arrival, files)
    step()
    opener.join()
    saving.wait()
    assert content(tmp_path / "it") == content(tmp_path / "blocking")


# --- steps of every kind ------------------------------------------------------------------------------------


def with_scaler(job):
    scaler = torch.amp.GradScaler("cpu")
    loss = job.model(torch.rand(4, WIDTH)).sum()
    scaler.scale(loss).backward()
    scaler.step(job.optimizer)
    scaler.update()


def in_a_thread(job):
    thread = threading.Thread(target=job.step)
    thread.start()
    thread.join()


class Twice(torch.optim.SGD):
    """A step that calls its parent's."""

    def step(self, closure=None):
        super().step()
        super().step()


def nested(job):
    job.optimizer = Twice(job.model.parameters(), lr=0.1)
    job.backward()
    job.optimizer.step()


STEPS = {"a gradient scaler": with_scaler, "another thread": in_a_thread, "a step within a step": nested}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_kind_of_step_waits(step, tmp_path, arrival):
    """However an optimizer is stepped, it goes by the fence."""
    job = Job()
    expected = reference(job, tmp_path / "blocking")
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    opener = open_on(arrival, files)
    step(job)
    opener.join()
    saving.wait()
    assert content(tmp_path / "it") == expected


def test_copies_of_an_optimizer_have_no_fence(tmp_path):
    """A deep copy and a pickle of model and optimizer step on their own memory at once, and carry nothing of the save."""
    job = Job()
    files = Held()
    saving = job.begin(tmp_path / "it", files)
    for other in (copy.deepcopy((job.model, job.optimizer)), pickle.loads(pickle.dumps((job.model, job.optimizer)))):
        model, optimizer = other
        model(torch.rand(4, WIDTH)).sum().backward()
        optimizer.step()
        assert len(optimizer._optimizer_step_pre_hooks) == 0
    files.let_go()
    saving.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports its own old parts
def test_compiled_step_waits_and_is_not_compiled_again(tmp_path, arrival):
    """`torch.compile` of the step calls the fence too, and a save makes it compile nothing."""
    from torch._dynamo.testing import CompileCounter

    job, counter = Job(lr=torch.tensor(1e-2)), CompileCounter()
    step = torch.compile(job.optimizer.step, backend=counter)
    step()
    compiled = counter.frame_count
    for number in range(3):
        expected = reference(job, tmp_path / f"blocking-{number}")
        files = Held()
        arrival.came.clear()
        saving = job.begin(tmp_path / str(number), files)
        opener = open_on(arrival, files)
        job.backward()
        step()
        opener.join()
        saving.wait()
        assert content(tmp_path / str(number)) == expected
    assert counter.frame_count == compiled


# --- what goes wrong ----------------------------------------------------------------------------------------


FAULTS = {
    "no space": (("write", "optimizer.safetensors"), OSError(errno.ENOSPC, "No space left on device"), WriteFailed),
    "the disk": (("sync", "weights.safetensors"), OSError(errno.EIO, "Input/output error"), WriteFailed),
    "no memory": (("create", "weights.safetensors"), MemoryError("no memory"), MemoryError),
    "the last moment": (("rename", "it"), OSError(errno.EIO, "Input/output error"), WriteFailed),
}


def failing(job, path, moment, fault):
    files = Held(moment[0], moment[1], fault=fault)
    saving = job.begin(path, files)
    files.let_go()
    saving.finish()
    return saving


def digest(job):
    return [value.clone() for value in (*job.model.state_dict().values(), moment(job))]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("moment", "fault", "error"), FAULTS.values(), ids=FAULTS)
def test_failure_is_raised_by_the_next_step(moment, fault, error, tmp_path):
    """Once, before anything changed; then the training goes on. Nothing is left of the checkpoint."""
    job = Job()
    saving = failing(job, tmp_path / "it", moment, fault)
    before = digest(job)
    with pytest.raises(error):
        job.optimizer.step()
    assert same(digest(job), before)
    job.optimizer.step()
    assert not same(digest(job), before)
    assert os.listdir(tmp_path) == []
    assert "failed, " in repr(saving)
    assert isinstance(saving.error, error)


def test_failure_is_raised_by_the_next_save(tmp_path):
    """Once; then one can save again. `wait` says it each time, and so does `error`."""
    job = Job()
    saving = failing(job, tmp_path / "it", *FAULTS["no space"][:2])
    for block in (True, False):
        with pytest.raises(WriteFailed, match="No space left"):
            optstate.save(tmp_path / "next", **{**job.what, "objects": None}, block=block)
        put_up(saving)  # as if nobody had heard of it
    with pytest.raises(WriteFailed) as caught:
        saving.wait()
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(WriteFailed):
        saving.wait()
    optstate.save(tmp_path / "next", model=job.model, optimizer=job.optimizer)


def test_step_that_waits_hears_of_the_failure_it_waited_for(tmp_path, arrival):
    """A save that fails while a step waits for it raises there, and the step does not happen."""
    job = Job()
    files = Held(fault=OSError(errno.EIO, "Input/output error"))
    job.begin(tmp_path / "it", files)
    job.backward()
    before = digest(job)
    opener = open_on(arrival, files)
    with pytest.raises(WriteFailed):
        job.optimizer.step()
    opener.join()
    assert same(digest(job), before)


def test_failure_may_be_told_otherwise(tmp_path):
    """Whoever asks for it hears of the error in place of a step that raises."""
    job, heard = Job(), list[BaseException]()
    files = Held(fault=OSError(errno.EIO, "Input/output error"))
    saving = job.begin(tmp_path / "it", files, tell=heard.append)
    files.let_go()
    job.step()
    saving.finish()
    job.step()
    assert [type(each) for each in heard] == [WriteFailed]


def test_what_is_wrong_with_the_call_is_raised_at_once(tmp_path):
    """A path that is taken, a value without a place and a mode that is none begin nothing."""
    job = Job()
    (tmp_path / "it").mkdir()
    with pytest.raises(TargetExists):
        optstate.save(tmp_path / "it", model=job.model, block=False)
    with pytest.raises(SaveError, match="cannot be saved"):
        optstate.save(tmp_path / "other", model=job.model, block=False, thing=object())
    with pytest.raises(SaveError, match="mode is not known"):
        optstate.save(tmp_path / "other", model=job.model, block=False, mode="fast")
    assert os.listdir(tmp_path) == ["it"]


def test_waiting_for_so_long(tmp_path):
    """`wait` with a timeout gives up waiting, not the save."""
    job, files = Job(), Held()
    saving = job.begin(tmp_path / "it", files)
    assert repr(saving).endswith("it: being written>")
    with pytest.raises(TimeoutError, match="still being written"):
        saving.wait(0)
    files.let_go()
    saving.wait()
    assert saving.done
    assert saving.error is None


def test_next_save_waits(tmp_path):
    """Of one model there is one save at a time."""
    job, files = Job(), Held()
    first = job.begin(tmp_path / "first", files)
    threading.Thread(target=files.let_go).start()
    second = optstate.save(tmp_path / "second", model=job.model, optimizer=job.optimizer, block=False)
    assert first.done
    second.wait()


def test_memory_is_given_back(tmp_path):
    """A save that is over holds on to no tensor, well or not, heard of or not."""
    for files in (Held(), Held("sync", fault=OSError(errno.EIO, "Input/output error"))):
        job = Job()
        memory = [np.ones((WIDTH, WIDTH), np.float32) for _ in range(2)]
        weight(job).data, moment(job).data = map(torch.from_numpy, memory)
        saving = job.begin(tmp_path / "it", files, replace=True)
        files.let_go()
        saving.finish()
        alive = [*map(weakref.ref, memory), weakref.ref(job.optimizer)]
        del job, memory
        gc.collect()
        assert all(each() is None for each in alive)
        take_down(saving)


# --- processes ----------------------------------------------------------------------------------------------


BEGIN = """
import sys, torch
from pathlib import Path
from tests.test_background_save import Job, Held
import optstate
job = Job()
"""
ENDINGS = {
    "the end": ("saving = optstate.save(path, model=job.model, optimizer=job.optimizer, block=False)", 0, ""),
    "sys.exit": ("optstate.save(path, model=job.model, optimizer=job.optimizer, block=False); sys.exit(3)", 3, ""),
    "an exception": (
        "optstate.save(path, model=job.model, optimizer=job.optimizer, block=False); 1 / 0",
        1,
        "ZeroDivisionError",
    ),
    "full verification": (
        "run = optstate.Checkpointer(path.parent, model=job.model, optimizer=job.optimizer, verify='full')\nrun.save(1)",
        0,
        "",
    ),
}


def python(script, path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", f"{BEGIN}path = Path({str(path)!r})\n{script}"],
        env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("script", "code", "said"), ENDINGS.values(), ids=ENDINGS)
def test_program_does_not_end_before_the_save(script, code, said, tmp_path):
    """However a program ends, what it was saving is durable then, and nothing else is said."""
    done = python(script, tmp_path / "step-1")
    assert (done.returncode, said in done.stderr, "optstate" in done.stderr) == (code, True, False), done.stderr
    assert optstate.verify(tmp_path / "step-1").ok


@pytest.mark.slow
def test_failure_that_nobody_heard_of_is_told_at_the_end(tmp_path):
    """On stderr, when the program ends."""
    script = "f = Held(fault=OSError(28, 'No space left on device')); f.let_go(); job.begin(path, f)"
    done = python(script, tmp_path / "it")
    assert "was not saved: No space left on device" in done.stderr
    assert os.listdir(tmp_path) == []


def test_forked_process_steps_at_once_and_cannot_wait(tmp_path):
    """A worker that is forked off during a save has its own memory: no fence, and an error that says where to wait."""
    job, files = Job(), Held()
    saving = job.begin(tmp_path / "it", files)
    job.optimizer.zero_grad()  # no arithmetic: threads of its library do not survive a fork
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job.optimizer.step()
            saving.wait()
        except OptstateError as error:
            code = 0 if "being saved by process" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    files.let_go()
    saving.wait()
    assert optstate.verify(tmp_path / "it").ok


# --- accelerators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex128])
def test_checksum_sees_every_bit_and_every_exchange(dtype):
    """What a device takes before and after: another value of any element, and two that change places, are seen."""
    torch.manual_seed(0)
    tensor = (torch.rand(7, 5) * 100).to(dtype)
    tensor[0, 0], tensor[6, 4] = 0, 1
    wanted = checksum(tensor)
    assert checksum(tensor.clone()) == wanted
    assert checksum(tensor.t().contiguous().t()) == wanted
    raw = tensor.view(-1).view(torch.uint8)
    for place in range(len(raw)):
        for bit in range(8):
            raw[place] ^= 1 << bit
            assert checksum(tensor) != wanted
            raw[place] ^= 1 << bit
    tensor[0, 0], tensor[6, 4] = 1, 0
    assert checksum(tensor) != wanted


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_streams_from_an_accelerator(tmp_path, arrival):
    """Weights and slots on a device are read beside its work, and are what they were at the call."""
    device = torch.accelerator.current_accelerator()
    job = Job()
    job.model.to(device)
    for entry in job.optimizer.state.values():
        entry.update({key: value.to(device) for key, value in entry.items() if key != "step"})
    save_live(tmp_path / "blocking", Held("never"), model=job.model, optimizer=job.optimizer)
    files = Held()
    saving = save_beside(tmp_path / "it", files, model=job.model, optimizer=job.optimizer)
    opener = open_on(arrival, files)
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    job.optimizer.step()
    opener.join()
    saving.wait()
    assert content(tmp_path / "it") == content(tmp_path / "blocking")
    saving = save_beside(tmp_path / "void", files := Held(), model=job.model, optimizer=job.optimizer)
    weight(job).data[0, 0] += 1
    files.let_go()
    with pytest.raises(SaveError, match="1 tensor changed"):
        saving.wait()


def test_without_an_accelerator_everything_is_read_in_turn():
    """A device that has no streams is read as it always was."""
    beside = Beside()
    beside.begin([torch.device("cpu")])
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert b"".join(map(bytes, beside.pieces(tensor))) == tensor.contiguous().numpy().tobytes()

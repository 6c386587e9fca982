"""M5xx: distributed state dicts, and what writers and stores do."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from zoo.programs import net, push, saved, taken, train, trained
from zoo.specimen import UNREAD, Scene, attempt, elsewhere, really, specimen


@specimen("M501", "the state of a fresh optimizer is read by get_optimizer_state_dict")
def dummy_step() -> Iterator[Scene | str]:
    """Reading takes a step with gradients of zero."""
    model = net()
    optimizer = AdamW(model.parameters())
    get_optimizer_state_dict(model, optimizer)
    yield Scene(optimizer, model)
    really(optimizer.state[model[0].weight]["step"] == 1)


@specimen("M502", "a DCP folder is loaded into the state dict of a fresh optimizer", seen_as="M102")
def template_load() -> Iterator[Scene | str]:
    """Only keys that the target has are read: none of the state. Seen is a schedule that goes on without it."""
    model, optimizer = trained(AdamW)
    save({"optimizer": optimizer.state_dict()}, checkpoint_id="folder")
    fresh = AdamW(model.parameters())
    target = {"optimizer": fresh.state_dict()}
    load(target, checkpoint_id="folder")
    fresh.load_state_dict(target["optimizer"])
    scheduler = StepLR(fresh, 1)
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": 3})
    yield Scene(fresh, model, scheduler=scheduler)
    really(not fresh.state)


@specimen("M503", "one group is saved by name and loaded into two")
def split() -> Iterator[Scene | str]:
    """The first is left without hyperparameters."""
    model, optimizer = trained(AdamW)
    state = get_optimizer_state_dict(model, optimizer)
    path = saved(model, state)
    fresh = AdamW([{"params": [each]} for each in model.parameters()])
    yield Scene(path, model, against=fresh)
    set_optimizer_state_dict(model, fresh, state)
    push(fresh)


@specimen("M504", "two groups are saved by name and loaded into one")
def merged() -> Iterator[Scene | str]:
    """One learning rate wins."""
    model = net()
    groups = [{"params": [each], "lr": rate} for each, rate in zip(model.parameters(), (0.1, 0.2), strict=True)]
    state = get_optimizer_state_dict(model, train(model, AdamW(groups)))
    path = saved(model, state)
    fresh = AdamW(model.parameters(), lr=0.1)
    yield Scene(path, model, against=fresh)
    set_optimizer_state_dict(model, fresh, state)
    really(fresh.param_groups[0]["lr"] == 0.2)


@specimen("M505", "a parameter without state is saved in a DCP folder")
def partial_refused() -> Iterator[Scene | str]:
    """What is valid to save is refused when it is loaded."""
    model = net()
    optimizer = AdamW(model.parameters())
    model[1](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = get_optimizer_state_dict(model, optimizer)
    save({"model": model.state_dict(), "optimizer": state}, checkpoint_id="folder")
    yield attempt(lambda: set_optimizer_state_dict(model, AdamW(model.parameters()), state))
    yield Scene(Path("folder"))


@specimen("M506", "a state dict by name that lacks a parameter is loaded with strict=False")
def not_strict() -> Iterator[Scene | str]:
    """Skipped without a word. Seen against the file that has it."""
    model, optimizer = trained(AdamW)
    path = saved(model, optimizer)
    state = get_optimizer_state_dict(model, optimizer)
    del state["state"]["0.weight"]
    fresh = AdamW(model.parameters())
    set_optimizer_state_dict(model, fresh, state, options=StateDictOptions(strict=False))
    yield Scene(fresh, model, against=path)
    really(model[0].weight not in fresh.state)


@specimen("M507", "state of another shape is loaded by name", seen_as="M203")
def shapes_by_name() -> Iterator[Scene | str]:
    """Names agree, shapes are not looked at."""
    model, optimizer = trained(AdamW)
    wider = net(6)
    fresh = AdamW(wider.parameters())
    set_optimizer_state_dict(wider, fresh, get_optimizer_state_dict(model, optimizer))
    yield Scene(fresh, wider)
    train(wider, fresh)


@specimen(
    "M508",
    "the optimizer has a parameter that is not in the model",
    unseen="a program may well train more than its model",
)
def outside() -> Iterator[Scene | str]:
    """The state dict by name raises for it."""
    model = net()
    optimizer = push(AdamW([*model.parameters(), nn.Parameter(torch.ones(1))]))
    yield attempt(lambda: get_optimizer_state_dict(model, optimizer))
    yield Scene(optimizer, model)


@specimen("M509", "an optimizer without state is saved flattened", unseen="empty entries do no harm")
def flattened() -> Iterator[Scene | str]:
    """It comes back with an empty entry for every parameter."""
    model = net()
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    optimizer = SGD(model.parameters(), 0.1)
    state = get_optimizer_state_dict(model, SGD(model.parameters(), 0.1), options=options)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    yield Scene(optimizer, model)
    really(optimizer.state_dict()["state"] == {0: {}, 1: {}})


@specimen("M510", "the state of a fresh optimizer is saved while gradients are there", seen_as="M101")
def gradients_in_the_way() -> Iterator[Scene | str]:
    """The state dict by name is empty."""
    model = net()
    optimizer = AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    yield Scene(saved(model, get_optimizer_state_dict(model, optimizer)))


@specimen("M511", "a DCP folder in float32 is loaded into a state dict in bfloat16", seen_as="M210")
def cast_to_target() -> Iterator[Scene | str]:
    """The type of the target wins. Seen beforehand, against the program."""
    model, optimizer = trained(AdamW)
    state = get_optimizer_state_dict(model, optimizer)
    save({"model": model.state_dict(), "optimizer": state}, checkpoint_id="folder")
    model.bfloat16()
    fresh = push(AdamW(model.parameters()))
    yield Scene(Path("folder"), model, against=fresh)
    target = {"optimizer": get_optimizer_state_dict(model, fresh)}
    load(target, checkpoint_id="folder")
    really(target["optimizer"]["state"]["0.weight"]["exp_avg"].dtype == torch.bfloat16)


@specimen("M512", "one bit of a file flips")
def bit_flip() -> Iterator[Scene | str]:
    """No checksum is looked at."""
    model = net(32)
    path = saved(model, train(model, AdamW(model.parameters())))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 64
    path.write_bytes(raw)
    yield Scene(path)
    torch.load(path)


@specimen("M513", "the disk is full while a second thread of the DCP writer writes")
def writer_failed() -> Iterator[Scene | str]:
    """The exception stays in its thread, and the folder is completed."""

    class Full(FileSystem):
        def create_stream(self, path: Any, mode: str) -> Any:
            if threading.current_thread() is not threading.main_thread():
                raise OSError(28, "No space left on device")
            return super().create_stream(path, mode)

    model, optimizer = trained(AdamW)
    writer = FileSystemWriter("folder", single_file_per_rank=False, thread_count=2)
    writer.fs = Full()
    shown, threading.excepthook = threading.excepthook, lambda _: None
    try:
        save({"optimizer": get_optimizer_state_dict(model, optimizer)}, storage_writer=writer)
    finally:
        threading.excepthook = shown
    yield "a thread's traceback on standard error; the save returns"
    yield Scene(Path("folder"))


@specimen("M514", "a load fails half-way and leaves its target half filled", seen_as="M513")
def half_filled() -> Iterator[Scene | str]:
    """One tensor is new, the other old, and the exception is none that `except Exception` catches."""
    save({"x": torch.ones(5), "y": torch.ones(5)}, checkpoint_id="folder")
    shard = Path("folder/__0_0.distcp")
    os.truncate(shard, shard.stat().st_size * 3 // 4)
    target = {"x": torch.zeros(5), "y": torch.zeros(5)}
    yield attempt(lambda: load(target, checkpoint_id="folder"))
    yield Scene(Path("folder"))
    really((target["x"].sum(), target["y"].sum()) == (5, 0))


@specimen(
    "M515",
    "the last good checkpoint is deleted before the new one is whole",
    unseen="nothing is left to be looked at",
    needs=("accelerate",),
)
def deleted_first() -> Iterator[Scene | str]:
    """With a limit of one, and a disk that fills up."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    names = ProjectConfiguration("project", automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(cpu=True, project_config=names)
    model = accelerator.prepare(net())
    accelerator.save_state()

    def full() -> None:
        raise OSError(28, "No space left on device")

    model.state_dict = full
    yield attempt(accelerator.save_state)
    really([*Path("project").rglob("*.*")] == [])


@specimen("M516", "a random state is damaged", seen_as=UNREAD, needs=("accelerate",))
def skipped_random_state() -> Iterator[Scene | str]:
    """It is skipped with a line in the log. Seen is a file that cannot be read."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = net()
    accelerator.prepare(model, push(AdamW(model.parameters())))
    accelerator.save_state("folder")
    Path("folder/random_states_0.pkl").write_bytes(b"damaged")
    accelerator.load_state("folder")
    yield Scene(Path("folder"))


elsewhere("M517", "closing with direct I/O fails", "needs torch_checkpointing; it raises at once")


@specimen("M518", "a DCP folder is loaded with allow_partial_load", unseen="the target looks as it did before the load")
def partial_load() -> Iterator[Scene | str]:
    """A name that the folder lacks keeps what it had."""
    model = net()
    save({"other": torch.ones(4, 4)}, checkpoint_id="folder")
    before = model[0].weight.detach().clone()
    planner = DefaultLoadPlanner(allow_partial_load=True)
    load(model.state_dict(), checkpoint_id="folder", planner=planner)
    yield Scene(AdamW(model.parameters()), model)
    really(torch.equal(before, model[0].weight))


@specimen("M519", "a snapshot is copied while the run goes on", seen_as="M311")
def torn() -> Iterator[Scene | str]:
    """Half of it is of one step, half of the next. Seen are counts that disagree."""
    model, optimizer = trained(AdamW)
    snapshot = taken(optimizer)
    train(model, optimizer, 1)
    snapshot["state"][1] = taken(optimizer)["state"][1]
    yield Scene(saved(model, snapshot))


elsewhere("M520", "ranks list their groups in different orders", "needs several processes; the folder holds one order")


@specimen("M521", "a load hook empties the state dict that it is given", seen_as="M101")
def caller_damaged() -> Iterator[Scene | str]:
    """The caller's own dict is emptied with it. Seen in the file that it is saved to again."""
    model, optimizer = trained(AdamW)
    state = taken(optimizer)
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["state"].clear())
    optimizer.load_state_dict(state)
    really(not state["state"])
    yield Scene(saved(model, state))


@specimen("M522", "a trainer's newest folder was never finished", needs=("transformers", "accelerate"))
def incomplete() -> Iterator[Scene | str]:
    """The highest number is taken, with the mark of an unfinished save in it."""
    from zoo.trainers import hugging_face

    folder = hugging_face(steps=2)
    (folder / "checkpoint-is-incomplete.txt").touch()
    yield Scene(folder)
    hugging_face(steps=3, resume=folder)


elsewhere(
    "M523", "the pointer to the newest checkpoint is written in place", "needs DeepSpeed or Megatron, and a power cut"
)
elsewhere(
    "M524",
    "a file could not be written and nobody says so",
    "needs a file system that refuses; there is no file to be looked at",
)

"""Everything that changes a folder of checkpoints, as a table: what is there before, the change, and what may be seen meanwhile.

Power cuts, kills and faults go through the same table. To have a new verb tortured, add a row.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from optstate.errors import OptstateError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.directory import open_directory, settled
from optstate.formats.ours.manifest import MANIFEST
from optstate.formats.ours.verify import verify
from optstate.state.tensors import TensorRef
from optstate.store.convert import converted
from optstate.store.edit import FileEdit, Options
from optstate.store.files import Files
from optstate.store.keep import put_aside, remove
from optstate.store.shelf import Shelf
from optstate.store.strip import strip
from optstate.store.torch_tree import by_position
from optstate.store.torch_writer import write_torch
from optstate.store.writer import write_checkpoint
from tests.checkpoints import sample, write

RUN = Path("run")
"""The folder in which it happens, below the root."""

Effect = Callable[[Path, Files], None]


class Deed(NamedTuple):
    """A change of a folder.

    prepare, act, again
        Make what is there before; change it; and what the next program does, however the change was cut short.
    stages
        What may be seen, from before to after, as `seen` has it.
    done
        How many of the last stages are a success: what is to go may stay where it cannot be removed.
    """

    prepare: Effect
    act: Effect
    again: Effect
    stages: tuple[str, ...]
    done: int = 1

    @property
    def after(self) -> set[str]:
        return set(self.stages[-self.done :])


# --- what is seen -------------------------------------------------------------------------------------------


def seen(root: Path) -> str:
    """Every visible name in the folder, and what is held there.

    Raises `AssertionError` for values that are those of no step, and what reading raises.
    """
    folder = root / RUN
    if not folder.is_dir():
        return ""
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    aside = {name.removeprefix(".").partition(".old-")[0] for name in os.listdir(folder) if ".old-" in name}
    hidden = {name for name in aside - names if settled(folder / name) != folder / name}
    return " ".join(f"{name}={held(folder / name)}" for name in sorted(names | hidden))


def held(path: Path) -> str:
    """The step of the checkpoint at a path, of whatever format; `!` for a damaged one of ours, `*` for one without optimizer."""
    ours = settled(path)
    if (ours / MANIFEST).exists() and not verify(ours).ok:
        return "!"
    checkpoint = open_checkpoint(path) if path.exists() else open_directory(path)
    assert not checkpoint.unread, checkpoint.unread
    step = checkpoint.step
    assert step is not None
    for name, ref in checkpoint.weights.items():
        assert _values(ref) == [step + _number(name) / 8] * 5, name
    for name, parameter in checkpoint.state.items():
        assert _values(parameter["momentum_buffer"].value) == [-step - _number(name) / 8] * 5, name
    return f"{step}{'*' if checkpoint.weights and not len(checkpoint.state) else ''}"


def _number(name: str) -> int:
    return int(name.split(".")[1])


def _values(ref: TensorRef) -> list[float]:
    assert (ref.dtype, ref.shape) == ("float32", (5,))
    return list(struct.unpack("<5f", ref.array().tobytes()))


# --- the parts of deeds --------------------------------------------------------------------------------------


def made(name: str, step: int, **options: int) -> Effect:
    """Write the checkpoint of a step by way of whatever the deed is given."""

    def effect(root: Path, files: Files) -> None:
        write(root / RUN / name, step, files, **options)

    return effect


def each(*effects: Effect) -> Effect:
    """One after the other."""

    def effect(root: Path, files: Files) -> None:
        for part in effects:
            part(root, files)

    return effect


def folder(root: Path, files: Files) -> None:
    """An empty folder that survives a power cut."""
    files.make_directory(root / RUN)
    files.sync_directory(root)


def gone(name: str) -> Effect:
    """Remove a checkpoint."""

    def effect(root: Path, files: Files) -> None:
        remove(root / RUN / name, files)

    return effect


def opened(root: Path) -> Checkpoint:
    return open_directory(root / RUN / "source")


def turned(target: str, *, replace: bool) -> Effect:
    """Convert the source to what the name of the target says."""

    def effect(root: Path, files: Files) -> None:
        converted(opened(root), root / RUN / target, files, replace=replace)

    return effect


def edited(target: str, *, replace: bool) -> Effect:
    """Edit the source so that its values are those of the next step."""

    def effect(root: Path, files: Files) -> None:
        options = Options(replace=replace, force=True)
        with FileEdit(opened(root), root / RUN / target, options, files=files) as edit:
            edit.select("*").momentum.scale_(1.0)

    return effect


def run(*steps: int, **options: bool) -> Effect:
    """What a checkpointer does, without torch: open the folder, go on from the newest, save these steps."""

    def effect(root: Path, files: Files) -> None:
        shelf = Shelf(
            root / RUN, **{"keep": 2, "keep_every": None, "strip": False, "full": False, **options}, files=files
        )
        try:
            shelf.open()
            if shelf.known:
                shelf.goes_on_from(shelf.known[0])
            for step in steps:
                body, payloads = sample(step, 1)
                body = msgspec.structs.replace(body, run=shelf.run, lineage=shelf.lineage)
                path, mine = shelf.place(step)
                write_checkpoint(path, body, payloads, files, replace=mine)
                shelf.add(path, body.save_id)
        finally:
            shelf.close()

    return effect


def stripped(root: Path, files: Files) -> None:
    """The command over the folder; what it left for a fault of the system is raised."""
    report = strip(root / RUN, keep_last=1, files=files)
    for item in report.left:
        raise OptstateError(f"{item.path.name} was left: {item.why}")


def of_torch(name: str, step: int) -> Effect:
    """A checkpoint as `torch.save` writes it."""

    def effect(root: Path, files: Files) -> None:
        made("source", step, tensors=1)(root, files)
        converted(opened(root), root / RUN / name, files)
        gone("source")(root, files)

    return effect


def of_the_trainer(name: str, step: int) -> Effect:
    """A folder as the Hugging Face Trainer writes it."""

    def effect(root: Path, files: Files) -> None:
        made("source", step, tensors=1)(root, files)
        source, target = opened(root), root / RUN / name
        files.make_directory(target)
        files.sync_directory(root / RUN)
        converted(source, target / "pytorch_model.bin", files, weights_only=True)
        write_torch(target / "optimizer.pt", by_position(source.state, source.state.optimizers[""]), files)
        handle = files.create(target / "trainer_state.json")
        files.write(handle, json.dumps({"global_step": step}).encode(), 0)
        files.sync(handle)
        files.close(handle)
        files.sync_directory(target)
        gone("source")(root, files)

    return effect


def harmed(root: Path, files: Files) -> None:
    """A copy of the first checkpoint as the second, one bit not as it was."""
    source, target = root / RUN / "step-1", root / RUN / "step-2"
    files.make_directory(target)
    for name in sorted(os.listdir(source)):
        raw = bytearray((source / name).read_bytes())
        raw[-1] ^= name == "weights.safetensors"
        handle = files.create(target / name)
        files.write(handle, raw, 0)
        files.sync(handle)
        files.close(handle)
    files.sync_directory(target)
    files.sync_directory(root / RUN)


def aside(root: Path, files: Files) -> None:
    """Put the damaged one aside."""
    if files.kind(root / RUN / "step-2") is not None:
        put_aside(root / RUN / "step-2", "one bit", files)


# --- the table ----------------------------------------------------------------------------------------------

SIZES: dict[str, dict[str, int]] = {
    "no tensor": {"tensors": 0},
    "two files": {"tensors": 3},
    "six files": {"tensors": 3, "header_limit": 1},
    "two hundred tensors": {"tensors": 200},
}
OTHERS = {
    "ours": "target",
    "a file of torch": "target.pt",
    "safetensors": "target.safetensors",
}
STRIPPED: dict[str, tuple[str, Callable[[str, int], Effect]]] = {
    "a directory of ours": ("step-{}{}", made),
    "a file of torch": ("step-{}{}.pt", of_torch),
    "a folder of the Trainer": ("step-{}{}", of_the_trainer),
}


def _saves() -> dict[str, Deed]:
    deeds = {}
    for size, options in SIZES.items():
        first, again = made("ck", 2, **options), made("ck", 2, replace=True, **options)
        deeds[f"save {size}"] = Deed(folder, first, again, ("", "ck=2"))
        deeds[f"replace {size}"] = Deed(each(folder, made("ck", 1, **options)), again, again, ("ck=1", "ck=2"))
    return deeds


def _conversions() -> dict[str, Deed]:
    deeds = {}
    source = each(folder, made("source", 2, tensors=1))
    for what, effect in (("convert to", turned), ("edit into", edited)):
        for kind, name in OTHERS.items():
            again, after = effect(name, replace=True), f"source=2 {name}=2"
            before = each(
                folder,
                made("source", 1, tensors=1),
                turned(name, replace=False),
                gone("source"),
                made("source", 2, tensors=1),
            )
            deeds[f"{what} {kind}"] = Deed(source, effect(name, replace=False), again, ("source=2", after))
            deeds[f"{what} {kind}, replacing"] = Deed(before, again, again, (f"source=2 {name}=1", after))
    return deeds


def _strips() -> dict[str, Deed]:
    deeds = {}
    for kind, (name, make) in STRIPPED.items():
        old, new, copy = name.format(1, ""), name.format(2, ""), name.format(1, ".weights")
        stages = (f"{old}=1 {new}=2", f"{old}=1 {copy}=1* {new}=2", f"{copy}=1* {new}=2")
        deeds[f"strip {kind}"] = Deed(each(folder, make(old, 1), make(new, 2)), stripped, stripped, stages)
    return deeds


DEEDS: dict[str, Deed] = {
    **_saves(),
    "begin a run": Deed(folder, run(1), run(1), ("", "step-1=1")),
    "prune": Deed(
        run(1, 2), run(3), run(3), ("step-1=1 step-2=2", "step-1=1 step-2=2 step-3=3", "step-2=2 step-3=3"), done=2
    ),
    "prune, reading all back": Deed(
        run(1, 2),
        run(3, full=True),
        run(3),
        ("step-1=1 step-2=2", "step-1=1 step-2=2 step-3=3", "step-2=2 step-3=3"),
        done=2,
    ),
    "prune, leaving weights": Deed(
        run(1, 2),
        run(3, strip=True),
        run(3, strip=True),
        (
            "step-1=1 step-2=2",
            "step-1=1 step-2=2 step-3=3",
            "step-1=1 step-1.weights=1* step-2=2 step-3=3",
            "step-1.weights=1* step-2=2 step-3=3",
        ),
        done=3,
    ),
    **_strips(),
    **_conversions(),
    # It is as damaged under its old name, so a power cut may undo it.
    "put a damaged one aside": Deed(
        each(run(1), harmed), aside, aside, ("step-1=1 step-2=!", "step-1=1 step-2.damaged=!"), done=2
    ),
}

"""Small checkpoints made without torch, and what is in one, for tests of the format and of durability."""

from __future__ import annotations

import struct
from collections import deque
from pathlib import Path
from typing import Any

from optstate.errors import NotACheckpoint
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.ours.directory import open_directory
from optstate.formats.ours.manifest import (
    Body,
    Environment,
    GroupEntry,
    ObjectEntry,
    OptimizerEntry,
    ParameterEntry,
    SlotEntry,
    WeightEntry,
)
from optstate.formats.ours.nodes import Dict, Tensor
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.formats.ours.tree import ArrayRef
from optstate.state.tensors import is_tensor
from optstate.store.files import Files, RealFiles
from optstate.store.writer import HEADER_LIMIT, Payload, write_checkpoint


def payload(key: str, values: list[float]) -> Payload:
    """A float32 vector, given in pieces of two elements."""
    raw = struct.pack(f"<{len(values)}f", *values)
    return Payload(key, "float32", (len(values),), lambda: iter([raw[i : i + 8] for i in range(0, len(raw), 8)]))


def sample(step: int, tensors: int = 3) -> tuple[Body, list[Payload]]:
    """A checkpoint of `tensors` parameters and their momentum; all its values are those of its step."""
    names = [f"layers.{number}.weight" for number in range(tensors)]
    body = Body(
        save_id=f"{step:032x}",
        created="2026-01-02T03:04:05Z",
        environment=Environment("3.11", "2.13", "0.1", "Linux"),
        step=step,
        optimizers=(
            OptimizerEntry("", "torch.optim.sgd.SGD", True, (GroupEntry({"lr": 0.1, "momentum": 0.9}, tuple(names)),)),
        ),
        parameters=tuple(
            ParameterEntry(
                name,
                "identity",
                "",
                0,
                (5,),
                "float32",
                slots=(
                    SlotEntry(
                        "momentum_buffer",
                        "momentum",
                        Tensor(f"optimizer/{name}/momentum_buffer"),
                        convention="accumulate",
                        of="gradient",
                    ),
                ),
            )
            for name in names
        ),
        weights=tuple(WeightEntry(name, "parameter", True, f"weights/{name}", "") for name in names),
        objects={"scheduler": ObjectEntry("torch.optim.lr_scheduler.StepLR", Dict([("last_epoch", step)]))},
    )
    payloads = [
        made
        for number, name in enumerate(names)
        for made in (
            payload(f"weights/{name}", [step + number / 8] * 5),
            payload(f"optimizer/{name}/momentum_buffer", [-step - number / 8] * 5),
        )
    ]
    return body, payloads


def write(
    path: Path,
    step: int,
    files: Files | None = None,
    *,
    tensors: int = 3,
    replace: bool = False,
    header_limit: int = HEADER_LIMIT,
) -> None:
    """Write the checkpoint of a step."""
    body, payloads = sample(step, tensors)
    write_checkpoint(path, body, payloads, files or RealFiles(), replace=replace, header_limit=header_limit)


def content(path: Path) -> dict[str, object]:
    """Everything in a checkpoint, every value read and checked."""
    checkpoint = open_directory(path)
    found: dict[str, object] = {"step": checkpoint.step, "objects": repr(checkpoint.objects)}
    for name, weight in checkpoint.weights.items():
        found[name] = weight.dtype, weight.shape, weight.array().tobytes()
    for name, parameter in checkpoint.state.items():
        found[f"{name} about"] = repr(parameter.facts), repr(parameter.absences)
        for slot in parameter.slots.values():
            found[f"{name}/{slot.key}"] = slot.role, slot.dtype, slot.shape, slot.array().tobytes()
    found["groups"] = repr(checkpoint.state.groups)
    return found


def recovered(path: Path) -> int | None:
    """The step of the checkpoint at a path, all of it intact; None when there is none.

    Raises `AssertionError` for one whose values are not those of its step, and lets `Damaged` through.
    """
    try:
        found = content(path)
    except NotACheckpoint:
        return None
    step = found["step"]
    assert isinstance(step, int)
    names = [name for name in found if name.startswith("layers") and name.endswith("weight")]
    for number, name in enumerate(names):
        assert found[name] == ("float32", (5,), struct.pack("<5f", *[step + number / 8] * 5))
        momentum = struct.pack("<5f", *[-step - number / 8] * 5)
        assert found[f"{name}/momentum_buffer"] == ("momentum", "float32", (5,), momentum)
    return step


ABOUT = ("kind", "trainable", "aliases", "fingerprint")
FACTS = ("certainty", "shape", "dtype", "optimizer", "group", "aliases", "trainable")


def described(checkpoint: Checkpoint) -> dict[str, object]:
    """Everything in an opened checkpoint as JSON, values in hexadecimal."""
    state = checkpoint.state
    return {
        "step": checkpoint.step,
        "optimizers": {
            name: [info.class_name, [[shown(group.hyperparameters), list(group.parameters)] for group in info.groups]]
            for name, info in state.optimizers.items()
        },
        "parameters": {
            name: {
                "facts": [getattr(parameter.facts, field) for field in FACTS],
                "absences": {role: absence.value for role, absence in parameter.absences.items()},
                "slots": {
                    key: [slot.role, slot.convention, slot.of, slot.primary, shown(slot.value)]
                    for key, slot in parameter.slots.items()
                },
            }
            for name, parameter in state.items()
        },
        "weights": {
            name: [shown(ref), *(getattr(ref.weight, field) for field in ABOUT)]
            for name, ref in checkpoint.weights.items()
            if isinstance(ref, OwnTensor)
        },
        "objects": {name: shown(value) for name, value in checkpoint.objects.items()},
        "left_out": {reason: list(names) for reason, names in state.left_out.items()},
    }


def shown(value: Any) -> Any:
    """A value with its types as JSON."""
    if isinstance(value, ArrayRef):
        return {"numpy": shown(value.tensor)}
    if isinstance(value, SparseRef):
        return {"sparse": [shown(value.indices), shown(value.values), list(value.shape), value.coalesced]}
    if is_tensor(value):
        stride = getattr(value, "stride", None)
        return [value.dtype, list(value.shape), stride and list(stride), value.array().tobytes().hex()]
    if isinstance(value, dict):
        return {type(value).__name__: [[shown(key), shown(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple, deque)):
        return {type(value).__name__: [shown(item) for item in value]}
    return repr(value)

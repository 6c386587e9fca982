"""What `optstate show --json` prints for programs: the document `optstate.show/1`, see docs/schema."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from optstate.cli.show_text import bytes_on_disk
from optstate.errors import ReadError
from optstate.formats.checkpoint import Checkpoint
from optstate.state.groups import OptimizerInfo
from optstate.state.parameter import ParamState
from optstate.state.plain import plain
from optstate.state.slot import Slot
from optstate.state.stats import Stats
from optstate.state.table import Measured
from optstate.state.tensors import Value, is_tensor, nbytes
from optstate.text import safe_text

SCHEMA = "optstate.show/1"

CANDIDATES = 50
"""Names that are listed of those that a parameter could have."""


def show_document(
    checkpoint: Checkpoint, names: Sequence[str], measured: Measured, *, with_heads: bool
) -> dict[str, Any]:
    """A checkpoint and the given parameters of it, in JSON's own types; `with_heads` adds each slot's first values.

    What cannot be read is null and listed in `unread`.
    """
    state, unread = checkpoint.state, list(checkpoint.unread)
    parameters = [_parameter(state[name], measured, with_heads, unread) for name in names]
    optimizers = [_optimizer(info, unread) for info in state.optimizers.values()]
    return {
        "schema": SCHEMA,
        "path": safe_text(checkpoint.path),
        "bytes": bytes_on_disk(checkpoint.path),
        "format": checkpoint.format,
        "step": checkpoint.step,
        "optimizers": optimizers,
        "parameters": parameters,
        "left_out": {reason: list(names) for reason, names in state.left_out.items()},
        "weights": {
            "tensors": len(checkpoint.weights),
            "bytes": sum(map(nbytes, checkpoint.weights.values())),
        },
        "objects": list(checkpoint.objects),
        "unplaced": [{"path": path, **_described(value, path, unread)} for path, value in checkpoint.unplaced.items()],
        "unread": unread,
        "clues": [{"code": clue.code, "evidence": clue.evidence, "fix": clue.fix} for clue in checkpoint.clues],
        "notes": list(checkpoint.notes),
        "journal": checkpoint.journal.document()["entries"],
    }


def _described(value: Value, where: str, unread: list[str]) -> dict[str, Any]:
    """What a value is, and the value itself where it is one number or no tensor; `unread` takes what cannot be read."""
    document: dict[str, Any] = {"shape": None, "dtype": None}
    if is_tensor(value):
        document = {"shape": list(value.shape), "dtype": value.dtype}
    if not is_tensor(value) or prod(value.shape) == 1:
        document["value"] = _read(value, where, unread)
    return document


def _read(value: Any, where: str, unread: list[str]) -> Any:
    """A value in JSON's own types; null, and a line in `unread`, where it cannot be read."""
    try:
        return plain(value)
    except ReadError as error:
        unread.append(f"{where}: {error.what}")
        return None


def _optimizer(info: OptimizerInfo, unread: list[str]) -> dict[str, Any]:
    return {
        "name": info.name,
        "class": info.class_name,
        "inferred": info.inferred,
        "alternatives": list(info.alternatives),
        "known": info.known,
        "groups": [
            {
                "index": group.index,
                "parameters": len(group.parameters),
                "hyperparameters": {
                    str(key): _read(value, f"group {group.index}, {safe_text(key, 40)}", unread)
                    for key, value in group.hyperparameters.items()
                },
            }
            for group in info.groups
        ],
    }


def _parameter(parameter: ParamState, measured: Measured, with_heads: bool, unread: list[str]) -> dict[str, Any]:
    facts = parameter.facts
    return {
        "name": facts.name,
        "name_certainty": facts.certainty,
        "position": facts.position,
        "one_of": len(facts.candidates),
        "candidates": list(facts.candidates[:CANDIDATES]),
        "aliases": list(facts.aliases),
        "shape": None if facts.shape is None else list(facts.shape),
        "dtype": facts.dtype,
        "optimizer": facts.optimizer,
        "group": facts.group,
        "trainable": facts.trainable,
        "slots": [
            _slot(slot, measured.get((slot.parameter, slot.key)), with_heads, unread)
            for slot in parameter.slots.values()
        ],
        "absences": [{"role": role, "reason": absence.value} for role, absence in parameter.absences.items()],
    }


def _slot(slot: Slot, stats: Stats | None, with_heads: bool, unread: list[str]) -> dict[str, Any]:
    document = {
        "key": slot.key,
        "role": slot.role,
        "primary": slot.primary,
        "convention": slot.convention,
        "of": slot.of,
        **_described(slot.value, slot.path, unread),
    }
    if stats is not None:
        document |= {"norm": plain(stats.norm), "nonfinite": stats.nonfinite, "zeros": stats.zeros}
    if with_heads:
        document["head"] = plain(slot.head())
    return document

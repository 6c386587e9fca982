"""What `optstate show --json` prints for programs: the document `optstate.show/1`, see docs/schema."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan, prod
from typing import Any

from optstate.cli.show_text import bytes_on_disk
from optstate.formats.checkpoint import Checkpoint
from optstate.state.groups import OptimizerInfo
from optstate.state.parameter import ParamState
from optstate.state.slot import Slot
from optstate.state.stats import Stats
from optstate.state.table import Measured
from optstate.state.tensors import is_tensor, nbytes
from optstate.text import safe_text

SCHEMA = "optstate.show/1"


def show_document(
    checkpoint: Checkpoint, names: Sequence[str], measured: Measured, *, with_heads: bool
) -> dict[str, Any]:
    """A checkpoint and the given parameters of it, in JSON's own types; `with_heads` adds each slot's first values."""
    state = checkpoint.state
    return {
        "schema": SCHEMA,
        "path": safe_text(checkpoint.path),
        "bytes": bytes_on_disk(checkpoint.path),
        "format": checkpoint.format,
        "step": checkpoint.step,
        "optimizers": [_optimizer(info) for info in state.optimizers.values()],
        "parameters": [_parameter(state[name], measured, with_heads) for name in names],
        "left_out": {reason: list(names) for reason, names in state.left_out.items()},
        "weights": {
            "tensors": len(checkpoint.weights),
            "bytes": sum(map(nbytes, checkpoint.weights.values())),
        },
        "objects": list(checkpoint.objects),
        "notes": list(checkpoint.notes),
    }


def _optimizer(info: OptimizerInfo) -> dict[str, Any]:
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
                "hyperparameters": plain(dict(group.hyperparameters)),
            }
            for group in info.groups
        ],
    }


def _parameter(parameter: ParamState, measured: Measured, with_heads: bool) -> dict[str, Any]:
    facts = parameter.facts
    return {
        "name": facts.name,
        "name_certainty": facts.certainty,
        "aliases": list(facts.aliases),
        "shape": None if facts.shape is None else list(facts.shape),
        "dtype": facts.dtype,
        "optimizer": facts.optimizer,
        "group": facts.group,
        "trainable": facts.trainable,
        "slots": [
            _slot(slot, measured.get((slot.parameter, slot.key)), with_heads) for slot in parameter.slots.values()
        ],
        "absences": [{"role": role, "reason": absence.value} for role, absence in parameter.absences.items()],
    }


def _slot(slot: Slot, stats: Stats | None, with_heads: bool) -> dict[str, Any]:
    shape = slot.shape
    document = {
        "key": slot.key,
        "role": slot.role,
        "primary": slot.primary,
        "convention": slot.convention,
        "of": slot.of,
        "shape": None if shape is None else list(shape),
        "dtype": slot.dtype,
    }
    if shape is None or prod(shape) == 1:
        document["value"] = plain(slot.value)
    if stats is not None:
        document |= {"norm": plain(stats.norm), "nonfinite": stats.nonfinite, "zeros": stats.zeros}
    if with_heads:
        document["head"] = plain(slot.head())
    return document


def plain(value: Any) -> Any:
    """A value in JSON's own types.

    JSON has no number for NaN and the infinities: they become `"NaN"`, `"Infinity"`, `"-Infinity"`. A tensor
    of one element becomes its number, any other `{"dtype", "shape"}`; bytes become their count; what is
    nothing of all this becomes text.
    """
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, complex):
        return {"real": plain(value.real), "imag": plain(value.imag)}
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if is_tensor(value):
        return plain(value.item()) if prod(value.shape) == 1 else {"dtype": value.dtype, "shape": list(value.shape)}
    return safe_text(value)

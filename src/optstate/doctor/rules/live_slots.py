"""Slots of a running optimizer held against their parameters and against what the class keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optstate.doctor.evidence import LiveEvidence, LiveParameter, LiveSlot
from optstate.doctor.finding import Finding
from optstate.doctor.rules.asking import live_rule
from optstate.doctor.rules.torch_load import COMPUTES_MIXED, due_shape
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import SlotSpec
from optstate.text import count, safe_text

Seen = tuple[LiveSlot, LiveParameter, SlotSpec]


def _known(live: LiveEvidence) -> Iterator[Seen]:
    """Every slot that the registry describes."""
    specs = {name: by_name(optimizer.described_as) for name, optimizer in live.optimizers.items()}
    for slot in live.slots:
        parameter = live.parameters[slot.parameter]
        spec = specs[parameter.optimizer]
        if spec is not None and slot.key in spec.slots and not spec.order_matters:
            yield slot, parameter, spec.slots[slot.key]


def _report(code: str, seen: list[Seen], say: Callable[[LiveSlot, LiveParameter], str]) -> Iterator[Finding]:
    """One finding for all slots of a kind: how many, and what is wrong with the first."""
    if seen:
        slot, parameter, _ = seen[0]
        name = f"{safe_text(slot.parameter)}/{safe_text(slot.key)}"
        more = f" (and {count(len(seen) - 1, 'slot')} more)" if len(seen) > 1 else ""
        yield Finding(code, f"{name} {say(slot, parameter)}{more}", tuple(dict.fromkeys(each[1].name for each in seen)))


# --- shapes ----------------------------------------------------------------------------------------------


def _shapes(live: LiveEvidence) -> Iterator[Finding]:
    wrong = [
        (slot, parameter, row)
        for slot, parameter, row in _known(live)
        if parameter.shape is not None and due_shape(row, parameter.shape) not in (None, slot.shape)
    ]
    resized = [each for each in wrong if _resized(each[0].shape, each[1].shape)]
    yield from _report(
        "M222",
        resized,
        lambda slot, parameter: (
            f"has shape {list(slot.shape)} and its parameter {list(parameter.shape or ())}, as after rows were cut or added"
        ),
    )
    others = [each for each in wrong if not _resized(each[0].shape, each[1].shape)]
    yield from _report(
        "M203",
        others,
        lambda slot, parameter: (
            f"has shape {list(slot.shape)}, which is not that of its parameter, {list(parameter.shape or ())}"
        ),
    )


def _resized(slot: tuple[int, ...], parameter: tuple[int, ...] | None) -> bool:
    """Whether all sizes but one are the same, as after an embedding grew."""
    if parameter is None or len(slot) != len(parameter):
        return False
    return sum(mine != theirs for mine, theirs in zip(slot, parameter, strict=True)) == 1


# --- element types and devices -----------------------------------------------------------------------------


def _dtypes(live: LiveEvidence) -> Iterator[Finding]:
    short = [seen for seen in _known(live) if seen[2].dtype == "scalar" and seen[0].dtype in ("bfloat16", "float16")]
    for code, found in (
        ("M212", [seen for seen in short if seen[2].role == "step"]),
        ("M211", [seen for seen in short if seen[2].role != "step"]),
    ):
        yield from _report(code, found, lambda slot, _: f"is {slot.dtype}, too short for what it has to hold")
    drifted = [
        (slot, parameter, row)
        for slot, parameter, row in _known(live)
        if row.dtype in ("parameter", "gradient") and slot.dtype != parameter.dtype
    ]
    mixed = [each for each in drifted if _computes_mixed(each[1], live)]
    yield from _report(
        "M231",
        mixed,
        lambda slot, parameter: (
            f"is {slot.dtype} and its parameter {parameter.dtype}: this optimizer goes on so, a file that is loaded does not"
        ),
    )
    stuck = [each for each in drifted if not _computes_mixed(each[1], live)]
    yield from _report(
        "M214",
        stuck,
        lambda slot, parameter: (
            f"is {slot.dtype} and its parameter {parameter.dtype}: the next step raises RuntimeError"
        ),
    )


def _computes_mixed(parameter: LiveParameter, live: LiveEvidence) -> bool:
    """Whether a step goes through with slots of another element type than the parameter's."""
    group = _group(parameter, live)
    tolerant = live.optimizers[parameter.optimizer].described_as in COMPUTES_MIXED
    return tolerant and not group.get("fused") and not group.get("centered")


def _devices(live: LiveEvidence) -> Iterator[Finding]:
    away = [
        (slot, parameter, row)
        for slot, parameter, row in _known(live)
        if row.home == "parameter" and slot.device != parameter.device
    ]
    yield from _report(
        "M214", away, lambda slot, parameter: f"is on {slot.device} and its parameter on {parameter.device}"
    )
    steps = [(slot, parameter, row) for slot, parameter, row in _known(live) if row.home == "step"]
    wrong = [each for each in steps if _in_kernel(_group(each[1], live)) and each[0].device != each[1].device]
    yield from _report(
        "M215",
        wrong,
        lambda slot, parameter: (
            f"is on {slot.device}, and the kernel of a fused or capturable group wants it on {parameter.device}"
        ),
    )


def _in_kernel(group: Mapping[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))


def _group(parameter: LiveParameter, live: LiveEvidence) -> Mapping[str, Any]:
    return live.state.optimizers[parameter.optimizer].groups[parameter.group].hyperparameters


RULES = (
    live_rule(_shapes, "M203", "M222", checks="shapes"),
    live_rule(_dtypes, "M211", "M212", "M214", "M231", checks="dtypes"),
    live_rule(_devices, "M214", "M215", checks="devices"),
)

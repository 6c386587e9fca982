"""Which slots a parameter has, and of what kind: companions, flags without their slot, what is no tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.wording import about, at_group, called, places
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import OptimizerSpec, SlotSpec
from optstate.state.groups import Group
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParamState
from optstate.state.slot import Slot
from optstate.state.tensors import DTYPES, is_tensor
from optstate.text import count, listing, safe_text

_FLAGS_OF_SHAPE = ("matrix", "vector", None)


def _incomplete(case: Case) -> Iterator[Finding]:
    """Slots that belong to those that are there: of every state, or of one with a flag that is on."""
    missing: dict[tuple[str, str, str, str], list[str]] = {}
    for parameter, group, spec in _described(case.state):
        if not parameter.slots or spec.order_matters:
            continue
        for key, row in spec.slots.items():
            if key not in parameter.slots and _due(row, parameter, group):
                code = "M114" if row.when in _FLAGS_OF_SHAPE else "M115"
                missing.setdefault((code, group.optimizer, key, row.when or ""), []).append(parameter.name)
    for (code, optimizer, key, flag), names in missing.items():
        on = f" although {flag} is on" if code == "M115" else ""
        yield about(code, names, f"lack {key}{on} and have other slots", where=called(optimizer))


def _due(row: SlotSpec, parameter: ParamState, group: Group) -> bool:
    """Whether a step would have created the slot. A flag that a group does not state is off."""
    shape = parameter.facts.shape
    if row.created == "after first step" or (row.when not in _FLAGS_OF_SHAPE and row.when not in group.hyperparameters):
        return False
    return row.exists(group.hyperparameters, None if shape is None else len(shape)) and not (
        row.when in ("matrix", "vector") and shape is None
    )


def _mixed_fused_sgd(case: Case) -> Iterator[Finding]:
    """Fused SGD wants a buffer for every parameter of a group or for none."""
    for group in case.state.groups:
        info = case.state.optimizers[group.optimizer]
        if info.class_name != "torch.optim.sgd.SGD" or not group.hyperparameters.get("fused"):
            continue
        without = [name for name in group.parameters if case.state[name].find("momentum") is None]
        if group.hyperparameters.get("momentum") and 0 < len(without) < len(group.parameters):
            where = at_group(group.optimizer, group.index)
            yield about("M116", without, "have no momentum buffer", of=len(group.parameters), where=where)


def _corrupted(case: Case) -> Iterator[Finding]:
    """Something that is neither number nor tensor where the optimizer keeps a tensor."""
    odd = [
        slot
        for parameter, _, spec in _described(case.state)
        for slot in parameter.slots.values()
        if slot.key in spec.slots and spec.slots[slot.key].shape != "list" and not _numeric(slot.value)
    ]
    if odd:
        first = odd[0]
        yield Finding(
            "M213",
            f"{count(len(odd), 'slot')} hold no number and no tensor: {places((s.parameter, s.key) for s in odd)}; "
            f"{safe_text(first.key)} of the first is {type(first.value).__name__} {safe_text(repr(first.value), 60)}",
            tuple(dict.fromkeys(slot.parameter for slot in odd)),
        )


def _numeric(value: object) -> bool:
    return is_tensor(value) or isinstance(value, (bool, int, float, complex))


def _quantised(case: Case) -> Iterator[Finding]:
    """Slots in blocks of codes, or of another type whose elements are no values."""
    found = [slot for slot in _slots(case.state) if slot.dtype is not None and slot.dtype not in DTYPES]
    kinds = sorted({str(slot.dtype) for slot in found})
    if found:
        evidence = f"{count(len(found), 'slot')} in {', '.join(map(safe_text, kinds))}: {_places(found)}"
        yield Finding("M303", evidence, tuple(dict.fromkeys(slot.parameter for slot in found)))


def _weights_in_state(case: Case) -> Iterator[Finding]:
    """Slots that are copies or averages of the weights."""
    found = [slot for slot in _slots(case.state) if slot.role == "averaged_weights"]
    if found:
        keys = ", ".join(sorted({safe_text(slot.key) for slot in found}))
        evidence = f"{keys} of {count(len(found), 'parameter')} is an average of weights"
        yield Finding("M318", evidence, tuple(slot.parameter for slot in found))


# --- what only a file shows so -----------------------------------------------------------------------------

_EXACT_UP_TO = {"bfloat16": 2**8, "float16": 2**11}
"""The integers up to which a short floating-point type can count."""


def _short_scalars(case: Case) -> Iterator[Finding]:
    """Counters and factors in a type that cannot hold them."""
    counters: list[Slot] = []
    factors: list[Slot] = []
    for parameter, _, spec in _described(case.state):
        for slot in parameter.slots.values():
            row = spec.slots.get(slot.key)
            if row is not None and row.dtype == "scalar" and slot.dtype in _EXACT_UP_TO:
                (counters if row.role in ("step", "counter") else factors).append(slot)
    for code, found in (("M212", counters), ("M211", factors)):
        if found:
            dtype = str(found[0].dtype)
            limit = f", which counts to {_EXACT_UP_TO[dtype]:,}" if code == "M212" else ""
            evidence = f"{count(len(found), 'slot')} in {dtype}{limit}: {_places(found)}"
            yield Finding(code, evidence, tuple(slot.parameter for slot in found))


def _narrow_moments(case: Case) -> Iterator[Finding]:
    """Moments in a shorter type than the weights beside them, which torch's optimizers never create."""
    checkpoint = case.checkpoint
    weights = {} if checkpoint is None else checkpoint.weights
    narrow: dict[tuple[str, str], list[Slot]] = {}
    for parameter, _, spec in _described(case.state):
        weight = weights.get(parameter.name)
        for slot in parameter.slots.values() if weight is not None else ():
            row = spec.slots.get(slot.key)
            if row is not None and row.shape == "parameter" and weight and _narrower(slot.dtype, weight.dtype):
                narrow.setdefault((str(slot.dtype), weight.dtype), []).append(slot)
    for (dtype, wider), slots in narrow.items():
        evidence = f"{count(len(slots), 'slot')} in {dtype} beside weights in {wider}: {_places(slots)}"
        yield Finding("M210", evidence, tuple(dict.fromkeys(slot.parameter for slot in slots)))


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _narrower(dtype: str | None, than: str) -> bool:
    return dtype in _FLOATS and than in _FLOATS and DTYPES[dtype][0] < DTYPES[than][0]


def _shared_steps(case: Case) -> Iterator[Finding]:
    """Parameters whose step is one and the same tensor of the file."""
    by_tensor: dict[object, list[str]] = {}
    for parameter in case.state.values():
        step = parameter.find("step")
        if step is not None and isinstance(step.value, StoredTensor):
            by_tensor.setdefault(step.value.identity, []).append(parameter.name)
    for names in by_tensor.values():
        if len(names) > 1:
            yield about("M225", names, "count in one tensor")


def _one_memory(case: Case) -> Iterator[Finding]:
    """Parameters of which several slots are the same tensor of the file."""
    found: dict[str, list[str]] = {}
    for parameter in case.state.values():
        by_tensor: dict[object, list[str]] = {}
        for key, slot in parameter.slots.items():
            if isinstance(slot.value, StoredTensor) and slot.value.shape and all(slot.value.shape):
                by_tensor.setdefault(slot.value.identity, []).append(key)
        for keys in by_tensor.values():
            if len(keys) > 1:
                found.setdefault(listing(keys), []).append(parameter.name)
    for keys_said, names in found.items():
        yield about("M232", names, f"have one tensor for {keys_said}")


# --- walking -----------------------------------------------------------------------------------------------


def _described(state: OptimizerState) -> Iterator[tuple[ParamState, Group, OptimizerSpec]]:
    """Every parameter of an optimizer that the registry knows, with its group."""
    specs = {name: by_name(info.class_name) if info.known else None for name, info in state.optimizers.items()}
    for parameter in state.values():
        spec = specs[parameter.facts.optimizer]
        if spec is not None:
            yield parameter, state.optimizers[parameter.facts.optimizer].groups[parameter.facts.group], spec


def _slots(state: OptimizerState) -> Iterator[Slot]:
    return (slot for parameter in state.values() for slot in parameter.slots.values())


def _places(slots: Sequence[Slot]) -> str:
    return places((slot.parameter, slot.key) for slot in slots)


RULES = (
    Rule(("M114", "M115"), "state", _incomplete, "slots"),
    Rule(("M116",), "state", _mixed_fused_sgd, "slots"),
    Rule(("M213",), "state", _corrupted, "slots"),
    Rule(("M303",), "state", _quantised, "dtypes"),
    Rule(("M318",), "state", _weights_in_state, "slots"),
    Rule(("M211", "M212"), "file", _short_scalars, "dtypes"),
    Rule(("M210",), "file", _narrow_moments, "dtypes"),
    Rule(("M225",), "file", _shared_steps, "steps"),
    Rule(("M232",), "file", _one_memory, "slots"),
)

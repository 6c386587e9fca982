"""A file against a program: what would loading do to each slot?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optstate.doctor.case import Case
from optstate.doctor.evidence import LiveParameter
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.load_pairing import Pairing, pairings
from optstate.doctor.rules.torch_load import due_shape
from optstate.doctor.rules.wording import about, called, places
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import SlotSpec
from optstate.state.parameter import ParamState
from optstate.state.slot import Slot
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import count, safe_text


class Move(NamedTuple):
    """A slot of the file on its way to a live parameter, with what the registry says of it."""

    slot: Slot
    parameter: LiveParameter
    row: SlotSpec | None


def _moves(pairing: Pairing) -> list[Move]:
    spec = by_name(pairing.built.described_as)
    rows = spec.slots if spec is not None else {}
    return [Move(slot, live, rows.get(slot.key)) for saved, live in pairing.members for slot in saved.slots.values()]


def _loaded(case: Case) -> Iterator[Pairing]:
    """Optimizers of the file that torch would go so far as to load."""
    for pairing in pairings(case):
        if pairing.way != "position" or pairing.fits:
            yield pairing


# --- whether it is there, and fits ----------------------------------------------------------------------------


def _emptied(case: Case) -> Iterator[Finding]:
    for pairing in _loaded(case):
        spec = by_name(pairing.built.described_as)
        keeps = spec is not None and any(
            row.exists(group.hyperparameters, None) for row in spec.slots.values() for group in pairing.live.groups
        )
        if keeps and pairing.members and not any(saved.slots for saved, _ in pairing.members):
            yield Finding(
                "M102",
                f"the file has state for none of {count(len(pairing.members), 'parameter')}; loading it replaces what the "
                "program has by nothing",
                where=called(pairing.live.name),
            )


def _frozen(case: Case) -> Iterator[Finding]:
    for pairing in pairings(case):
        dropped = [live.name for saved, live in pairing.members if saved.slots and not live.trainable]
        if pairing.way == "name" and dropped:
            says = "frozen in the program: set_optimizer_state_dict leaves their state out"
            yield about("M104", dropped, says, of=len(pairing.members), where=called(pairing.live.name))


def _shapes(case: Case) -> Iterator[Finding]:
    for pairing in _loaded(case):
        order = by_name(pairing.built.described_as)
        if order is not None and order.order_matters:
            continue
        wrong = [
            (saved, live)
            for saved, live in pairing.members
            if live.shape is not None and _misshapen(saved, live, pairing)
        ]
        if wrong:
            saved, live = wrong[0]
            shape = f"{safe_text(live.name)} has {list(live.shape or ())}, its state in the file is for {_shape(saved)}"
            late = "" if pairing.way == "restore" else "; load_state_dict accepts it, the next step raises"
            yield Finding("M203", f"{shape}{late}", tuple(each.name for _, each in wrong), called(pairing.live.name))


def _misshapen(saved: ParamState, live: LiveParameter, pairing: Pairing) -> bool:
    spec = by_name(pairing.built.described_as)
    if spec is None:
        return saved.facts.shape not in (None, live.shape)
    rows = [(slot, spec.slots[slot.key]) for slot in saved.slots.values() if slot.key in spec.slots]
    return any(
        due_shape(row, live.shape or ()) not in (None, slot.shape) for slot, row in rows if slot.shape is not None
    )


def _shape(saved: ParamState) -> str:
    if saved.facts.shape is not None:
        return str(list(saved.facts.shape))
    return ", ".join(f"{safe_text(slot.key)} {list(slot.shape)}" for slot in saved.slots.values() if slot.shape)


# --- what the cast does -----------------------------------------------------------------------------------------


def _casts(case: Case) -> Iterator[Finding]:
    """torch gives every tensor but `step` the parameter's element type."""
    for pairing in _loaded(case):
        if not pairing.torch_loads:
            continue
        for code in ("M210", "M211", "M212"):
            cast = [move for move in _moves(pairing) if _is_cast(move) and _kind(move) == code]
            yield from _report(code, cast, pairing, lambda move: f"{_types(move)} → {move.parameter.dtype}")


def _kind(move: Move) -> str:
    """The code of a cast: of a counter or mask, of a factor, or of a moment."""
    if not all(_is_floating(dtype) or dtype.startswith("complex") for dtype in _types(move).split(", ")):
        return "M212"
    return "M211" if move.row is not None and move.row.dtype == "scalar" else "M210"


def _types(move: Move) -> str:
    """The element types of a slot; mostly one."""
    return ", ".join(dict.fromkeys(tensor.dtype for tensor in _tensors(move.slot.value)))


def _is_cast(move: Move) -> bool:
    if move.slot.key == "step" or not _is_floating(move.parameter.dtype):
        return False
    return any(tensor.dtype != move.parameter.dtype for tensor in _tensors(move.slot.value))


def _is_floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _tensors(value: Any) -> list[TensorRef]:
    if is_tensor(value):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _texts(case: Case) -> Iterator[Finding]:
    for pairing in _loaded(case):
        texts = [move for move in _moves(pairing) if isinstance(move.slot.value, str)]
        if pairing.torch_loads:
            yield from _report("M213", texts, pairing, lambda _: "text → the name of a generator object")


def _report(code: str, moves: list[Move], pairing: Pairing, says: Callable[[Move], str]) -> Iterator[Finding]:
    if moves:
        yield Finding(
            code,
            f"loading turns {count(len(moves), 'slot')} ({places((m.parameter.name, m.slot.key) for m in moves[:2])}) from "
            f"{says(moves[0])}",
            tuple(dict.fromkeys(move.parameter.name for move in moves)),
            called(pairing.live.name),
        )


def _hosts(case: Case) -> Iterator[Finding]:
    """`step` stays where the file's own flags say, and the kernel of the live flags wants it on the device."""
    for pairing in _loaded(case):
        stranded = [
            live.name
            for saved, live in pairing.members
            if pairing.torch_loads and "step" in saved.slots and live.device != "cpu"
            and _in_kernel(pairing.live.groups[live.group].hyperparameters)
            and not _in_kernel(pairing.saved.groups[saved.facts.group].hyperparameters)
        ]  # fmt: skip
        if stranded:
            says = "would keep `step` where torch.load put it, and fused or capturable kernels want it on the device"
            yield about("M215", stranded, says, of=len(pairing.members), where=called(pairing.live.name))


def _in_kernel(group: Any) -> bool:
    return bool(group.get("fused") or group.get("capturable"))


RULES = (
    Rule(("M102",), "file and live", _emptied, "presence"),
    Rule(("M104",), "file and live", _frozen, "presence"),
    Rule(("M203",), "file and live", _shapes, "shapes"),
    Rule(("M210", "M211", "M212"), "file and live", _casts, "dtypes"),
    Rule(("M213",), "file and live", _texts, "dtypes"),
    Rule(("M215",), "file and live", _hosts, "devices"),
)

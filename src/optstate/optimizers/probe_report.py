"""The report of a probe: what a class keeps, the description that this suggests, and where another one is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from optstate.optimizers.measured import MeasuredSlot, behaviour_differences, close, structure_differences
from optstate.optimizers.spec import IMPLEMENTATION_FLAGS, OptimizerSpec, SlotSpec, number
from optstate.state.roles import Role
from optstate.state.slot import format_number
from optstate.state.table import Table, format_value
from optstate.text import listing, safe_text

Gradients = Literal["dense", "sparse", "closure"]
"""How the optimizer was given gradients. `closure`: it evaluates the loss itself, as often as it likes, so that only
the structure of its state was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What `optstate.probe` learned of one optimizer class under one set of hyperparameters.

    `ranks` are the numbers of dimensions of the parameters that it was given, `group_state` the keys of its param
    group that stepping changes: state outside of the slots. Printing shows a table, one row per slot.
    """

    name: str
    hyperparameters: Mapping[str, Any]
    gradients: Gradients
    ranks: tuple[int, ...]
    slots: Mapping[str, MeasuredSlot]
    group_state: tuple[str, ...] = ()

    def differences(self, spec: OptimizerSpec) -> list[str]:
        """Where a description disagrees with what was measured, one line each; empty where nowhere.

        Not seen by a probe, and so taken on trust: the device of a slot, companions, what other hyperparameters
        would do, and where the optimizer needs a closure everything but shapes, types and times of creation.

        >>> optstate.probe(torch.optim.Muon).differences(spec_of_an_accumulating_muon)
        ['momentum_buffer: convention described as accumulate of gradient, a steady gain of 20, measured 1']
        """
        keys = [*spec.slots, *(key for key in self.slots if key not in spec.slots)]
        return [f"{safe_text(key)}: {line}" for key in keys for line in self._slot_differences(spec, key)]

    def _slot_differences(self, spec: OptimizerSpec, key: str) -> Iterator[str]:
        described, measured = spec.slots.get(key), self.slots.get(key)
        if described is None:
            yield "kept, but not described"
            return
        expected = tuple(rank for rank in self.ranks if described.exists(self.hyperparameters, rank))
        if measured is None:
            if expected:
                yield "described, but not kept"
            return
        if expected != measured.ranks and not (expected and spec.order_matters):
            yield f"described for parameters of {_dimensions(expected)}, kept for {_dimensions(measured.ranks)}"
        yield from structure_differences(described, measured)
        if self.gradients != "closure":
            yield from behaviour_differences(described, measured, self.hyperparameters)

    def suggestion(self) -> OptimizerSpec:
        """The description that the measurement suggests; each slot is a companion of all others, to be safe."""
        slots: dict[str, SlotSpec] = {}
        for key, slot in self.slots.items():
            taken = {other.role for other in slots.values()}
            role: Role = "counter" if slot.role == "step" and "step" in taken else slot.role
            convention = slot.convention(self.hyperparameters)
            slots[key] = SlotSpec(
                role=role,
                convention=convention,
                of=None if convention is None else "gradient" if slot.gradient_degree == 1 else "preconditioned",
                primary=role not in taken or role in ("counter", "other"),
                shape=slot.shape or "list",
                dtype=slot.dtype,
                created=slot.created,
                when=self._when(slot),
                coefficient=slot.coefficients[0] if slot.coefficients else None,
                reset=self._reset(slot),
                companions=tuple(other for other in self.slots if other != key),
                gradient_degree=slot.gradient_degree,
                lr_degree=slot.lr_degree,
            )
        hyperparameters = tuple(key for key in self.hyperparameters if key not in IMPLEMENTATION_FLAGS)
        return OptimizerSpec(name=self.name, slots=slots, hyperparameters=hyperparameters)

    def registration(self) -> str:
        """Python text that registers the suggestion: to read, to correct where one knows more, and to paste.

        >>> print(optstate.probe(torch.optim.Muon).registration())
        optstate.register(
            'torch.optim.Muon',
            {
                'momentum_buffer': optstate.SlotSpec(role='momentum', convention='ema', of='gradient', ...),
            },
            hyperparameters=('lr', 'weight_decay', 'momentum', ...),
        )
        """
        spec = self.suggestion()
        rows = "".join(f"        {key!r}: {_as_python(slot)},\n" for key, slot in spec.slots.items())
        return (
            f"optstate.register(\n    {spec.name!r},\n    {{\n{rows}    }},\n"
            f"    hyperparameters={spec.hyperparameters!r},\n)"
        )

    def _when(self, slot: MeasuredSlot) -> str | None:
        conditions = {
            tuple(rank for rank in self.ranks if rank >= 2): "matrix",
            tuple(rank for rank in self.ranks if rank < 2): "vector",
        }
        return None if slot.ranks == self.ranks else conditions.get(slot.ranks)

    def _reset(self, slot: MeasuredSlot) -> float | str:
        """The fresh value in the words of `SlotSpec.reset`: by name where it is the value of one hyperparameter."""
        if slot.fresh is None:
            return "delete"
        if slot.fresh in ("parameter", "delete", 0.0, 1.0):
            return slot.fresh
        named = [key for key, value in self.hyperparameters.items() if close(number(value), slot.fresh)]
        return named[0] if len(named) == 1 else slot.fresh

    def __str__(self) -> str:
        values = " · ".join(
            f"{safe_text(key, 32)} {format_value(value)}"
            for key, value in self.hyperparameters.items()
            if value is not None and value is not False
        )
        notes = [] if self.slots else ["it keeps no state, configured as it is"]
        if self.gradients == "closure":
            notes.append("it evaluates a closure itself: only the structure of its state was measured")
        if self.group_state:
            notes.append(f"stepping also changes its param group: {listing(self.group_state)}")
        return Table(
            title=[
                safe_text(self.name),
                values,
                f"probed with {self.gradients} gradients on parameters of {_dimensions(self.ranks)}",
            ],
            header=_HEADER,
            rows=[self._row(key, slot) for key, slot in self.slots.items()],
            notes=notes,
            right=frozenset({"GRADIENT", "LR", "DECAY", "GAIN"}),
        ).text()

    __repr__ = __str__

    def _row(self, key: str, slot: MeasuredSlot) -> list[str]:
        convention = slot.convention(self.hyperparameters)
        return [
            safe_text(key, 40),
            "all" if slot.ranks == self.ranks else _dimensions(slot.ranks),
            slot.shape or "?",
            slot.dtype,
            slot.created,
            _UNKNOWN if slot.fresh is None else format_number(self._reset(slot)),
            _SIGNS[slot.signed],
            *(
                _UNKNOWN if value is None else format_number(value)
                for value in (slot.gradient_degree, slot.lr_degree, slot.decay, slot.gain)
            ),
            slot.role if convention is None else f"{slot.role}, {convention}",
        ]


_HEADER = (
    "SLOT",
    "PARAMETERS",
    "SHAPE",
    "DTYPE",
    "CREATED",
    "FRESH",
    "SIGN",
    "GRADIENT^",
    "LR^",
    "DECAY",
    "GAIN",
    "SUGGESTS",
)
_UNKNOWN = "–"
_SIGNS = {None: _UNKNOWN, True: "±", False: "≥0"}


def _dimensions(ranks: tuple[int, ...]) -> str:
    """`1, 2 dimensions`, or `none` where there are no ranks."""
    return f"{', '.join(map(str, ranks))} dimensions" if ranks else "no dimensions at all"


def _as_python(slot: SlotSpec) -> str:
    """`SlotSpec` as a call that leaves out what is default."""
    defaults = SlotSpec(role=slot.role)
    given = [f"role={slot.role!r}"] + [
        f"{field.name}={getattr(slot, field.name)!r}"
        for field in fields(slot)
        if getattr(slot, field.name) != getattr(defaults, field.name)
    ]
    return f"optstate.SlotSpec({', '.join(given)})"

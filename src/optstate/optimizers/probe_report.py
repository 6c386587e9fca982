"""The report of a probe: what a class keeps, the description that this suggests, and where another one is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import inf
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

    >>> print(optstate.probe(torch.optim.Rprop))
    torch.optim.rprop.Rprop
    lr 0.01 · etas (0.5, 1.2) · step_sizes (1e-06, 50)
    probed with dense gradients on 1-d, 2-d, 3-d, 4-d parameters
    <BLANKLINE>
    SLOT       PARAMETERS  SHAPE      DTYPE      CREATED         FRESH  SIGN  GRADIENT^  LR^  DECAY  GAIN  SUGGESTS
    step       all         scalar     scalar     first gradient  0      ≥0            0    0      –     –  step
    prev       all         parameter  parameter  first gradient  0      ±             1    0      0     1  previous_gradient
    step_size  all         parameter  gradient   first gradient  lr     ≥0            0    1      1     –  step_size
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

        >>> report = optstate.probe(torch.optim.Muon)
        >>> buffer = optstate.SlotSpec(role="momentum", convention="accumulate", of="gradient", dtype="gradient",
        ...                            coefficient="momentum", gradient_degree=1)
        >>> report.differences(optstate.OptimizerSpec(name=report.name, slots={"momentum_buffer": buffer}))
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
        if described.when != "sometimes" and expected != measured.ranks and not (expected and spec.order_matters):
            yield f"described for {_parameters(expected)}, kept for {_parameters(measured.ranks)}"
        yield from structure_differences(described, measured)
        if self.gradients == "closure":
            return
        # An empty entry is how state starts, so forgetting all of it is always a reset.
        if any(slot.reset != "delete" for slot in spec.slots.values()):
            yield from self._fresh_difference(described, measured)
        yield from behaviour_differences(described, measured, self.hyperparameters)

    def _fresh_difference(self, described: SlotSpec, measured: MeasuredSlot) -> Iterator[str]:
        said = described.reset
        by_name = isinstance(said, str) and said in self.hyperparameters
        value = number(self.hyperparameters[str(said)]) if by_name else said
        if measured.fresh not in (None, value) and not close(value, measured.fresh):
            yield f"fresh value described as {safe_text(said)}, measured {safe_text(measured.fresh)}"

    def suggestion(self) -> OptimizerSpec:
        """The description that the measurement suggests; each slot is a companion of all others, to be safe.

        Evidence, not proof: a moment kept in a rotated basis behaves as one that is not.
        """
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
                dtype=slot.dtype or "parameter",
                created=slot.created,
                when=self._when(slot),
                coefficient=slot.coefficients[0] if slot.coefficients else None,
                reset=self._reset(slot),
                companions=tuple(other for other in self.slots if other != key),
                gradient_degree=slot.gradient_degree,
                lr_degree=slot.lr_degree,
            )
        hyperparameters = tuple(key for key in self.hyperparameters if key not in IMPLEMENTATION_FLAGS)
        laid_out = any(slot.shape == "flat" for slot in slots.values())
        return OptimizerSpec(name=self.name, slots=slots, hyperparameters=hyperparameters, order_matters=laid_out)

    def registration(self) -> str:
        """Python text that registers the suggestion: to read, to correct where one knows more, and to paste.

        >>> print(optstate.probe(torch.optim.Rprop).registration())
        optstate.register(
            'torch.optim.rprop.Rprop',
            {
                'step': optstate.SlotSpec(role='step', shape='scalar', dtype='scalar', companions=('prev', 'step_size')),
                'prev': optstate.SlotSpec(role='previous_gradient', companions=('step', 'step_size'), gradient_degree=1),
                'step_size': optstate.SlotSpec(role='step_size', dtype='gradient', reset='lr', companions=('step', 'prev'), lr_degree=1),
            },
            hyperparameters=('lr', 'etas', 'step_sizes', 'maximize'),
        )
        """
        spec = self.suggestion()
        lines = [
            "optstate.register(",
            f"    {spec.name!r},",
            "    {",
            *(f"        {key!r}: {_as_python(slot)}," for key, slot in spec.slots.items()),
            "    },",
            f"    hyperparameters={spec.hyperparameters!r},",
            *(["    order_matters=True,"] if spec.order_matters else []),
            ")",
        ]
        return "\n".join(lines)

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
        momenta = [key for key, slot in self.slots.items() if slot.role == "momentum" and slot.debiased is None]
        remarks = {
            "it keeps no state, configured as it is": not self.slots,
            "it evaluates a closure itself: only the structure of its state was measured": self.gradients == "closure",
            f"stepping also changes its param group: {listing(self.group_state)}": self.group_state,
            f"whether the update debiases it could not be seen: {listing(momenta)}": momenta,
        }
        return Table(
            title=[
                safe_text(self.name),
                values,
                f"probed with {_GIVEN[self.gradients]} on {_parameters(self.ranks)}",
            ],
            header=_HEADER,
            rows=[self._row(key, slot) for key, slot in self.slots.items()],
            notes=[remark for remark, applies in remarks.items() if applies],
            right=frozenset({"GRADIENT^", "LR^", "DECAY", "GAIN"}),
        ).text()

    __repr__ = __str__

    def _row(self, key: str, slot: MeasuredSlot) -> list[str]:
        convention = slot.convention(self.hyperparameters)
        return [
            safe_text(key, 40),
            "all" if slot.ranks == self.ranks else ", ".join(f"{rank}-d" for rank in slot.ranks),
            slot.shape or _UNKNOWN,
            slot.dtype or _UNKNOWN,
            slot.created,
            _UNKNOWN if slot.fresh is None else _number(self._reset(slot)),
            _SIGNS[slot.signed],
            *map(_number, (slot.gradient_degree, slot.lr_degree, slot.decay, slot.gain)),
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
_GIVEN = {"dense": "dense gradients", "sparse": "sparse gradients", "closure": "a closure"}


def _number(value: float | str | None) -> str:
    if value is None:
        return _UNKNOWN
    return safe_text(value) if isinstance(value, str) else format_number(value)


def _parameters(ranks: tuple[int, ...]) -> str:
    return f"{', '.join(f'{rank}-d' for rank in ranks)} parameters" if ranks else "no parameter"


def _as_python(slot: SlotSpec) -> str:
    """`SlotSpec` as a call that leaves out what is default."""
    default = SlotSpec(role=slot.role)
    given = {field.name: getattr(slot, field.name) for field in fields(slot)}
    told = [f"{name}={_literal(value)}" for name, value in given.items() if value != getattr(default, name)]
    return f"optstate.SlotSpec({', '.join([f'role={slot.role!r}', *told])})"


def _literal(value: object) -> str:
    return f"float('{value}')" if value in (inf, -inf) else repr(value)

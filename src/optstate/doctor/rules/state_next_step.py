"""Values that are sound in themselves, and make the next step another one than expected."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.wording import about, at_group
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import number
from optstate.state.groups import Group
from optstate.state.slot import format_number
from optstate.state.tensors import is_tensor

_SAME = 1e-5  # relative; eta is float32


def _zeroed_not_deleted(case: Case) -> Iterator[Finding]:
    """Buffers of zeros where dampening is skipped only for a buffer that is not there."""
    for group in case.state.groups:
        if not number(group.hyperparameters.get("dampening")):
            continue
        zero = [
            name
            for name in group.parameters
            if (measure := case.values.slots.get((name, "momentum_buffer"))) is not None and measure.all_zero
        ]
        if zero:
            says = "have a momentum of zeros, and dampening that only an absent one is spared"
            yield about("M315", zero, says, of=len(group.parameters), where=at_group(group.optimizer, group.index))


def _old_rate(case: Case) -> Iterator[Finding]:
    """ASGD applies the rate that it computed at the end of the last step."""
    for group in case.state.groups:
        spec = by_name(case.state.optimizers[group.optimizer].class_name)
        if spec is None or "eta" not in spec.slots:
            continue
        late = [(name, eta) for name in group.parameters if (eta := _eta_but(case, name, group)) is not None]
        if late:
            says = f"apply {format_number(late[0][1])} in the next step, not lr {format_number(number(group.hyperparameters['lr']))}"
            where = at_group(group.optimizer, group.index)
            yield about("M418", [name for name, _ in late], says, of=len(group.parameters), where=where)


def _eta_but(case: Case, name: str, group: Group) -> float | None:
    """The eta of a parameter where the group's own values would have given another."""
    slots = case.state[name].slots
    held = [slots[key].value for key in ("eta", "step") if key in slots]
    rates = [number(group.hyperparameters.get(key)) for key in ("lr", "lambd", "alpha")]
    if len(held) < 2 or None in rates or not all(map(is_tensor, held)):
        return None
    eta, step = (float(number(value) or 0.0) for value in held)
    lr, lambd, alpha = (float(rate or 0.0) for rate in rates)
    due: float = lr / (1 + lambd * lr * step) ** alpha
    return eta if eta and abs(eta - due) > _SAME * abs(due) else None


RULES = (
    Rule(("M315",), "state", _zeroed_not_deleted, "values", reads_values=True),
    Rule(("M418",), "state", _old_rate, "values", reads_values=True),
)

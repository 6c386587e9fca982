"""The numeric probe: what an optimizer class keeps, learned by stepping tiny instances of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from optstate.errors import ProbeError
from optstate.live.measure import STEPS, behaviour, structure
from optstate.live.rig import MATRIX, Rig, Trial, undisturbed, unpatched
from optstate.optimizers.probe_report import Gradients, ProbeReport
from optstate.optimizers.registry import beneath_hooks, qualified_name
from optstate.text import safe_text

# Sizes differ, so that a row, a column and the flattened whole cannot be confused.
_SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((6,), MATRIX, (2, 4, 5), (3, 2, 4, 5)),
    ((6,), MATRIX),
    (MATRIX,),  # what a class insists on that orthogonalises its updates
)


def probe(cls: type[torch.optim.Optimizer], **options: Any) -> ProbeReport:
    """Build tiny optimizers `cls(parameters, **options)`, step them, and report what they keep.

    Takes well under a second and disturbs nothing: random generators are put back, no hooks run, the class is not
    patched. Any `torch.optim.Optimizer` that takes parameters first will do. A class that steps on sparse gradients
    only is given sparse ones; of one that needs a closure only the structure of its state is measured.

    First values are read as they are assigned, degrees come from runs in which all gradients or the learning rate
    are doubled, decay from steps whose gradient is zero, gain from a run with a constant gradient that goes on
    until its limit is known.

    Raises `ProbeError` when the class cannot be built or stepped this way, with its own reason.

    >>> report = optstate.probe(torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> report.slots["momentum_buffer"].gain
    10.0
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ProbeError(
            "only a class of optimizers can be probed",
            expected="a subclass of torch.optim.Optimizer",
            found=safe_text(f"the class {cls.__name__}" if isinstance(cls, type) else f"a {type(cls).__name__}"),
            todo="probe(type(optimizer), ...) for an optimizer at hand; behind a wrapper, its inner optimizer",
        )
    with undisturbed():
        try:
            return _report(qualified_name(cls), _fitting_rig(cls, options))
        except Exception as error:
            reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            raise ProbeError(
                f"{safe_text(qualified_name(cls))} could not be probed",
                expected="a class built from parameters and these options, which steps on gradients of any size",
                found="; ".join(dict.fromkeys(f"{type(each).__name__}: {safe_text(each)}" for each in reasons)),
                todo="give the options it requires as keywords, or describe it by hand with optstate.register(...)",
            ) from error


def _fitting_rig(cls: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> Rig:
    """The richest rig on which the class can be built and stepped. Raises all that it raises where there is none."""
    kinds: tuple[Gradients, ...] = ("closure",) if _needs_closure(cls) else ("dense", "sparse")
    harmless = unpatched(cls)
    obstacles = []
    for rig in (Rig(harmless, options, shapes, gradients) for gradients in kinds for shapes in _SHAPES):
        try:
            Trial(rig).steps(2)
        except Exception as obstacle:  # noqa: BLE001  # whatever a foreign class raises is its answer
            obstacles.append(obstacle)
        else:
            return rig
    raise ExceptionGroup("it steps on none of the parameters and gradients tried", obstacles)


def _needs_closure(cls: type[torch.optim.Optimizer]) -> bool:
    _, *others = inspect.signature(beneath_hooks(cls.step)).parameters.values()
    return any(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in others)


def _report(name: str, rig: Rig) -> ProbeReport:
    group = _group(Trial(rig))
    first = Trial(rig)
    first.step(rig.gradient(1), put_back=False)
    stepped = Trial(rig).steps(STEPS)
    slots = structure(first, stepped)
    if rig.gradients != "closure":
        slots = behaviour(slots, first, stepped, group)
    return ProbeReport(
        name=name,
        hyperparameters=MappingProxyType(group),
        gradients=rig.gradients,
        ranks=tuple(map(len, rig.shapes)),
        slots=MappingProxyType(slots),
        group_state=tuple(key for key, value in _group(stepped).items() if repr(value) != repr(group.get(key))),
    )


def _group(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.optimizer.param_groups[0].items() if key != "params"}

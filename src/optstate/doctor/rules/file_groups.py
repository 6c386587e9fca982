"""Param groups of a file: the hyperparameters that an optimizer reads, and what a saved scheduler expects of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.torch_load import FILLED, unread
from optstate.doctor.rules.wording import at_group, called
from optstate.optimizers.registry import by_contents, by_name, known_names
from optstate.optimizers.spec import ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS, OptimizerSpec, number
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.text import count, listing, safe_text

OF_SCHEDULERS = frozenset({"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})
"""Keys that schedulers put into groups."""

_EXTRA = OF_SCHEDULERS | IMPLEMENTATION_FLAGS | ALGORITHM_FLAGS
_ONE_CYCLE = ("initial_lr", "max_lr", "min_lr")


_CLASSES = tuple(spec for spec in map(by_name, known_names()) if spec is not None)
_READ_BY_SOME = frozenset(
    key for spec in _CLASSES if spec.name.startswith("torch.optim.") for key in spec.hyperparameters
)
"""Hyperparameters of torch's own classes. A user may give a group any other key, and no other group needs it."""


def _keys(case: Case) -> Iterator[Finding]:
    """Hyperparameters that other groups of the optimizer have, or that its class always has."""
    for info in case.state.optimizers.values():
        everything = {key for group in info.groups for key in group.hyperparameters} & _READ_BY_SOME
        for group in info.groups:
            missing = sorted(everything - group.hyperparameters.keys())
            if not missing:
                continue
            stripped = len(missing) * 2 > len(everything)
            evidence = (
                f"the group lacks {listing(missing)}, which {'the others have' if stripped else 'another one has'}"
            )
            yield Finding("M503" if stripped else "M411", evidence, group.parameters, at_group(info.name, group.index))
        yield from _keys_of_the_class(case.state, info)


def _not_finite(case: Case) -> Iterator[Finding]:
    """Hyperparameters that no step can compute with."""
    for group in case.state.groups:
        values = {key: group.hyperparameters.get(key) for key in _READ_BY_SOME}
        numbers = {key: value if isinstance(value, (tuple, list)) else (value,) for key, value in values.items()}
        odd = sorted(
            key for key, each in numbers.items() if any(isinstance(one, float) and not isfinite(one) for one in each)
        )
        if odd:
            evidence = f"the hyperparameter {listing(odd)} is NaN or infinite"
            yield Finding("M301", evidence, group.parameters, at_group(group.optimizer, group.index))


def _keys_of_the_class(state: OptimizerState, info: OptimizerInfo) -> Iterator[Finding]:
    """The one hyperparameter that keeps an unknown optimizer from being one that is known."""
    if info.class_name is not None or not info.groups:
        return
    group, slots = info.groups[0], _slot_keys(state, info)
    fitting = [spec for spec in _CLASSES if slots and slots <= spec.slots.keys() and _speaks_for(group, _own(spec))]
    unmet = [(spec, _unmet(group, spec)) for spec in fitting]
    # A class that lacks nothing, but for what loading fills in, explains the file as well as any.
    for spec, keys in unmet if all(keys for _, keys in unmet) else ():
        if len(keys) == 1:
            short = spec.name.rpartition(".")[2]
            evidence = (
                f"the groups and slots are those of {short} but for {listing(keys)}, which it reads in every step"
            )
            yield Finding("M411", evidence, where=called(info.name))
            return


def _own(spec: OptimizerSpec) -> set[str]:
    return set(spec.hyperparameters) - IMPLEMENTATION_FLAGS


def _unmet(group: Group, spec: OptimizerSpec) -> set[str]:
    """What a class reads in every step and a group lacks; what loading fills in by itself is not missed."""
    return _own(spec) - group.hyperparameters.keys() - FILLED.get(spec.name, frozenset()) - unread(spec.name)


def _speaks_for(group: Group, own: set[str]) -> bool:
    """Whether a group that lacks one key of a class is still of that class: it has the others, and hardly any besides."""
    strange = group.hyperparameters.keys() - own - _EXTRA
    return len(own) > 3 and len(strange) <= len(own) // 6


def _other_class(case: Case) -> Iterator[Finding]:
    """Slots of one class under groups, or under a stated class, of another."""
    for info in case.state.optimizers.values():
        slots = _slot_keys(case.state, info)
        own = _claimed(info)
        theirs = [spec for spec in _CLASSES if slots and slots <= spec.slots.keys()]
        if own and theirs and all(slots.isdisjoint(set(spec.slots) - {"step"}) for spec in own):
            evidence = (
                f"the groups are those of {_short(own)}, the slots {listing(sorted(slots))} those of {_short(theirs)}"
            )
            yield Finding("M207", evidence, where=called(info.name))


def _claimed(info: OptimizerInfo) -> Sequence[OptimizerSpec]:
    """The classes that the groups, or the writer, speak for."""
    stated = by_name(info.class_name) if not info.inferred else None
    if stated is not None:
        return [stated]
    return by_contents(info.groups[0].hyperparameters, ()) if info.groups and info.class_name is None else ()


def _slot_keys(state: OptimizerState, info: OptimizerInfo) -> set[str]:
    parameters = [parameter for parameter in state.values() if parameter.facts.optimizer == info.name]
    return {key for parameter in parameters for key in parameter.slots}


def _short(specs: Sequence[OptimizerSpec]) -> str:
    return listing([spec.name.rpartition(".")[2] for spec in specs], 3)


# --- the scheduler beside it -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scheduler:
    """The state of a torch scheduler in a file, and the optimizer whose groups it sets."""

    name: str
    state: Mapping[str, Any]
    info: OptimizerInfo

    @property
    def lrs(self) -> list[float | None]:
        """The learning rates that it set last."""
        return [number(value) for value in self.state["_last_lr"]]


def schedulers(case: Case) -> Iterator[Scheduler]:
    """The torch schedulers of a file: those of its single optimizer, or one for each."""
    if case.checkpoint is None:
        return
    found = list(_scheduler_states("", case.checkpoint.objects))
    infos = list(case.state.optimizers.values())
    pairs = zip(found, infos * len(found) if len(infos) == 1 else infos, strict=False)
    if len(infos) in (1, len(found)):
        yield from (Scheduler(name, state, info) for (name, state), info in pairs)


def _scheduler_states(name: str, node: object, depth: int = 3) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dicts as every `LRScheduler.state_dict()` is one, wherever they lie; those inside one are its parts."""
    if isinstance(node, Mapping) and isinstance(node.get("_last_lr"), list) and "last_epoch" in node:
        yield name, node
    elif depth and isinstance(node, Mapping):
        for key, inner in node.items():
            yield from _scheduler_states(safe_text(key, 80), inner, depth - 1)
    elif depth and isinstance(node, (list, tuple)):
        for index, inner in enumerate(node):
            yield from _scheduler_states(f"{name}[{index}]", inner, depth - 1)


def _scheduled(case: Case) -> Iterator[Finding]:
    """What a scheduler needs in every group, and the learning rates that it believes in."""
    by_optimizer: dict[str, list[Scheduler]] = {}
    for scheduler in schedulers(case):
        where, groups = called(scheduler.info.name), scheduler.info.groups
        if len(scheduler.lrs) != len(groups):
            numbers = f"{count(len(scheduler.lrs), 'group')}, the optimizer has {len(groups)}"
            yield Finding("M408", f"{scheduler.name} sets the learning rate of {numbers}", where=where)
            continue
        by_optimizer.setdefault(scheduler.info.name, []).append(scheduler)
        cycle = "_schedule_phases" in scheduler.state and [key for key in _ONE_CYCLE if _lacking(groups, key)]
        if cycle:
            yield Finding(
                "M410", f"{scheduler.name} is a OneCycleLR, and the groups have no {listing(cycle)}", where=where
            )
        elif "base_lrs" in scheduler.state and len(_lacking(groups, "initial_lr")) == len(groups):
            yield Finding("M405", f"{scheduler.name} is saved, and no group has initial_lr", where=where)
    for ours in by_optimizer.values():
        yield from _lr_of_no_scheduler(ours)


def _lacking(groups: Sequence[Group], key: str) -> list[Group]:
    return [group for group in groups if key not in group.hyperparameters]


def _lr_of_no_scheduler(ours: Sequence[Scheduler]) -> Iterator[Finding]:
    """Groups whose learning rate is that of none of the schedulers of their optimizer: the last to step sets it."""
    for index, group in enumerate(ours[0].info.groups):
        lr = number(group.hyperparameters.get("lr"))
        dues = [due for each in ours if (due := each.lrs[index]) is not None]
        if lr is not None and dues and not any(isclose(lr, due, rel_tol=1e-6, abs_tol=1e-12) for due in dues):
            said = " and ".join(f"{each.name} set it to {each.lrs[index]:g}" for each in ours)
            evidence = f"lr is {lr:g}, and {said} last"
            yield Finding("M406", evidence, group.parameters, at_group(group.optimizer, group.index))


def _late_groups(case: Case) -> Iterator[Finding]:
    """Groups without the `initial_lr` that a scheduler gave to the others."""
    for info in case.state.optimizers.values():
        late = _lacking(info.groups, "initial_lr")
        if 0 < len(late) < len(info.groups):
            for group in late:
                evidence = (
                    f"no initial_lr in this group of {count(len(group.parameters), 'parameter')}, while others have one"
                )
                yield Finding("M408", evidence, group.parameters, at_group(info.name, group.index))


# --- lists beside it ----------------------------------------------------------------------------------------


def _side_lists(case: Case) -> Iterator[Finding]:
    """Lists of names that count the parameters with state, while the optimizer's numbers run over all of them."""
    if case.checkpoint is None or len(case.state.optimizers) != 1:
        return
    everyone = list(case.state.values())
    stateful = sum(bool(parameter.slots) for parameter in everyone)
    for key, value in case.checkpoint.objects.items():
        names = value if isinstance(value, (list, tuple)) else ()
        if 0 < len(names) == stateful < len(everyone) and _are_names(names, case.checkpoint.weights):
            evidence = (
                f"{safe_text(key)} has {count(stateful, 'name')}, as many as parameters have state, and the optimizer "
                f"numbers {len(everyone):,}"
            )
            yield Finding("M228", evidence)


def _are_names(values: Sequence[object], weights: Mapping[str, object]) -> bool:
    return all(type(name) is str and (name in weights or (not weights and "." in name)) for name in values)


RULES = (
    Rule(("M301",), "state", _not_finite, "hyperparameters"),
    Rule(("M411", "M503"), "file", _keys, "hyperparameters"),
    Rule(("M207",), "file", _other_class, "class"),
    Rule(("M405", "M406", "M408", "M410"), "file", _scheduled, "scheduler"),
    Rule(("M408",), "file", _late_groups, "scheduler"),
    Rule(("M228",), "file", _side_lists, "side lists"),
)

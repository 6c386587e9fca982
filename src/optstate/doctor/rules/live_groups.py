"""Hyperparameters of a running optimizer: what it was built with, and what its groups say now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optstate.doctor.evidence import LiveEvidence, LiveOptimizer
from optstate.doctor.finding import Finding
from optstate.doctor.rules.asking import alike, live_rule
from optstate.doctor.rules.torch_load import DEMANDED, MENDED, unread
from optstate.doctor.rules.wording import at_group, called
from optstate.optimizers.registry import by_contents, by_name
from optstate.optimizers.spec import ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS
from optstate.state.groups import Group
from optstate.state.table import format_value
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text

FLAGS = (ALGORITHM_FLAGS | IMPLEMENTATION_FLAGS) - {"foreach", "decoupled_weight_decay", "fused"}
"""Flags that change what a step computes, or whether it can; `foreach` only chooses the order of the work."""


def _optimizers(live: LiveEvidence) -> Iterator[tuple[LiveOptimizer, tuple[Group, ...]]]:
    for name, optimizer in live.optimizers.items():
        yield optimizer, live.state.optimizers[name].groups


# --- what the constructor was given, and no group has ---------------------------------------------------------


def _unlike(optimizer: LiveOptimizer, groups: tuple[Group, ...]) -> Mapping[str, tuple[Any, Any]]:
    """Keys whose value in every group is another one than the optimizer was built with: key → both values."""
    values = {
        key: [group.hyperparameters[key] for group in groups if key in group.hyperparameters]
        for key in optimizer.defaults
    }
    return {
        key: (built, values[key][0])
        for key, built in optimizer.defaults.items()
        if values[key] and not any(alike(built, value) for value in values[key])
    }


def _flags(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer, groups in _optimizers(live):
        for key, (built, now) in _unlike(optimizer, groups).items():
            travelled = key in FLAGS or (key == "fused" and now)
            if travelled and bool(built) != bool(now):
                yield Finding(
                    "M402",
                    f"{_built(optimizer, key, built, now)}: flags come with a file that is loaded",
                    (),
                    called(optimizer.name),
                )
            if key == "decoupled_weight_decay":
                yield Finding(
                    "M403",
                    f"{_built(optimizer, key, built, now)}, as after loading a file of AdamW",
                    (),
                    called(optimizer.name),
                )
        lost = [group for group in groups if not group.hyperparameters.get("fused")]
        if optimizer.scales_gradients and optimizer.defaults.get("fused") and lost:
            yield Finding(
                "M404",
                f"built with fused=True, and fused is {format_value(lost[0].hyperparameters.get('fused'))} in "
                f"{len(lost)} of {len(groups)} groups: GradScaler.step raises AssertionError",
                (),
                called(optimizer.name),
                "    for group in optimizer.param_groups: group['fused'] = True",
            )


def _built(optimizer: LiveOptimizer, key: str, built: Any, now: Any) -> str:
    kind = safe_text(optimizer.class_name.rpartition(".")[2])
    return f"{kind} was built with {safe_text(key)}={format_value(built)} and every group has {format_value(now)}"


def _overwritten(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer, groups in _optimizers(live):
        cycled = _cycled(live, optimizer, groups)
        for key, (built, now) in _unlike(optimizer, groups).items():
            # A learning rate is set by hand each step in many programs: that it moved says nothing.
            if key not in optimizer.chosen or key == "lr" or key in FLAGS or key in _TOLD_APART or key in cycled:
                continue
            code = "M413" if key == "momentum" and now and _sums(optimizer, live) else "M401"
            yield Finding(code, _built(optimizer, key, built, now), (), called(optimizer.name))


_TOLD_APART = {"fused", "foreach", "decoupled_weight_decay", "initial_accumulator_value"}


def _cycled(live: LiveEvidence, optimizer: LiveOptimizer, groups: tuple[Group, ...]) -> set[str]:
    """Coefficients that a scheduler owns, whether it was passed or only left its keys in the groups."""
    cycles = {each.cycles.partition("[")[0] for each in live.schedulers if each.drives == optimizer.name}
    return cycles | (
        {"betas", "momentum"} if any("max_momentum" in group.hyperparameters for group in groups) else set()
    )


def _sums(optimizer: LiveOptimizer, live: LiveEvidence) -> bool:
    """Whether buffers exist that are sums, whose size follows from the coefficient that they grew under."""
    spec = by_name(optimizer.described_as)
    row = spec.slots.get("momentum_buffer") if spec is not None else None
    here = any(
        slot.key == "momentum_buffer" and live.parameters[slot.parameter].optimizer == optimizer.name
        for slot in live.slots
    )
    return row is not None and row.convention == "accumulate" and here


def _ignored(live: LiveEvidence) -> Iterator[Finding]:
    key = "initial_accumulator_value"
    for optimizer, groups in _optimizers(live):
        for index, group in enumerate(groups):
            built, here = optimizer.defaults.get(key), group.hyperparameters.get(key)
            if built is not None and here is not None and not alike(built, here):
                yield Finding(
                    "M415",
                    f"{key} is {format_value(here)} in the group, and its sums started at {format_value(built)}, the value "
                    "that the optimizer was built with",
                    group.parameters,
                    at_group(optimizer.name, index),
                )


# --- keys and kinds of values ---------------------------------------------------------------------------------


def _classes(live: LiveEvidence) -> Iterator[Finding]:
    """Groups and slots of another class, or a group without keys that a step reads."""
    for optimizer, groups in _optimizers(live):
        for index, group in enumerate(groups):
            where = at_group(optimizer.name, index)
            absent = sorted(optimizer.defaults.keys() - group.hyperparameters.keys() - unread(optimizer.described_as))
            held = {
                key
                for name in group.parameters
                for key, slot in live.state[name].slots.items()
                if is_tensor(slot.value)
            }
            foreign = _foreign(optimizer, group, held)
            if foreign:
                yield _of_another_class(optimizer, foreign, group, held, absent, where)
            elif absent:
                yield Finding(
                    "M411", f"the group has no {listing(absent)}, which the next step looks up", group.parameters, where
                )


def _foreign(optimizer: LiveOptimizer, group: Group, held: set[str]) -> str:
    """The class or classes that the group and its slots are of, where that is another one; else ""."""
    own = by_name(optimizer.described_as)
    fitting = by_contents(group.hyperparameters, held)
    if own is None or own in fitting:
        return ""
    # Keys that only the other class has: a scheduler's or a user's own are in no description.
    brought = {key for spec in fitting for key in spec.hyperparameters} & (
        group.hyperparameters.keys() - optimizer.defaults.keys()
    )
    return " or ".join(spec.name.rpartition(".")[2] for spec in fitting) if brought else ""


def _of_another_class(
    optimizer: LiveOptimizer, foreign: str, group: Group, held: set[str], absent: list[str], where: str
) -> Finding:
    own = by_name(optimizer.described_as)
    due = (
        {key for key, row in own.slots.items() if row.exists(group.hyperparameters, None)} if own is not None else set()
    )
    lacking = sorted(due - held) if held and optimizer.described_as not in MENDED else []
    said = f"the group and its slots are those of {foreign}"
    if held and not held.issuperset(DEMANDED.get(optimizer.described_as or "", ())):
        return Finding(
            "M209", f"{said}: a load stopped half-way at the missing {listing(lacking)}", group.parameters, where
        )
    if absent or lacking:
        return Finding(
            "M207", f"{said}: the next step looks up {listing([*absent, *lacking])}", group.parameters, where
        )
    return Finding("M208", f"{said}, whose keys happen to be enough", group.parameters, where)


def _kinds(live: LiveEvidence) -> Iterator[Finding]:
    """Numbers of numpy, and tensors that became plain numbers."""
    for optimizer, groups in _optimizers(live):
        for index, group in enumerate(groups):
            where = at_group(optimizer.name, index)
            odd = [key for key, value in group.hyperparameters.items() if any(map(_of_numpy, _items(value)))]
            if odd:
                yield Finding(
                    "M412",
                    f"{listing(odd)} of the group holds a number of numpy, which torch.load refuses to read back",
                    group.parameters,
                    where,
                    "\n".join(f"    group[{key!r}] = float(group[{key!r}])" for key in map(safe_text, odd)),
                )
            replaced = [
                key
                for key, built in optimizer.defaults.items()
                if any(map(is_tensor, _items(built)))
                and not all(map(is_tensor, _items(group.hyperparameters.get(key, built))))
            ]
            if replaced:
                yield Finding(
                    "M416",
                    f"{listing(replaced)} was built as a tensor and is a plain number now: a compiled step is compiled anew "
                    "for every value",
                    group.parameters,
                    where,
                )


def _items(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _of_numpy(value: object) -> bool:
    return type(value).__module__ == "numpy"


RULES = (
    live_rule(_flags, "M402", "M403", "M404", checks="flags"),
    live_rule(_overwritten, "M401", "M413", checks="hyperparameters"),
    live_rule(_ignored, "M415", checks="hyperparameters"),
    live_rule(_classes, "M207", "M208", "M209", "M411", checks="class"),
    live_rule(_kinds, "M412", "M416", checks="hyperparameters"),
)

"""Which tensor is whose: parameters, names, groups and memory of a running program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from optstate.doctor.evidence import LiveEvidence, LiveOptimizer, LiveParameter, LiveSlot, Unowned
from optstate.doctor.finding import Finding
from optstate.doctor.rules.asking import live_rule
from optstate.doctor.rules.wording import at_group, called
from optstate.optimizers.registry import by_name
from optstate.text import count, listing, safe_text

_WRAPPERS = ("_orig_mod.", "module.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


# --- parameters of the model and of the optimizer --------------------------------------------------------


def _owners(live: LiveEvidence) -> Iterator[Finding]:
    strangers = [parameter for parameter in live.parameters.values() if not parameter.in_model]
    free = [parameter for parameter in live.unowned if parameter.trainable]
    twins = _twins(strangers, free) if strangers else {}
    replaced = twins or dict.fromkeys((each.name for each in strangers), None) if free else {}
    if replaced:
        news = [each.name for each in twins.values()] or [each.name for each in free]
        yield Finding(
            "M106",
            f"the optimizer updates {count(len(replaced), 'tensor')} ({listing(replaced)}) that the model no longer has, "
            f"and nothing updates {count(len(news), 'parameter')} that it has instead: {listing(news)}",
            tuple(news),
            fix="build the optimizer after the model is as it will be trained:\n    optimizer = Optimizer(model.parameters(), ...)",
        )
    matched = {each.name for each in twins.values()}
    alone = [each.name for each in free if each.name not in matched] if twins or not strangers else []
    if alone:
        yield Finding(
            "M117",
            f"{count(len(alone), 'parameter')} with requires_grad in no optimizer: {listing(alone)}",
            tuple(alone),
        )


def _twins(strangers: Iterable[LiveParameter], free: Iterable[Unowned]) -> dict[str, Unowned]:
    """For a tensor that the model lacks, the first parameter of its shape that no optimizer has."""
    left: dict[tuple[int, ...] | None, list[Unowned]] = {}
    for each in reversed(list(free)):
        left.setdefault(each.shape, []).append(each)
    return {stranger.name: left[stranger.shape].pop() for stranger in strangers if left.get(stranger.shape)}


def _twice(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer in live.optimizers.values():
        if optimizer.twice:
            names = listing(optimizer.twice)
            yield Finding(
                "M227",
                f"{names} more than once in a group: updated as often in each step, and the numbers in state_dict() skip",
                optimizer.twice,
                called(optimizer.name),
            )


def _frozen(live: LiveEvidence) -> Iterator[Finding]:
    moving = tuple(
        name for name, parameter in live.parameters.items() if not parameter.trainable and parameter.has_gradient
    )
    if moving:
        yield Finding(
            "M314",
            f"{count(len(moving), 'parameter')} with requires_grad=False and a gradient that is not None, "
            f"so that a step goes on moving them: {listing(moving)}",
            moving,
            fix="after freezing:\n    optimizer.zero_grad(set_to_none=True)",
        )


# --- names that torch keeps ------------------------------------------------------------------------------


def _recorded(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer in live.optimizers.values():
        members = [group.parameters for group in live.state.optimizers[optimizer.name].groups]
        yield from _desynced(optimizer, members)
        if not optimizer.twice:
            yield from _lying(optimizer, members, live)


def _desynced(optimizer: LiveOptimizer, members: list[tuple[str, ...]]) -> Iterator[Finding]:
    """A list of names that is longer or shorter than the parameters, or that only some groups have."""
    named = [group.recorded is not None for group in optimizer.groups]
    if any(named) and not all(named):
        without = [str(index) for index, has in enumerate(named) if not has]
        yield Finding(
            "M220", f"some groups have param_names, and not group {listing(without)}", (), called(optimizer.name)
        )
    for index, (group, names) in enumerate(zip(optimizer.groups, members, strict=True)):
        if group.recorded is not None and len(group.recorded) != len(names) and not optimizer.twice:
            yield Finding(
                "M220",
                f"{count(len(group.recorded), 'name')} in param_names for {count(len(names), 'parameter')}",
                names,
                at_group(optimizer.name, index),
            )


def _lying(optimizer: LiveOptimizer, members: list[tuple[str, ...]], live: LiveEvidence) -> Iterator[Finding]:
    """Names that belong to another parameter of the model than the one that they stand at."""
    known = {*live.parameters, *(each.name for each in live.unowned)}
    for index, (group, names) in enumerate(zip(optimizer.groups, members, strict=True)):
        if group.recorded is None or len(group.recorded) != len(names):
            continue
        lies = [
            (said, name)
            for said, name in zip(group.recorded, names, strict=True)
            if name not in (said, _bare(said)) and (said in known or _bare(said) in known)
        ]
        if lies:
            said, name = lies[0]
            yield Finding(
                "M206",
                f"param_names is wrong for {count(len(lies), 'parameter')} of {len(names)}: "
                f"it says {safe_text(said)} where the optimizer has {safe_text(name)}",
                tuple(name for _, name in lies),
                at_group(optimizer.name, index),
            )


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


# --- memory ----------------------------------------------------------------------------------------------


def _memory(live: LiveEvidence) -> Iterator[Finding]:
    by_address: dict[int, list[LiveSlot]] = {}
    for slot in filter(lambda each: _written(each, live), live.slots):
        by_address.setdefault(slot.memory, []).append(slot)
    by_address.pop(0, None)
    shared = [slots for slots in by_address.values() if len(slots) > 1]
    yield from _shared_steps([slots for slots in shared if _counts_together(slots, live)])
    buffers = [slots for slots in shared if not _counts_together(slots, live)]
    if buffers:
        first = [f"{slot.parameter}/{slot.key}" for slot in buffers[0]]
        names = tuple(dict.fromkeys(slot.parameter for slots in buffers for slot in slots))
        yield Finding(
            "M223",
            f"{count(len(buffers), 'tensor')} in several places, so that one step changes all of them: {listing(first)}",
            names,
            fix=_CLONE,
        )
    yield from _shared_elsewhere(live, by_address)


def _written(slot: LiveSlot, live: LiveEvidence) -> bool:
    """Whether each step writes to a slot of its own; tables that 8-bit optimizers look up are shared on purpose."""
    parameter = live.parameters[slot.parameter]
    spec = by_name(live.optimizers[parameter.optimizer].described_as)
    if spec is not None and slot.key in spec.slots:
        return spec.slots[slot.key].role != "other" or spec.slots[slot.key].coefficient is not None
    return slot.key == "step" or slot.shape == parameter.shape


def _counts_together(slots: list[LiveSlot], live: LiveEvidence) -> bool:
    """Whether these are the counts of parameters of one optimizer."""
    return {slot.key for slot in slots} == {"step"} and len(
        {live.parameters[s.parameter].optimizer for s in slots}
    ) == 1


def _shared_steps(shared: list[list[LiveSlot]]) -> Iterator[Finding]:
    for slots in shared:
        names = tuple(slot.parameter for slot in slots)
        yield Finding(
            "M225",
            f"one step tensor for {count(len(names), 'parameter')}, which counts {len(names)} per step: {listing(names)}",
            names,
            fix="    for entry in optimizer.state.values(): entry['step'] = entry['step'].clone()",
        )


def _shared_elsewhere(live: LiveEvidence, by_address: dict[int, list[LiveSlot]]) -> Iterator[Finding]:
    for other in live.others:
        slots = [slot for address in other.memory for slot in by_address.get(address, ())]
        if slots:
            shown = f"{slots[0].parameter}/{slots[0].key}"
            yield Finding(
                "M223",
                f"{count(len(slots), 'slot')} ({safe_text(shown)}, ...) in the memory of another "
                f"{safe_text(other.class_name)} of this process, so that the steps of each change both",
                tuple(dict.fromkeys(slot.parameter for slot in slots)),
                fix=_CLONE,
            )
        if other.groups:
            yield Finding(
                "M414",
                f"{count(len(other.groups), 'group')} in the very dict that another {safe_text(other.class_name)} of "
                "this process has: what the first one filled in, the second one kept, and a change reaches both",
                fix="give each optimizer dicts of its own: [{**group} for group in groups]",
            )


_CLONE = "    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))"

RULES = (
    live_rule(_owners, "M106", "M117", checks="parameters"),
    live_rule(_twice, "M227", checks="parameters"),
    live_rule(_frozen, "M314", checks="gradients"),
    live_rule(_recorded, "M206", "M220", checks="names"),
    live_rule(_memory, "M223", "M225", "M414", checks="memory"),
)

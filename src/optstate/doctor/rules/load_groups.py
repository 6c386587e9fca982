"""A file against a program: what would loading do to the hyperparameters, and would the class work with them?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.asking import alike, program
from optstate.doctor.rules.live_groups import FLAGS
from optstate.doctor.rules.load_pairing import Pairing, pairings
from optstate.doctor.rules.torch_load import DEMANDED, FILLED, MENDED, unread
from optstate.doctor.rules.wording import at_group, called
from optstate.optimizers.registry import by_name
from optstate.optimizers.spec import IMPLEMENTATION_FLAGS
from optstate.state.table import format_value
from optstate.text import listing, safe_text

ADAM, ADAMW = "torch.optim.adam.Adam", "torch.optim.adamw.AdamW"


class Meeting(NamedTuple):
    """A group of the file and the live group that it would replace."""

    pairing: Pairing
    saved: Mapping[str, Any]
    live: Mapping[str, Any]
    where: str


def _meetings(case: Case) -> Iterator[Meeting]:
    for pairing in pairings(case):
        if pairing.way == "position" and not pairing.fits:
            continue
        for index, sources in enumerate(pairing.sources):
            where = at_group(pairing.live.name, index) if len(pairing.live.groups) > 1 else called(pairing.live.name)
            if sources:
                group = pairing.saved.groups[sources[-1]]  # where several meet, torch lets the last one win
                yield Meeting(pairing, group.hyperparameters, pairing.live.groups[index].hyperparameters, where)


# --- values -----------------------------------------------------------------------------------------------------


def _overwritten(case: Case) -> Iterator[Finding]:
    for meeting in _meetings(case):
        owned = _owned(case, meeting)
        changed = {
            key: (mine, meeting.saved[key])
            for key, mine in meeting.live.items()
            if key in meeting.saved and key not in owned and not alike(mine, meeting.saved[key])
        }
        base, theirs = _base_rates(meeting)
        if base is not None and theirs is not None and not alike(base, theirs):
            changed["lr"] = (base, theirs)
        if changed:
            said = ", ".join(
                f"{safe_text(key)} {format_value(mine)} → {format_value(theirs)}"
                for key, (mine, theirs) in sorted(changed.items())
            )
            yield Finding("M401", f"loading replaces the program's {said}", (), meeting.where)


_NOT_COMPARED = FLAGS | IMPLEMENTATION_FLAGS | {"decoupled_weight_decay", "lr", "initial_lr"}
_CYCLE_KEYS = frozenset({"max_lr", "min_lr", "base_momentum", "max_momentum"})


def _owned(case: Case, meeting: Meeting) -> frozenset[str]:
    """Keys whose value a scheduler moves, so that the saved one is the one to have."""
    cycling = {
        each.cycles.partition("[")[0] for each in program(case).schedulers if each.drives == meeting.pairing.live.name
    }
    marked = {"betas", "momentum"} if "max_momentum" in meeting.live or "max_momentum" in meeting.saved else set()
    return _NOT_COMPARED | _CYCLE_KEYS | cycling | marked


def _base_rates(meeting: Meeting) -> tuple[Any, Any]:
    """The learning rates that the two sides were configured with: a scheduler keeps the one it started from."""
    mine, theirs = meeting.live, meeting.saved
    if ("max_lr" in mine) != ("max_lr" in theirs):
        return None, None  # OneCycleLR computes its start from the peak: the two rates are not of a kind
    return mine.get("initial_lr", mine.get("lr")), theirs.get("initial_lr", theirs.get("lr"))


def _flags(case: Case) -> Iterator[Finding]:
    for meeting in _meetings(case):
        if not meeting.pairing.torch_loads:
            continue
        mine, theirs = meeting.live, meeting.saved
        moved = [key for key in sorted(FLAGS & mine.keys()) if bool(mine[key]) != bool(theirs.get(key))]
        if theirs.get("fused") and not mine.get("fused"):
            moved.append("fused")
        if moved:
            said = ", ".join(
                f"{key} {format_value(mine.get(key))} → {format_value(theirs.get(key, False))}" for key in moved
            )
            yield Finding("M402", f"loading sets {said}", (), meeting.where)
        if mine.get("fused") and not theirs.get("fused"):
            yield Finding(
                "M404",
                f"loading sets fused True → {format_value(theirs.get('fused'))}, while the optimizer goes on telling "
                "GradScaler that it is fused: GradScaler.step raises AssertionError",
                (),
                meeting.where,
            )
        decoupled, here = bool(theirs.get("decoupled_weight_decay")), mine.get("decoupled_weight_decay")
        if here is not None and bool(here) != decoupled and meeting.pairing.built.described_as != ADAMW:
            yield Finding(
                "M403", f"loading sets decoupled_weight_decay {format_value(here)} → {decoupled}", (), meeting.where
            )


# --- keys -------------------------------------------------------------------------------------------------------


def _scheduler_keys(case: Case) -> Iterator[Finding]:
    """Keys that a scheduler put into the live groups, and that the groups of the file lack."""
    for meeting in _meetings(case):
        lost = (_CYCLE_KEYS | {"initial_lr"}) & (meeting.live.keys() - meeting.saved.keys())
        if lost & _CYCLE_KEYS:
            yield Finding(
                "M410",
                f"loading takes {listing(sorted(lost))} out of the group, which the scheduler looks up",
                (),
                meeting.where,
            )
        elif lost:
            yield Finding(
                "M405",
                "the file has no initial_lr: after loading it no scheduler can be built with last_epoch >= 0",
                (),
                meeting.where,
            )


def _classes(case: Case) -> Iterator[Finding]:
    """State of another class, or of an older version of the same one."""
    for pairing in pairings(case):
        if pairing.way == "position" and not pairing.fits:
            continue
        found = _class_of(pairing)
        if found is not None:
            yield found


def _class_of(pairing: Pairing) -> Finding | None:
    own, where = pairing.built.described_as, called(pairing.live.name)
    kinds = f"{safe_text(pairing.saved.short_name)} in the file, {safe_text(pairing.live.short_name)} in the program"
    other = _another(pairing)
    absent, lacking = sorted(_absent(pairing)), sorted(_lacking(pairing))
    if not pairing.torch_loads:
        return Finding("M207", kinds, (), where) if other else None
    demanded = _stops_at(pairing)
    if demanded:
        said = f"load_state_dict raises KeyError: {demanded!r} after it has replaced the state"
        return Finding("M209", f"{kinds}: {said}", (), where) if other else Finding("M209", said, (), where)
    if not other:
        said = (
            f"the file's groups have no {listing(absent)}, which {safe_text(pairing.live.short_name)} does not fill in"
        )
        return Finding("M411", said, (), where) if absent else None
    if absent or lacking:
        return Finding("M207", f"{kinds}: it loads, and the next step misses {listing([*absent, *lacking])}", (), where)
    told_apart = own == ADAM and ADAMW in (pairing.saved.class_name, *pairing.saved.alternatives)  # as M403
    return None if told_apart else Finding("M208", f"{kinds}: it loads and steps", (), where)


def _another(pairing: Pairing) -> bool:
    """Whether the file's class is known and is not the program's."""
    saved, own = pairing.saved, pairing.built.described_as
    if saved.inferred and own is None:
        return False  # a class that nobody described may write what looks like another's
    mine = {own, pairing.live.class_name}
    return saved.class_name is not None and not mine & {saved.class_name, *saved.alternatives}


def _absent(pairing: Pairing) -> set[str]:
    """Group keys that a step looks up and that neither the file has nor loading fills in."""
    own = pairing.built.described_as or ""
    filled = FILLED.get(own, IMPLEMENTATION_FLAGS) | unread(own)
    groups = [pairing.saved.groups[index] for sources in pairing.sources for index in sources]
    return {key for group in groups for key in pairing.built.defaults if key not in group.hyperparameters} - filled


def _lacking(pairing: Pairing) -> set[str]:
    """Slots that a step looks up in an entry that is not empty, under the hyperparameters that come with the file."""
    spec = by_name(pairing.built.described_as)
    if spec is None or spec.name in MENDED or spec.order_matters:
        return set()
    return {
        key
        for saved, live in pairing.members
        if saved.slots
        for key, row in spec.slots.items()
        if key not in saved.slots
        and row.exists(_after(pairing, saved), None if live.shape is None else len(live.shape))
    }


def _after(pairing: Pairing, saved: Any) -> dict[str, Any]:
    """The hyperparameters of a group after loading, with what loading fills in."""
    group = pairing.saved.groups[saved.facts.group].hyperparameters
    return {**dict.fromkeys(FILLED.get(pairing.built.described_as or "", ()), None), **group}


def _stops_at(pairing: Pairing) -> str:
    """The slot at whose absence `load_state_dict` itself stops, half-way; "" where it does not."""
    due = DEMANDED.get(pairing.built.described_as or "", ())
    entries = [saved.slots for saved, _ in pairing.members if saved.slots]
    return next((key for slots in entries for key in due if key not in slots), "")


def _merged(case: Case) -> Iterator[Finding]:
    """Groups that `set_optimizer_state_dict` splits or merges."""
    for pairing in pairings(case):
        if pairing.way != "name":
            continue
        used = Counter(index for sources in pairing.sources for index in sources)
        split = sorted(index for index, times in used.items() if times > 1)
        if split:
            yield Finding(
                "M503",
                f"group {listing(split)} of the file is spread over several groups of the program: "
                "set_optimizer_state_dict gives its hyperparameters to the last of them only",
                (),
                called(pairing.live.name),
            )
        for index, sources in enumerate(pairing.sources):
            differing = _differing([pairing.saved.groups[number].hyperparameters for number in sources])
            if differing:
                said = f"its parameters come from {len(sources)} groups of the file that differ in {listing(differing)}"
                yield Finding("M504", f"{said}: one value wins", (), at_group(pairing.live.name, index))


def _differing(groups: list[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have one value in all groups."""
    return (
        [key for key in groups[0] if not all(alike(groups[0][key], each.get(key)) for each in groups)] if groups else []
    )


RULES = (
    Rule(("M401",), "file and live", _overwritten, "hyperparameters"),
    Rule(("M402", "M403", "M404"), "file and live", _flags, "flags"),
    Rule(("M405", "M410"), "file and live", _scheduler_keys, "scheduler"),
    Rule(("M207", "M208", "M209", "M411"), "file and live", _classes, "class"),
    Rule(("M503", "M504"), "file and live", _merged, "groups"),
)

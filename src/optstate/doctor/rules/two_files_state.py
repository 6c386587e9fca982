"""An earlier and a later checkpoint of one run: state that went, steps that went back, shapes, types and order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.state_steps import step_counts
from optstate.doctor.rules.wording import about, places
from optstate.doctor.values import Values
from optstate.formats.checkpoint import Checkpoint
from optstate.optimizers.registry import by_name
from optstate.state.groups import OptimizerInfo
from optstate.state.slot import Slot
from optstate.state.tensors import DTYPES
from optstate.text import count, listing, safe_text


@dataclass(frozen=True, slots=True)
class TwoFiles:
    """Both files in the order of the run; `common` are the parameters that both have."""

    earlier: Checkpoint
    later: Checkpoint
    common: tuple[str, ...]

    @property
    def names(self) -> str:
        """Both files, for evidence."""
        return f"from {safe_text(self.earlier.path, 80)} to {safe_text(self.later.path, 80)}"

    def slots(self) -> Iterator[tuple[Slot, Slot]]:
        """Every slot that a parameter has in both."""
        for name in self.common:
            old, new = self.earlier.state[name].slots, self.later.state[name].slots
            yield from ((old[key], new[key]) for key in old if key in new)


def two_files(case: Case) -> TwoFiles:
    """Which is earlier is told by the steps that the files state, else by their counts; else it is the other one."""
    ours, theirs = case.checkpoint, case.other
    if ours is None or theirs is None:
        raise ValueError("a case of two files with one")
    earlier, later = (ours, theirs) if _age(ours, theirs) < 0 else (theirs, ours)
    return TwoFiles(earlier, later, tuple(name for name in earlier.state if name in later.state))


def _age(ours: Checkpoint, theirs: Checkpoint) -> float:
    """How many steps the first is later than the second."""
    if ours.step is not None and theirs.step is not None and ours.step != theirs.step:
        return ours.step - theirs.step
    mine, other = (
        max((value for counts in step_counts(each.state)[0].values() for value in counts.values()), default=0.0)
        for each in (ours, theirs)
    )
    return mine - other


def _disappeared(case: Case) -> Iterator[Finding]:
    """Parameters that had state and have none, and single slots that went where the class is not known."""
    files = two_files(case)
    earlier, later = files.earlier.state, files.later.state
    had = [name for name in earlier if earlier[name].slots]
    lost = [name for name in had if name in later and not later[name].slots]
    if had and not any(parameter.slots for parameter in later.values()):
        yield Finding("M103", f"{count(len(had), 'parameter')} had state, and none has any more, {files.names}")
    elif lost:
        yield about("M104", lost, f"lost their state {files.names}", of=len(had))
    gone: dict[str, list[str]] = {}
    for name in files.common:
        known = later.optimizers[later[name].facts.optimizer].known
        for key in earlier[name].slots.keys() - later[name].slots.keys() if later[name].slots and not known else ():
            gone.setdefault(key, []).append(name)
    for key, names in gone.items():
        yield about("M114", names, f"lost {safe_text(key)} {files.names}")


def _other_parameters(case: Case) -> Iterator[Finding]:
    """Parameters or groups of another number."""
    files = two_files(case)
    old, new = files.earlier.state, files.later.state
    if not old or not new:
        return
    only = [
        ("earlier", [name for name in old if name not in new]),
        ("later", [name for name in new if name not in old]),
    ]
    said = [
        f"{count(len(names), 'parameter')} only in the {which} ({listing(names, 3)})" for which, names in only if names
    ]
    if len(old.groups) != len(new.groups):
        said.append(f"{count(len(old.groups), 'group')} in the earlier, {len(new.groups)} in the later")
    if said and (len(old) != len(new) or len(old.groups) != len(new.groups)):
        yield Finding("M205", "; ".join(said), tuple(name for _, names in only for name in names))


def _back(case: Case) -> Iterator[Finding]:
    """Counts that are lower in the later file."""
    files = two_files(case)
    old, new = (
        {name: value for counts in step_counts(each.state)[0].values() for name, value in counts.items()}
        for each in (files.earlier, files.later)
    )
    back = [name for name in old if name in new and new[name] < old[name]]
    if back:
        first = back[0]
        says = f"count fewer steps {files.names} ({old[first]:,.0f}, then {new[first]:,.0f} for the first)"
        yield about("M311", back, says, of=len(new))


def _shapes(case: Case) -> Iterator[Finding]:
    """Slots of another shape, where their shape is that of the parameter."""
    found = [(a, b) for a, b in two_files(case).slots() if None not in (a.shape, b.shape) and a.shape != b.shape]
    found = [(a, b) for a, b in found if a.role != "other"]
    if found:
        yield _changed("M203", found, "shape")


def _types(case: Case) -> Iterator[Finding]:
    """Slots of another element type."""
    found = [(a, b) for a, b in two_files(case).slots() if a.dtype != b.dtype and {a.dtype, b.dtype} <= DTYPES.keys()]
    if found:
        yield _changed("M210", found, "dtype")


def _changed(code: str, pairs: list[tuple[Slot, Slot]], what: str) -> Finding:
    old, new = pairs[0]
    values: tuple[Any, Any] = getattr(old, what), getattr(new, what)
    slots = places((slot.parameter, slot.key) for _, slot in pairs)
    one, other = (list(value) if isinstance(value, tuple) else value for value in values)
    evidence = f"{count(len(pairs), 'slot')} changed {what}, {one} to {other} for the first: {slots}"
    return Finding(code, evidence, tuple(dict.fromkeys(slot.parameter for _, slot in pairs)))


def _other_class(case: Case) -> Iterator[Finding]:
    """An optimizer of another class."""
    files = two_files(case)
    for name, old in files.earlier.state.optimizers.items():
        new = files.later.state.optimizers.get(name)
        if new is None or not old.known or not new.known:
            continue
        if not {old.class_name, *old.alternatives} & {new.class_name, *new.alternatives} and not _twins(old, new):
            yield Finding("M207", f"{old.short_name} became {new.short_name} {files.names}")


def _twins(old: OptimizerInfo, new: OptimizerInfo) -> bool:
    """Whether two classes keep the same and differ in a flag alone, as Adam and AdamW do: then the flag is told of."""
    one, other = by_name(old.class_name), by_name(new.class_name)
    return (
        one is not None
        and other is not None
        and (one.slots, one.hyperparameters) == (other.slots, other.hyperparameters)
    )


def _swapped(case: Case) -> Iterator[Finding]:
    """Momentum that the other file has, bit for bit, under another name."""
    files = two_files(case)
    values = (case.values, case.other_values)
    (new, old) = values if files.later is case.checkpoint else values[::-1]
    before, after = _momentum_digests(files.earlier, old), _momentum_digests(files.later, new)
    owner = {digest: name for name, digest in before.items()}
    moved = {
        name: owner[digest]
        for name, digest in after.items()
        if digest in owner and owner[digest] != name and name in before and owner[digest] in after
    }
    if moved:
        name, source = next(iter(moved.items()))
        evidence = (
            f"{count(len(moved), 'parameter')} have the momentum of another one {files.names}: {safe_text(name)} has "
            f"that of {safe_text(source)}, bit for bit"
        )
        yield Finding("M202", evidence, tuple(moved))


def _momentum_digests(checkpoint: Checkpoint, values: Values) -> Mapping[str, bytes]:
    """What the momentum of each parameter hashes to, where it can be told from every other."""
    digests = {}
    for name, parameter in checkpoint.state.items():
        slot = parameter.find("momentum")
        measure = values.slots.get((name, slot.key)) if slot is not None else None
        if measure is not None and measure.elements > 1 and measure.smallest != measure.largest:
            digests[name] = measure.digest
    times = Counter(digests.values())
    return {name: digest for name, digest in digests.items() if times[digest] == 1}


RULES = (
    Rule(("M103", "M104", "M114"), "two files", _disappeared, "presence"),
    Rule(("M205",), "two files", _other_parameters, "parameters"),
    Rule(("M311",), "two files", _back, "steps"),
    Rule(("M203",), "two files", _shapes, "shapes"),
    Rule(("M210",), "two files", _types, "dtypes"),
    Rule(("M207",), "two files", _other_class, "class"),
    Rule(("M202",), "two files", _swapped, "order", reads_values=True),
)

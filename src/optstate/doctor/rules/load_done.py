"""A file against a program that has loaded it already: did every parameter get its own state?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from optstate.doctor.case import Case
from optstate.doctor.counting import Measure
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.asking import program
from optstate.doctor.rules.load_pairing import pairings
from optstate.doctor.rules.wording import about
from optstate.doctor.values import measure
from optstate.optimizers.spec import number
from optstate.state.parameter import ParamState
from optstate.state.tensors import is_tensor
from optstate.text import safe_text

Measured: TypeAlias = Mapping[tuple[str, str], Measure]


def _loaded(case: Case) -> Iterator[Finding]:
    """Contents tell: what a program has loaded and not stepped since is in the file, bit for bit, under some name."""
    live = program(case).state
    named = [
        (case.state[own], live[name])
        for pairing in pairings(case)
        for own, name in pairing.names.items()
        if name in live
    ]
    # Most programs have gone on since, or have not loaded anything: their step counts say so without a value read.
    if not any(_steps(mine) is not None and _steps(mine) == _steps(saved) for saved, mine in named):
        return
    held = measure(live, {}, {}).slots
    owners = {(key, found.digest): name for (name, key), found in case.values.slots.items() if _tells(found)}
    kept, moved = [], []
    for saved, mine in named:
        origin = _origin(saved, mine, held, case.values.slots, owners)
        if origin == saved.name:
            kept.append(mine.name)
        elif origin is not None:
            moved.append((mine.name, origin))
    if moved:
        name, origin = moved[0]
        says = f"hold what the file has for another: {safe_text(name)} the state of {safe_text(origin)}"
        yield about("M202", [name for name, _ in moved], says, of=len(named))
    if kept or moved:
        yield from _left_out([(saved, mine) for saved, mine in named if saved.slots and not mine.slots], len(named))


def _origin(
    saved: ParamState, mine: ParamState, held: Measured, kept: Measured, owners: Mapping[tuple[str, bytes], str]
) -> str | None:
    """The parameter of the file whose content a live one has: its own, where that is so; None for none of them."""
    for key in mine.slots:
        found, own = held.get((mine.name, key)), kept.get((saved.name, key))
        if found is None or not _tells(found):
            continue
        origin = saved.name if own is not None and own.digest == found.digest else owners.get((key, found.digest))
        if origin is not None:
            return origin
    return None


def _tells(found: Measure) -> bool:
    """Whether a content is one that no other parameter would have by chance: neither a count nor a constant."""
    return found.elements > 1 and found.smallest != found.largest


def _steps(parameter: ParamState) -> float | None:
    slot = parameter.find("step")
    return None if slot is None or (is_tensor(slot.value) and slot.shape != ()) else number(slot.value)


def _left_out(pairs: list[tuple[ParamState, ParamState]], of: int) -> Iterator[Finding]:
    frozen = [mine.name for _, mine in pairs if mine.facts.trainable is False]
    others = [mine.name for _, mine in pairs if mine.facts.trainable is not False]
    if frozen:
        yield about("M104", frozen, "are frozen and did not get the state that the file has for them", of=of)
    if others:
        yield about("M506", others, "did not get the state that the file has for them, others did", of=of)


RULES = (Rule(("M104", "M202", "M506"), "file and live", _loaded, "order", reads_values=True),)

"""A file against a program: would each parameter get its own state?"""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.case import Case
from optstate.doctor.evidence import LiveParameter
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.asking import program
from optstate.doctor.rules.load_pairing import Pairing, pairings, prefixes
from optstate.doctor.rules.wording import about, called
from optstate.state.parameter import ParamState
from optstate.text import count, listing, safe_text


def _counts(case: Case) -> Iterator[Finding]:
    """Groups and parameters that do not match in number, or names that only one side has."""
    saved, live = case.state.optimizers, program(case).state.optimizers
    if saved and len(saved) != len(live):
        numbers = f"{count(len(saved), 'optimizer')} in the file, {len(live)} in the program"
        yield Finding("M205", f"{numbers}: {listing(saved)} and {listing(live)}")
    for pairing in pairings(case):
        if pairing.way == "position" and not pairing.fits:
            yield _misfit(pairing)
        elif pairing.way != "position":
            yield from _one_sided(pairing)


def _misfit(pairing: Pairing) -> Finding:
    theirs, mine = ([len(group.parameters) for group in info.groups] for info in (pairing.saved, pairing.live))
    lost, extra = _differences(pairing)
    names = f"; only in the program: {listing(extra)}" * bool(extra) + f"; only in the file: {listing(lost)}" * bool(
        lost
    )
    return Finding(
        "M205",
        f"groups of {listing(theirs)} parameters in the file, of {listing(mine)} in the program: load_state_dict raises "
        f"ValueError and loads nothing{names}",
        tuple(extra),
        called(pairing.live.name),
    )


def _one_sided(pairing: Pairing) -> Iterator[Finding]:
    lost, extra = _differences(pairing)
    if extra or lost:
        names = [f"{listing(extra)} of the program"] * bool(extra) + [f"{listing(lost)} of the file"] * bool(lost)
        yield Finding("M205", f"no counterpart for {' and for '.join(names)}", tuple(extra), called(pairing.live.name))


def _differences(pairing: Pairing) -> tuple[list[str], list[str]]:
    """Names of the file that the program lacks, and the reverse; none where the file knows no names."""
    mine = [name for group in pairing.live.groups for name in group.parameters]
    theirs, known = set(pairing.names.values()), set(mine)
    if not theirs:
        return [], []
    lost = [own for own, name in pairing.names.items() if name not in known]
    return lost, [name for name in mine if name not in theirs]


def _order(case: Case) -> Iterator[Finding]:
    """State that would go to another parameter, because torch goes by position."""
    for pairing in pairings(case):
        if pairing.way != "position" or not pairing.fits or not pairing.built.loads_as_torch:
            continue
        where = called(pairing.live.name)
        regrouped = _regrouped(pairing)
        if regrouped:
            first, other = regrouped[0]
            yield Finding(
                "M221",
                f"group {first} of the file has the parameters of group {other} of the program: its hyperparameters and "
                f"state go to {listing(pairing.live.groups[first].parameters, 3)}",
                tuple(name for index, _ in regrouped for name in pairing.live.groups[index].parameters),
                where,
                "give the optimizer its groups in the order of the file",
            )
        mistaken = _mistaken(pairing)
        swapped = [(theirs, live.name) for _, live, theirs in mistaken if live.group not in dict(regrouped)]
        if swapped:
            says = f"would get the state of another: {safe_text(swapped[0][1])} that of {safe_text(swapped[0][0])}"
            yield about("M202", [name for _, name in swapped], says, of=len(pairing.members), where=where)
        lies = [live.name for saved, live, _ in mistaken if saved.facts.certainty == "recorded"]
        if lies:
            says = "would be called by another's name in param_names, which load_state_dict overwrites"
            yield about("M206", lies, says, of=len(pairing.members), where=where)


def _mistaken(pairing: Pairing) -> list[tuple[ParamState, LiveParameter, str]]:
    """Parameters that would go together although the file has another one of the program's names for it: that name."""
    mine = {name for group in pairing.live.groups for name in group.parameters}
    named = [(saved, live, pairing.names.get(saved.name, "")) for saved, live in pairing.members]
    return [(saved, live, name) for saved, live, name in named if name != live.name and name in mine]


def _regrouped(pairing: Pairing) -> list[tuple[int, int]]:
    """Groups whose parameters the program has in another group: index in the file → index in the program."""
    mine = [frozenset(group.parameters) for group in pairing.live.groups]
    places = {names: index for index, names in enumerate(mine)}
    theirs = [frozenset(pairing.names.get(name, "") for name in group.parameters) for group in pairing.saved.groups]
    return [(index, places[names]) for index, names in enumerate(theirs) if names in places and mine[index] != names]


def _prefix(case: Case) -> Iterator[Finding]:
    for pairing in pairings(case):
        mine = [name for group in pairing.live.groups for name in group.parameters]
        removed, added = prefixes(list(pairing.names), mine)
        if removed or added:
            side, prefix = ("file", removed) if removed else ("program", added)
            says = f"the names of the {side} begin with {safe_text(prefix)!r}, those of the other side do not"
            yield Finding("M204", says, tuple(mine), called(pairing.live.name))


RULES = (
    Rule(("M205",), "file and live", _counts, "groups"),
    Rule(("M202", "M206", "M221"), "file and live", _order, "order"),
    Rule(("M204",), "file and live", _prefix, "names"),
)

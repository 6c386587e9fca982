"""Which optimizer and which parameter of a file would go where, if the program loaded it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optstate.doctor.case import Case
from optstate.doctor.evidence import LiveEvidence, LiveOptimizer, LiveParameter
from optstate.doctor.rules.asking import program
from optstate.formats.checkpoint import Checkpoint
from optstate.state.groups import OptimizerInfo
from optstate.state.parameter import ParamState

Way = Literal["position", "name", "restore"]
"""How a file is loaded: torch's `load_state_dict` zips the parameters in order; `set_optimizer_state_dict` goes by name,
then through the former; our own files are restored by name, in their own types."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """An optimizer of a file and the live one that it would be loaded into.

    saved, live, built
        The optimizer in the file; the running one; and what the running one is besides.
    way
        How it would be loaded.
    members
        Parameters that would go together: of the file and of the program.
    names
        Name in the file → the program's name for it; the file's own where the program has none. Only names that the
        file really knows.
    sources
        For each live group the groups of the file that its parameters would come from.
    """

    saved: OptimizerInfo
    live: OptimizerInfo
    built: LiveOptimizer
    way: Way
    members: tuple[tuple[ParamState, LiveParameter], ...]
    names: Mapping[str, str]
    sources: tuple[tuple[int, ...], ...]

    @property
    def torch_loads(self) -> bool:
        """Whether what torch's own `load_state_dict` does happens to it."""
        return self.way != "restore" and self.built.loads_as_torch

    @property
    def fits(self) -> bool:
        """Whether torch would pair the parameters at all: as many groups, as many in each."""
        return [len(group.parameters) for group in self.saved.groups] == [
            len(group.parameters) for group in self.live.groups
        ]


def pairings(case: Case) -> Iterator[Pairing]:
    """Every optimizer of the file with the live one of its name; a single one, and one list of as many, in order."""
    checkpoint, live = case.checkpoint, program(case)
    if checkpoint is None:
        return
    saved, running = checkpoint.state.optimizers, live.state.optimizers
    by_name = set(saved) == set(running)
    if by_name or len(saved) == len(running):
        mine = list(running) if not by_name else list(saved)
        for name, info in zip(mine, saved.values(), strict=True):
            yield _pairing(checkpoint, live, info, running[name])


def _pairing(checkpoint: Checkpoint, live: LiveEvidence, saved: OptimizerInfo, running: OptimizerInfo) -> Pairing:
    theirs = [name for group in saved.groups for name in group.parameters]
    mine = [name for group in running.groups for name in group.parameters]
    state = checkpoint.state
    known = [name for name in theirs if state[name].facts.certainty != "position"]
    names = translated(known, mine)
    way = _way(checkpoint, theirs)
    if way == "position":
        pairs = list(zip(theirs, mine, strict=False))
        sources: tuple[tuple[int, ...], ...] = tuple(
            (index,) for index in range(min(len(saved.groups), len(running.groups)))
        )
    else:
        back = {name: own for own, name in names.items()}
        pairs = [(back[name], name) for name in mine if name in back]
        sources = tuple(
            tuple(dict.fromkeys(state[back[name]].facts.group for name in group.parameters if name in back))
            for group in running.groups
        )
    members = tuple((state[own], live.parameters[name]) for own, name in pairs)
    return Pairing(saved, running, live.optimizers[running.name], way, members, names, sources)


def _way(checkpoint: Checkpoint, names: Sequence[str]) -> Way:
    if checkpoint.format.startswith("optstate"):
        return "restore"
    keyed = [name for name in names if checkpoint.state[name].facts.certainty == "file"]
    return "name" if keyed and len(keyed) == len(names) else "position"


# --- names that differ by a prefix --------------------------------------------------------------------------


def translated(saved: Sequence[str], live: Sequence[str]) -> dict[str, str]:
    """Names of a file as the program would say them, where all of them differ by one prefix."""
    removed, added = prefixes(saved, live)
    return {name: added + name.removeprefix(removed) for name in saved}


def prefixes(saved: Sequence[str], live: Sequence[str]) -> tuple[str, str]:
    """The prefix that the names of the file have and the live ones lack, and the other way round; mostly "" and ""."""
    if not saved or set(saved) & set(live):
        return "", ""
    return _surplus(saved, set(live)), _surplus(live, set(saved))


def _surplus(names: Sequence[str], others: set[str]) -> str:
    """What all names begin with, if every one of them is among the others without it."""
    first = names[0] if names else ""
    cuts = [index + 1 for index, character in enumerate(first) if character == "."]
    fitting = [first[:cut] for cut in cuts if first[cut:] in others]
    return next(
        (
            each
            for each in fitting
            if all(name.startswith(each) and name.removeprefix(each) in others for name in names)
        ),
        "",
    )

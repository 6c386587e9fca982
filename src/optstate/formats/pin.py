"""Naming the parameters of a file by a program's own: what stands at a position is what the live optimizer has there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optstate.errors import BindError
from optstate.formats.checkpoint import Checkpoint, Clue
from optstate.formats.state_dict import mirrored, mirrors
from optstate.optimizers.registry import by_name
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.text import count, listing, safe_text


def pin(checkpoint: Checkpoint, live: OptimizerState) -> Checkpoint:
    """The checkpoint with the names that a running program gives to its positions, by identity.

    What the file itself names beside its slots keeps its name, which the program must know. Names in the file that are
    others than the program's are reported. Raises `BindError`, with both sides named, where optimizers, groups,
    numbers of parameters or shapes do not agree.
    """
    pairs = _optimizers(checkpoint, live)
    matches = [match for mine, theirs in pairs for match in _matched(checkpoint, mine, theirs, live)]
    _check_shapes(checkpoint, matches)
    names = {match.found.name: match.live.name for match in matches}
    parameters = [_renamed(checkpoint.state, match) for match in matches]
    infos = {mine.name: _regrouped(mine, names) for mine, _ in pairs}
    left_out = {reason: each for reason, each in live.left_out.items() if each}
    return replace(
        checkpoint,
        state=OptimizerState(FrozenSource(parameters, infos, left_out)),
        # Which weight is which is no longer open.
        clues=(*(clue for clue in checkpoint.clues if clue.code != "M201"), *_lies(matches)),
        notes=(*checkpoint.notes, *_guesses(matches)),
    )


def pin_in_order(checkpoint: Checkpoint, parameters: Sequence[ParameterFacts]) -> Checkpoint:
    """As `pin`, where the program gave a model and no optimizer: by `rule`, the order of the model's parameters.

    Holds for one optimizer with one group over all of them, or over all that are trained; raises `BindError` else.
    """
    sizes = [len(group.parameters) for group in checkpoint.state.groups]
    trainable = [each for each in parameters if each.trainable is not False]
    chosen = next((each for each in (parameters, trainable) if [len(each)] == sizes), None)
    if chosen is None:
        raise BindError(
            "a model alone does not tell which parameter is where in the optimizer",
            expected=f"one group of {count(len(parameters), 'parameter')}, or of the {len(trainable):,} that are trained",
            found=f"groups of {', '.join(map(str, sizes))}" if sizes else "no optimizer state",
            todo="return (model, optimizer) from the factory",
        )
    name = next(iter(checkpoint.state.optimizers))
    facts = [replace(each, certainty="rule", optimizer=name, group=0) for each in chosen]
    info = replace(
        checkpoint.state.optimizers[name],
        groups=(Group(name, 0, {}, tuple(each.name for each in facts)),),
    )
    source = FrozenSource([FrozenParameter(each, {}, {}) for each in facts], {name: info})
    return pin(checkpoint, OptimizerState(source))


@dataclass(frozen=True, slots=True)
class _Match:
    """A parameter of the file, and that of the program which it is."""

    found: ParameterFacts
    live: ParameterFacts


def _optimizers(checkpoint: Checkpoint, live: OptimizerState) -> list[tuple[OptimizerInfo, OptimizerInfo]]:
    """The optimizers of both sides in pairs: by name, or one by one where their names are not the same."""
    mine, theirs = checkpoint.state.optimizers, live.optimizers
    if len(mine) != len(theirs) or not mine:
        raise BindError(
            "file and program have another number of optimizers",
            where=safe_text(checkpoint.path),
            expected=_numbered(theirs),
            found=_numbered(mine),
            todo="return all optimizers of the run from the factory: a list, or a dict by name",
        )
    if mine.keys() == theirs.keys():
        return [(mine[name], theirs[name]) for name in mine]
    return list(zip(mine.values(), theirs.values(), strict=True))


def _numbered(optimizers: Mapping[str, OptimizerInfo]) -> str:
    named = [
        f"{safe_text(info.name)}: {info.short_name}" if info.name else info.short_name for info in optimizers.values()
    ]
    return f"{count(len(named), 'optimizer')} ({listing(named)})" if named else "no optimizer"


def _matched(checkpoint: Checkpoint, mine: OptimizerInfo, theirs: OptimizerInfo, live: OptimizerState) -> list[_Match]:
    """The parameters of one optimizer in pairs: by name where the file vouches for it, else by position."""
    sizes, expected = ([len(group.parameters) for group in info.groups] for info in (mine, theirs))
    if sizes != expected:
        raise BindError(
            "the groups of the optimizer in the file are not those of the program",
            where=_place(checkpoint, mine),
            expected=f"groups of {_sizes(expected)}, as the program has",
            found=f"groups of {_sizes(sizes)}",
            todo="build the optimizer as the run did that wrote the file: its groups, what is frozen, adapters",
        )
    names = [name for group in mine.groups for name in group.parameters]
    known = [name for group in theirs.groups for name in group.parameters]
    found = [checkpoint.state[name].facts for name in names]
    if any(facts.certainty == "file" for facts in found):
        strange = [name for name in names if name not in live]
        if strange:
            raise BindError(
                "the file names parameters that the program does not have",
                where=_place(checkpoint, mine),
                expected=listing(known),
                found=listing(strange),
                todo="build the model as the run did that wrote the file",
            )
        known = names
    return [_Match(facts, live[name].facts) for facts, name in zip(found, known, strict=True)]


def _place(checkpoint: Checkpoint, info: OptimizerInfo) -> str:
    return f"{safe_text(checkpoint.path)}{f': {safe_text(info.name)}' if info.name else ''}"


def _sizes(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes[:12]))}{', …' if len(sizes) > 12 else ''} parameters" if sizes else "nothing"


def _check_shapes(checkpoint: Checkpoint, matches: Sequence[_Match]) -> None:
    """The state of a parameter has the shape that the program's parameter has."""
    off = [
        (match, shape)
        for match in matches
        if (shape := _shape(checkpoint, match.found)) is not None and match.live.shape not in (None, shape)
    ]
    if off:
        (first, shape), *_ = off
        raise BindError(
            f"{count(len(off), 'parameter')} of the file {'has' if len(off) == 1 else 'have'} another shape than in the program",
            where=f"{safe_text(checkpoint.path)}: {listing(match.found.name for match, _ in off)}",
            expected=f"{safe_text(first.live.name)} {list(first.live.shape or ())}, as the program has",
            found=f"{safe_text(first.found.name)} {list(shape)}",
            todo="build model and optimizer as the run did that wrote the file, in the same order",
        )


def _shape(checkpoint: Checkpoint, facts: ParameterFacts) -> tuple[int, ...] | None:
    """The shape of a parameter, as its slots tell."""
    spec = by_name(checkpoint.state.optimizers[facts.optimizer].class_name)
    entry = {key: slot.value for key, slot in checkpoint.state[facts.name].slots.items()}
    return mirrored(entry, mirrors(spec))[0]


def _renamed(state: OptimizerState, match: _Match) -> FrozenParameter:
    found, live = match.found, match.live
    parameter = state[found.name]
    slots = {key: replace(slot, parameter=live.name) for key, slot in parameter.slots.items()}
    facts = replace(
        found,
        name=live.name,
        certainty=live.certainty,
        shape=found.shape if live.shape is None else live.shape,
        dtype=live.dtype or found.dtype,
        aliases=live.aliases,
        trainable=live.trainable,
        candidates=(),
    )
    return FrozenParameter(facts, slots, parameter.absences)


def _regrouped(info: OptimizerInfo, names: Mapping[str, str]) -> OptimizerInfo:
    groups = tuple(replace(group, parameters=tuple(names[name] for name in group.parameters)) for group in info.groups)
    return replace(info, groups=groups)


def _lies(matches: Sequence[_Match]) -> list[Clue]:
    """Names that torch recorded and that are not the program's."""
    lying = [match for match in matches if match.found.certainty == "recorded" and match.found.name != match.live.name]
    return [Clue("M206", f"recorded names are not the program's: {_contrast(lying)}")] if lying else []


def _guesses(matches: Sequence[_Match]) -> list[str]:
    """Names that were taken from order or shape and are not the program's."""
    wrong = [
        match
        for match in matches
        if match.found.certainty in ("rule", "shapes") and match.found.name != match.live.name
    ]
    return [f"by order or shape parameters would have had other names: {_contrast(wrong)}"] if wrong else []


def _contrast(matches: Sequence[_Match]) -> str:
    first = matches[0]
    return f"{count(len(matches), 'parameter')}, such as {safe_text(first.live.name)}, called {safe_text(first.found.name)}"

"""Names: which live name is which saved name under a policy, and what is on one side only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from optstate.live.weights import Weight
from optstate.resume.content import same_content
from optstate.resume.decisions import Fate
from optstate.resume.pairing import Names, Pairing, pair
from optstate.resume.policy import Policy
from optstate.resume.renaming import Renamed, meant, renamed, suggested
from optstate.resume.source import Saved
from optstate.text import count, listing, safe_text

AS_SAVED = Fate("exact", "as saved")
EXCLUDED = Fate("left out", "the policy leaves it as it is")


@dataclass(slots=True)
class Matched:
    """The names of two sides, side by side; of the weights or of the optimizers' parameters.

    `pairs` is live name → saved name, `fates` says of those that are not simply the same what they are (`renamed`).
    `missing` are live names without a saved one, `unexpected` the reverse, `excluded` live names that the policy leaves
    alone. `tied` is a live tensor with several saved ones, `untied` a saved one with several live ones.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    tied: dict[str, list[str]] = field(default_factory=dict)
    untied: dict[str, list[str]] = field(default_factory=dict)

    def fate(self, live: str) -> Fate:
        """How the saved bits of this name come back, if nothing else is done to them."""
        return self.fates.get(live, AS_SAVED)


def match_names(
    saved: Saved, weights: Mapping[str, Weight], parameters: Names, policy: Policy
) -> tuple[Matched, Matched]:
    """How the names of both sides go together: those of the weights, and those of the optimizers' parameters.

    `weights` and `parameters` are the live ones. A live tensor without a saved twin is looked for by its content among
    what has no live twin. Raises `PolicyError` for a rule or a pattern that means nothing, and for rules that clash.
    """
    live: list[Names] = [{name: weight.aliases for name, weight in weights.items()}, parameters]
    theirs: list[Names] = [
        {name: saved.aliases.get(name, ()) for name in saved.weights or {}},
        {name: saved.state.source.facts(name).aliases for name in saved.state},
    ]
    excluded = _excluded({**parameters, **live[0]}, policy)
    names = renamed(policy.rename, _every(*theirs)) if policy.rename else {}
    found = _pair(live, theirs, names)
    by_content = _by_content(found, saved, weights, excluded, names)
    if by_content:
        names = {**names, **by_content}
        found = _pair(live, theirs, names)
    first, second = (
        _matched(pairing, mine, other, names, excluded)
        for pairing, mine, other in zip(found, live, theirs, strict=True)
    )
    return first, second


def _pair(live: Sequence[Names], saved: Sequence[Names], names: Mapping[str, Renamed]) -> list[Pairing]:
    new = {name: made.name for name, made in names.items()}
    return [pair(mine, theirs, new) for mine, theirs in zip(live, saved, strict=True)]


def _every(*sides: Names) -> set[str]:
    return {alias for names in sides for name, aliases in names.items() for alias in (name, *aliases)}


def _excluded(live: Names, policy: Policy) -> set[str]:
    """The live names that `include` does not mean, or `exclude` does."""
    if policy.include == ("*",) and not policy.exclude:
        return set()
    kept = set[str]().union(*(meant("include", pattern, live) for pattern in policy.include))
    return (set(live) - kept).union(*(meant("exclude", pattern, live) for pattern in policy.exclude))


def _by_content(
    found: Iterable[Pairing],
    saved: Saved,
    weights: Mapping[str, Weight],
    excluded: set[str],
    names: Mapping[str, Renamed],
) -> dict[str, Renamed]:
    """Renames of saved names that no rule means, by what the weights of these names hold."""
    lost = {name for pairing in found for name in pairing.lost if name in weights} - excluded
    strangers = {name for pairing in found for name in pairing.strangers}
    if not lost or not strangers or not saved.weights:
        return {}
    ours = {name: weights[name].tensor for name in weights if name in lost}
    theirs = {
        name: ref
        for name, ref in saved.weights.items()
        if not strangers.isdisjoint(every := (name, *saved.aliases.get(name, ()))) and names.keys().isdisjoint(every)
    }
    return {
        twin: Renamed(name, f"it holds what was saved as {safe_text(twin)}")
        for name, twin in same_content(ours, theirs).items()
    }


def _matched(found: Pairing, live: Names, saved: Names, names: Mapping[str, Renamed], excluded: set[str]) -> Matched:
    fates: dict[str, Fate] = {}
    for name, hit in found.pairs.items():
        if name != hit or names:
            reason = _why_renamed(name, live[name], (hit, *saved[hit]), names)
            if reason is not None:
                fates[name] = Fate("renamed", reason)
    for hit, finders in found.untied.items():
        for name in finders[1:]:
            fates[name] = Fate("renamed", f"a copy: one tensor in the checkpoint, {safe_text(hit)}")
    return Matched(
        {name: hit for name, hit in found.pairs.items() if name not in excluded},
        fates,
        [name for name in found.lost if name not in excluded],
        found.strangers,
        [name for name in live if name in excluded],
        {name: hits for name, hits in found.tied.items() if name not in excluded},
        {hit: finders for hit, finders in found.untied.items() if excluded.isdisjoint(finders)},
    )


def _why_renamed(live: str, aliases: Sequence[str], saved: Sequence[str], names: Mapping[str, Renamed]) -> str | None:
    """Why a saved tensor, by all its names, is this live one; None where its first name is that of the live one."""
    mine = {live, *aliases}
    made = next((names[name] for name in saved if name in names and names[name].name in mine), None)
    if made is not None:
        return made.reason
    return None if live == saved[0] else f"as saved under its other name, {safe_text(saved[0])}"


class Sentences(NamedTuple):
    """What is said of names that are on one side only, or of one tensor there and of several here."""

    missing: str
    unexpected: str
    untied: str
    tied: str


def name_faults(
    names: Matched, policy: Policy, noun: str, say: Sentences, alike: Callable[[str, str], bool]
) -> Iterator[str]:
    """What the names say against a restore under a policy. `alike` compares what two saved names stand for."""
    if names.missing and policy.missing == "error":
        yield (
            f"{say.missing.format(count(len(names.missing), noun))}: {listing(names.missing)}"
            f"{suggested(names.missing, names.unexpected)}"
        )
    if names.unexpected and policy.unexpected == "error":
        yield f"{say.unexpected.format(count(len(names.unexpected), noun))}: {listing(names.unexpected)}"
    if policy.missing == "error":
        for hit, finders in names.untied.items():
            yield f'{listing(finders)} {say.untied.format(safe_text(hit))} and two live; missing="fresh" gives each a copy'
    for hits in names.tied.values() if policy.unexpected == "error" else ():
        if not all(alike(hits[0], hit) for hit in hits[1:]):
            yield f'{listing(hits)} {say.tied}; unexpected="leave" takes {safe_text(hits[0])}'

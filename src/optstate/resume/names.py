"""Names: which live name is which saved name under a policy, and what is on one side only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optstate.resume.decisions import Fate
from optstate.resume.pairing import Names, pair
from optstate.resume.policy import Policy
from optstate.text import safe_text

AS_SAVED = Fate("exact", "as saved")


@dataclass(slots=True)
class Matched:
    """The names of two sides, side by side; of the weights or of the optimizers' parameters.

    `pairs` is live name → saved name, `fates` says of those that are not simply the same what they are (`renamed`).
    `missing` are live names without a saved one, `unexpected` the reverse, `excluded` live names that the policy leaves
    alone. `tied` is a live tensor with several saved ones; `faults` are sentences about names that cannot be.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    tied: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fate(self, live: str) -> Fate:
        """How the saved bits of this name come back, if nothing else is done to them."""
        return self.fates.get(live, AS_SAVED)


def match(live: Names, saved: Names, policy: Policy) -> Matched:
    """Match the names of two sides; each name comes with the further names of its tensor."""
    del policy  # renaming and choosing
    found = pair(live, saved)
    fates = {
        name: Fate("renamed", f"as saved under its other name, {safe_text(hit)}")
        for name, hit in found.pairs.items()
        if name != hit
    }
    return Matched(found.pairs, fates, found.lost, found.strangers, [], found.tied, found.untied)


def aliases_of(names: Mapping[str, object], aliases: Mapping[str, tuple[str, ...]]) -> Names:
    """First name → further names, for each of `names`."""
    return {name: aliases.get(name, ()) for name in names}

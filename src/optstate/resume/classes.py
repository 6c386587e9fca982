"""Optimizer classes: which saved optimizer goes into which live one, and by what way the state of a group gets there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from optstate.live.source import LiveSource, hyperparameters
from optstate.optimizers.conversion import Route, route
from optstate.optimizers.registry import by_class, by_name, qualified_name
from optstate.optimizers.spec import ALGORITHM_FLAGS, OptimizerSpec
from optstate.resume.decided import Decided
from optstate.resume.decisions import Fate
from optstate.resume.groups import Grouping
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.parameter import ParameterFacts
from optstate.text import listing, safe_text


def pair_optimizers(
    found: Decided, saved: Saved, live: LiveSource, pairs: Mapping[str, str], policy: Policy
) -> dict[str, str] | None:
    """Which saved optimizer goes into which live one: by name, or the only one into the only one.

    Where the policy lets the class change, each parameter finds its own, and the one named here is that of the first.
    """
    theirs, mine = saved.state.optimizers, live.live_optimizers
    if not theirs:
        return {}
    if len(theirs) == len(mine) == 1:
        return {next(iter(mine)): next(iter(theirs))}
    if set(theirs) == set(mine):
        return {name: name for name in mine}
    if policy.optimizer_change == "error":
        found.faults.append(
            f"{_names(theirs)} in the checkpoint, {_names(mine)} live; several are restored as they were saved, by their "
            'names, and by parameter under optimizer_change="convert"'
        )
        return None
    groups = live.optimizers()
    sources = {
        name: [
            saved.state.source.facts(pairs[each]).optimizer
            for group in info.groups
            for each in group.parameters
            if each in pairs
        ]
        for name, info in groups.items()
    }
    return {name: hits[0] if hits else next(iter(theirs)) for name, hits in sources.items()}


def _names(optimizers: Iterable[str]) -> str:
    named = sorted(name for name in optimizers if name)
    return f"optimizers {listing(named)}" if named else "one optimizer without a name"


def is_class(saved: OptimizerInfo, live: torch.optim.Optimizer) -> bool:
    """Whether a live optimizer is of the saved class, or of one that keeps and writes the very same."""
    name, spec = qualified_name(type(live)), by_class(type(live))
    if name == saved.class_name or (saved.inferred and name in saved.alternatives):
        return True
    return spec is not None and by_name(saved.class_name) is spec


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How the state of a saved group gets into a live one; shared by all parameters that go this way.

    `kind` is `same` for state that fits as it is, `converted`, `fresh` where the policy starts it anew, `fault` where it
    cannot be. `fate` is what that makes of a slot, of a fault its sentence. `may_have_codes` says whether either side may
    keep slots in codes.
    """

    kind: Literal["same", "converted", "fresh", "fault"]
    fate: Fate
    optimizer: torch.optim.Optimizer
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    saved_spec: OptimizerSpec | None
    spec: OptimizerSpec | None

    may_have_codes: bool

    @property
    def rows(self) -> tuple[OptimizerSpec, OptimizerSpec]:
        """The descriptions of both classes, which a conversion has. Raises `TypeError` without them."""
        if self.saved_spec is None or self.spec is None:
            raise TypeError(self.fate.reason)
        return self.saved_spec, self.spec


def keeps_codes(spec: OptimizerSpec) -> bool:
    """Whether a class may keep slots in codes."""
    return spec.stored_as is not None or "qmap1" in spec.slots


class Ways:
    """The ways between groups, each worked out once."""

    def __init__(self, saved: Saved, live: LiveSource, grouping: Grouping, policy: Policy) -> None:
        self._infos = saved.state.optimizers
        self._groups: dict[tuple[str, int], Group] = {(each.optimizer, each.index): each for each in saved.state.groups}
        self._live = live
        self._after = grouping.after
        self._policy = policy
        self._known: dict[tuple[str, int, str, int], Way] = {}

    def after(self, optimizer: str, group: int) -> Mapping[str, Any]:
        """The hyperparameters that a live group will have."""
        known = self._after.get((optimizer, group))
        return hyperparameters(self._live.live_optimizers[optimizer].param_groups[group]) if known is None else known

    def way(self, optimizer: str, group: int, facts: ParameterFacts) -> Way:
        """The way of a parameter into a live group."""
        key = (optimizer, group, facts.optimizer, facts.group)
        if key not in self._known:
            self._known[key] = self._made(*key)
        return self._known[key]

    def _made(self, optimizer: str, group: int, saved_optimizer: str, saved_group: int) -> Way:
        info, live = self._infos[saved_optimizer], self._live.live_optimizers[optimizer]
        before = self._groups[saved_optimizer, saved_group].hyperparameters
        after, spec = self.after(optimizer, group), by_class(type(live))
        alike = is_class(info, live)
        saved_spec = spec if alike else by_name(info.class_name)
        change = _Change(info, live, saved_spec, spec, before, after)
        if alike and not change.settings:
            kind, fate = _moved(optimizer, saved_optimizer, self._infos, self._live, self._policy)
        else:
            kind, fate = change.decided(self._policy, alike=alike)
        may_have_codes = any(row is None or keeps_codes(row) for row in (saved_spec, spec))
        return Way(kind, fate, live, before, after, saved_spec, spec, may_have_codes)


Kind = Literal["same", "converted", "fresh", "fault"]
_SAME = Fate("exact", "as saved")


def _moved(
    optimizer: str, saved: str, infos: Mapping[str, OptimizerInfo], live: LiveSource, policy: Policy
) -> tuple[Kind, Fate]:
    """State of the same class: a fault only where another of several optimizers steps the parameter now."""
    alone = len(infos) == len(live.live_optimizers) == 1
    if alone or optimizer == saved or policy.optimizer_change != "error":
        return "same", _SAME
    return "fault", Fate(
        "left out", f"stepped by optimizer {safe_text(saved)!r} in the checkpoint, {safe_text(optimizer)!r} live"
    )


@dataclass(frozen=True)
class _Change:
    """From a saved group to a live one whose class or setting is another."""

    info: OptimizerInfo
    live: torch.optim.Optimizer
    saved_spec: OptimizerSpec | None
    spec: OptimizerSpec | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @cached_property
    def settings(self) -> list[str]:
        """Of one class: the flags that differ, and the hyperparameters by which only one side has a slot."""
        keys = [key for key in ALGORITHM_FLAGS if key in self.before and key in self.after]
        found = {key for key in keys if not same(self.before[key], self.after[key])}
        slots = self.spec.slots.values() if self.spec is not None else ()
        found |= {str(slot.when) for slot in slots if slot.exists(self.before, None) != slot.exists(self.after, None)}
        return sorted(found)

    @cached_property
    def route(self) -> Route | str:
        """The way by formulas, or why there is none."""
        if self.saved_spec is None or self.spec is None:
            unknown = self.info.short_name if self.saved_spec is None else type(self.live).__name__
            return f"what {safe_text(unknown)} keeps is not described"
        return route(self.saved_spec, self.spec, self.before, self.after)

    def decided(self, policy: Policy, *, alike: bool) -> tuple[Kind, Fate]:
        """What becomes of the state under a policy."""
        saved, live = safe_text(self.info.short_name), type(self.live).__name__
        what = f"state of {saved} in the checkpoint, {live} live"
        if alike:
            what = f"{live} with another {listing(self.settings)}"
        if policy.optimizer_change == "fresh":
            return "fresh", Fate("fresh", what)
        if not isinstance(self.route, str) and (alike or policy.optimizer_change == "convert"):
            how = "exact" if self.route.exact else f"approximate: {'; '.join(self.route.lost)}"
            classes = what if alike else f"{saved} → {live}"
            return "converted", Fate("converted", f"{classes}, {self.route.note} ({how})")
        if alike and policy.optimizer_change == "error":
            return "same", _SAME  # the policy itself gave the setting, or it is a fault of the group
        label = f"optimizer {safe_text(self.info.name)}: " if self.info.name else ""
        return "fault", Fate("left out", f"{label}{what}; {self._offer()}")

    def _offer(self) -> str:
        if isinstance(self.route, str):
            return f'nothing converts it: {self.route}; optimizer_change="fresh" starts it anew'
        how = "exactly" if self.route.exact else f"approximately, lost: {'; '.join(self.route.lost)}"
        return f'optimizer_change="convert" would go on from it {how}'

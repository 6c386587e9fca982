"""Entries: a decision for the slots of each parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from optstate.live.bind import Bound
from optstate.live.quantised import gathered
from optstate.live.quantising import Forms
from optstate.live.source import LiveSource
from optstate.live.tensors import dtype_name
from optstate.optimizers.registry import by_class
from optstate.optimizers.resets import fresh_group
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.advising import advice
from optstate.resume.classes import Way, Ways
from optstate.resume.coding import coded, has_codes
from optstate.resume.converting import shared_values
from optstate.resume.decided import Decided
from optstate.resume.decisions import EntryDecision, Fate, HyperparameterDecision, Transform, WeightDecision, missing
from optstate.resume.groups import Grouping, Place
from optstate.resume.materialise import materialise
from optstate.resume.names import EXCLUDED, Matched
from optstate.resume.policy import Policy
from optstate.resume.renaming import meant
from optstate.resume.sameness import same
from optstate.resume.slots import Case, Outcome, Subject, outcome, steps
from optstate.resume.source import Saved
from optstate.resume.starting import started
from optstate.resume.weights import merged
from optstate.state.absence import Absence
from optstate.state.parameter import ParameterFacts
from optstate.state.roles import Role
from optstate.state.slot import Slot
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text

Winner: TypeAlias = Literal["live", "saved", "given"]

_ALL_FRESH = Fate("fresh", "the policy starts every slot anew")
_ALL_STAY = Fate("left out", "the policy leaves the slots as they are")
_NOT_SAVED = Fate("fresh", "not in the checkpoint")
_NUMBER = (None, None)  # for shape and dtype of what is no tensor


class Entries:
    """Makes the decisions for one plan.

    `refused` are parameters whose weight is a fault already, of which nothing more needs to be said. What blocks many
    parameters alike is collected in `blocked`: why → their names.
    """

    def __init__(
        self,
        found: Decided,
        saved: Saved,
        live: LiveSource,
        bounds: Sequence[Bound],
        names: Matched,
        grouping: Grouping,
        policy: Policy,
        refused: Collection[str],
    ) -> None:
        self._found, self._saved, self._live, self._names = found, saved, live, names
        self._policy, self._refused = policy, refused
        self._source = saved.state.source
        self._ways = Ways(saved, live, grouping, policy)
        self._weights: dict[str, WeightDecision] = {item.name: item for item in found.weights}
        self._excluded = set(names.excluded)
        self._bound = bounds
        self._factors = self._scale()
        self._forms = {name: Forms(optimizer) for name, optimizer in live.live_optimizers.items()}
        self._outcome = cache(partial(outcome, policy=policy))
        self._shared = cache(self._shared_in)
        self.blocked: dict[str, list[str]] = {}

    def decide(self) -> Iterator[EntryDecision]:
        """A decision for every parameter of which there is no fault."""
        for bound in self._bound:
            decision = self._of(bound)
            if decision is not None:
                yield decision

    def _scale(self) -> dict[str, float]:
        """The factor of each parameter's momentum where it is not that of all."""
        scale = self._policy.scale
        if not isinstance(scale, Mapping):
            return {} if scale == 1.0 else dict.fromkeys((bound.name for bound in self._bound), float(scale))
        live = {bound.name: bound.aliases for bound in self._bound}
        return {name: float(factor) for pattern, factor in scale.items() for name in meant("scale", pattern, live)}

    def _of(self, bound: Bound) -> EntryDecision | None:
        name, policy = bound.name, self._policy
        if name in self._excluded:
            return EntryDecision(name, EXCLUDED)
        if policy.slots != "restore":
            return EntryDecision(name, _ALL_FRESH if policy.slots == "fresh" else _ALL_STAY)
        source = self._names.pairs.get(name)
        if source is None:
            return EntryDecision(name, _NOT_SAVED) if policy.missing == "fresh" else None
        if name in self._refused:
            return None
        facts = self._source.facts(source)
        way = self._ways.way(bound.optimizer, bound.group, facts)
        if way.kind == "fault":
            self.blocked.setdefault(way.fate.reason, []).append(name)
            return None
        if way.kind == "fresh":
            return EntryDecision(name, way.fate)
        return self._saved_entry(bound, facts, way)

    def _saved_entry(self, bound: Bound, facts: ParameterFacts, way: Way) -> EntryDecision | None:
        absences, slots = self._source.absences(facts.name), self._source.slots(facts.name)
        if absences and not isinstance(
            way.optimizer, torch.optim.LBFGS
        ):  # whose whole state hangs on the first parameter
            lost = _lost(absences)
            if lost and self._policy.missing == "fresh":
                return EntryDecision(bound.name, Fate("fresh", lost[0]))
            if lost:
                self._faults(bound.name, lost)
                return None
        if not slots:
            return EntryDecision(bound.name, Fate("fresh", _why_nothing(absences)), facts.name)
        return self._restored(bound, facts, way, slots)

    def _restored(
        self, bound: Bound, facts: ParameterFacts, way: Way, slots: Mapping[str, Slot]
    ) -> EntryDecision | None:
        name, values = bound.name, {key: slot.value for key, slot in slots.items()}
        tensor = bound.tensor
        if is_lazy(tensor):
            self._faults(name, ["it has no shape yet: let the model see a first batch, then plan"])
            return None
        in_codes = way.may_have_codes and has_codes(way.spec, values)
        if in_codes:
            values = gathered(values)
        case = Case(
            way,
            self._names.fate(name),
            tuple(
                [
                    (key, value.shape, value.dtype) if is_tensor(value) else (key, *_NUMBER)
                    for key, value in values.items()
                ]
            ),
            self._saved_shape(facts),
            facts.dtype,
            tuple(tensor.shape),
            dtype_name(tensor),
            self._factors.get(name, 1.0),
        )
        made: Outcome = self._outcome(case)
        if made.fresh is not None:
            return EntryDecision(name, made.fresh)
        if made.faults:
            self._faults(name, made.faults)
            return None
        fates: Mapping[str, Fate] = made.fates
        transforms: tuple[Transform, ...] = ()
        if made.makers or in_codes:
            transforms = tuple(steps(made.makers, self._subject(bound, facts)))
        if in_codes:
            fates, transforms = coded(values, fates, transforms, self._forms[bound.optimizer].of(bound.tensor))
        return EntryDecision(name, case.fate, facts.name, values, fates, transforms)

    def _faults(self, name: str, faults: Collection[str]) -> None:
        self._found.faults.extend(f"{safe_text(name)}: {fault}" for fault in faults)

    def _saved_shape(self, facts: ParameterFacts) -> tuple[int, ...] | None:
        if facts.shape is None and self._saved.weights is not None and facts.name in self._saved.weights:
            return self._saved.weights[facts.name].shape
        return facts.shape

    def _subject(self, bound: Bound, facts: ParameterFacts) -> Subject:
        decision = self._weights.get(bound.name)

        def before() -> torch.Tensor:
            saved = (self._saved.weights or {}).get(facts.name)
            return bound.tensor.detach() if saved is None else materialise(saved)

        def after() -> torch.Tensor:
            return bound.tensor if decision is None else merged(decision, bound.tensor)

        return Subject(bound.name, bound.tensor, before, after, lambda: self._shared(bound.optimizer, bound.group))

    def _shared_in(self, optimizer: str, group: int) -> dict[str, float]:
        """What the live group will hold for all its parameters, where its class keeps something there."""
        if not _counts(by_class(type(self._live.live_optimizers[optimizer]))):
            return {}
        members = [each for each in self._bound if (each.optimizer, each.group) == (optimizer, group)]
        sources = [self._source.facts(hit) for each in members if (hit := self._names.pairs.get(each.name))]
        ways = [(self._ways.way(optimizer, group, facts), facts.name) for facts in sources]
        return shared_values(
            (way, {key: slot.value for key, slot in self._source.slots(name).items()})
            for way, name in ways
            if way.kind != "fault"
        )

    def started(self, decisions: Sequence[EntryDecision]) -> Iterator[EntryDecision]:
        """The decisions, those for a fresh start with the slots that the optimizer relies on from its first step."""
        if all(item.fates or item.fate.decision != "fresh" for item in decisions):
            yield from decisions
            return
        bounds = {bound.name: bound for bound in self._bound}
        shared = {place for place, items in self.by_group(decisions).items() if any(item.fates for item in items)}
        for item in decisions:
            if item.fates or item.fate.decision != "fresh" or item.exact:  # as saved, what it lacks included
                yield item
            else:
                bound = bounds[item.parameter]
                place = bound.optimizer, bound.group
                optimizer, after = self._live.live_optimizers[bound.optimizer], self._ways.after(*place)
                yield started(
                    item.parameter, bound.tensor, optimizer, after, item.fate,
                    beside_others=place in shared, source=item.source,
                )  # fmt: skip

    def by_group(self, decisions: Iterable[EntryDecision]) -> dict[Place, list[EntryDecision]]:
        """The decisions of each live group."""
        places = {bound.name: (bound.optimizer, bound.group) for bound in self._bound}
        found: dict[Place, list[EntryDecision]] = {}
        for decision in decisions:
            found.setdefault(places[decision.parameter], []).append(decision)
        return found

    def counts(self, decisions: Sequence[EntryDecision]) -> Iterator[tuple[Place, str, Any, Winner]]:
        """What live groups hold for all their parameters, which follows the slots: saved with them, left with them, fresh
        where all of them are, and converted.
        """
        rows = {name: by_class(type(optimizer)) for name, optimizer in self._live.live_optimizers.items()}
        if not any(map(_counts, rows.values())):
            return
        for place, items in self.by_group(decisions).items():
            spec = rows[place[0]]
            if spec is not None:
                values, winner = self._counts_of(place, spec, items)
                named = self._policy.hyperparameters
                yield from ((place, key, value, winner) for key, value in values.items() if key not in named)

    def _counts_of(
        self, place: Place, spec: OptimizerSpec, items: Sequence[EntryDecision]
    ) -> tuple[Mapping[str, Any], Winner]:
        optimizer = self._live.live_optimizers[place[0]]
        live = optimizer.param_groups[place[1]]
        keys = [key for key in (spec.group_step, *spec.group_state) if key in live]
        if any(fate.decision == "converted" for item in items for fate in item.fates.values()):
            return self._shared(*place), "given"
        if all(item.stays for item in items):
            return {key: live[key] for key in keys}, "live"
        source = next((item.source for item in items if item.saved and item.source is not None), None)
        if source is None:
            everything = all(item.source is None for item in items)
            return (fresh_group(spec, live, optimizer.defaults) if everything else {}), "given"
        before = self._ways.way(*place, self._source.facts(source)).before
        return {key: before[key] for key in keys if key in before}, "saved"


def _counts(spec: OptimizerSpec | None) -> bool:
    """Whether a class keeps in its groups what stepping changes."""
    return spec is not None and bool(spec.group_step or spec.group_state)


def decide_entries(
    found: Decided,
    saved: Saved,
    live: LiveSource,
    bounds: Sequence[Bound],
    names: Matched,
    grouping: Grouping,
    policy: Policy,
    refused: Collection[str] = (),
) -> None:
    """Decide for the slots of every parameter of every live optimizer: `bounds`."""
    entries = Entries(found, saved, live, bounds, names, grouping, policy, refused)
    made = list(entries.decide())
    for why, blocked in entries.blocked.items():
        subject = "" if len(blocked) == len(names.pairs) else f"{listing(blocked, 3)}: "
        found.faults.append(f"{subject}{why}")
    for count in entries.counts(made):
        _count_anew(found, live, *count)
    found.entries.extend(entries.started(made))
    label = "group {0[0]}:{0[1]}" if len(live.live_optimizers) > 1 else "group {0[1]}"
    found.notes.extend(advice({label.format(place): items for place, items in entries.by_group(made).items()}))


def _count_anew(found: Decided, live: LiveSource, place: Place, key: str, value: Any, winner: Winner) -> None:
    """Have a live group hold this count, unless it is decided like that already."""
    items = found.hyperparameters
    known = next((item for item in items if (item.optimizer, item.group, item.key) == (*place, key)), None)
    if winner != "given" and known is not None and known.winner == winner:
        return
    mine = live.live_optimizers[place[0]].param_groups[place[1]].get(key, missing)
    if winner == "given" and isinstance(mine, (int, float)):
        value = type(mine)(value)
    saved = known.saved if known is not None else missing
    items[:] = [item for item in items if item is not known]
    items.append(
        HyperparameterDecision(
            *place, key, mine, saved, value, winner, same=same(mine, saved), reason="as the slots of the group say"
        )
    )


def _lost(absences: Mapping[Role, Absence]) -> list[str]:
    """Slots that got lost on the way, as sentences; one that never existed is none of them."""
    return [
        f"no {role.replace('_', ' ')}: {absence.sentence}"
        for role, absence in absences.items()
        if absence in (Absence.NOT_SAVED, Absence.DROPPED)
    ]


def _why_nothing(absences: Mapping[Role, Absence]) -> str:
    """Why nothing was there to save: what an optimizer would never keep matters least."""
    reasons = sorted(absences.values(), key=lambda absence: absence is Absence.NOT_KEPT)
    return reasons[0].sentence if reasons else "nothing was saved because nothing was there"

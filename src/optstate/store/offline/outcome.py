"""What recorded verbs did to a draft: norms, the size of the next update, and values that no state has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, prod
from typing import Any, NamedTuple

from optstate.optimizers.conventions import primary
from optstate.optimizers.effect import Effect
from optstate.optimizers.permits import NOT_NEGATIVE
from optstate.optimizers.spec import number
from optstate.state.journal import JournalEntry
from optstate.state.stats import Stats, stats_of
from optstate.state.tensors import DTYPES, Value, is_tensor, nbytes
from optstate.store.offline.draft import Aim, Draft, numbers
from optstate.store.offline.effect import Side, effect
from optstate.store.offline.rows import chosen_rows
from optstate.store.offline.verbs import Touch, Verb, touched_rows
from optstate.text import count

SAMPLED = 64
"""Parameters whose next update is predicted where a verb treats all elements alike."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One verb on one aim, and the slots that it touched."""

    aim: Aim
    verb: Verb
    touches: Sequence[Touch]

    @property
    def names(self) -> list[str]:
        """The parameters that it touched."""
        return list(dict.fromkeys(touch.parameter for touch in self.touches))


class Outcome(NamedTuple):
    """An entry for each deed, the slots that hold what none may hold, and the updates that became too large."""

    entries: Sequence[JournalEntry]
    wrong: Sequence[str]
    excessive: Sequence[Effect]


def examine(draft: Draft, deeds: Sequence[Deed], watch: Callable[[int, int], None]) -> Outcome:
    """Read what was touched, before and after, a block at a time; `watch` is told of the bytes."""
    refs = {
        (place, index, side): touched_rows(value, deed.aim, touch.key)
        for place, deed in enumerate(deeds)
        for index, touch in enumerate(deed.touches)
        for side, value in (("before", touch.before), ("after", touch.after))
        if is_tensor(value) and value.dtype in DTYPES
    }
    found: dict[tuple[int, int, str], Stats] = {}
    done, total = 0, sum(map(nbytes, refs.values()))
    for key, stats in stats_of(refs):
        found[key] = stats
        done += nbytes(refs[key])
        watch(done, total)
    effects = [list(_effects(draft, deed)) for deed in deeds]
    entries = [
        _entry(draft, deed, {key[1:]: stats for key, stats in found.items() if key[0] == place}, effects[place])
        for place, deed in enumerate(deeds)
    ]
    last = {  # what the last verb on each slot left
        (touch.parameter, touch.key): found.get((place, index, "after"))
        for place, deed in enumerate(deeds)
        for index, touch in enumerate(deed.touches)
    }
    wrong = [
        line for (name, key), stats in last.items() if stats is not None for line in _wrong(draft, name, key, stats)
    ]
    excessive = {each.name: each for several in effects for each in several if each.excessive}
    return Outcome(entries, wrong, list(excessive.values()))


def _entry(draft: Draft, deed: Deed, found: Mapping[tuple[int, str], Stats], effects: Sequence[Effect]) -> JournalEntry:
    norms: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for index, touch in enumerate(deed.touches):
        if _is_number(draft, touch):
            continue
        for side, name in enumerate(("before", "after")):
            stats = found.get((index, name))
            if stats is not None:
                norms[touch.key][side] = hypot(norms[touch.key][side], stats.norm)
    worst = max(effects, key=lambda each: each.rank, default=None)
    first = deed.touches[0].parameter if deed.touches else deed.aim.names[0]
    return JournalEntry(
        verb=deed.verb.name,
        arguments=deed.verb.arguments,
        step=_step(draft, first),
        selection=str(deed.aim),
        parameters=len(deed.names),
        slots=len(deed.touches),
        elements=sum(_elements(touch, deed.aim) for touch in deed.touches),
        norms={key: (before, after) for key, (before, after) in norms.items()},
        effect=None if worst is None else (worst.before, worst.after, worst.fresh),
        optimizer=draft.state[first].facts.optimizer,
    )


def _is_number(draft: Draft, touch: Touch) -> bool:
    """Whether the slot is a number for the whole parameter, such as a step count, of which there is no norm."""
    spec = draft.spec(touch.parameter)
    slot = None if spec is None else spec.slots.get(touch.key)
    return slot is not None and slot.shape == "scalar"


def _step(draft: Draft, name: str) -> int | None:
    spec = draft.spec(name)
    key = None if spec is None else primary(spec, "step")
    counted = draft.saved(name).get(key) if key is not None else None
    steps = number(counted if counted is not None or spec is None else draft.group(name).get(spec.group_step or ""))
    return None if steps is None else int(steps)


def _elements(touch: Touch, aim: Aim) -> int:
    value: Any = touch.before
    if not is_tensor(value):
        return 1 if isinstance(value, (int, float)) else 0
    if aim.rows is None or not value.shape:
        return prod(value.shape)
    return int(chosen_rows(aim.rows, value.shape, touch.key).sum()) * prod(value.shape[1:])


def _effects(draft: Draft, deed: Deed) -> Iterator[Effect]:
    """The effect on each parameter of a deed, of all that was done to it; of some of them where a sample will do."""
    sample = deed.verb.alike and deed.aim.rows is None
    names = deed.names
    for name in names[:: max(1, -(-len(names) // SAMPLED))] if sample else names:
        facts, spec = draft.state[name].facts, draft.spec(name)
        if spec is None or facts.shape is None:
            continue
        known = draft.state.optimizers[facts.optimizer].groups[facts.group].hyperparameters
        before = Side(draft.saved(name), numbers(known))
        after = Side(draft.entry(name), numbers(draft.group(name)))
        found = effect(name, spec, before, after, draft.weight(name), facts.shape, sample=sample)
        if found is not None:
            yield found


def _wrong(draft: Draft, name: str, key: str, stats: Stats) -> Iterator[str]:
    """What a touched slot would hold that it must not: values that are not finite, or negative squares."""
    slot = draft.state[name].slots[key]
    if stats.nonfinite:
        yield f"{slot.path} would hold {count(stats.nonfinite, 'value')} that no update can use: NaN or infinite"
    elif slot.role in NOT_NEGATIVE and _negative(draft.entry(name)[key]):
        yield f"{slot.path} would hold negative values, and squares are not negative"


def _negative(value: Value) -> bool:
    return is_tensor(value) and any(bool((block < 0).any()) for block in value.blocks() if block.dtype.kind != "c")

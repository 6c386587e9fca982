"""Advice: the learning rate with which another optimizer takes steps as long as those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod

from optstate.errors import OptstateError
from optstate.optimizers.conversion import matching_lr
from optstate.optimizers.spec import number
from optstate.resume.converting import Convert
from optstate.resume.decisions import Entry, EntryDecision
from optstate.resume.materialise import materialise
from optstate.state.table import format_value
from optstate.state.tensors import is_tensor

_SAMPLE = 8
"""Parameters of a group that are read for it."""

_ELEMENTS = 1 << 20
"""Elements beyond which a parameter is not read for it."""


def advice(groups: Mapping[str, Sequence[EntryDecision]]) -> Iterator[str]:
    """A sentence for each live group, by its label, whose state is that of another class and whose rate is its program's.

    Reads the slots of a few parameters. Learning rates are never converted: they mean another thing in each optimizer.
    """
    for label, items in groups.items():
        converts = [(item, convert) for item in items if (convert := _convert(item)) is not None and _is_small(item)]
        if not converts:
            continue
        way = converts[0][1].way
        if way.saved_spec is way.spec:
            continue
        before, after = way.rows
        sample = ((item, convert) for item, convert in converts if convert.way is way)
        try:
            rate = matching_lr(before, after, _entries(islice(sample, _SAMPLE)), way.before, way.after)
        except OptstateError:
            continue  # what cannot be read is a matter of the plan, not of its advice
        mine = number(way.after.get("lr"))
        if rate is not None and mine is not None:
            yield (
                f"{label}: with lr {format_value(float(f'{rate:.2g}'))} its steps would be as long as they were "
                f"(it is {format_value(mine)})"
            )


def _convert(item: EntryDecision) -> Convert | None:
    return next((transform for transform in item.transforms if isinstance(transform, Convert)), None)


def _is_small(item: EntryDecision) -> bool:
    return sum(prod(value.shape) for value in item.saved.values() if is_tensor(value)) <= _ELEMENTS


def _entries(items: Iterable[tuple[EntryDecision, Convert]]) -> Iterator[tuple[Entry, Entry, None]]:
    """Slots as saved and as converted, in memory of their own."""
    for item, convert in items:
        saved = {key: materialise(value) for key, value in item.saved.items()}
        for transform in item.transforms[: item.transforms.index(convert)]:
            saved = transform(saved)
        yield convert.wide(saved), convert.wide(convert(dict(saved))), None

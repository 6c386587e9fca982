"""What an edit came to: journal entries of what was done, and reasons why it cannot stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from optstate.live.batch import Place
from optstate.live.deeds import Deed
from optstate.live.effect import ask
from optstate.live.writing import Writer
from optstate.optimizers.effect import Effect
from optstate.optimizers.updates import BOUND, safe_verb
from optstate.state.journal import JournalEntry
from optstate.text import safe_text


class Refusal(NamedTuple):
    """Why an edit cannot stay, and what to do instead."""

    what: str
    expected: str
    todo: str


class Outcome(NamedTuple):
    """What was done, entry by entry, why it cannot stay, and what could not be told."""

    entries: list[JournalEntry]
    refusals: list[Refusal]
    notes: list[str]


def outcome(deeds: Sequence[Deed], writer: Writer, note: str, *, force: bool, backup: bool, norms: bool) -> Outcome:
    """Look at everything that was written, with one wait for the device; `force` lets large updates pass."""
    for deed in deeds:
        for mark in deed.marks:
            mark.again(writer.readout)
        _ask_effects(deed, writer)
    numbers = writer.readout.fetch()
    refusals = [refusal for deed in deeds for refusal in _faults(deed, numbers)]
    entries = []
    for deed in deeds:
        effects = [(effect, asked.place) for asked in deed.asked for effect in asked.told(numbers)]
        worst, place = max(effects, key=lambda each: each[0].rank, default=(None, None))
        large = worst is not None and worst.excessive
        if worst is not None and place is not None and large and not force:
            refusals.append(_too_large(worst, place, deed))
        entries.append(_entry(deed, worst, numbers, note, forced=large and force, backup=backup, norms=norms))
    return Outcome(entries, refusals, _notes(deeds))


def _ask_effects(deed: Deed, writer: Writer) -> None:
    for touched in deed.touched:
        optimizer = touched.place.optimizer

        def before(parameter: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> Mapping[str, Any]:
            return writer.before(optimizer, parameter)

        def after(parameter: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> Mapping[str, Any]:
            entry: Mapping[str, Any] = optimizer.state.get(parameter, {})
            return entry

        deed.asked.extend(ask(touched, before, after, writer.readout))


def _faults(deed: Deed, numbers: Sequence[Sequence[float]]) -> list[Refusal]:
    """A value that no state has, or a slot that is not where it was; the first of each chunk."""
    found = []
    for mark in deed.marks:
        moved = mark.moved()
        if moved is not None:
            found.append(
                Refusal(
                    f"{moved} was replaced during the edit",
                    "the same tensor at the same place, for compiled and captured steps hold on to it",
                    "write into it with set_",
                )
            )
        elif not mark.sound(numbers):
            expected = "finite values, none of them negative" if mark.not_negative else "finite values"
            found.append(Refusal(mark.faulty(), expected, "reset_() makes it as if fresh; zero_() makes it zero"))
    return found


def _too_large(effect: Effect, place: Place, deed: Deed) -> Refusal:
    instead = "" if place.spec is None else f"{safe_verb(place.spec, deed.keys, place.group)}; "
    return Refusal(
        str(effect),
        f"at most {BOUND:g} times the larger of the update before and a fresh start's",
        f"{instead}or say edit(force=True)",
    )


def _entry(
    deed: Deed,
    effect: Effect | None,
    numbers: Sequence[Sequence[float]],
    note: str,
    *,
    forced: bool,
    backup: bool,
    norms: bool,
) -> JournalEntry:
    return JournalEntry(
        verb=deed.verb.name,
        arguments=deed.verb.arguments,
        step=_step(deed, numbers),
        note=note,
        selection=deed.selection,
        parameters=deed.parameters,
        slots=deed.slots,
        elements=deed.elements,
        norms=deed.norms(numbers) if norms else None,
        effect=None if effect is None else (effect.before, effect.after, effect.fresh),
        forced=forced,
        backup=backup,
        optimizer=", ".join(sorted({touched.place.name for touched in deed.touched} - {""})),
    )


def _step(deed: Deed, numbers: Sequence[Sequence[float]]) -> int | None:
    return deed.step if deed.step_reading is None else int(numbers[deed.step_reading][0])


def _notes(deeds: Sequence[Deed]) -> list[str]:
    """For which optimizers the size of the next update could not be predicted."""
    unknown = {
        type(touched.place.optimizer).__name__
        for deed in deeds
        for touched in deed.touched
        if not any(asked.place == touched.place for asked in deed.asked)
    }
    return [f"how large the next update of {safe_text(name)} will be is not known" for name in sorted(unknown)]

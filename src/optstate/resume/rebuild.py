"""`rebuild`: momentum that was lost, estimated anew at frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median
from typing import Any

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.fence import cross
from optstate.live.journals import journal_of
from optstate.live.sampling import look_at, plural, whole_batches
from optstate.live.source import LiveSource
from optstate.live.stamp import Stamp
from optstate.live.transaction import Transaction
from optstate.live.view import checked_model, optimizers_by_name
from optstate.optimizers.arguments import real_number
from optstate.optimizers.conversion_moments import Moments
from optstate.optimizers.rebuilding import common, known, mean_behind, obstacle, rebuilt
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.apply import Undo, write_entries
from optstate.resume.layout import stored
from optstate.resume.measured import Measured
from optstate.resume.rebuild_note import VERB
from optstate.resume.velocity import Snapshot, Velocity, velocities
from optstate.state.collection import without_collection
from optstate.state.journal import JournalEntry
from optstate.text import count, listing, safe_text

MOMENTUM = 0.3
"""The share of the measured mean that becomes momentum.

At frozen weights the mean gradient points where the loss is steepest, and along such directions a run that moves has
averaged its momentum away. All of it would push on for 1/(1-β1) steps and overshoot. See docs/study.md.
"""

TRUST = 2
"""As how many steps the estimates count: they bridge the first steps, and then new gradients take over soon."""


@dataclass(kw_only=True, eq=False, repr=False)
class Rebuilt:
    """What `rebuild` wrote; it prints itself.

    `entry` is what the journal says of it; `left` are the parameters that were left as they are, with the reason; `error` is
    the relative error of the momentum of each parameter that came from differences of weights, infinite where it did not move.

    >>> print(optstate.rebuild(optimizer, model, closure, batches=4))
    rebuilt 12 slots of 4 parameters from 4 batches at frozen weights
    """

    entry: JournalEntry
    left: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, float] = field(default_factory=dict)
    undoing: tuple[LiveSource, Undo, Stamp]

    def undo(self) -> None:
        """Put slots and group values back as they were, bit by bit; the journal then says so.

        Raises `EditError` where something else, such as a step, has changed the optimizer since, and the second time.
        """
        source, undo, stamp = self.undoing
        changed = "it was undone already" if self.entry.undone else stamp.changed()
        if changed is not None:
            raise EditError(
                "the rebuild can no longer be undone", found=safe_text(changed), todo="undo before the next step"
            )
        cross()
        undo.run()
        self.entry = journal_of(source.live_optimizers).amend(self.entry, undone=True)

    def document(self) -> dict[str, Any]:
        """The same in JSON's own types: the journal's entry, what was left, and the errors."""
        return {
            "schema": "optstate.rebuilt/1",
            "entry": self.entry.document(),
            "left": {safe_text(name): reason for name, reason in self.left.items()},
            "error": {safe_text(name): error if error < inf else None for name, error in self.error.items()},
        }

    def __str__(self) -> str:
        entry = self.entry
        made = f"{count(entry.slots, 'slot')} of {count(entry.parameters, 'parameter')}"
        lines = [f"rebuilt {made} {entry.arguments['from']}{', undone' if entry.undone else ''}"]
        known = [error for error in self.error.values() if error < inf]
        if known:
            lines.append(f"relative error of momentum: {median(known):.2g} in the median, {max(known):.2g} at most")
        if len(known) < len(self.error):
            still = [name for name, error in self.error.items() if error == inf]
            lines.append(f"did not move, or less than their last bit: {listing(still)}")
        reasons = dict.fromkeys(self.left.values())
        lines += [f"left as they are, {reason}: {listing(_with(self.left, reason))}" for reason in reasons]
        return "\n".join(lines)

    __repr__ = __str__


def _with(left: Mapping[str, str], reason: str) -> list[str]:
    return [safe_text(name) for name, each in left.items() if each == reason]


@without_collection()
def rebuild(
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
    model: nn.Module,
    closure: Callable[[], Any] | None = None,
    batches: int = 30,
    *,
    weights: Sequence[Snapshot] | None = None,
    steps: Sequence[int] | None = None,
    momentum: float | None = None,
    trust: int | None = None,
    note: str = "",
) -> Rebuilt:
    """Estimate optimizer state that was lost, from gradients at the weights as they are; write it, undoable.

    The weights stay; first and second moments and step counts are written so that what the optimizer makes of them
    are the estimates. The journal says `rebuild_`, so does a checkpoint that is saved then, and a plan to restore it.

    closure
        Computes the loss of the next batch and calls `backward()`, without a step, exactly as the training loop does until
        there: with gradient accumulation, all parts of a batch; with a GradScaler, `unscale_` after them; with clipping,
        that too. Dropout stays on; BatchNorm's statistics, random numbers and gradients are put back.
    batches
        How often it is called. Each estimate is a mean over so many.
    weights, steps
        Where no data is at hand: two or more checkpoints or state dicts of the same run, the newest last, which must be the
        live weights; and their steps, where they do not say them. Momentum then is how far weights moved in a step. For
        optimizers that divide by a second moment, that comes from a closure, or from the state that is there.
    momentum
        The share of the measured mean that becomes momentum, from 0 to 1. None: 0.3; all of it from weights, which have
        moved like this.
    trust
        As how many steps the estimates count, at most as many as there were batches: the step count, and how long they are
        remembered. None: 2; all batches where momentum comes from weights. Above 64 or so, a weight that had no
        gradient in any batch moves more than twice as far as from a fresh start when its first one comes.
    note
        Why, for the journal.

    It takes about as long as the forward and backward passes, and as much memory as the slots that it makes.

    Source: an average times 1-β^t is a mean over t steps where it is used, so whatever t is written, that is what was
    measured. Why only a share of the mean, and a small t: docs/study.md.

    Raises `EditError`, with nothing changed: for an optimizer whose state gradients do not tell (LBFGS), for no batches,
    and for a closure that steps, writes weights, or leaves no finite gradient.

    >>> rebuilt = optstate.rebuild(optimizer, model, closure, batches=4)
    >>> state["0.weight"].step.item()
    2.0
    >>> rebuilt.undo()
    """
    source = LiveSource(optimizers_by_name(optimizer), checked_model(model))
    share = _share("momentum", momentum, otherwise=MOMENTUM if weights is None else 1.0)
    counted = whole_batches(trust) if trust is not None else TRUST if weights is None else whole_batches(batches)
    _refuse(source)
    if closure is None and weights is None:
        raise EditError("there is nothing to rebuild from", expected="a closure, or weights=[older, newer]")
    measured = Measured(source)
    if closure is not None:
        look_at(source, closure, whole_batches(batches), measured.look)
    moved, span = velocities(source, weights, steps) if weights is not None else ({}, 0)
    plan = _Plan(source, measured, moved, share, counted)
    entries = plan.entries()
    origin = [f"from {plural(batches)} at frozen weights"] * (closure is not None)
    origin += [f"from weights {count(span, 'step')} apart"] * (weights is not None)
    numbers = {"batches": batches} if closure is not None else {"steps": span}
    entry = JournalEntry(
        verb=VERB,
        arguments={"from": " and ".join(origin), **numbers, "momentum": share, "trust": counted},
        note=note,
        selection="*",
        parameters=len(entries),
        slots=sum(map(len, entries.values())),
        elements=sum(value.numel() for made in entries.values() for value in made.values() if isinstance(value, torch.Tensor)),
    )  # fmt: skip
    undo = _write(source, entries, plan.groups())
    written = journal_of(source.live_optimizers).append(entry)
    errors = {name: velocity.error for name, velocity in moved.items()}
    return Rebuilt(entry=written, left=plan.left, error=errors, undoing=(source, undo, Stamp(None, source, {})))


def _share(name: str, value: Any, *, otherwise: float) -> float:
    share = otherwise if value is None else real_number(value, name)
    if not 0.0 <= share <= 1.0:
        raise EditError(f"{name} is a share, from 0 to 1", found=f"{share:g}")
    return share


def _refuse(source: LiveSource) -> None:
    """Refuse optimizers that cannot be served, before anything is computed."""
    for group in source.bind().groups:
        optimizer = source.live_optimizers[group.optimizer]
        reason = obstacle(by_class(type(optimizer)), optimizer.param_groups[group.number])
        if reason is not None:
            raise EditError(
                f"the state of {safe_text(type(optimizer).__name__)} cannot be rebuilt: {reason}",
                where=f"group {group.number}" + (f" of {safe_text(group.optimizer)}" if group.optimizer else ""),
            )


class _Plan:
    """What every parameter and every group will get."""

    def __init__(
        self, source: LiveSource, measured: Measured, moved: Mapping[str, Velocity], momentum: float, trust: int
    ) -> None:
        self._source = source
        self._measured = measured
        self._moved = moved
        self._momentum, self._trust = momentum, trust
        self._groups: dict[tuple[str, int], int] = {}
        self.left: dict[str, str] = {}

    def entries(self) -> dict[str, dict[str, Any]]:
        """The entry of each parameter of which something is known; the sums are let go one by one."""
        bounds = list(self._source.bind().parameters())
        for bound in bounds:
            sums = self._measured.sums.get(bound.name)
            if sums is not None:
                place = bound.optimizer, bound.group
                self._groups[place] = min(self._groups.get(place, self._trust), sums.batches)
        found = {}
        for bound in bounds:
            moments = self._moments(bound)
            if moments is not None:
                found[bound.name] = self._entry(bound, moments)
        return found

    def groups(self) -> Iterator[tuple[dict[str, Any], str, float]]:
        """What each group will hold itself: group, key, value."""
        for (name, index), steps in self._groups.items():
            optimizer = self._source.live_optimizers[name]
            group, spec = optimizer.param_groups[index], _spec(optimizer)
            yield from ((group, key, value) for key, value in common(spec, group, steps).items())

    def _moments(self, bound: Bound) -> Moments | None:
        """What is known of a parameter; None, with the reason in `left`, where that is nothing."""
        sums = self._measured.sums.pop(bound.name, None)
        if sums is None and bound.name not in self._moved:
            weights = "not all weights have it" if self._moved else "no batch left it a gradient"
            self.left[bound.name] = weights if bound.tensor.requires_grad else "frozen"
            return None
        moments = self._of_now(bound) if sums is None else sums.moments(self._momentum, self._trust)
        if bound.name in self._moved:
            return self._with_velocity(bound, moments)
        return moments

    def _of_now(self, bound: Bound) -> Moments:
        """The moments of the state that is there, where no batches are."""
        optimizer = self._source.live_optimizers[bound.optimizer]
        entry = {
            key: _plain(value) for key, value in optimizer.state.get(bound.tensor, {}).items()
        }  # .get: reading a missing one would create it
        return known(_spec(optimizer), entry, optimizer.param_groups[bound.group])

    def _with_velocity(self, bound: Bound, moments: Moments) -> Moments:
        optimizer = self._source.live_optimizers[bound.optimizer]
        group = optimizer.param_groups[bound.group]
        found = mean_behind(_spec(optimizer), group, self._moved[bound.name].direction, moments.square)
        if isinstance(found, str):
            raise EditError(found, where=safe_text(bound.name))
        full = moments.square is None  # a sum that nobody counts: the velocity is all of it
        return replace(moments, mean=found * self._momentum, steps=None if full else moments.steps)

    def _entry(self, bound: Bound, moments: Moments) -> dict[str, Any]:
        optimizer = self._source.live_optimizers[bound.optimizer]
        spec, group = _spec(optimizer), optimizer.param_groups[bound.group]
        steps = self._groups.get((bound.optimizer, bound.group)) or moments.steps or 1.0
        parameter = bound.tensor.detach()
        weights = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        with torch.no_grad():
            made = rebuilt(spec, moments, group, weights, common(spec, group, steps))
        slots = {key: stored(value, spec.slots[key], bound.tensor, group) for key, value in made.items()}
        before = optimizer.state.get(bound.tensor, {})
        return {**{key: value for key, value in before.items() if key not in spec.slots}, **slots}


def _spec(optimizer: torch.optim.Optimizer) -> OptimizerSpec:
    """The row of the class; `_refuse` has looked that there is one."""
    spec = by_class(type(optimizer))
    if spec is None:
        raise EditError(f"{safe_text(type(optimizer).__name__)} is not in the registry")
    return spec


def _plain(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    plain = torch.view_as_real(value) if value.is_complex() else value
    return plain.detach().to(torch.float64)


def _write(
    source: LiveSource, entries: Mapping[str, Mapping[str, Any]], groups: Iterable[tuple[dict[str, Any], str, float]]
) -> Undo:
    """Write all of it, or nothing; returns how to put back what was there, which is kept in the memory of what came."""
    cross()
    undo, transaction = Undo(), Transaction()
    undo.steps.append(("groups", transaction.rollback))
    try:
        with torch.no_grad():
            write_entries(source, entries, undo)
            for group, key, value in groups:
                old = group.get(key)
                transaction.hyperparameter(group, key, type(old)(value) if isinstance(old, (int, float)) else value)
    except BaseException:
        undo.run()
        raise
    return undo

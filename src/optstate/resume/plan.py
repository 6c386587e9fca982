"""`plan` and `restore`: what will be put back, printed before anything is touched, applied all or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError, RestoreError, RestoreFailed, RestoreRefused, StalePlan
from optstate.live.beside import Beside
from optstate.live.bind import Bound
from optstate.live.fence import cross
from optstate.live.journals import journal_of, restored, reverted
from optstate.live.source import LiveSource
from optstate.live.stamp import Stamp
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import ExtraState, Weight, live_weights
from optstate.optimizers.registry import qualified_name
from optstate.resume.apply import Applied, Undo, commit, finish
from optstate.resume.classes import pair_optimizers
from optstate.resume.decided import Decided
from optstate.resume.document import document
from optstate.resume.entries import decide_entries
from optstate.resume.groups import Grouping, decide_groups
from optstate.resume.names import Matched, match_names
from optstate.resume.objects import decide_objects
from optstate.resume.parameters import check_parameters, mention_oddities
from optstate.resume.policy import Policy
from optstate.resume.printing import summary, table
from optstate.resume.rebuild_note import told_of_rebuild
from optstate.resume.salvage import Progress, salvage
from optstate.resume.schedulers import Driver, find_drivers
from optstate.resume.source import Restorable, Saved, saved_side
from optstate.resume.staging import Live, on_what_stays, stage
from optstate.resume.weights import decide_weights
from optstate.state.collection import without_collection
from optstate.state.journal import Journal, JournalEntry
from optstate.state.table import ROWS, Table
from optstate.state.tensors import is_tensor
from optstate.store.objects import MODEL, OPTIMIZER, RNG, RandomState
from optstate.text import count, safe_text


@dataclass(kw_only=True, eq=False, repr=False)
class RestorePlan(Decided):
    """What a restore will do. Printing it shows what is not exact; nothing happens before `apply()`.

    `weights`, `entries`, `hyperparameters` and `objects` hold one decision each, `slots` one for each slot; `faults` are
    the reasons why the plan cannot be applied, all of them; `warnings` want a look; `left_out` is what the checkpoint has
    and nobody takes; `exact` says whether all of it comes back.

    >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer)
    >>> plan.faults
    []
    >>> print(plan)
    restore runs/step-3 · step 3
    <BLANKLINE>
    weights    4 exact
    slots      12 exact
    <BLANKLINE>
    exact: everything in the checkpoint, bit for bit
    """

    live: Live = field(repr=False)
    stamp: Stamp | None = field(default=None, repr=False)
    journal: Journal | None = field(default=None, repr=False)
    applied: Applied | None = field(default=None, repr=False)

    def apply(self, *, keep: bool = True) -> RestorePlan:
        """Do what the plan says: verify every digest, then write in place, objects last. Returns the plan itself.

        What was there is kept for `revert`, in as much memory as was written, until the plan is let go. With
        `keep=False` it takes next to no memory: large tensors are verified, then read once more, straight into the live
        ones, last of all; those cannot be put back, and the plan says how many they are.

        Raises `RestoreRefused` with every fault, `StalePlan` when anything live changed since, as far as
        `optstate.live.stamp.Stamp` can see it, `Damaged` when the checkpoint did; all of them before anything is touched.
        Raises `RestoreFailed` when a step of writing fails, after putting back what was there; and with `keep=False` where
        the checkpoint changes or its disk fails between the two readings: then it names what is not as it was saved.

        >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer).apply()
        """
        self._check()
        cross()
        staged = stage(self, self.live, keep=keep)
        before = self._journal()
        undo = commit(self.live, staged, self)
        kept, in_place = undo if keep else None, staged.in_place
        del undo, staged  # and with them all memory that is needed no more
        interrupt = finish(self.live, in_place, self)
        written = restored(before, self.journal, self._entry("restore")) if before is not None else None
        self.applied = Applied(kept, stamped(self.live, values=False), written)
        if interrupt is not None:
            raise interrupt
        return self

    def revert(self) -> RestorePlan:
        """Put everything back as it was before `apply()`, bit for bit: values, slots and their order, groups, objects.

        Whatever was done since, such as steps, is undone with it. Returns the plan itself, which can be applied again.

        Raises `RestoreError` when there is nothing to revert, `StalePlan` when model or optimizer were rebuilt since,
        and `RestoreFailed`, after putting back all else, with the names of what could not be: of the objects, the plan
        named those beforehand.

        >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer).apply()
        >>> plan.revert().exact
        True
        """
        undo = self._undo()
        other = self.applied.stamp.rebuilt() if self.applied is not None else None
        if other is not None:
            raise StalePlan(f"the plan cannot be reverted: {other}", where=self.source, todo="nothing was changed")
        cross()
        lost = undo.run()
        journal = self._journal()
        if self.applied is not None and self.applied.journal is not None and journal is not None:
            reverted(journal, self.applied.journal, self._entry("revert"))
        self.applied, self.stamp = None, stamped(self.live)
        if lost:
            raise RestoreFailed("not everything could be put back", where=self.source, found=", ".join(lost))
        return self

    def _check(self) -> None:
        """Raise what speaks against applying the plan."""
        if self.faults:
            raise RestoreRefused(
                f"the checkpoint does not fit: {count(len(self.faults), 'fault')}, nothing was changed",
                self.faults,
                where=self.source,
                todo="print(optstate.plan(...)) shows what would fit",
            )
        if self.applied is not None:
            raise StalePlan(
                "this plan was applied already",
                where=self.source,
                todo="make a new plan; or revert() this one first",
            )
        other = self.stamp.changed() if self.stamp is not None else None
        if other is not None:
            raise StalePlan(
                f"the model or the optimizer is another than when this plan was made: {other}",
                where=self.source,
                todo="make a new plan; nothing was changed",
            )

    def _undo(self) -> Undo:
        if self.applied is None:
            raise RestoreError(
                "there is nothing to revert",
                where=self.source,
                expected="a plan that was applied, and not yet reverted",
            )
        if self.applied.undo is None:
            raise RestoreError(
                "there is nothing to revert to",
                where=self.source,
                found="what was there before was not kept: restore() and apply(keep=False) save that memory",
                todo="optstate.plan(...).apply() keeps it",
            )
        return self.applied.undo

    def _journal(self) -> Journal | None:
        return None if self.live.state is None else journal_of(self.live.state.live_optimizers)

    def _entry(self, verb: str) -> JournalEntry:
        slots = [value for item in self.entries for value in item.saved.values()]
        return JournalEntry(
            verb=verb,
            arguments={"source": self.source},
            step=self.step if verb == "restore" else None,
            selection="*",
            parameters=len(self.entries),
            slots=len(slots),
            elements=sum(prod(value.shape) for value in slots if is_tensor(value)),
            backup=False,
        )

    def text(self, width: int | None = None) -> str:
        """What is not exact, counts of the rest, and a last line that says whether all of it is exact."""
        return summary(self).text(width)

    def table(self, limit: int | None = ROWS) -> Table:
        """One row for each parameter, at most `limit` of them (None: all), then the same as when it is printed."""
        return table(self, limit)

    def document(self) -> dict[str, Any]:
        """The whole plan in JSON's own types, as docs/schema/optstate-plan-1.json describes it.

        >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer)
        >>> plan.document()["counts"]["slots"]
        {'exact': 12}
        """
        return document(self)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return summary(self).html()


def stamped(live: Live, *, values: bool = True) -> Stamp:
    """How the live side is now."""
    return Stamp(live.model, live.state, live.objects, values=values)


def plan(
    source: Restorable,
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None = None,
    policy: Policy | None = None,
    rng: bool = False,
    **objects: Any,
) -> RestorePlan:
    """What restoring `source` into these live objects would do, without doing it.

    source
        The path of a checkpoint, `optstate.open(path)`, the dict of `named_state_dict`, or a state in memory.
    model, optimizer
        What to restore into; names come from the model, so an optimizer needs one. Build model, optimizer
        and schedulers first: a scheduler built after a restore overwrites the restored learning rate.
    policy
        What to do where the two sides do not agree; None: `Policy.strict()`, everything must agree.
    rng
        Whether to restore the random state of python, numpy and torch, if it was saved.
    objects
        Anything with `state_dict` and `load_state_dict`, under the name it was saved by.

    Raises `ReadError` when the source cannot be read, `BindError` when an argument is not what it should be, `PolicyError`
    for a policy that names what neither side has. A source that does not fit is no error here: see `RestorePlan.faults`.

    >>> print(optstate.plan(checkpoint, model=model, optimizer=optimizer).apply().exact)
    True
    """
    return planned(source, live_side(model, optimizer, objects, rng), Policy() if policy is None else policy)


@without_collection()
def planned(source: Restorable, live: Live, policy: Policy, progress: Progress | None = None) -> RestorePlan:
    """As `plan`; `progress` is called with the bytes done and in all where `damaged="salvage"` makes it read them."""
    saved = saved_side(source)
    found = RestorePlan(source=saved.label, step=saved.step, live=live, journal=saved.journal)
    weights = {} if live.model is None else live_weights(live.model)
    bounds = [] if live.state is None else list(live.state.bind().parameters())
    names = match_names(saved, weights, {bound.name: bound.aliases for bound in bounds}, policy)
    refused = _decide_weights(found, saved, live, weights, names[0], policy)
    drivers = find_drivers(found, saved, live.objects, live.state, policy)
    grouping = _decide_optimizers(found, saved, live, drivers, bounds, names[1], refused, policy)
    decide_objects(found, saved, live.objects, live.state, grouping, drivers, policy)
    found.notes.extend(told_of_rebuild(saved.journal, policy))
    if policy.damaged == "salvage":
        salvage(found, live.state, progress)
    found.notes.extend(on_what_stays(found, live))
    found.stamp = stamped(live)
    return found


def _decide_weights(
    found: RestorePlan, saved: Saved, live: Live, weights: Mapping[str, Weight], names: Matched, policy: Policy
) -> Collection[str]:
    """Decide for the weights; returns those that are faults."""
    if live.model is not None and saved.weights:
        return decide_weights(found, saved, weights, names, policy)
    if live.model is not None and live.state is None:
        found.faults.append("the checkpoint holds no weights")
    elif saved.weights:
        found.left_out.append(f"weights ({count(len(saved.weights), 'tensor')})")
    elif policy.weights == "loaded":
        found.warnings.append(
            "the checkpoint holds no weights: whether its momentum belongs to those that are loaded is not known"
        )
    return ()


def _decide_optimizers(
    found: RestorePlan,
    saved: Saved,
    live: Live,
    drivers: Sequence[Driver],
    bounds: Sequence[Bound],
    names: Matched,
    refused: Collection[str],
    policy: Policy,
) -> Grouping:
    if live.state is None:
        if len(saved.state):
            found.left_out.append(f"optimizer state ({count(len(saved.state), 'parameter')})")
        return Grouping()
    if not check_parameters(found, saved, names, policy):
        return Grouping()
    optimizers = pair_optimizers(found, saved, live.state, names.pairs, policy)
    if optimizers is None:
        return Grouping()
    grouping = decide_groups(found, saved, live.state, optimizers, names.pairs, drivers, policy)
    decide_entries(found, saved, live.state, bounds, names, grouping, policy, refused)
    mention_oddities(found, saved, live.state, optimizers, names, policy)
    return grouping


def restore(
    source: Restorable,
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None = None,
    policy: Policy | None = None,
    rng: bool = False,
    **objects: Any,
) -> RestorePlan:
    """Make a plan (see `plan`), strict unless a policy is given, and apply it. Returns the plan, so that it can be printed.

    All or nothing: a source that does not fit, or is damaged, raises before anything is touched, with every
    fault in one message. What was there is not kept, see `RestorePlan.apply`.

    >>> plan = optstate.restore(checkpoint, model=model, optimizer=optimizer)
    """
    return plan(source, model=model, optimizer=optimizer, policy=policy, rng=rng, **objects).apply(keep=False)


def live_side(model: Any, optimizer: Any, objects: Mapping[str, Any], rng: bool) -> Live:
    """What is restored into, as it was passed. Raises `BindError` for what nothing can be restored into."""
    if model is None and optimizer is not None:
        raise BindError(
            "an optimizer cannot be restored without its model",
            expected="model=...",
            todo="names come from the model: pass the one whose parameters the optimizer steps",
        )
    if model is None and not objects and not rng:
        raise BindError("nothing to restore into", expected="model=..., optimizer=..., or objects by name")
    extra = None if model is None else ExtraState(checked_model(model))
    every = {**({MODEL: extra} if extra else {}), **objects, **({RNG: RandomState()} if rng else {})}
    for name, item in every.items():
        if not callable(getattr(item, "load_state_dict", None)) or not callable(getattr(item, "state_dict", None)):
            raise BindError(
                f"{safe_text(name)} cannot be restored into",
                expected="an object with state_dict and load_state_dict",
                found=f"a {safe_text(qualified_name(type(item)))}",
            )
    module = None if model is None else checked_model(model)
    state = None if optimizer is None or module is None else LiveSource(optimizers_by_name(optimizer), module)
    return Live(module, state, every if state is None else {**every, OPTIMIZER: Beside(state)})

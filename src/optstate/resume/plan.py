"""`plan` and `restore`: what will be put back, printed before anything is touched, applied all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError, RestoreRefused, StalePlan
from optstate.live.journals import journal_of, restored
from optstate.live.source import LiveSource
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import ExtraState, live_weights
from optstate.optimizers.registry import qualified_name
from optstate.resume.apply import Live, commit, stage
from optstate.resume.decided import Decided
from optstate.resume.entries import decide_entries, match_parameters, pair_optimizers
from optstate.resume.groups import Grouping, decide_groups
from optstate.resume.objects import decide_objects
from optstate.resume.policy import Policy
from optstate.resume.printing import table
from optstate.resume.source import Restorable, Saved, saved_side
from optstate.resume.weights import decide_weights
from optstate.state.journal import Journal, JournalEntry
from optstate.state.table import ROWS, Table
from optstate.state.tensors import is_tensor
from optstate.store.objects import MODEL, RNG, RandomState
from optstate.text import count, safe_text


@dataclass(kw_only=True, eq=False, repr=False)
class RestorePlan(Decided):
    """What a restore will do. Printing it shows everything; nothing happens before `apply()`.

    `weights`, `entries`, `hyperparameters` and `objects` hold one decision each, `slots` one for each slot; `faults` are
    the reasons why the plan cannot be applied, all of them; `warnings` want a look; `left_out` is what the checkpoint has
    and nobody takes.

    >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer)
    >>> plan.faults
    []
    """

    live: Live = field(repr=False)
    stamp: tuple[object, ...] = field(default=(), repr=False)
    journal: Journal | None = field(default=None, repr=False)

    def apply(self) -> RestorePlan:
        """Do what the plan says: verify every digest, then write in place, objects last. Returns the plan itself.

        Raises `RestoreRefused` with every fault, `StalePlan` when model or optimizer changed since, `Damaged`
        when the checkpoint did; all of them before anything is touched. Raises `RestoreFailed` when a step of
        writing fails, after putting back what was there.
        """
        if self.faults:
            raise RestoreRefused(
                f"the checkpoint does not fit: {count(len(self.faults), 'fault')}, nothing was changed",
                self.faults,
                where=self.source,
                todo="print(optstate.plan(...)) shows what would fit",
            )
        if _stamp(self.live) != self.stamp:
            raise StalePlan(
                "the model or the optimizer was rebuilt since this plan was made",
                where=self.source,
                todo="make a new plan; nothing was changed",
            )
        staged = stage(self, self.live)
        commit(self.live, staged, self)
        if self.live.state is not None:
            restored(journal_of(self.live.state.live_optimizers), self.journal, self._entry())
        return self

    def _entry(self) -> JournalEntry:
        slots = [value for item in self.entries for value in item.saved.values()]
        return JournalEntry(
            verb="restore",
            arguments={"source": self.source},
            step=self.step,
            selection="*",
            parameters=len(self.entries),
            slots=len(slots),
            elements=sum(prod(value.shape) for value in slots if is_tensor(value)),
            backup=False,
        )

    def table(self, limit: int | None = ROWS) -> Table:
        """The plan as a table: one row per parameter, at most `limit` of them (None: all)."""
        return table(self, limit)

    def __str__(self) -> str:
        return self.table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table().html()


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
    policy = Policy() if policy is None else policy
    live = _live_side(model, optimizer, objects, rng)
    saved = saved_side(source)
    found = RestorePlan(source=saved.label, step=saved.step, live=live, journal=saved.journal)
    _decide_weights(found, saved, live, policy)
    grouping = _decide_optimizers(found, saved, live, policy)
    decide_objects(found, saved, live.objects, live.state, grouping, policy)
    found.stamp = _stamp(live)
    return found


def _decide_weights(found: RestorePlan, saved: Saved, live: Live, policy: Policy) -> None:
    if live.model is not None and saved.weights:
        decide_weights(found, saved, live_weights(live.model), policy)
    elif live.model is not None and live.state is None:
        found.faults.append("the checkpoint holds no weights")
    elif saved.weights:
        found.left_out.append(f"weights ({count(len(saved.weights), 'tensor')})")


def _decide_optimizers(found: RestorePlan, saved: Saved, live: Live, policy: Policy) -> Grouping:
    if live.state is None:
        if len(saved.state):
            found.left_out.append(f"optimizer state ({count(len(saved.state), 'parameter')})")
        return Grouping()
    optimizers = pair_optimizers(found, saved, live.state, policy)
    names = match_parameters(found, saved, live.state, policy)
    if optimizers is None or names is None:
        return Grouping()
    grouping = decide_groups(found, saved, live.state, optimizers, names.pairs, policy)
    decide_entries(found, saved, live.state, optimizers, names, grouping, policy)
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
    fault in one message.

    >>> plan = optstate.restore(checkpoint, model=model, optimizer=optimizer)
    """
    return plan(source, model=model, optimizer=optimizer, policy=policy, rng=rng, **objects).apply()


def _live_side(model: Any, optimizer: Any, objects: Mapping[str, Any], rng: bool) -> Live:
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
    return Live(module, state, every)


def _stamp(live: Live) -> tuple[object, ...]:
    """What a plan relies on: which tensors have which names, places and shapes."""
    weights = () if live.model is None else live_weights(live.model).items()
    places: list[object] = []
    if live.state is not None:
        places = [(name, id(live.state.bound(name).tensor), live.state.bound(name)[4:]) for name in live.state.names()]
    return (
        tuple((name, id(weight.tensor), tuple(weight.tensor.shape), weight.tensor.dtype) for name, weight in weights),
        tuple(places),
        tuple((name, id(item)) for name, item in live.objects.items() if name not in (RNG, MODEL)),
    )

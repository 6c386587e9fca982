"""`plan` and `restore`: what will be put back, printed before anything is touched, applied all or nothing."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import nn

from optstate.errors import BindError, RestoreRefused, StalePlan
from optstate.live.journals import journal_of, restored
from optstate.live.source import LiveSource
from optstate.live.unwrap import unwrap_optimizer
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import ExtraState, live_weights
from optstate.optimizers.registry import qualified_name
from optstate.resume.apply import Live, commit, stage
from optstate.resume.decisions import HyperparameterDecision, ObjectDecision, SlotDecision, WeightDecision, missing
from optstate.resume.planner import Comparison, compare_optimizers, compare_weights
from optstate.resume.source import Restorable, Saved, saved_side
from optstate.state.journal import Journal, JournalEntry
from optstate.state.table import ROWS, Table, format_value
from optstate.state.tensors import is_tensor
from optstate.store.objects import MODEL, RNG, RandomState
from optstate.text import count, listing, safe_text


@dataclass(frozen=True, slots=True, eq=False)
class RestorePlan:
    """What a restore will do. Printing it shows everything; nothing happens before `apply()`.

    `weights`, `slots`, `hyperparameters` and `objects` hold one decision each; `faults` are the reasons why
    the plan cannot be applied, all of them; `warnings` want a look; `left_out` is what the checkpoint has and
    nobody asked for.

    >>> plan = optstate.plan(checkpoint, model=model, optimizer=optimizer)
    >>> plan.faults
    ()
    """

    source: str
    step: int | None
    weights: tuple[WeightDecision, ...]
    slots: tuple[SlotDecision, ...]
    hyperparameters: tuple[HyperparameterDecision, ...]
    objects: tuple[ObjectDecision, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]
    _live: Live = field(repr=False)
    _stamp: tuple[object, ...] = field(repr=False)
    _journal: Journal | None = field(repr=False)

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
        if _stamp(self._live) != self._stamp:
            raise StalePlan(
                "the model or the optimizer was rebuilt since this plan was made",
                where=self.source,
                todo="make a new plan; nothing was changed",
            )
        staged = stage(self.weights, self.slots, self.hyperparameters, self.objects)
        commit(self._live, staged, self.source)
        if self._live.state is not None:
            restored(journal_of(self._live.state.live_optimizers), self._journal, self._entry())
        return self

    def _entry(self) -> JournalEntry:
        slots = [item for item in self.slots if item.key is not None]
        return JournalEntry(
            verb="restore",
            arguments={"source": self.source},
            step=self.step,
            selection="*",
            parameters=len({item.parameter for item in self.slots}),
            slots=len(slots),
            elements=sum(prod(item.saved.shape) for item in slots if is_tensor(item.saved)),
            backup=False,
        )

    @property
    def exact(self) -> bool:
        """Whether everything saved comes back bit for bit and nothing is left out or overruled."""
        return not (self.faults or self.left_out) and all(
            item.same for item in self.hyperparameters if item.winner == "live"
        )

    def table(self, limit: int | None = ROWS) -> Table:
        """The plan as a table: one row per parameter, at most `limit` of them (None: all)."""
        return Table(
            title=[_headline(self)],
            header=("NAME", "WEIGHT", "SLOTS"),
            rows=_rows(self, limit),
            notes=[*_notes(self), _verdict(self)],
        )

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
    rng: bool = False,
    **objects: Any,
) -> RestorePlan:
    """What restoring `source` into these live objects would do, without doing it.

    source
        The path of a checkpoint, `optstate.open(path)`, the dict of `named_state_dict`, or a state in memory.
    model, optimizer
        What to restore into; names come from the model, so an optimizer needs one. Build model, optimizer
        and schedulers first: a scheduler built after a restore overwrites the restored learning rate.
    rng
        Whether to restore the random state of python, numpy and torch, if it was saved.
    objects
        Anything with `state_dict` and `load_state_dict`, under the name it was saved by.

    Raises `ReadError` when the source cannot be read and `BindError` when an argument is not what it should
    be. A source that does not fit is no error here: see `RestorePlan.faults`.

    >>> print(optstate.plan(checkpoint, model=model, optimizer=optimizer).apply().exact)
    True
    """
    live = _live_side(model, optimizer, objects, rng)
    saved = saved_side(source)
    found = Comparison()
    if live.model is not None and saved.weights:
        compare_weights(found, saved, live.model)
    elif live.model is not None and live.state is None:
        found.faults.append("the checkpoint holds no weights")
    elif saved.weights:
        found.left_out.append(f"weights ({count(len(saved.weights), 'tensor')})")
    if live.state is not None:
        compare_optimizers(found, saved, live.state)
    elif len(saved.state):
        found.left_out.append(f"optimizer state ({count(len(saved.state), 'parameter')})")
    decisions = _compare_objects(found, saved, live)
    _explain_hyperparameters(found, _compare_drivers(found, live))
    return RestorePlan(
        source=saved.label,
        step=saved.step,
        weights=tuple(found.weights),
        slots=tuple(found.slots),
        hyperparameters=tuple(found.hyperparameters),
        objects=tuple(decisions),
        faults=tuple(found.faults),
        warnings=tuple(found.warnings),
        left_out=tuple(found.left_out),
        _live=live,
        _stamp=_stamp(live),
        _journal=saved.journal,
    )


def restore(
    source: Restorable,
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None = None,
    rng: bool = False,
    **objects: Any,
) -> RestorePlan:
    """Make a strict plan (see `plan`) and apply it. Returns the plan, so that it can be printed.

    All or nothing: a source that does not fit, or is damaged, raises before anything is touched, with every
    fault in one message.

    >>> plan = optstate.restore(checkpoint, model=model, optimizer=optimizer)
    """
    return plan(source, model=model, optimizer=optimizer, rng=rng, **objects).apply()


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


def _compare_objects(found: Comparison, saved: Saved, live: Live) -> list[ObjectDecision]:
    decisions = []
    for name, item in live.objects.items():
        if name not in saved.objects:
            found.faults.append(
                f"{safe_text(name)}: not among the objects of the checkpoint ({listing(saved.objects) or 'none'})"
            )
            continue
        expected, mine = saved.object_classes.get(name), qualified_name(type(item))
        if expected is not None and expected != mine and name not in (RNG, MODEL):
            found.faults.append(f"{safe_text(name)}: a {safe_text(expected)} in the checkpoint, a {mine} live")
            continue
        decisions.append(ObjectDecision(name, qualified_name(type(item)), saved.objects[name], _reversible(item)))
    left = [name for name in saved.objects if name not in live.objects]
    if left:
        found.left_out.append(f"objects {listing(left)}")
    return decisions


def _reversible(item: Any) -> bool:
    """Whether the object's present state can be kept aside, so that it can be put back."""
    try:
        copy.deepcopy(item.state_dict())
    except Exception:  # noqa: BLE001  # whatever a foreign object raises, the answer is no
        return False
    return True


def _compare_drivers(found: Comparison, live: Live) -> set[str]:
    """Check every object that drives an optimizer, as schedulers do; returns the live optimizers that are driven."""
    optimizers = {} if live.state is None else live.state.live_optimizers
    driven = set()
    for name, item in live.objects.items():
        target = getattr(item, "optimizer", None)
        if not isinstance(target, torch.optim.Optimizer) or not optimizers:
            continue
        names = [key for key, optimizer in optimizers.items() if optimizer is unwrap_optimizer(target)]
        driven.update(names)
        if not names:
            found.warnings.append(
                f"M407 {safe_text(name)} drives another optimizer than the one restored: build it again on this one"
            )
        if found.regrouped.intersection(names):
            found.faults.append(
                f"{safe_text(name)} keeps one value per group by position, and the groups come in another order or "
                "number than in the checkpoint"
            )
    return driven


def _explain_hyperparameters(found: Comparison, driven: set[str]) -> None:
    """A changed value that no restored scheduler accounts for deserves a warning (M401)."""
    for item in found.hyperparameters:
        if item.changes and item.live is not missing and item.optimizer not in driven:
            found.warnings.append(
                f"M401 group {_group(item)}: {safe_text(item.key)} becomes {format_value(item.saved)} (your program set "
                f"{format_value(item.live)}) and no restored scheduler explains it; to keep yours, set it after the restore"
            )


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


def _headline(plan: RestorePlan) -> str:
    step = "" if plan.step is None else f" · step {plan.step:,}"
    return f"restore {plan.source}{step}"


def _rows(plan: RestorePlan, limit: int | None) -> list[list[str]]:
    weights = {item.name: item.decision for item in plan.weights}
    slots = {name: list(items) for name, items in groupby(plan.slots, key=lambda item: item.parameter)}
    names = list(dict.fromkeys((*weights, *slots)))
    rows = [[safe_text(name), weights.get(name, "–"), _slot_cell(slots.get(name, []))] for name in names]
    if limit is None or len(rows) <= limit:
        return rows
    head = limit * 2 // 3
    return [*rows[:head], [f"… {len(rows) - limit:,} more", "", ""], *rows[len(rows) - (limit - head) :]]


def _slot_cell(slots: list[SlotDecision]) -> str:
    if not slots:
        return "–"
    if slots[0].key is None:
        return f"fresh: {slots[0].reason}"
    by_decision = {
        decision: ", ".join(safe_text(item.key, 40) for item in slots if item.decision == decision)
        for decision in dict.fromkeys(item.decision for item in slots)
    }
    return " · ".join(f"{decision}: {keys}" for decision, keys in by_decision.items())


def _notes(plan: RestorePlan) -> list[str]:
    counts = Counter(item.decision for item in plan.slots if item.key is not None)
    lines = []
    if plan.weights:
        lines.append(f"weights    {count(len(plan.weights), 'tensor')} exact")
    if plan.slots:
        fresh = sum(item.key is None for item in plan.slots)
        parts = [f"{number:,} {decision}" for decision, number in counts.items()]
        parts += [f"{count(fresh, 'parameter')} fresh"] if fresh else []
        lines.append(f"slots      {', '.join(parts)}")
    lines += [f"group {_group(item)}    {_change(item)}" for item in plan.hyperparameters if not item.same]
    if plan.objects:
        lines.append(f"objects    {listing((item.name for item in plan.objects), 20)}")
    lines += [
        f"objects    {safe_text(item.name)} cannot be put back if a later step fails: its state cannot be copied"
        for item in plan.objects
        if not item.reversible
    ]
    lines += [f"left out   {line}" for line in plan.left_out]
    lines += [f"warning    {line}" for line in plan.warnings]
    return lines


def _group(item: HyperparameterDecision) -> str:
    return f"{safe_text(item.optimizer)}:{item.group}" if item.optimizer else str(item.group)


def _change(item: HyperparameterDecision) -> str:
    live, saved = format_value(item.live), format_value(item.saved)
    if item.winner == "saved":
        return f"{safe_text(item.key)} {live} → {saved} (saved)"
    return f"{safe_text(item.key)} stays {live} (live; the checkpoint has {saved})"


def _verdict(plan: RestorePlan) -> str:
    if plan.faults:
        lines = [f"  - {fault}" for fault in plan.faults]
        return "\n".join([f"cannot be applied, {count(len(plan.faults), 'fault')}:", *lines])
    if plan.exact:
        return "exact: everything in the checkpoint, bit for bit"
    overruled = any(item.winner == "live" and not item.same for item in plan.hyperparameters)
    reasons = [*(["something is left out"] if plan.left_out else []), *(["some live values stay"] if overruled else [])]
    return f"exact for what is restored; {' and '.join(reasons)}"

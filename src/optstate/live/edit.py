"""An edit: verbs act at once, leaving it looks at what they did and keeps it, or takes all of it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self, Unpack
from weakref import WeakSet

import torch

from optstate.errors import EditError, EditRefused
from optstate.live.backup import Buffers
from optstate.live.batch import Batch, batches
from optstate.live.deeds import Deed, touched
from optstate.live.outcome import Refusal, outcome
from optstate.live.regroup import Changes, regroup
from optstate.live.source import LiveSource
from optstate.live.stepping import is_stepping
from optstate.live.target import LiveParam, LiveSelection, Target, chosen
from optstate.live.transaction import Transaction
from optstate.live.verbs import ALL, Verb
from optstate.live.writing import Writer
from optstate.optimizers.registry import by_class
from optstate.state.change import Change
from optstate.state.collection import without_collection
from optstate.state.journal import JournalEntry
from optstate.state.optimizer_state import OptimizerState
from optstate.state.selection import Predicates
from optstate.text import safe_text

OPEN: WeakSet[torch.optim.Optimizer] = WeakSet()
"""Optimizers that an open edit or surgery is about, whichever state it was begun on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an edit is made; see `LiveState.edit`."""

    note: str = ""
    dry_run: bool = False
    force: bool = False
    backup: bool = True
    norms: bool = True


class Ended(Protocol):
    """Told when an edit is over."""

    def __call__(self, edit: Edit, /, *, kept: bool) -> None: ...


class Edit:
    """What `with state.edit(...) as edit:` gives: the parameters, to call verbs on; afterwards `change`.

    >>> with state.edit("halve it after the drop of the learning rate") as edit:
    ...     edit.select("*.weight").momentum.scale_(0.5)
    ...     edit["0.bias"].reset_()
    >>> len(edit.change.entries), edit.change.made
    (2, True)
    """

    def __init__(self, source: LiveSource, options: Options, buffers: Buffers, ended: Ended) -> None:
        if options.dry_run and not options.backup:
            raise EditError("a dry run takes everything back, for which it needs a backup", todo="leave backup=True")
        self.options = options
        self.writer = Writer(buffers, backup=options.backup, norms=options.norms)
        self.deeds: list[Deed] = []
        self._regroups: list[JournalEntry] = []
        self._ended = ended
        self._source = source
        self._state = OptimizerState(source)
        self._outside = Transaction()
        self._change: Change | None = None
        self._is_open = False
        self._failed: BaseException | None = None

    def select(self, pattern: str = "*", **predicates: Unpack[Predicates]) -> LiveSelection:
        """The parameters that a pattern and predicates mean, as `OptimizerState.select`."""
        found = chosen(self._state, pattern, predicates)
        return LiveSelection(self, found.names, found.description)

    def __getitem__(self, name: str) -> LiveParam:
        return LiveParam(self._state[name].facts, self._source, self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def regroup(self, changes: Changes, *, scheduler: Any = None) -> None:
        """Give parameters other hyperparameters, as a part of this edit; see `LiveState.regroup`."""
        self._refuse_stepping()
        self.writer.regrouped = True
        self._regroups.append(regroup(self.writer.transaction, self._source, changes, scheduler=scheduler))

    @property
    def change(self) -> Change:
        """What was changed, or would have been. Raises `EditError` before the edit is over."""
        if self._change is None:
            raise EditError("what an edit changes is known when it is over", todo="look at it after the with block")
        return self._change

    # --- the transaction -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        optimizers = self._source.live_optimizers.values()
        if self._change is not None or self._is_open:
            raise EditError("an edit is entered once", todo="begin another one with state.edit()")
        self._refuse_stepping()
        if any(optimizer in OPEN for optimizer in optimizers):
            raise EditError(
                "an edit of this optimizer is open already",
                todo="call the verbs on what `with state.edit() as edit` gave: edit.select(...), edit['name']",
            )
        OPEN.update(optimizers)
        self._is_open = True
        for optimizer in optimizers:
            self._outside.before_groups(optimizer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = False
        try:
            kept = error is None and self._finish()
        finally:
            if not kept:
                self.writer.transaction.rollback()
                self._outside.rollback()
            self._ended(self, kept=kept)
            self._is_open = False
            OPEN.difference_update(self._source.live_optimizers.values())

    @without_collection()
    def act(self, target: Target, verb: Verb) -> None:
        """Carry a verb out. What a failure leaves half done is taken back with the whole edit."""
        if not self._is_open:
            raise EditError("this edit is not open", todo="call verbs inside `with state.edit() as edit:`")
        self._refuse_stepping()
        works = verb.works(self._found(target, verb), target.rows)
        deed = Deed(verb, str(target), target.rows, touched(works, verb, target.rows))
        deed.note_step(self.writer.readout)
        self.deeds.append(deed)
        try:
            with torch.no_grad():
                for each in deed.touched:
                    self.writer.take_samples(each)
                for work in works:
                    self.writer.do(work, deed)
        except BaseException as problem:
            self._failed = problem
            raise

    @without_collection()
    def _finish(self) -> bool:
        """Whether the edit stays. Raises `EditRefused` where it must not."""
        if self._failed is not None:
            raise EditError(
                f"a verb of this edit failed, so none of it was kept: {safe_text(self._failed)}",
                todo="leave the block when a verb raises",
            )
        options = self.options
        with torch.no_grad():
            entries, refusals, notes = outcome(
                self.deeds, self.writer, options.note, force=options.force, backup=options.backup, norms=options.norms
            )
        made = not refusals and not options.dry_run
        regroups = [replace(entry, note=options.note, backup=options.backup) for entry in self._regroups]
        self._change = Change((*entries, *regroups), made, tuple(refusal.what for refusal in refusals), tuple(notes))
        if refusals and not options.dry_run:
            raise self._refused(refusals, self._change)
        return made

    def _refused(self, refusals: Sequence[Refusal], change: Change) -> EditRefused:
        first = refusals[0]
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        undone = "" if self.options.backup else ", and stays as it is, for there is no backup"
        return EditRefused(
            f"the edit was refused{undone}: {first.what}{more}",
            change,
            where=safe_text(self.options.note) or None,
            expected=first.expected,
            todo=first.todo,
        )

    # --- what it acts on -----------------------------------------------------------------------------------

    def _found(self, target: Target, verb: Verb) -> list[Batch]:
        """The slots that a verb is to write to. Raises `MissingSlot`, with the reason, where none of them is there."""
        binding = self._source.bind()
        gone = set(target.names).difference(binding.names())
        if gone:
            self._state[min(gone)]  # which says why it is not there
        self._refuse_parts(target)
        found = batches(binding, self._source.live_optimizers, target.names, verb.keys(target.choice))
        if not found and target.choice.role is not None:
            self._state[target.names[0]].role(target.choice.role)
        elif not found and target.choice != ALL:
            self._state[target.names[0]][target.choice.key or ""]
        return found

    def _refuse_stepping(self) -> None:
        if any(is_stepping(optimizer) for optimizer in self._source.live_optimizers.values()):
            raise EditError(
                "the optimizer is in the middle of a step",
                found="a hook, a closure or the step itself calls for an edit",
                todo="edit between steps: after optimizer.step() has returned",
            )

    def _refuse_parts(self, target: Target) -> None:
        """Refuse some parameters of an optimizer whose state is laid out over all of them."""
        for optimizer in self._source.live_optimizers.values():
            spec = by_class(type(optimizer))
            if spec is None or not spec.order_matters:
                continue
            every = {name for name, info in self._state.items() if info.facts.optimizer in self._names_of(optimizer)}
            if 0 < len(every & set(target.names)) < len(every):
                raise EditError(
                    f"the state of {type(optimizer).__name__} is laid out over all its parameters",
                    found=f"{len(every & set(target.names))} of {len(every)} parameters",
                    todo='select all of them: edit.select("*").reset_()',
                )

    def _names_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [name for name, each in self._source.live_optimizers.items() if each is optimizer]

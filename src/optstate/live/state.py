"""LiveState: the state of a running optimizer, to look at and to edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

from optstate.errors import EditError
from optstate.live.backup import Buffers
from optstate.live.edit import Edit, Options
from optstate.live.journals import journal_of
from optstate.live.regroup import Changes
from optstate.live.source import LiveSource
from optstate.live.surgery import Surgery
from optstate.live.surgery_undo import KeptSurgery
from optstate.live.target import LiveParam, LiveSelection, Target, chosen
from optstate.live.trial import Keep, Trial, evaluated, is_kept
from optstate.live.undo import Kept
from optstate.live.verbs import Verb
from optstate.state.journal import Journal
from optstate.state.optimizer_state import OptimizerState
from optstate.state.selection import Predicates


class LiveState(OptimizerState):
    """An `OptimizerState` that follows a running optimizer, and changes it: by name, all or nothing, undoable.

    >>> state = optstate.attach(optimizer, model)
    >>> with state.edit("start the head anew") as edit:
    ...     edit.select("2.*").reset_()
    >>> state.journal[-1].note
    'start the head anew'
    """

    source: LiveSource

    def __init__(self, source: LiveSource) -> None:
        super().__init__(source)
        self._last: Kept | KeptSurgery | None = None
        self._spare = Buffers()

    def __getitem__(self, name: str) -> LiveParam:
        return LiveParam(super().__getitem__(name).facts, self.source, self)

    def select(self, pattern: str = "*", **predicates: Unpack[Predicates]) -> LiveSelection:
        """The parameters that a pattern and predicates mean, with the verbs; see `OptimizerState.select`.

        >>> state.select("*.weight", ndim=2).momentum.scale_(0.5)
        """
        found = chosen(OptimizerState(self.source), pattern, predicates)
        return LiveSelection(self, found.names, found.description)

    @property
    def journal(self) -> Journal:
        """Every change of this optimizer's state besides its own steps: it prints as a table, and checkpoints keep it."""
        return journal_of(self.source.live_optimizers)

    def edit(
        self, note: str = "", *, dry_run: bool = False, force: bool = False, backup: bool = True, norms: bool = True
    ) -> Edit:
        """Begin an edit: `with state.edit("why") as edit:`, then verbs on `edit.select(...)` and `edit["name"]`.

        Verbs act at once, in place. Leaving the block looks at what they did and keeps it, or takes all of it back bit
        by bit: when an exception leaves it, when a value is not finite or a second moment negative, when a slot was
        replaced, and when the next update would be larger than twice what it would have been and twice a fresh start's.

        note
            Why, for the journal.
        dry_run
            Take everything back in the end; `edit.change` tells what would have changed, and what would be refused.
        force
            Let an update pass that is too large; the journal says so.
        backup
            Without, what is touched is not copied beforehand, for states too large for that: nothing can be taken
            back, neither by `undo` nor after a failure, and the journal says so.
        norms
            Without, the journal has no norms, and the edit reads the slots once less.

        Raises `EditRefused` on leaving, `EditError` for a verb that makes no sense, and in the middle of a step.
        """
        options = Options(note=note, dry_run=dry_run, force=force, backup=backup, norms=norms)
        return Edit(self.source, options, self._spare, self._ended)

    def act(self, target: Target, verb: Verb) -> None:
        """A verb outside an edit is an edit of its own."""
        with self.edit() as edit:
            edit.act(target, verb)

    def undo(self) -> None:
        """Take back the last edit, regroup or surgery made on this state, bit by bit; the journal then says it was undone.

        Raises `EditError` where there is none, where no backup was kept, and where something else, such as a step,
        has changed the same slots since.
        """
        last = self._last
        if last is None:
            raise EditError("there is no edit to undo", todo="only the last one made on this very state can be undone")
        changed = last.changed()
        if changed is not None:
            raise EditError(
                "the last edit can no longer be undone", found=changed, todo="undo before the next step; or edit again"
            )
        last.take_back()
        for entry in last.entries:
            self.journal.amend(entry, undone=True)
        self._last = None

    def trial(
        self,
        evaluate: Callable[[], Any],
        edit: Callable[[Edit], object],
        *,
        keep: Keep = "if better",
        note: str = "trial",
    ) -> Trial:
        """Evaluate, edit, evaluate again; then keep the edit or undo it.

        `evaluate()` returns a number, lower being better, such as the loss on a few batches. It may train: weights,
        buffers, gradients, optimizer state, hyperparameters, modes and random numbers are put back bit by bit after
        each of the two calls, for which all of them are copied; a loader or a scheduler that it advances is its own affair.
        `edit` calls verbs on the edit that it gets. `keep` is True, False or "if better".

        >>> state.trial(lambda: 0.0, lambda edit: edit.select("*").momentum.zero_(), keep=False).kept
        False
        """
        is_kept(keep, 0.0, 0.0)  # a wrong word is told before anything is computed
        before = evaluated(evaluate, self.source)
        with self.edit(note, dry_run=True) as made:
            edit(made)
            after = evaluated(evaluate, self.source)
            kept = is_kept(keep, before, after)
            if kept:
                made.options = replace(made.options, dry_run=False)
        return Trial(before, after, kept, made.change)

    def regroup(self, changes: Changes, *, scheduler: Any = None, note: str = "") -> None:
        """Give the parameters that each pattern means other hyperparameters: groups split and merge as they must.

        State, the order of parameters and every other hyperparameter stay as they are, except that averages which the
        optimizer corrects by 1-β^t follow a new β, so that no update jumps. The lists of torch's schedulers follow: those
        given as `scheduler`, one or several, or for None all that drive this optimizer.

        >>> state.regroup({"*.bias": {"weight_decay": 0.0}})
        >>> [group.hyperparameters["weight_decay"] for group in state.groups]
        [0.01, 0.0]
        """
        with self.edit(note) as edit:
            edit.regroup(changes, scheduler=scheduler)

    def surgery(self, note: str = "", *, ema: Any = None, dry_run: bool = False, backup: bool = True) -> Surgery:
        """Begin surgery on the parameters themselves: `with state.surgery("why") as cut:`, then verbs on `cut`.

        Verbs act at once: on the model, the param groups, the slots, the gradient and the averages of a parameter together.
        An exception that leaves the block takes all of it back, and everything is the very object again that it was.

        note
            Why, for the journal.
        ema
            Averages of the weights that are to follow: an `AveragedModel` or a copy of the model, a dict of tensors by name,
            or an object with `shadow_params` in the order of the parameters; one, or several in a list.
        dry_run
            Take everything back in the end; `cut.change` tells what would have changed.
        backup
            Without, what was there before is let go of when the block is left, and `undo` cannot bring it back.

        Raises `EditError` for what cannot be, in the middle of a step, and for a model that is wrapped for several
        processes, which remembers its parameters.

        >>> with state.surgery("drop two units") as cut:
        ...     cut.keep_rows("0.*", range(6))
        ...     cut.keep_rows("2.weight", range(6), dim=1)
        >>> state["2.weight"].momentum.shape, state.journal[-1].verb
        ((2, 6), 'keep_rows')
        """
        return Surgery(self.source, note, ema, self._cut, dry_run=dry_run, backup=backup)

    def _cut(self, surgery: Surgery, *, kept: bool) -> None:
        """Write a surgery that was kept into the journal, and keep what undoes it."""
        if kept:
            entries = [self.journal.append(entry) for entry in surgery.change.entries]
            optimizers = list(self.source.live_optimizers.values())
            touched = list(surgery.touched.values())
            made = KeptSurgery(surgery.transaction, surgery.buffers, touched, entries, optimizers)
            self._last = made if surgery.backup else None

    def _ended(self, edit: Edit, *, kept: bool) -> None:
        """Write an edit that was kept into the journal, and keep what undoes it in place of what undid the last one."""
        if not kept:
            if self._last is not None:
                self._last.excuse(edit.writer)
            self._spare.clear()
            return
        entries = [self.journal.append(entry) for entry in edit.change.entries]
        buffers, self._spare = self._spare, self._last.buffers if self._last is not None else Buffers()
        self._spare.clear()
        optimizers = list(self.source.live_optimizers.values())
        self._last = Kept(edit.deeds, edit.writer, buffers, entries, optimizers) if edit.options.backup else None

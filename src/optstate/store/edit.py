"""`edit`: the verbs on the optimizer state of a checkpoint file, of any format; the outcome is another checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from optstate.errors import EditError, EditRefused, NothingSelected, TargetExists
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.optimizers.updates import safe_verb
from optstate.state.change import Change
from optstate.state.journal import Journal
from optstate.state.roles import ROLES, Role
from optstate.state.selection import Predicates
from optstate.state.tensors import TensorRef, is_tensor
from optstate.store.convert import Conversion, Target, check_target, chosen_target, converted
from optstate.store.files import Files, RealFiles
from optstate.store.offline import verbs
from optstate.store.offline.blending import Other, lerp
from optstate.store.offline.draft import Aim, Draft
from optstate.store.offline.outcome import Deed, Outcome, examine
from optstate.store.offline.resetting import reset
from optstate.store.offline.rows import RowIndex
from optstate.store.offline.verbs import Verb
from optstate.text import count, listing, safe_text


def edit(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str] | None = None,
    *,
    note: str = "",
    dry_run: bool = False,
    force: bool = False,
    to: Target | None = None,
    partial: bool = False,
    replace: bool = False,
) -> FileEdit:
    """Edit the optimizer state of a checkpoint with the verbs of a live one; what comes of it is written to `target`.

    source
        A checkpoint of any format that `open` reads. It is never changed.
    target, to, replace, partial
        Where the outcome goes and in which format, as `convert` has them. May be None in a dry run.
    note
        Why, for the journal, which is saved with the checkpoint.
    dry_run
        Write nothing; `change` says what would change, and what would be refused.
    force
        Write although the next update would be more than `optstate.optimizers.updates.BOUND` times as large.

    Use it as a context: verbs are recorded, and when the block ends without an error they are checked and carried out, one
    block of values at a time. All else is copied bit for bit. Raises `EditError` for a verb that does not fit, `EditRefused`
    where the outcome would be wrong, and what `open` and `convert` raise; in all cases nothing is written.

    >>> with optstate.edit(checkpoint, "runs/edited", note="after the drop") as edit:
    ...     edit.select("0.*").momentum.scale_(0.5)
    ...     edit["2.bias"].reset_()
    >>> [entry.verb for entry in optstate.open("runs/edited").journal]
    ['scale_', 'reset_']
    """
    return FileEdit(source, target, Options(note, dry_run, force, to, partial, replace))


@dataclass(frozen=True, slots=True)
class Options:
    """How a file is edited; see `edit`."""

    note: str = ""
    dry_run: bool = False
    force: bool = False
    to: Target | None = None
    partial: bool = False
    replace: bool = False


Watch = Callable[[int, int], None]
"""Is told how many of how many bytes are read."""


class FileEdit:
    """What `with optstate.edit(...) as edit:` gives: parameters to call verbs on; afterwards what came of them.

    `change` tells of each verb, `conversion` of what was written (None: nothing was), and `untouched` of how many other
    weights and slots that holds; `same_digests` is how many of these have the digest in the target that they had in the
    source, None where one of the two has no digests.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Checkpoint,
        target: str | os.PathLike[str] | None,
        options: Options,
        watch: Watch = lambda _done, _total: None,
        files: Files | None = None,
    ) -> None:
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
        self.conversion: Conversion | None = None
        self.untouched = 0
        self.same_digests: int | None = None
        self._options = options
        self._target = None if target is None else Path(target)
        self._watch = watch
        self._files = files or RealFiles()
        self._draft = Draft(checkpoint)
        self._deeds: list[Deed] = []
        self._change: Change | None = None
        if self._target is None and not options.dry_run:
            raise EditError("there is no target to write to", todo="name one, or pass dry_run=True")
        if self._target is not None:
            _check_beside(checkpoint.path, self._target)
            check_target(checkpoint, self._target, chosen_target(options.to, self._target), replace=options.replace)

    def select(self, pattern: str = "*", **predicates: Unpack[Predicates]) -> FileTarget:
        """The parameters that a pattern and predicates mean, as `OptimizerState.select`."""
        chosen = self._draft.state.select(pattern, **predicates)
        return FileTarget(self, Aim(chosen.names, chosen.description))

    def choose(self, patterns: Sequence[str], excluded: Sequence[str] = ()) -> FileTarget:
        """The parameters that any of some patterns means, without those that any of others means."""
        state = self._draft.state
        meant = {name for pattern in patterns for name in state.select(pattern).names}
        meant -= {name for pattern in excluded for name in state.select(pattern).names}
        if not meant:
            raise NothingSelected("nothing is left to edit", found=f"all of {listing(patterns)} is excluded")
        without = f" without {', '.join(map(safe_text, excluded))}" if excluded else ""
        names = tuple(name for name in state if name in meant)
        return FileTarget(self, Aim(names, ", ".join(map(safe_text, patterns)) + without))

    def __getitem__(self, name: str) -> FileTarget:
        parameter = self._draft.state[name]
        return FileTarget(self, Aim((parameter.name,), safe_text(parameter.name)))

    @property
    def change(self) -> Change:
        """What was changed, or would have been. Raises `EditError` before the edit is over."""
        if self._change is None:
            raise EditError("what an edit changes is known when it is over", todo="look at it after the with block")
        return self._change

    def act(self, aim: Aim, verb: Verb) -> None:
        """Record a verb; one that does not fit leaves no trace."""
        if self._change is not None:
            raise EditError("this edit is over", todo="begin another one with optstate.edit()")
        entries = {name: dict(entry) for name, entry in self._draft.entries.items()}
        groups = {place: dict(group) for place, group in self._draft.groups.items()}
        try:
            self._deeds.append(Deed(aim, verb, list(verb.act(self._draft, aim))))
        except BaseException:
            self._draft.entries, self._draft.groups = entries, groups
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()

    def _finish(self) -> None:
        if not self._deeds:
            raise EditError("there is nothing to edit", todo="call a verb: edit.select('*').momentum.scale_(0.5)")
        options, known = self._options, self._draft.checkpoint.journal
        outcome = examine(self._draft, self._deeds, self._watch)
        journal = Journal(known, clock=known.clock)
        forced = options.force and bool(outcome.excessive)
        entries = [journal.append(replace(each, note=options.note, forced=forced)) for each in outcome.entries]
        refusals = outcome.wrong or ([] if options.force else list(map(str, outcome.excessive)))
        self._change = Change(entries, False, refusals, _notes(self._draft, self._deeds))
        if options.dry_run or self._target is None:
            return
        if refusals:
            raise _refused(self._draft, self._deeds, outcome, self._change)
        edited = replace(self._draft.made(), journal=journal)
        self.conversion = converted(
            edited, self._target, self._files, to=options.to, partial=options.partial, replace=options.replace
        )
        self._change = replace(self._change, made=True)
        self._compare_digests(_tensors(open_checkpoint(self._target)))

    def _compare_digests(self, written: Mapping[tuple[str, str], TensorRef]) -> None:
        """Hold all that no verb touched against the source, by what both say of its bytes."""
        touched = {(touch.parameter, touch.key) for deed in self._deeds for touch in deed.touches}
        saved = _tensors(self._draft.checkpoint)
        others = [(ref, saved[place]) for place, ref in written.items() if place in saved and place not in touched]
        pairs = [(a.digests, b.digests) for a, b in others if isinstance(a, OwnTensor) and isinstance(b, OwnTensor)]
        self.untouched = len(others)
        self.same_digests = sum(a == b for a, b in pairs) if len(pairs) == len(others) else None


class FileTarget:
    """Parameters of a checkpoint, or a slot or rows of them, with the verbs of a live state; see `LiveState`.

    `set_` takes one number here, `lerp_` a checkpoint or its path.
    """

    def __init__(self, edit: FileEdit, aim: Aim) -> None:
        self._edit = edit
        self._aim = aim

    @property
    def momentum(self) -> FileTarget:
        """The slots that carry the direction of the update."""
        return self.role("momentum")

    @property
    def second_moment(self) -> FileTarget:
        """The averages of squared gradients."""
        return self.role("second_moment")

    @property
    def step(self) -> FileTarget:
        """The counts of updates."""
        return self.role("step")

    def role(self, role: Role) -> FileTarget:
        """The primary slots of a role, of those parameters that have one."""
        if role not in ROLES:
            raise EditError(f"{safe_text(role)!r} is no role", expected=", ".join(ROLES))
        return FileTarget(self._edit, replace(self._aim, role=role, key=None))

    def __getitem__(self, key: str) -> FileTarget:
        """The slots of a key, of those parameters that have one."""
        return FileTarget(self._edit, replace(self._aim, role=None, key=key))

    def rows(self, rows: RowIndex) -> FileTarget:
        """Some rows: an index, a list or array of them, a slice, or a mask of booleans, along the first dimension."""
        return FileTarget(self._edit, replace(self._aim, rows=rows))

    def scale_(self, factor: float) -> None:
        """Multiply by a finite number."""
        self._edit.act(self._aim, verbs.scale(factor))

    def zero_(self) -> None:
        """Make zero."""
        self._edit.act(self._aim, verbs.zero())

    def reset_(self, keep: str | Sequence[str] = ()) -> None:
        """Make as if fresh, together with all slots that mean something only with these, but those that `keep` names."""
        self._edit.act(self._aim, reset(keep))

    def set_(self, value: float) -> None:
        """Replace every value by one number."""
        self._edit.act(self._aim, verbs.set_to(value))

    def clip_norm_(self, max_norm: float, *, per_parameter: bool = False) -> None:
        """Scale down so that the L2 norm of all that is selected, or of each parameter, is at most `max_norm`."""
        self._edit.act(self._aim, verbs.clip_norm(max_norm, per_parameter=per_parameter))

    def clamp_(self, min: float | None = None, max: float | None = None) -> None:
        """Limit every element to a range."""
        self._edit.act(self._aim, verbs.clamp(min, max))

    def lerp_(self, other: Other, weight: float) -> None:
        """Move towards the same slots of another checkpoint; `weight` goes from 0, nothing, to 1, theirs."""
        self._edit.act(self._aim, lerp(other, weight))


# --- what the verbs did -------------------------------------------------------------------------------------


def _check_beside(source: Path, target: Path) -> None:
    """Refuse a target inside of the source, or around it."""
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise TargetExists(
            f"{safe_text(target)} is what is to be edited, or lies within",
            expected="a path beside it: an edit never changes its source",
            todo="write beside it, look at what you got, then move it",
        )


def _tensors(checkpoint: Checkpoint) -> dict[tuple[str, str], TensorRef]:
    """Weights and slots by name; a weight's slot is ""."""
    slots = [slot for parameter in checkpoint.state.values() for slot in parameter.slots.values()]
    return {
        **{(name, ""): ref for name, ref in checkpoint.weights.items()},
        **{(slot.parameter, slot.key): slot.value for slot in slots if is_tensor(slot.value)},
    }


def _notes(draft: Draft, deeds: Sequence[Deed]) -> list[str]:
    names = {name for deed in deeds for name in deed.aim.names}
    infos = {draft.state[name].facts.optimizer for name in names}
    guessed = [
        draft.state.optimizers[each].short_name.rstrip("?") for each in infos if draft.state.optimizers[each].inferred
    ]
    return [f"the file does not say which optimizer wrote it: taken for {safe_text(each)}" for each in guessed]


def _refused(draft: Draft, deeds: Sequence[Deed], outcome: Outcome, change: Change) -> EditRefused:
    if outcome.wrong:
        more = f", and {count(len(outcome.wrong) - 1, 'slot')} more" if len(outcome.wrong) > 1 else ""
        return EditRefused(
            f"{outcome.wrong[0]}{more}; nothing was written",
            change,
            where=safe_text(draft.checkpoint.path),
            todo="edit those slots otherwise: reset_() makes them as if fresh",
        )
    worst = max(outcome.excessive, key=lambda each: each.rank)
    touched = {touch.key for deed in deeds for touch in deed.touches if touch.parameter == worst.name}
    spec = draft.spec(worst.name)
    instead = safe_verb(spec, touched, draft.group(worst.name)) if spec is not None else "a smaller change"
    return EditRefused(
        f"{worst}; nothing was written",
        change,
        where=safe_text(draft.checkpoint.path),
        todo=f"{instead}; --force (force=True) writes it all the same",
    )

"""What every verb of surgery needs: the transaction around it, the parameters that it means, the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch.nn.parameter import is_lazy

from optstate.errors import EditError
from optstate.live.backup import Buffers
from optstate.live.bind import Bound
from optstate.live.edit import OPEN
from optstate.live.fence import cross
from optstate.live.source import NOT_OPTIMIZED, LiveSource
from optstate.live.stepping import is_stepping
from optstate.live.surgery_averages import averages_of
from optstate.live.surgery_members import refuse_order, refuse_wrappers
from optstate.live.surgery_swap import Swap, has_hooks, install
from optstate.live.transaction import Transaction
from optstate.state.change import Change
from optstate.state.journal import JournalEntry
from optstate.state.optimizer_state import OptimizerState
from optstate.text import safe_text


class Ended(Protocol):
    """Told when a surgery is over."""

    def __call__(self, operation: Any, /, *, kept: bool) -> None: ...


class Operation:
    """A surgery without its verbs: opened, undone as a whole where anything fails, told in the journal."""

    def __init__(
        self, source: LiveSource, note: str, ema: Any, ended: Ended, *, dry_run: bool = False, backup: bool = True
    ) -> None:
        self.buffers = Buffers()
        self.transaction = Transaction(self.buffers)
        self.touched: dict[int, tuple[torch.optim.Optimizer, torch.Tensor, str]] = {}
        """By `id`, parameters that were changed, with their optimizer and name."""
        self.backup = backup
        self._averages = averages_of(ema, source.model)
        self._source = source
        self._state = OptimizerState(source)
        self._note = note
        self._dry_run = dry_run
        self._ended = ended
        self._entries: list[JournalEntry] = []
        self._notes: list[str] = []
        self._change: Change | None = None
        self._is_open = False
        self._failed: BaseException | None = None

    @property
    def change(self) -> Change:
        """What was done, or would have been. Raises `EditError` before the surgery is over."""
        if self._change is None:
            raise EditError("what a surgery changes is known when it is over", todo="look at it after the with block")
        return self._change

    # --- the transaction ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        optimizers = self._source.live_optimizers.values()
        if self._change is not None or self._is_open:
            raise EditError("a surgery is entered once", todo="begin another one with state.surgery()")
        self._refuse_stepping()
        if any(optimizer in OPEN for optimizer in optimizers):
            raise EditError("an edit of this optimizer is open already", todo="leave it before surgery begins")
        refuse_wrappers(self._source.model)
        self._source.bind()
        OPEN.update(optimizers)
        self._is_open = True
        for optimizer in optimizers:
            self.transaction.before_groups(optimizer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        made = False
        try:
            if error is None and self._failed is not None:
                raise EditError(
                    f"a verb of this surgery failed, so none of it was kept: {safe_text(self._failed)}",
                    todo="leave the block when a verb raises",
                )
            made = error is None and not self._dry_run
        finally:
            if not made:
                self.transaction.rollback()
            self._change = Change(tuple(self._entries), made, (), tuple(self._notes))
            self._is_open = False
            OPEN.difference_update(self._source.live_optimizers.values())
            self._ended(self, kept=made)

    @contextmanager
    def _acting(self, name: str | None = None, *, may_be_swapped: bool = False) -> Iterator[list[Bound]]:
        """Around each verb: gives the parameters that are meant, none for one that the optimizer does not have yet."""
        if not self._is_open:
            raise EditError("this surgery is not open", todo="call verbs inside `with state.surgery() as cut:`")
        self._refuse_stepping()
        cross()
        try:
            yield self._patients(name, may_be_swapped=may_be_swapped)
        except BaseException as problem:
            self._failed = problem
            raise

    def _patients(self, name: str | None, *, may_be_swapped: bool) -> list[Bound]:
        if name is None or (may_be_swapped and name in self._source.left_out()[NOT_OPTIMIZED]):
            return []
        found = self._bounds(name)
        if may_be_swapped and len(found) > 1:
            raise EditError(f"{safe_text(name)!r} means several parameters", todo="one at a time")
        return found

    def _refuse_stepping(self) -> None:
        if any(is_stepping(optimizer) for optimizer in self._source.live_optimizers.values()):
            raise EditError(
                "the optimizer is in the middle of a step",
                found="a hook, a closure or the step itself calls for surgery",
                todo="between steps: after optimizer.step() has returned",
            )

    # --- what verbs act on, and what is told of them ---------------------------------------------------------

    def _bounds(self, name: str) -> list[Bound]:
        """The parameters that a name or pattern means. Raises what `select` does, and for those that must stay."""
        found = []
        names = [name] if name in self._state else self._state.select(name).names
        for each in names:
            bound = self._source.bound(each)
            refuse_order(self._optimizer(bound), bound.name)
            if is_lazy(bound.tensor):
                raise EditError(f"{safe_text(each)} has no shape yet", todo="run the model once, then it has")
            found.append(bound)
        return found

    def _optimizer(self, bound: Bound) -> torch.optim.Optimizer:
        return self._source.live_optimizers[bound.optimizer]

    def _touch(self, optimizer: torch.optim.Optimizer, parameter: torch.Tensor, name: str) -> None:
        """Remember a parameter whose bits undo has to find as they are now."""
        self.touched[id(parameter)] = (optimizer, parameter, name)

    def _bound_of(self, tensor: torch.Tensor) -> Bound | None:
        return next((each for each in self._source.bind().parameters() if each.tensor is tensor), None)

    def _install(
        self, verb: str, selection: str, swaps: Sequence[Swap], dim: int, arguments: Mapping[str, Any]
    ) -> None:
        """Put prepared parameters in their places, and tell of it."""
        for swap in swaps:
            install(self.transaction, self._source, swap, self._averages)
            self._touch(swap.optimizer, swap.new, swap.name)
            if has_hooks(swap.new):
                self._notes.append(
                    f"hooks of {safe_text(swap.name)} went along; what they hold themselves, they still hold"
                )
        effects = [swap.effect for swap in swaps if swap.effect is not None]
        names = {id(each): name for name, each in self._source.live_optimizers.items()}
        self._tell(
            verb,
            selection,
            [names[id(swap.optimizer)] for swap in swaps],
            arguments={**_sizes(swaps, dim), **({"dim": dim} if dim else {}), **arguments},
            parameters=len(swaps),
            slots=sum(swap.slots for swap in swaps),
            elements=sum(swap.elements for swap in swaps),
            effect=(None, *max(effects)) if effects else None,
        )

    def _tell(
        self,
        verb: str,
        selection: str,
        optimizers: Sequence[str],
        *,
        arguments: Mapping[str, Any] | None = None,
        **counts: Any,
    ) -> None:
        """Note what the journal will say of a verb."""
        entry = JournalEntry(
            verb=verb,
            arguments=arguments or {},
            note=self._note,
            selection=safe_text(selection),
            backup=self.backup,
            optimizer=", ".join(sorted({*optimizers} - {""})),
            **{"parameters": 1, **counts},
        )
        self._entries.append(entry)


def _sizes(swaps: Sequence[Swap], dim: int) -> dict[str, int]:
    """From how many rows to how many, where that changes and is the same for all."""
    found = {(swap.old.shape[dim], swap.new.shape[dim]) for swap in swaps if swap.new.dim() == swap.old.dim() > 0}
    sizes = next(iter(found)) if len(found) == 1 else (0, 0)
    return {} if sizes[0] == sizes[1] else dict(zip(("from", "to"), sizes, strict=True))

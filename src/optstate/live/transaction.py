"""A transaction: whatever is written to optimizers through it can be taken back, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch

from optstate.live.backup import Backup, Buffers, chunks
from optstate.live.fence import cross


class Transaction:
    """Announces each write beforehand, so that `rollback` can undo all of them: values, keys, their order, identities.

    Everything that changes optimizers beside their own steps goes through one: edits, schedules with coupling,
    regroup. `before_write` keeps the bytes of tensors that are then written to in place; `before_entry` keeps which
    keys a parameter's state has; `hyperparameter` writes one of a group; `before_groups` keeps the groups themselves.
    Nothing is checked here. `buffers` are reused; those of a transaction that could still be undone are its own.

    >>> from optstate.live.transaction import Transaction
    >>> buffer = state["0.weight"].momentum.tensor
    >>> transaction = Transaction()
    >>> transaction.before_write([buffer])
    >>> buffer.zero_().any().item()
    False
    >>> transaction.rollback()
    >>> buffer.any().item()
    True
    """

    def __init__(self, buffers: Buffers | None = None) -> None:
        self.backup = Backup(Buffers() if buffers is None else buffers)
        self._undo: list[Callable[[], None]] = []
        self._entries: dict[int, set[int]] = {}

    def before_write(self, tensors: Iterable[torch.Tensor]) -> None:
        """Keep what the tensors hold, those of them that are not kept yet. Each is dense, of any type and device."""
        cross()
        fresh = {id(tensor): tensor for tensor in tensors if tensor not in self.backup}
        for alike in by_kind(fresh.values()).values():
            for chunk in chunks(alike):
                self.backup.keep(chunk)

    def before_entry(self, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
        """Keep which slots the optimizer has for a parameter: call it before adding, replacing or removing one."""
        known = self._entries.get(id(optimizer))
        if known is None:
            known = self._entries[id(optimizer)] = set()
            self._undo.append(_order_restorer(optimizer))
        if id(parameter) not in known:
            known.add(id(parameter))
            self._undo.append(_entry_restorer(optimizer, parameter))

    def hyperparameter(self, group: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Give a group a hyperparameter: a tensor of numbers is written in place, for compiled steps hold on to it."""
        old = group.get(key)
        if isinstance(old, torch.Tensor) and not isinstance(value, (tuple, list)):
            self.before_write([old])
            with torch.no_grad():
                old.copy_(value) if isinstance(value, torch.Tensor) else old.fill_(value)
            return
        self._undo.append(_mapping_restorer(group))
        group[key] = value

    def before_groups(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the list of param groups, each group's keys and its list of parameters."""
        groups = optimizer.param_groups
        inside = [_mapping_restorer(group) for group in groups]
        before = list(groups)

        def put_back() -> None:
            groups[:] = before
            if optimizer.param_groups is not groups:  # of a wrapper it may be a property
                optimizer.param_groups = groups
            for restore in inside:
                restore()

        self._undo.append(put_back)

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Have something else undone as well, such as the lists of a scheduler."""
        self._undo.append(undo)

    def rollback(self) -> None:
        """Undo everything, the newest first."""
        cross()
        for undo in reversed(self._undo):
            undo()
        with torch.no_grad():
            self.backup.put_back()


def by_kind(tensors: Iterable[torch.Tensor]) -> dict[tuple[torch.dtype, torch.device], list[torch.Tensor]]:
    """Tensors that can be worked on together: of one element type, on one device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return kinds


def _mapping_restorer(mapping: MutableMapping[str, Any]) -> Callable[[], None]:
    """Puts keys, their order, their values, and what is in lists among them back."""
    before = dict(mapping)
    lists = [(value, list(value)) for value in before.values() if isinstance(value, list)]

    def put_back() -> None:
        if list(mapping) != list(before):
            mapping.clear()
        mapping.update(before)
        for live, items in lists:
            live[:] = items

    return put_back


def _entry_restorer(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Callable[[], None]:
    entry = optimizer.state.get(parameter)
    restore = None if entry is None else _mapping_restorer(entry)

    def put_back() -> None:
        if restore is None:
            optimizer.state.pop(parameter, None)
        else:
            restore()
            optimizer.state[parameter] = entry

    return put_back


def _order_restorer(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Called last, when every parameter has its entry again: those that were removed are not where they were."""
    state = optimizer.state
    before = list(state.items())

    def put_back() -> None:
        if [id(key) for key in state] != [id(key) for key, _ in before]:
            state.clear()
            state.update(before)

    return put_back

"""Parameters that something has singled out, remembered by identity: surgery puts others in their place."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

import torch
from torch.utils.weak import WeakIdKeyDictionary


class Members:
    """Some parameters, for as long as they live, and those that surgery has put in the place of one or beside it.

    >>> from optstate.live.members import Members
    >>> first, second = model.parameters(), torch.nn.Parameter(torch.ones(2))
    >>> weight = next(first)
    >>> members = Members([weight])
    >>> follow(weight, second)
    >>> members.ids() == {id(weight), id(second)}
    True
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = WeakIdKeyDictionary(dict.fromkeys(parameters))
        _ALL.add(self)

    def ids(self) -> set[int]:
        """Their `id`s."""
        return {id(parameter) for parameter in self._parameters}

    def follow(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Count `new` among them where `old` is one."""
        if old in self._parameters:
            self._parameters[new] = None


_ALL: WeakSet[Members] = WeakSet()


def follow(old: torch.Tensor, new: torch.Tensor) -> None:
    """Tell whoever singled out `old` that `new` is in its place, or beside it. `old` stays: undo may bring it back."""
    for members in list(_ALL):
        members.follow(old, new)

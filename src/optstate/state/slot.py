"""One piece of state that an optimizer keeps for a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from optstate.errors import MissingSlot
from optstate.state.roles import Convention, Of, Role
from optstate.state.tensors import Value, is_tensor
from optstate.text import safe_text

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot: its key in the optimizer's dict, what it means, and where its value is.

    `convention` and `of` say how a momentum accumulates and what; they are None for other roles and where
    it is not known. `primary` marks the one slot that the role's accessor returns.

    >>> slot = state["0.weight"].momentum
    >>> slot.key, slot.role, slot.convention, slot.of, slot.dtype, slot.shape
    ('exp_avg', 'momentum', 'ema_debiased', 'gradient', 'float32', (8, 4))
    """

    parameter: str
    key: str
    role: Role
    value: Value
    convention: Convention | None = None
    of: Of | None = None
    primary: bool = True

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The tensor's sizes; None for a plain number, a list, or nothing."""
        return self.value.shape if is_tensor(self.value) else None

    @property
    def dtype(self) -> str | None:
        """The tensor's element type by torch's name; None for anything that is not a tensor."""
        return self.value.dtype if is_tensor(self.value) else None

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor itself: of a live state the very buffer that the optimizer uses, of a snapshot its copy.

        Raises `MissingSlot` for a slot in a file (`array()` reads those) and for one that is not a tensor.
        """
        tensor: torch.Tensor | None = getattr(self.value, "tensor", None)
        if tensor is None:
            in_file = is_tensor(self.value)
            raise MissingSlot(
                f"{self.path} has no live tensor",
                found="a tensor in a file" if in_file else f"a {type(self.value).__name__}",
                todo="read it with .array()" if in_file else "read it with .value",
            )
        return tensor

    @property
    def path(self) -> str:
        """`parameter/key`, safe to print."""
        return f"{safe_text(self.parameter)}/{safe_text(self.key)}"

    def array(self) -> np.ndarray[Any, Any]:
        """The values as numpy; a plain number becomes an array of shape `()`.

        Raises `MissingSlot` when the slot holds neither a tensor nor a number.
        """
        if is_tensor(self.value):
            return self.value.array()
        if isinstance(self.value, (bool, int, float, complex)):
            import numpy as np

            return np.asarray(self.value)
        raise MissingSlot(
            f"{self.path} is not one array", found=f"a {type(self.value).__name__}", todo="read it with .value"
        )

    def item(self) -> float | int | bool | complex:
        """The value of a slot that holds one number, such as `step`. Raises `MissingSlot` for any other."""
        if is_tensor(self.value) and prod(self.value.shape) == 1:
            return self.value.item()
        if isinstance(self.value, (bool, int, float, complex)):
            return self.value
        found = f"shape {self.shape}" if self.shape is not None else f"a {type(self.value).__name__}"
        raise MissingSlot(f"{self.path} is not a single number", found=found, todo="read it with .array() or .value")

    def head(self, count: int = 6) -> list[Any]:
        """The first `count` values in row-major order as plain numbers, reading no more than one block."""
        if not is_tensor(self.value):
            return [self.value]
        first: Iterator[Any] = iter(self.value.blocks())
        return [number.item() for block in islice(first, 1) for number in block[:count]]

    def __str__(self) -> str:
        meaning = self.role if self.convention is None else f"{self.role}, {self.convention} of {self.of}"
        if not is_tensor(self.value):
            return f"{self.path}  {meaning}  {safe_text(self.value, 60)}"
        numbers = self.head()
        more = ", …" if len(numbers) < prod(self.value.shape) else ""
        values = ", ".join(format_number(number) for number in numbers)
        return f"{self.path}  {meaning}  {self.value.dtype} {list(self.value.shape)}  [{values}{more}]"

    __repr__ = __str__


def format_number(number: object) -> str:
    """A number in at most six significant digits; whole numbers as they are."""
    if isinstance(number, float):
        return f"{number:.6g}"
    return safe_text(number, 24)

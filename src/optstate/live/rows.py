"""Some rows of a tensor: an index or a mask along its first dimension, as users write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from optstate.errors import EditError
from optstate.text import safe_text

RowIndex: TypeAlias = "int | slice | range | Sequence[int] | Sequence[bool] | torch.Tensor"


class Rows:
    """Which rows a verb acts on; turned into indices for each length and device once.

    Raises `EditError`, when asked for indices, for a mask of another length, an index outside, or neither of both.
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self._known: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __str__(self) -> str:
        shape = getattr(self._rows, "shape", None)
        return safe_text(self._rows, 40) if shape is None else f"of a mask or index of {tuple(shape)}"

    def of(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        """The indices of the rows in this tensor, rising, each once."""
        if tensor.dim() == 0:
            raise EditError(f"{path} has no rows", found="a tensor without dimensions", todo="edit it as a whole")
        key = (tensor.shape[0], tensor.device)
        if key not in self._known:
            self._known[key] = self._indices(tensor.shape[0], path).to(tensor.device)
        return self._known[key]

    def rest(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        """The indices of all other rows."""
        others = torch.ones(tensor.shape[0], dtype=torch.bool, device=tensor.device)
        others[self.of(tensor, path)] = False
        return others.nonzero().reshape(-1)

    def _indices(self, length: int, path: str) -> torch.Tensor:
        chosen = self._rows
        if isinstance(chosen, slice):
            return torch.arange(length)[chosen] if (chosen.step or 1) > 0 else _wrong(path, chosen)
        if isinstance(chosen, int) and not isinstance(chosen, bool):
            chosen = [chosen]
        try:
            index = torch.as_tensor(list(chosen) if isinstance(chosen, range) else chosen)
        except (TypeError, ValueError, RuntimeError):
            return _wrong(path, chosen)
        if index.dtype == torch.bool:
            return _unmasked(index, length, path)
        if index.dim() != 1 or index.is_floating_point() or index.is_complex():
            return _wrong(path, chosen) if index.numel() else torch.empty(0, dtype=torch.int64)
        outside = index[(index < -length) | (index >= length)]
        if outside.numel():
            raise EditError(f"{path} has no row {int(outside[0])}", expected=f"indices from {-length} to {length - 1}")
        rising: torch.Tensor = torch.where(index < 0, index + length, index).unique()
        return rising


def _unmasked(mask: torch.Tensor, length: int, path: str) -> torch.Tensor:
    if mask.shape == (length,):
        return mask.nonzero().reshape(-1)
    raise EditError(
        f"the mask does not fit {path}",
        expected=f"a mask of {length} values, one for each row",
        found=f"one of shape {tuple(mask.shape)}",
        todo="select the parameters that have as many rows, or pass indices",
    )


def _wrong(path: str, rows: object) -> torch.Tensor:
    raise EditError(
        f"these are no rows of {path}",
        expected="an index, a list or tensor of them, a rising slice, or a mask of booleans",
        found=f"{safe_text(rows, 60)}, a {type(rows).__name__}",
    )

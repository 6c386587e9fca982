"""What users say of rows, as a map of rows: masks and indices, rows to come, copies, shares."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, isfinite
from typing import Any

import torch

from optstate.errors import EditError
from optstate.live.rows import RowIndex
from optstate.optimizers.row_map import NEW, RowMap
from optstate.text import count, safe_text


def dimension(tensor: torch.Tensor, dim: Any, name: str) -> int:
    """A dimension of a tensor, counted from 0. Raises `EditError` where it has none such."""
    if isinstance(dim, int) and -tensor.dim() <= dim < tensor.dim():
        return dim % tensor.dim()
    raise EditError(
        f"{safe_text(name)} has no dimension {safe_text(dim)}",
        expected=f"one of {tensor.dim()}" if tensor.dim() else "a tensor with dimensions",
    )


def kept(tensor: torch.Tensor, rows: RowIndex, dim: int, name: str) -> RowMap:
    """The rows of a mask, or those of an index in its order. Raises `EditError` for none, and for one that comes twice."""
    index = index_of(rows, tensor.shape[dim], name).to(tensor.device)
    if not len(index):
        raise EditError(
            f"no row of {safe_text(name)} would be left",
            found=f"{count(tensor.shape[dim], 'row')}, and none that is kept",
            todo="a mask is true for what stays; remove() takes the whole parameter away",
        )
    if _repeats(index, tensor.shape[dim]):
        raise EditError(
            f"a row of {safe_text(name)} would be kept twice",
            found=f"{count(len(index), 'index') if len(index) == 1 else f'{len(index):,} indices'}, not all different",
            todo="pass a mask of booleans, or tile() and split() for copies",
        )
    return RowMap(tensor.shape[dim], index, dim)


def grown(tensor: torch.Tensor, more: int, like: RowIndex | None, dim: int, name: str) -> RowMap:
    """All rows, and so many new ones behind them. Raises `EditError` for none, and where `like` is not one for each."""
    size = tensor.shape[dim]
    if more < 1:
        raise EditError(
            f"{safe_text(name)} would not grow",
            expected=f"more than {count(size, 'row')}",
            found=f"{size + more:,}",
            todo="keep_rows() makes it smaller",
        )
    similar = None if like is None else index_of(like, size, name).to(tensor.device)
    if similar is not None and len(similar) != more:
        raise EditError(
            f"like says for each new row of {safe_text(name)} which old one it resembles",
            expected=f"{count(more, 'index') if more == 1 else f'{more:,} indices'}",
            found=f"{len(similar):,}",
        )
    sources = torch.arange(size + more, device=tensor.device)
    sources[size:] = NEW
    return RowMap(size, sources, dim, similar, appends=True)


def tiled(tensor: torch.Tensor, times: Any, dim: int, name: str) -> RowMap:
    """All rows, so many times over. Raises `EditError` for fewer than two times."""
    if not isinstance(times, int) or isinstance(times, bool) or times < 2:
        raise EditError(f"{safe_text(name)} is tiled two times or more", found=safe_text(times))
    return RowMap(tensor.shape[dim], torch.arange(tensor.shape[dim], device=tensor.device).repeat(times), dim)


def shared(tensor: torch.Tensor, rows: RowIndex, shares: Sequence[float], dim: int, name: str) -> RowMap:
    """Some rows in several copies, the first in its place and the others behind all, with shares that add up to 1."""
    numbers = [float(share) for share in shares]
    if len(numbers) < 2 or not all(0 < each < 1 and isfinite(each) for each in numbers) or not isclose(sum(numbers), 1):
        raise EditError(
            f"the copies of a row of {safe_text(name)} share what goes through it",
            expected="two shares or more above 0 that add up to 1, such as (0.4, 0.6)",
            found=safe_text(tuple(shares)),
        )
    some = kept(tensor, rows, dim, name)
    size = some.size
    sources = torch.cat([torch.arange(size, device=tensor.device), *([some.sources] * (len(numbers) - 1))])
    weights = torch.ones(len(sources), dtype=torch.float64, device=tensor.device)
    weights[some.sources] = numbers[0]
    for number, share in enumerate(numbers[1:]):
        weights[size + number * some.rows : size + (number + 1) * some.rows] = share
    return RowMap(size, sources, dim, shares=weights)


def check_fill(fill: Any, rows: RowMap, tensor: torch.Tensor, name: str) -> None:
    """Raise `EditError` for what is no momentum of the new rows of a parameter."""
    if isinstance(fill, torch.Tensor):
        shape = list(rows.sized(tuple(tensor.shape), len(rows.new)))
        if list(fill.shape) != shape or not bool(fill.isfinite().all()):
            raise EditError(
                f"this is no momentum for the new rows of {safe_text(name)}",
                expected=f"finite values of shape {shape}",
                found=f"shape {list(fill.shape)}" if list(fill.shape) != shape else "values that are not finite",
            )
    elif not isinstance(fill, str) or fill not in ("zero", "mean", "copy"):
        raise EditError("fill is a word or a tensor", expected="zero, mean, copy", found=safe_text(fill, 60))
    elif fill == "copy" and rows.like is None:
        raise EditError("a copy of which row's momentum?", todo="like= says it for each new row")


def mapped_by(tensor: torch.Tensor, index: Any, rows: int, dim: int, name: str) -> RowMap:
    """What `replace` is given: for each new row the old one, or -1. Raises `EditError` for any other."""
    sources = _tensor(index, name)
    outside = (sources < NEW) | (sources >= tensor.shape[dim])
    if sources.dtype == torch.bool or sources.dim() != 1 or len(sources) != rows or outside.any():
        raise EditError(
            f"the map of {safe_text(name)} says for each new row which old one it comes from, or -1",
            expected=f"{rows:,} integers from -1 to {tensor.shape[dim] - 1}",
            found=f"{str(sources.dtype).removeprefix('torch.')} {list(sources.shape)}",
        )
    return RowMap(tensor.shape[dim], sources.to(tensor.device, torch.int64), dim)


def index_of(rows: RowIndex, length: int, name: str) -> torch.Tensor:
    """Rows as indices from 0, in the order in which they are given. Raises `EditError` for what is none of `length` rows."""
    if isinstance(rows, slice):
        step = rows.step or 1
        found = torch.arange(length)[slice(*rows.indices(length))] if step > 0 else torch.empty(0, dtype=torch.int64)
        return found if step > 0 else _no_rows(rows, name)
    index = _tensor([rows] if isinstance(rows, int) and not isinstance(rows, bool) else rows, name)
    if index.dtype == torch.bool:
        if index.shape != (length,):
            raise EditError(
                f"the mask does not fit {safe_text(name)}",
                expected=f"a mask of {length:,} values, one for each row",
                found=f"one of shape {list(index.shape)}",
            )
        return index.nonzero().reshape(-1)
    if index.dim() != 1 or index.is_floating_point() or index.is_complex():
        return torch.empty(0, dtype=torch.int64) if not index.numel() else _no_rows(rows, name)
    index = index.to(torch.int64)
    outside = index[(index < -length) | (index >= length)]
    if len(outside):
        raise EditError(
            f"{safe_text(name)} has no row {int(outside[0])}", expected=f"indices from {-length} to {length - 1}"
        )
    return torch.where(index < 0, index + length, index)


def _tensor(rows: Any, name: str) -> torch.Tensor:
    try:
        return torch.as_tensor(list(rows) if isinstance(rows, range) else rows).detach()
    except (TypeError, ValueError, RuntimeError):
        return _no_rows(rows, name)


def _no_rows(rows: object, name: str) -> torch.Tensor:
    raise EditError(
        f"these are no rows of {safe_text(name)}",
        expected="an index, a list or tensor of them, a rising slice, or a mask of booleans",
        found=f"{safe_text(rows, 60)}, a {type(rows).__name__}",
    )


def _repeats(index: torch.Tensor, length: int) -> bool:
    """Whether an index comes twice; one that rises does not, as that of a mask."""
    if bool((index[1:] > index[:-1]).all()):
        return False
    seen = torch.zeros(length, dtype=torch.bool, device=index.device)
    seen[index] = True
    return int(seen.sum()) < len(index)

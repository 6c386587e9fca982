"""What every slot of a parameter becomes when its rows are kept, moved, copied or new: one map of rows for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from optstate.errors import EditError, OptstateError
from optstate.optimizers.arrays import Array, library
from optstate.optimizers.growth import AVERAGED, layout, resizable, resized
from optstate.optimizers.new_rows import FillWord, NewRows
from optstate.optimizers.resizing import Shape
from optstate.optimizers.row_map import NEW, RowMap, gathered
from optstate.optimizers.spec import OptimizerSpec
from optstate.text import safe_text

_NOTHING: Mapping[str, Any] = {}


class Start(NamedTuple):
    """The slots of a parameter after a change of its rows, and the largest update that new rows can expect.

    `effect` is that update and a fresh start's, None where there are no new rows or no rule tells.
    """

    slots: dict[str, Any]
    effect: tuple[float, float] | None


def mapped(
    spec: OptimizerSpec | None,
    entry: Mapping[str, Any],
    shape: Shape,
    rows: RowMap,
    hyperparameters: Mapping[str, Any],
    weights: Array,
    fill: FillWord | Array = "zero",
    defaults: Mapping[str, Any] = _NOTHING,
) -> Start:
    """The slots of a parameter of this shape once its rows are mapped; `entry` is not changed, nor is any tensor in it.

    Kept rows keep their bits, numbers that stand for the whole parameter stay, factors of a second moment stay true
    (`growth.resized`). `weights` is the parameter as it will be; slots and weights are torch tensors.

    A new row shares the step count with the others. Its second moment is the mean of theirs, element by element, and not
    below that of the row it is like: gradients no larger than those that they have seen then move it by no more than a
    fresh start (v_row = (1-β2^t)·v̂ of a reference; zero would move it up to 6.6 times as far). Its momentum is `fill`:
    "zero", the "mean" of the others', a "copy" of the row it is like, or a tensor for the new rows; it is shrunk, element by
    element, until the next update is no larger than a fresh start's. Everything else starts as fresh.

    With `shares` α, each slot is multiplied by α^k, k being the power of the gradient by which it scales.

    Raises `EditError` for slots that cannot be mapped, with the reason, and for a momentum other than zero where nobody
    can tell element by element how far it would move a row.

    >>> import torch
    >>> from optstate.optimizers.registry import by_name
    >>> adam = by_name("torch.optim.adam.Adam")
    >>> entry = {"step": torch.tensor(500.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.tensor([1.0, 3.0])}
    >>> rows = RowMap(2, torch.tensor([1, NEW]))
    >>> start = mapped(adam, entry, (2,), rows, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}, torch.zeros(2))
    >>> start.slots["exp_avg"].tolist(), start.slots["exp_avg_sq"].tolist()
    ([1.0, 0.0], [3.0, 3.0])
    """
    if not entry:
        return Start({}, None)
    described = _described(spec, entry, shape, rows)
    sized = {key: value for key, value in entry.items() if described.slots[key].shape != "scalar"}
    plain = {key: value for key, value in sized.items() if described.slots[key].shape == "parameter"}
    _check_shapes(described, plain, shape)
    numbers = {key: _own(value) for key, value in entry.items() if key not in sized}
    starts: Mapping[str, Any] = {}
    effect = None
    if len(rows.new):
        made = NewRows(described, plain, numbers, shape, rows, hyperparameters, defaults, weights)
        starts, effect = made.starts(fill)
    found = {key: gathered(value, rows, starts.get(key)) for key, value in plain.items()}
    if rows.shares is not None:
        found = {key: _shared(described, key, value, rows) for key, value in found.items()}
    factors = {key: value for key, value in sized.items() if key not in plain}
    if factors:
        found |= _factors(described, {**numbers, **factors}, shape, rows, hyperparameters)
    return Start({key: found[key] if key in sized else numbers[key] for key in entry}, effect)


# --- whether ----------------------------------------------------------------------------------------------------


def _described(spec: OptimizerSpec | None, entry: Mapping[str, Any], shape: Shape, rows: RowMap) -> OptimizerSpec:
    """The description of the optimizer. Raises `EditError` where its slots cannot be mapped."""
    why = _reason(spec, tuple(entry), shape, rows)
    if spec is None or why is not None:
        raise EditError(
            f"the slots cannot follow the rows: {why}", todo="optstate.register(...) describes an optimizer"
        )
    factored = [key for key in entry if spec.slots[key].shape in AVERAGED]
    if factored and (rows.shares is not None or len(rows.kept.unique()) < len(rows.kept)):
        raise EditError(
            f"{safe_text(factored[0])} is a mean over a whole dimension: nobody can tell the share of a row in it",
            todo="rows can be kept, dropped and added, not copied",
        )
    return spec


def _reason(spec: OptimizerSpec | None, keys: Collection[str], shape: Shape, rows: RowMap) -> str | None:
    kept = rows.sized(shape, len(rows.kept))
    if len(rows.kept) > rows.size:  # copies: only slots that have rows of their own can follow
        return resizable(spec, keys, shape, shape, "pad")
    return resizable(spec, keys, shape, kept, "slice") or resizable(spec, keys, kept, rows.shape(shape), "pad")


def _check_shapes(spec: OptimizerSpec, slots: Mapping[str, Any], shape: Shape) -> None:
    for key, value in slots.items():
        if tuple(value.shape) != shape:
            raise EditError(
                f"{safe_text(key)} is not shaped as its parameter, as {safe_text(spec.name)} keeps it",
                expected=f"{list(shape)}",
                found=f"{list(value.shape)}",
                todo="optstate.diagnose(optimizer, model) says how that came to be",
            )


def _own(value: Any) -> Any:
    """A number of the whole parameter, in memory of its own: the state that is put aside for undo keeps its."""
    return value.clone() if hasattr(value, "clone") else value


def _shared(spec: OptimizerSpec, key: str, value: Array, rows: RowMap) -> Array:
    degree = spec.slots[key].gradient_degree
    if degree is None or rows.shares is None:
        raise EditError(f"how {safe_text(key)} scales with the gradient is not known, so it cannot be shared out")
    if degree == 0:
        return value
    shape = [1] * value.dim()
    shape[rows.dim] = rows.rows
    return value.mul_((rows.shares**degree).reshape(shape).to(value.device, value.real.dtype))


# --- factors ----------------------------------------------------------------------------------------------------


def _factors(
    spec: OptimizerSpec, entry: Mapping[str, Any], shape: Shape, rows: RowMap, hyperparameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Factors of a second moment: old rows that stay are brought to the front, the rest cut off, new ones appended."""
    kept, dim = rows.kept, rows.dim
    stays = (kept.new_zeros(rows.size) == 1).index_fill_(0, kept, True)
    order = library(kept).concatenate([kept, (~stays).nonzero().reshape(-1)])
    middle = rows.sized(shape, len(kept))
    try:
        found: Mapping[str, Any] = _moved(spec, entry, len(shape), dim, order)
        if middle != shape:
            found = resized(spec, found, shape, middle, hyperparameters, "slice")
        if rows.shape(shape) != middle:
            found = resized(spec, found, middle, rows.shape(shape), hyperparameters, "pad")
    except OptstateError as error:
        raise EditError(error.what, expected=error.expected, found=error.found, todo=error.todo) from error
    place = library(kept).concatenate([(rows.sources != NEW).nonzero().reshape(-1), rows.new]).argsort()
    moved = _moved(spec, found, len(shape), dim, place)
    return {key: value for key, value in moved.items() if spec.slots[key].shape != "scalar"}


def _moved(spec: OptimizerSpec, entry: Mapping[str, Any], dimensions: int, dim: int, order: Array) -> dict[str, Any]:
    found = dict(entry)
    for key, value in entry.items():
        place = None if spec.slots[key].shape == "scalar" else layout(spec, key, dimensions)[dim]
        if place is not None:
            found[key] = value.index_select(place, order.to(value.device))
    return found

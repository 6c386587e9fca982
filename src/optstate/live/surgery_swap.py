"""The one primitive of surgery: another parameter in the place of one, in model, groups, state and averages at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.members import follow
from optstate.live.source import LiveSource
from optstate.live.surgery_averages import Averages, Weight
from optstate.live.surgery_model import put
from optstate.live.surgery_rows import mapped_by
from optstate.live.tensors import dtype_name
from optstate.live.transaction import Transaction
from optstate.optimizers.mapped_slots import mapped
from optstate.optimizers.new_rows import FillWord
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.row_map import RowMap, gathered
from optstate.text import safe_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One parameter to be put in the place of another.

    `entry` is its state, None where the old one has none; `averages` are its averages, side by side with the surgery's;
    `effect` is the largest next update of new rows and a fresh start's, where that is known; `gradient` makes its gradient
    of the old one's; `rows` says where its rows come from.
    """

    name: str
    optimizer: torch.optim.Optimizer
    old: torch.Tensor
    new: torch.Tensor
    entry: dict[str, Any] | None
    averages: list[torch.Tensor | None] = field(default_factory=list)
    effect: tuple[float, float] | None = None
    gradient: Callable[[torch.Tensor], torch.Tensor | None] = torch.Tensor.detach
    rows: RowMap | None = None

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return len(self.entry or ())

    @property
    def elements(self) -> int:
        """How many elements these have."""
        return sum(value.numel() for value in (self.entry or {}).values() if isinstance(value, torch.Tensor))


def by_rows(
    source: LiveSource,
    bound: Bound,
    rows: RowMap,
    *,
    averages: list[Averages],
    new: torch.Tensor | None = None,
    fill: FillWord | torch.Tensor = "zero",
    fresh: torch.Tensor | None = None,
    outgoing: bool = False,
) -> Swap:
    """The swap that maps the rows of a parameter with all that goes along; nothing is changed.

    `new` is the parameter to be where there is one already; otherwise it is made of the old one's rows and of `fresh`, the
    new ones. Rows of the gradient go where those of the weights do, and new ones have none. With `outgoing` it is the
    weights that are multiplied by the shares, and the gradient stays as it is.
    """
    optimizer, old = source.live_optimizers[bound.optimizer], bound.tensor
    refuse_kind(bound, optimizer)
    group = {key: value for key, value in optimizer.param_groups[bound.group].items() if key != "params"}
    with torch.no_grad():
        if new is None:
            new = alike(old, _weights(old.detach(), rows, fresh, outgoing))
        arriving = new.detach().index_select(rows.dim, rows.new.to(new.device)) if len(rows.new) else None
        entry = optimizer.state.get(old)
        inner = RowMap(rows.size, rows.sources, rows.dim, rows.like, None, rows.appends) if outgoing else rows
        try:
            start = mapped(
                by_class(type(optimizer)), entry or {}, tuple(old.shape), inner, group, new, fill, optimizer.defaults
            )
        except EditError as error:
            error.where = safe_text(bound.name)
            raise
        found = []
        for each in averages:
            average = each.of(Weight(bound.name, old))
            if average is not None and average.shape != old.shape:
                raise _other_shape(bound.name, average, old)
            found.append(None if average is None else _weights(average.detach(), rows, arriving, outgoing))
    return Swap(
        name=bound.name,
        optimizer=optimizer,
        old=old,
        new=new,
        entry=None if entry is None else start.slots,
        averages=found,
        effect=start.effect,
        gradient=lambda gradient: _gradient(gradient, inner),
        rows=rows,
    )


def _weights(tensor: torch.Tensor, rows: RowMap, fresh: torch.Tensor | None, outgoing: bool) -> torch.Tensor:
    found: torch.Tensor = gathered(tensor, rows, None if fresh is None else fresh.to(tensor.device))
    if outgoing and rows.shares is not None:
        shape = [1] * tensor.dim()
        shape[rows.dim] = rows.rows
        found *= rows.shares.reshape(shape).to(found.device, found.dtype)
    return found


def _gradient(gradient: torch.Tensor, rows: RowMap) -> torch.Tensor | None:
    """A gradient with its rows mapped; None for a sparse one, whose rows are listed."""
    if gradient.layout is not torch.strided:
        return None
    shape = rows.sized(tuple(gradient.shape), len(rows.new))
    found: torch.Tensor = gathered(gradient, rows, gradient.new_zeros(shape) if len(rows.new) else None)
    if rows.shares is not None:
        found *= rows.shares.reshape([-1 if axis == rows.dim else 1 for axis in range(found.dim())]).to(found)
    return found


def _other_shape(name: str, average: torch.Tensor, old: torch.Tensor) -> EditError:
    return EditError(
        f"the average of {safe_text(name)} is not shaped as the parameter",
        expected=f"{list(old.shape)}",
        found=f"{list(average.shape)}",
    )


def replacing(
    source: LiveSource, bound: Bound, new: torch.Tensor, map: Any, dim: int, averages: list[Averages]
) -> Swap:
    """The swap that puts a parameter in the place of another: see `Surgery.replace`; nothing is changed."""
    optimizer, old, name = source.live_optimizers[bound.optimizer], bound.tensor, safe_text(bound.name)
    if map is not None and not callable(map):
        check_new(bound.name, old, new, fixed={at: size for at, size in enumerate(old.shape) if at != dim})
        rows = mapped_by(old, map, new.shape[dim], dim, bound.name)
        return by_rows(source, bound, rows, averages=averages, new=new)
    if map is None and new.shape != old.shape:
        raise EditError(
            f"{name} has another shape, so its slots do not fit",
            expected=f"{list(old.shape)}",
            found=f"{list(new.shape)}",
            todo="map= says for each new row which old one it comes from, or makes new slots of the old",
        )
    entry = optimizer.state.get(old)
    if map is not None and entry is not None:
        entry = {key: _made(f"{name}/{safe_text(key)}", value, old, new, map, key) for key, value in entry.items()}
    found = [each.of(Weight(bound.name, old)) for each in averages]
    alike_in_shape = new.shape == old.shape
    return Swap(
        name=bound.name,
        optimizer=optimizer,
        old=old,
        new=new,
        entry=entry,
        averages=[None if each is None else each if alike_in_shape else new.detach().clone() for each in found],
        gradient=lambda gradient: gradient if alike_in_shape else None,
    )


def _made(path: str, value: Any, old: torch.Tensor, new: torch.Tensor, make: Any, key: str) -> Any:
    """What a user's callable makes of a slot shaped as its parameter; a number for the whole parameter stays."""
    if not isinstance(value, torch.Tensor) or not value.dim() or value.shape != old.shape:
        return value
    made = make(key, value)
    fits = isinstance(made, torch.Tensor) and made.shape == new.shape and made.dtype == value.dtype
    if fits and bool(made.isfinite().all()):
        return made
    raise EditError(
        f"the map makes no slot of {path}",
        expected=f"finite values, {dtype_name(value)} {list(new.shape)}",
        found=f"{dtype_name(made)} {list(made.shape)}"
        if isinstance(made, torch.Tensor)
        else f"a {type(made).__name__}",
    )


# --- a new parameter --------------------------------------------------------------------------------------------


def alike(old: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """A parameter of the class of another. torch remembers the shape of a parameter wherever a gradient was computed."""
    return torch.Tensor._make_subclass(type(old), data.contiguous(), old.requires_grad)


def _carry(transaction: Transaction, swap: Swap) -> None:
    """Give a new parameter what is attached to the old one, where it has none itself: attributes, hooks, the gradient.

    Hooks are shared, so that removing one by the handle that its registration gave removes it from both.
    """
    old, new = swap.old, swap.new
    attributes, trained, hooks, late, gradient = (
        dict(vars(new)), new.requires_grad, new._backward_hooks, new._post_accumulate_grad_hooks, new.grad,
    )  # fmt: skip

    def put_back() -> None:
        vars(new).clear()
        vars(new).update(attributes)
        new.requires_grad_(trained)
        new._backward_hooks, new._post_accumulate_grad_hooks, new.grad = hooks, late, gradient

    transaction.on_rollback(put_back)
    for key, value in vars(old).items():
        vars(new).setdefault(key, value)
    new.requires_grad_(old.requires_grad)
    if old._backward_hooks and not hooks:
        new._backward_hooks = old._backward_hooks
    if old._post_accumulate_grad_hooks and not late:
        new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    if gradient is None and old.grad is not None:
        new.grad = swap.gradient(old.grad)


def has_hooks(tensor: torch.Tensor) -> bool:
    """Whether anything waits for the gradient of a parameter."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def check_new(name: str, old: torch.Tensor, new: Any, *, fixed: Mapping[int, int] | None = None) -> torch.Tensor:
    """A tensor that is to take a parameter's place. Raises `EditError` for one that cannot.

    `fixed` are the sizes that it must have, by dimension; None: any.
    """
    if type(new) is not torch.Tensor and not isinstance(new, nn.Parameter):
        raise EditError(f"this is no tensor to put in the place of {safe_text(name)}", found=f"a {type(new).__name__}")
    traits = [(dtype_name(each), str(each.device)) for each in (old, new)]
    if traits[0] != traits[1] or not new.is_leaf:
        raise EditError(
            f"this cannot take the place of {safe_text(name)}",
            expected=f"{' on '.join(traits[0])}, a leaf",
            found=f"{' on '.join(traits[1])}{'' if new.is_leaf else ', the result of a computation: detach() it'}",
        )
    wrong = fixed is not None and (
        new.dim() != old.dim() or any(new.shape[axis] != size for axis, size in fixed.items())
    )
    if wrong:
        raise EditError(
            f"this does not fit in the place of {safe_text(name)}, of shape {list(old.shape)}",
            expected=f"the same sizes but for the dimension that changes: {dict(fixed or {})}",
            found=f"shape {list(new.shape)}",
        )
    return new if isinstance(new, nn.Parameter) else alike(old, new)


def fits(old: torch.Tensor, new: torch.Tensor | None, dim: int) -> bool:
    """Whether one tensor is another with more rows."""
    if new is None or old.dim() != new.dim() or not -old.dim() <= dim < old.dim():
        return False
    sizes = enumerate(zip(old.shape, new.shape, strict=True))
    return all(before == after or (axis == dim % old.dim() and before < after) for axis, (before, after) in sizes)


def refuse_kind(bound: Bound, optimizer: torch.optim.Optimizer) -> None:
    """Raise `EditError` for a parameter that surgery cannot put another in the place of, or whose state it cannot."""
    tensor, name = bound.tensor, safe_text(bound.name)
    if type(tensor.data) is not torch.Tensor or tensor.layout is not torch.strided:
        raise EditError(
            f"{name} is no plain tensor: what a row of it is, its class alone knows",
            found=f"a {safe_text(qualified_name(type(tensor.data)))}",
            todo="do surgery before the model is sharded or quantised",
        )
    spec = by_class(type(optimizer))
    if spec is not None and spec.order_matters:
        raise EditError(
            f"the state of {safe_text(qualified_name(type(optimizer)))} is laid out over all its parameters",
            where=name,
            todo='reset it first and build it anew: state.select("*").reset_()',
        )
    for key, value in (optimizer.state.get(tensor) or {}).items():
        plain = not isinstance(value, torch.Tensor) or (type(value) is torch.Tensor and value.layout is torch.strided)
        described = None if spec is None else spec.slots.get(key)
        codes = plain and described is not None and described.shape == "parameter" and isinstance(value, torch.Tensor)
        if not plain or (codes and not (value.is_floating_point() or value.is_complex())):
            raise EditError(
                f"{name}/{safe_text(key)} is stored in codes: a block of them spans rows",
                found=f"a {safe_text(qualified_name(type(value)))} of {dtype_name(value)}",
                todo="do surgery with an optimizer that keeps this parameter's state in plain tensors",
            )


# --- putting it in place ----------------------------------------------------------------------------------------


def install(transaction: Transaction, source: LiveSource, swap: Swap, averages: list[Averages]) -> None:
    """Put the new parameter wherever the old one is; all of it can be rolled back."""
    _carry(transaction, swap)
    put(transaction, source.model, swap.old, swap.new, swap.rows)
    for group in swap.optimizer.param_groups:
        params = group["params"]
        params[:] = [swap.new if each is swap.old else each for each in params]
    rekey(transaction, swap.optimizer, swap.old, swap.new, swap.entry)
    for each, average in zip(averages, swap.averages, strict=False):
        if average is not None:
            each.swap(transaction, Weight(swap.name, swap.old, swap.new, average, rows=swap.rows))
    follow(swap.old, swap.new)


def rekey(
    transaction: Transaction,
    optimizer: torch.optim.Optimizer,
    old: torch.Tensor,
    new: torch.Tensor,
    entry: dict[str, Any] | None,
) -> None:
    """Keep state under another parameter, at the old one's place; none where `entry` is None."""
    transaction.before_entry(optimizer, old)
    transaction.before_entry(optimizer, new)
    state = optimizer.state
    items = list(state.items())
    if not any(key is old for key, _ in items) and entry is not None:
        items.append((old, entry))
    state.clear()
    for key, value in items:
        if key is not old:
            state[key] = value
        elif entry is not None:
            state[new] = entry

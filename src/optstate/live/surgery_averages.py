"""Averages of a model's weights (EMA): changed together with the weights that they are averages of."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple, Protocol
from weakref import ref

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.surgery_model import keep, place, put, put_at, rename
from optstate.live.transaction import Transaction
from optstate.live.unwrap import find, unwrap_module
from optstate.optimizers.registry import qualified_name
from optstate.optimizers.row_map import RowMap
from optstate.text import listing, safe_text


class Weight(NamedTuple):
    """A parameter that averages have to follow: its name, the tensor that it was and is, its average to be, another name,
    and where its rows come from.
    """

    name: str
    old: torch.Tensor | None = None
    new: torch.Tensor | None = None
    average: torch.Tensor | None = None
    to: str = ""
    rows: RowMap | None = None


class Averages(Protocol):
    """Averaged weights of one kind. Each verb is called when the model has been changed."""

    def of(self, weight: Weight) -> torch.Tensor | None:
        """The average of a parameter that is `old`; None where it has none."""

    def swap(self, transaction: Transaction, weight: Weight) -> None:
        """Make `average` that of a parameter which had one, and which is `new` instead of `old`."""

    def add(self, transaction: Transaction, weight: Weight) -> None:
        """Take in a parameter that is `new`."""

    def drop(self, transaction: Transaction, weight: Weight) -> None:
        """Forget a parameter that was `old`."""

    def rename(self, transaction: Transaction, weight: Weight, /) -> None:
        """Call a parameter, or with a trailing dot all within a module, `to`."""

    def tie(self, transaction: Transaction, weight: Weight) -> None:
        """Give a name the average of `to`, in place of its own of `old`."""


def averages_of(ema: Any, model: nn.Module) -> list[Averages]:
    """How to reach the averages in what users keep of them: one, or several in a list; None for none.

    Raises `EditError` for what is neither a module with a copy of the model, such as `AveragedModel`, nor a dict of tensors
    by name, nor an object with `shadow_params` in the order of the model's parameters.
    """
    if ema is None:
        return []
    if isinstance(ema, (list, tuple)):
        return [found for each in ema for found in averages_of(each, model)]
    if isinstance(ema, nn.Module):
        return [_Copy(ema, model)]
    if isinstance(ema, MutableMapping):
        return [_ByName(ema)]
    if isinstance(getattr(ema, "shadow_params", None), list):
        return [_InOrder(ema, model)]
    raise EditError(
        "these are no averages of weights",
        expected="a module such as AveragedModel, a dict of tensors by name, or an object with shadow_params",
        found=f"a {safe_text(qualified_name(type(ema)))}",
        todo="pass averages that are kept in another way as a dict by name",
    )


def _as(average: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A new average of the kind that the old one is."""
    tensor = average.detach().to(like.device, like.dtype)
    return nn.Parameter(tensor, like.requires_grad) if isinstance(like, nn.Parameter) else tensor


def _copied(weight: Weight) -> torch.Tensor:
    """What the average of a parameter that is taken in holds at first."""
    if weight.average is None:
        raise EditError(f"{safe_text(weight.name)} comes without an average")
    return weight.average.detach().clone()


_WITHIN = ("module", "ema_model", "ema")
"""Children under which wrappers that average keep their copy of the model."""


class _Copy:
    """A copy of the model, or a wrapper that holds one."""

    def __init__(self, ema: nn.Module, model: nn.Module) -> None:
        inner = unwrap_module(ema)
        names = [name for name, _ in unwrap_module(model).named_parameters()]
        places = [inner, *(child for each in _WITHIN if (child := inner._modules.get(each)) is not None)]
        copy = next((each for each in places if any(find(each, name) is not None for name in names)), None)
        if copy is None:
            raise EditError(
                f"this {type(ema).__name__} has no copy of the model",
                expected=f"parameters named as the model's: {listing(names)}",
                found=listing(name for name, _ in ema.named_parameters()),
            )
        self._copy = unwrap_module(copy)

    def of(self, weight: Weight) -> torch.Tensor | None:
        return find(self._copy, weight.name)

    def swap(self, transaction: Transaction, weight: Weight) -> None:
        ours = self.of(weight)
        if ours is not None and weight.average is not None:
            put(transaction, self._copy, ours, _as(weight.average, ours), weight.rows)

    def add(self, transaction: Transaction, weight: Weight) -> None:
        put_at(transaction, *place(self._copy, weight.name), nn.Parameter(_copied(weight), requires_grad=False))

    def drop(self, transaction: Transaction, weight: Weight) -> None:
        ours = self.of(weight)
        if ours is not None:
            put(transaction, self._copy, ours, None)

    def rename(self, transaction: Transaction, weight: Weight) -> None:
        rename(transaction, self._copy, weight.name, weight.to)

    def tie(self, transaction: Transaction, weight: Weight) -> None:
        ours = self.of(weight)
        if ours is not None:
            put(transaction, self._copy, ours, find(self._copy, weight.to))


class _ByName:
    """Tensors by name."""

    def __init__(self, tensors: MutableMapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def of(self, weight: Weight) -> torch.Tensor | None:
        return self._tensors.get(weight.name)

    def swap(self, transaction: Transaction, weight: Weight) -> None:
        before = self.of(weight)
        if before is not None and weight.average is not None:
            keep(transaction, self._tensors)
            average = _as(weight.average, before)
            self._tensors.update({key: average for key, tensor in self._tensors.items() if tensor is before})

    def add(self, transaction: Transaction, weight: Weight) -> None:
        keep(transaction, self._tensors)
        self._tensors[weight.name] = _copied(weight)

    def drop(self, transaction: Transaction, weight: Weight) -> None:
        keep(transaction, self._tensors)
        self._tensors.pop(weight.name, None)

    def rename(self, transaction: Transaction, weight: Weight) -> None:
        keep(transaction, self._tensors)
        items = {_called(name, weight.name, weight.to): tensor for name, tensor in self._tensors.items()}
        self._tensors.clear()
        self._tensors.update(items)

    def tie(self, transaction: Transaction, weight: Weight) -> None:
        self.drop(transaction, weight)


def _called(name: str, old: str, new: str) -> str:
    """What a name is once `old`, a name or a prefix with a trailing dot, is called `new`."""
    if old.endswith(".") and name.startswith(old):
        return f"{new.rstrip('.')}.{name.removeprefix(old)}"
    return new if name == old else name


class _InOrder:
    """A list in the order of the parameters, as torch_ema and diffusers keep one."""

    def __init__(self, ema: Any, model: nn.Module) -> None:
        self._ema = ema
        self._model = unwrap_module(model)
        self._pairs = list(zip(self._parameters(), ema.shadow_params, strict=True))

    def _parameters(self) -> list[torch.Tensor]:
        """The parameters that the averages are of, side by side with these."""
        every = list(self._model.parameters())
        held = [each() for each in getattr(self._ema, "_params_refs", ())]
        for order in (held, every, [each for each in every if each.requires_grad]):
            found = [each for each in order if each is not None]
            if len(found) == len(order) == len(self._ema.shadow_params):
                return found
        raise EditError(
            "the averages are not as many as the model's parameters",
            expected=f"{len(every)} in shadow_params, in their order",
            found=f"{len(self._ema.shadow_params)}",
            todo="build them of this model's parameters, or pass them as a dict by name",
        )

    def of(self, weight: Weight) -> torch.Tensor | None:
        return next((average for each, average in self._pairs if each is weight.old), None)

    def swap(self, transaction: Transaction, weight: Weight) -> None:
        new, average = weight.new, weight.average
        if new is not None and average is not None:
            pairs = [(new, _as(average, held)) if each is weight.old else (each, held) for each, held in self._pairs]
            self._settle(transaction, pairs)

    def add(self, transaction: Transaction, weight: Weight) -> None:
        if weight.new is not None:
            self._settle(transaction, [*self._pairs, (weight.new, _copied(weight))])

    def drop(self, transaction: Transaction, weight: Weight) -> None:
        self._settle(transaction, [pair for pair in self._pairs if pair[0] is not weight.old])

    def rename(self, transaction: Transaction, _weight: Weight, /) -> None:
        self._settle(transaction, self._pairs)

    def tie(self, transaction: Transaction, weight: Weight) -> None:
        self.drop(transaction, weight)

    def _settle(self, transaction: Transaction, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Hold these, in the order that the model's parameters have now."""
        order = {id(each): number for number, each in enumerate(self._model.parameters())}
        before, refs = self._pairs, getattr(self._ema, "_params_refs", None)
        self._pairs = sorted(pairs, key=lambda pair: order.get(id(pair[0]), len(order)))
        transaction.on_rollback(lambda: setattr(self, "_pairs", before))
        keep(transaction, self._ema.shadow_params)
        self._ema.shadow_params[:] = [average for _, average in self._pairs]
        if isinstance(refs, list):
            keep(transaction, refs)
            refs[:] = [ref(each) for each, _ in self._pairs]

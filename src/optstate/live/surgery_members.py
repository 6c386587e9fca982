"""Parameters that join a param group or leave it, freeze, or share one tensor: the other verbs of surgery, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.members import follow
from optstate.live.source import LiveSource
from optstate.live.tensors import dtype_name
from optstate.live.transaction import Transaction
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.text import count, listing, safe_text


def join(group: dict[str, Any], name: str, parameter: torch.Tensor, place: int | None = None) -> None:
    """Put a parameter, and its name where torch records names, into a param group: at a place, or last."""
    members = group["params"]
    position = len(members) if place is None else place
    if members:
        follow(members[min(position, len(members) - 1)], parameter)
    members.insert(position, parameter)
    if "param_names" in group:
        group["param_names"].insert(position, name)


def leave(transaction: Transaction, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
    """Take a parameter out of its param group, wherever it is in there, and its state out of the optimizer."""
    for group in optimizer.param_groups:
        stay = [place for place, each in enumerate(group["params"]) if each is not parameter]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][place] for place in stay]
    if parameter in optimizer.state:
        transaction.before_entry(optimizer, parameter)
        del optimizer.state[parameter]


def record(optimizer: torch.optim.Optimizer, bound: Bound, name: str) -> None:
    """Write the name of a parameter where torch records names."""
    names = optimizer.param_groups[bound.group].get("param_names")
    if names is not None:
        names[bound.position] = name


def set_trained(transaction: Transaction, parameter: torch.Tensor, *, trained: bool) -> None:
    """Have a parameter take part in training, or not: then nothing may be left that a step would act on."""
    before, gradient = parameter.requires_grad, parameter.grad

    def put_back() -> None:
        parameter.requires_grad_(before)
        parameter.grad = gradient

    transaction.on_rollback(put_back)
    parameter.requires_grad_(trained)
    if not trained:
        parameter.grad = None


def chosen_group(source: LiveSource, optimizer: str | None, group: int | None) -> tuple[str, int]:
    """The optimizer and the param group that are meant. Raises `EditError` where there are several, or none such."""
    names = list(source.live_optimizers)
    name = names[0] if optimizer is None and len(names) == 1 else optimizer
    if name is None or name not in source.live_optimizers:
        raise EditError(
            "which optimizer is meant?" if name is None else f"there is no optimizer {safe_text(name)!r}",
            expected=f"one of {listing(names)}",
            todo="pass optimizer=, or beside= with the name of a parameter",
        )
    groups = source.live_optimizers[name].param_groups
    number = 0 if group is None and len(groups) == 1 else group
    if number is None or not 0 <= number < len(groups):
        raise EditError(
            "which param group is meant?" if number is None else f"there is no group {safe_text(number)}",
            expected=f"a number below {len(groups)}, or beside= with the name of a parameter",
        )
    return name, number


def stranger(source: LiveSource, name: str, fits: Any, old: Any) -> Bound:
    """The tensor that an optimizer has in place of the model's parameter of this name.

    It is the one that `old` says, by the name that it has now (`#3`) or as the tensor; otherwise the one that torch recorded
    under this name, or the only one that fits. Raises `EditError` where none does, or several.
    """
    binding = source.bind()
    gone = [bound for each in binding.not_in_model() if (bound := binding.get(each)) is not None]
    meant = [each for each in gone if each.name == old or each.tensor is old] if old is not None else gone
    if old is None:
        recorded = [each for each in meant if _recorded(source, each) == name]
        meant = recorded or [each for each in meant if fits(each.tensor)]
    if len(meant) == 1:
        return meant[0]
    raise EditError(
        f"which tensor of the optimizer {safe_text(name)} replaces cannot be told"
        if gone
        else f"no optimizer has anything that {safe_text(name)} replaces",
        found=f"{count(len(meant), 'tensor')} that would fit"
        + (f": {listing(each.name for each in meant)}" if meant else ""),
        todo="say which: old='#3', or the tensor itself" if gone else "add() takes a new parameter in",
    )


def _recorded(source: LiveSource, bound: Bound) -> str | None:
    names = source.live_optimizers[bound.optimizer].param_groups[bound.group].get("param_names")
    return None if names is None or bound.position >= len(names) else names[bound.position]


def told_apart(optimizer: torch.optim.Optimizer, bound: Bound) -> None:
    """Raise `EditError` where a copy of a parameter's state cannot be made."""
    refuse_order(optimizer, bound.name)
    for key, value in (optimizer.state.get(bound.tensor) or {}).items():
        if isinstance(value, torch.Tensor) and type(value) is not torch.Tensor:
            raise EditError(
                f"{safe_text(bound.name)}/{safe_text(key)} cannot be copied", found=f"a {type(value).__name__}"
            )


def refuse_order(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise `EditError` where the state is laid out over all parameters."""
    spec = by_class(type(optimizer))
    if spec is not None and spec.order_matters:
        raise EditError(
            f"the state of {safe_text(qualified_name(type(optimizer)))} is laid out over all its parameters",
            where=safe_text(name),
            todo="change the model first, then build the optimizer",
        )


def check_pair(
    name: str, old: torch.Tensor | None, to: str, new: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameters of two names. Raises `EditError` where these cannot come to mean one."""
    if old is None or new is None:
        raise EditError(f"there is no parameter {safe_text(name if old is None else to)!r} in the model")
    if old is new:
        raise EditError(f"{safe_text(name)} and {safe_text(to)} are one parameter already")
    traits = [(list(each.shape), dtype_name(each), str(each.device)) for each in (new, old)]
    if traits[0] != traits[1]:
        raise EditError(
            f"{safe_text(name)} cannot be tied to {safe_text(to)}",
            expected=" ".join(map(str, traits[0])),
            found=" ".join(map(str, traits[1])),
        )
    return old, new


def mean_of(spec: OptimizerSpec | None, one: dict[str, Any], other: dict[str, Any], name: str) -> dict[str, Any]:
    """The mean of two states with one step count: of moments the mean, of maxima the larger.

    Debiased means with a common count are means of what is there, so no coefficient is needed. Raises `EditError` where
    the counts differ, and for slots of which nobody knows what a mean of them is.
    """
    if spec is None or one.keys() != other.keys():
        raise EditError(f"the states of {safe_text(name)} and its partner have no mean", todo='tie(state="first")')
    found = {}
    for key, value in one.items():
        slot = spec.slots.get(key)
        if slot is not None and slot.shape == "scalar":
            if float(value) != float(other[key]):
                raise EditError(
                    f"{safe_text(key)} differs, so the states have no mean",
                    expected=f"{float(value):g}",
                    found=f"{float(other[key]):g} of {safe_text(name)}",
                    todo='tie(state="first") keeps the state of the parameter that stays',
                )
            found[key] = value
        elif slot is not None and slot.shape == "parameter":
            largest = slot.role in ("max_second_moment", "infinity_norm")
            found[key] = torch.maximum(value, other[key]) if largest else (value + other[key]) / 2
        else:
            raise EditError(f"nobody knows a mean of {safe_text(key)}", todo='tie(state="first")')
    return found


_REMEMBER = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "remembers the parameters that it was built with",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "keeps parameters flattened",
}


def refuse_wrappers(model: nn.Module) -> None:
    """Raise `EditError` for a model within which a wrapper would not notice that a parameter is another."""
    for module in model.modules():
        for cls in type(module).__mro__:
            why = _REMEMBER.get(qualified_name(cls))
            if why is not None:
                raise EditError(
                    f"{cls.__name__} {why}", todo="do surgery on the bare model on every rank, then wrap it again"
                )

"""What the parameters of an optimizer are called, and how sure that is.

torch numbers the parameters through all groups. Where a name can come from, in this order: the number itself, where
the writer used names instead; `param_names`; the order in which the writer is known to lay parameters out, where every
shape agrees; a shape that fits only one weight; else the position is the name, and the weights that fit it are
told. A name never gets a higher certainty than its evidence has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optstate.errors import Refused
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.state.roles import Certainty
from optstate.state.tensors import TensorRef
from optstate.text import listing


@dataclass(frozen=True, slots=True)
class Position:
    """One parameter as a state dict has it. `key` is its number, or its name where the writer used names."""

    optimizer: str
    group: int
    key: int | str
    recorded: str | None
    entry: Mapping[str, Any]
    shape: tuple[int, ...] | None
    dtype: str | None

    @property
    def place(self) -> str:
        """The name of a parameter of which nothing but its position is known."""
        return f"{self.optimizer}#{self.key}"


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the model: its first name, and the further names that the file has for the same tensor."""

    name: str
    tensor: TensorRef
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """What a position is called, how sure that is, and the weight of this name, None where there is none.

    `candidates` are the weights that a position could be where its name is not known.
    """

    name: str
    certainty: Certainty
    weight: Weight | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """How a writer lays out parameters: `groups` turns the tensors that are trained, in the model's order, into groups.

    `what` says it in words, such as `the order of the model`.
    """

    what: str
    groups: Callable[[Sequence[Weight]], Sequence[Sequence[Weight]]]


MODEL_ORDER = Order("the order of the model", lambda weights: [weights])

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def trained(weights: Iterable[Weight]) -> list[Weight]:
    """The tensors of a model that an optimizer could train: no integers, none of the buffers that torch's layers have."""
    return [
        weight
        for weight in weights
        if weight.tensor.dtype.startswith(_TRAINED) and weight.name.rpartition(".")[2] not in _BUFFERS
    ]


_TRAINED = ("float", "bfloat", "complex")


def distinct_weights(weights: Mapping[str, TensorRef]) -> list[Weight]:
    """The tensors of a model, each once, however many names it has (tied weights)."""
    names: dict[object, list[str]] = {}
    for name, tensor in weights.items():
        names.setdefault(tensor.identity if isinstance(tensor, StoredTensor) else name, []).append(name)
    return [Weight(first, weights[first], tuple(others)) for first, *others in names.values()]


def name_positions(
    positions: Sequence[Position], weights: Sequence[Weight], file: str, orders: Sequence[Order] = ()
) -> list[Named]:
    """A name for each position, no two alike. Raises `Refused` for a file that makes that impossible."""
    by_name = {name: weight for weight in weights for name in (weight.name, *weight.aliases)}
    told = [position.key if type(position.key) is str else position.recorded for position in positions]
    claimed = {by_name[name].name for name in told if name in by_name}
    by_shape = _by_shape(
        [position for position, name in zip(positions, told, strict=True) if name is None],
        [weight for weight in weights if weight.name not in claimed],
    )
    by_rule = _by_rule(positions, weights, orders) if not any(told) else None
    names = []
    for index, (position, name) in enumerate(zip(positions, told, strict=True)):
        if by_rule is not None:
            names.append(Named(by_rule[index].name, "rule", by_rule[index]))
        elif name is not None:
            names.append(Named(name, "file" if type(position.key) is str else "recorded", by_name.get(name)))
        elif position.shape in by_shape:
            weight = by_shape[position.shape]
            names.append(Named(weight.name, "shapes", weight))
        else:
            names.append(Named(position.place, "position"))
    return _unique(positions, names, file)


def _by_rule(positions: Sequence[Position], weights: Sequence[Weight], orders: Sequence[Order]) -> list[Weight] | None:
    """The weight for each position in the first order that agrees with every group and every shape."""
    candidates = trained(weights)
    for order in orders:
        groups = [list(group) for group in order.groups(candidates) if group]
        laid_out = [(index, weight) for index, group in enumerate(groups) for weight in group]
        if len(laid_out) == len(positions) and all(
            index == position.group and position.shape in (None, weight.tensor.shape)
            for (index, weight), position in zip(laid_out, positions, strict=True)
        ):
            return [weight for _, weight in laid_out]
    return None


def _by_shape(positions: Iterable[Position], weights: Iterable[Weight]) -> dict[tuple[int, ...] | None, Weight]:
    """The weight for each shape that one position and one weight have.

    Empty when a position has a shape that no weight has: then these are not the weights of this optimizer, and
    the shapes that do agree prove nothing.
    """
    wanted = Counter(position.shape for position in positions if position.shape is not None)
    found: dict[tuple[int, ...], list[Weight]] = {}
    for weight in weights:
        found.setdefault(weight.tensor.shape, []).append(weight)
    if not wanted.keys() <= found.keys():
        return {}
    return {shape: found[shape][0] for shape, times in wanted.items() if times == 1 == len(found[shape])}


def _unique(positions: Sequence[Position], names: list[Named], file: str) -> list[Named]:
    """Names that several optimizers use, as two models with the same layers do, get their optimizer's in front."""
    times = Counter(named.name for named in names)
    kept_apart = [
        named if times[named.name] == 1 else Named(f"{position.optimizer}.{named.name}", named.certainty)
        for position, named in zip(positions, names, strict=True)
    ]
    again = Counter(named.name for named in kept_apart)
    unique = [
        named if again[named.name] == 1 else Named(position.place, "position")
        for position, named in zip(positions, kept_apart, strict=True)
    ]
    if len({named.name for named in unique}) < len(unique):
        raise Refused("two parameters of the optimizer have one name", where=file)
    return unique


def not_updated(names: Sequence[Named], weights: Sequence[Weight]) -> list[str]:
    """Frozen parameters and buffers; only told when every parameter is known by its name."""
    if not names or any(named.certainty == "position" for named in names):
        return []
    used = {named.weight.name for named in names if named.weight is not None}
    return [weight.name for weight in weights if weight.name not in used] if used else []


def notes_on_names(positions: Sequence[Position], names: Sequence[Named]) -> list[str]:
    """Names that the shapes contradict, as recorded ones do after a load in another order."""
    lying = [
        named.name
        for position, named in zip(positions, names, strict=True)
        if named.weight is not None and position.shape not in (None, named.weight.tensor.shape)
    ]
    return [f"names that contradict the shapes of the weights: {listing(lying)}"] if lying else []

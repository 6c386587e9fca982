"""Orders in which programs give a model's parameters to an optimizer: data that `optstate.formats.naming` tries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.state.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the model: its first name, and the further names that the file has for the same tensor."""

    name: str
    tensor: TensorRef
    aliases: tuple[str, ...] = ()


Groups: TypeAlias = Sequence[Sequence[Weight]]


@dataclass(frozen=True, slots=True)
class Order:
    """How a writer lays out parameters.

    what
        Says it in words, such as `the order of the model`.
    groups
        Turns the tensors that are trained, in the model's order, into groups. None where the groups may be any: then
        parameters follow the model's order through all of them, or within each.
    known
        Whether the program that wrote the file is known to do so; else it is what many programs do.
    optimizer
        The name of the only optimizer that it is for, None where it is for any.
    lists_only
        Whether within a group only the layers of a list are known to be in order, not what is in a layer, as in a file
        that does not keep the model's order.
    """

    what: str
    groups: Callable[[Sequence[Weight]], Groups] | None
    known: bool = True
    optimizer: str | None = None
    lists_only: bool = False


def split(*tests: Callable[[Weight], bool]) -> Callable[[Sequence[Weight]], Groups]:
    """Groups by the first test that holds, and last those for which none does."""

    def groups(weights: Sequence[Weight]) -> Groups:
        found: list[list[Weight]] = [[] for _ in range(len(tests) + 1)]
        for weight in weights:
            found[next((index for index, test in enumerate(tests) if test(weight)), len(tests))].append(weight)
        return found

    return groups


def is_matrix(weight: Weight) -> bool:
    """A tensor of two dimensions or more, to which most programs apply weight decay."""
    return len(weight.tensor.shape) >= 2


def is_bias(weight: Weight) -> bool:
    """A tensor called `bias`."""
    return weight.name.rpartition(".")[2] == "bias"


def is_gain(weight: Weight) -> bool:
    """A vector that is no bias, such as the weight of a norm."""
    return not is_matrix(weight) and not is_bias(weight)


MODEL_ORDER = Order("the order of the model", None, known=False)
BIASES_LAST = Order("biases in the last group", split(lambda weight: not is_bias(weight)), known=False)
BIASES_FIRST = Order("biases in the first group", split(is_bias), known=False)

USUAL: Sequence[Order] = (MODEL_ORDER, BIASES_LAST, BIASES_FIRST)
"""What a program does of which nothing is known, the likeliest first."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_TRAINED = ("float", "bfloat", "complex")


def trained(weights: Iterable[Weight]) -> list[Weight]:
    """The tensors of a model that an optimizer could train: no integers, none of the buffers that torch's layers have."""
    return [
        weight
        for weight in weights
        if weight.tensor.dtype.startswith(_TRAINED) and weight.name.rpartition(".")[2] not in _BUFFERS
    ]


def distinct_weights(weights: Mapping[str, TensorRef]) -> list[Weight]:
    """The tensors of a model, each once, however many names it has (tied weights)."""
    names: dict[object, list[str]] = {}
    for name, tensor in weights.items():
        names.setdefault(tensor.identity if isinstance(tensor, StoredTensor) else name, []).append(name)
    return [Weight(first, weights[first], tuple(others)) for first, *others in names.values()]

"""A run as it is compared: at each step the digest of every part, by component and name. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128

from optstate.state.roles import ROLES

RANDOM = ("python RNG", "numpy RNG", "torch RNG", "CUDA RNG")
SLOTS = ("step", *(role for role in ROLES if role != "step"))
"""The components that slots are, one for each role; counts first, for they correct the rest."""

BATCH, LOSS, GRADIENTS, POSITION = "batch", "loss", "gradients", "position in the data"
WEIGHTS, BUFFERS, MODULES, HYPERPARAMETERS = "weights", "buffers", "module state", "hyperparameters"

RESTORED = (WEIGHTS, BUFFERS, MODULES, *SLOTS, HYPERPARAMETERS, "scheduler", "loader", None, *RANDOM)
"""What a restored state is compared in, in this order: what the program would be looked at for first. None: objects."""

STEPPED = (BATCH, *RANDOM, LOSS, BUFFERS, MODULES, *SLOTS, WEIGHTS, HYPERPARAMETERS, "scheduler", "loader", None)
"""What a step makes, each from what stands before it: the batch is drawn, the loss computed, slots follow the gradient,
weights the slots, and then the schedule moves on."""

RESERVED = frozenset(
    each for each in (*RESTORED, *STEPPED, GRADIENTS, POSITION, "model", "optimizer", "rng") if each is not None
)
"""Names that an object cannot have."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One tensor or value: the digest of type, shape and bytes; what it is; the value where it is short; its strides."""

    digest: str
    kind: str
    shown: str = ""
    strides: str = ""


Moment = Mapping[str, Mapping[str, Part]]
"""A run after one step: component → name → part."""


class Run(msgspec.Struct):
    """What a process did: its moments by step; after the flip of a bit as well, and which part that was."""

    moments: dict[int, dict[str, dict[str, Part]]]
    flipped: dict[str, dict[str, Part]] | None = None
    flip: str | None = None
    untouched: bool = True  # whether flipping the bit back gave the same moment again
    gradients: bool = False  # whether there were any at the save
    failed: str | None = None  # why the step after the last moment could not be taken, in a restored run
    element: str | None = None  # see `Look`
    seen: dict[str, str] = {}  # versions and settings
    seconds: float = 0.0


class Difference(NamedTuple):
    """A part that is not the same: None where a side does not have it."""

    component: str
    name: str
    expected: Part | None
    found: Part | None


def differences(
    expected: Moment, found: Moment, order: Iterable[str | None], ignored: Iterable[str] = ()
) -> list[Difference]:
    """Every part that differs, component by component in the given order, and within one in that of the model."""
    left = set(ignored)
    places = {component: place for place, component in enumerate(order)}
    components = [each for each in {**expected, **found} if each not in left]
    components.sort(key=lambda each: places.get(each, places[None]))
    return [
        Difference(component, name, one, other)
        for component in components
        for name in {**expected.get(component, {}), **found.get(component, {})}
        if _digest(one := expected.get(component, {}).get(name)) != _digest(other := found.get(component, {}).get(name))
    ]


def _digest(part: Part | None) -> str | None:
    return None if part is None else part.digest


def laid_out_otherwise(expected: Moment, found: Moment) -> list[str]:
    """The tensors of the same values that lie in memory by other strides."""
    return [
        name
        for component in expected
        for name, one in expected[component].items()
        if (other := found.get(component, {}).get(name)) is not None
        and one.digest == other.digest
        and one.strides != other.strides
    ]


def digest(moment: Moment) -> str:
    """One digest of a whole moment: xxh3-128 over every name and digest."""
    total = xxh3_128()
    for component in sorted(moment):
        for name, part in sorted(moment[component].items()):
            total.update(f"{component}\0{name}\0{part.digest}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def counts(moment: Moment) -> tuple[int, int]:
    """How many tensors and how many other values a moment holds, batches and losses aside."""
    parts = [part for component, each in moment.items() if component not in (BATCH, LOSS) for part in each.values()]
    tensors = sum(part.kind.endswith("]") for part in parts)
    return tensors, len(parts) - tensors

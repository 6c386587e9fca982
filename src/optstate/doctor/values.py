"""What the values of a state are like: one pass over every tensor, a block at a time, shared by all rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from optstate.doctor.counting import (
    Counter,
    Measure,
    Pair,
    compare_centred,
    compare_copies,
    compare_moments,
    side_by_side,
)
from optstate.errors import ReadError
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parallel import in_threads
from optstate.state.parameter import ParamState
from optstate.state.tensors import TensorRef, Value, is_tensor, nbytes
from optstate.text import safe_text

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

Place = tuple[str, str]
"""A parameter and the key of one of its slots; ("", name) is a weight, or anything else that is only read."""


@dataclass(frozen=True)
class Values:
    """The measures of a state and of the weights beside it.

    slots
        The slots that are tensors, those in lists under `key[0]`, `key[1]` and so on.
    pairs
        The place of a denominator → what it says together with the first moment; of a float32 copy → with the weight.
    weights
        Name → the weight's measure.
    unread
        What could not be read, safe to print → why.
    """

    slots: Mapping[Place, Measure] = field(default_factory=dict)
    pairs: Mapping[Place, Pair] = field(default_factory=dict)
    weights: Mapping[str, Measure] = field(default_factory=dict)
    unread: Mapping[str, ReadError] = field(default_factory=dict)


NOTHING = Values()
"""Of a case whose values were not looked at."""


def measure(
    state: OptimizerState,
    weights: Mapping[str, TensorRef],
    others: Mapping[str, Value],
    progress: Progress = lambda _done, _total: None,
) -> Values:
    """Read every tensor of a state, of `weights` and of `others`, each once, large ones in several threads.

    `others` are pieces that are only read so that damage is found. What raises `ReadError` goes to `unread`.
    """
    jobs = list(_jobs(state, weights))
    beside = {name for job in jobs for owner, name in job.refs if not owner}
    rest = chain(((name, ref) for name, ref in weights.items() if name not in beside), _loose(others))
    jobs += [_Job({("", name): ref}) for name, ref in rest]
    done, total = 0, sum(job.nbytes for job in jobs)
    seen: dict[Place, Measure] = {}
    pairs: dict[Place, Pair] = {}
    unread: dict[str, ReadError] = {}
    for job, (measures, pair, errors) in zip(jobs, in_threads(_do, jobs, lambda job: job.nbytes), strict=True):
        seen |= measures
        unread |= errors
        if pair is not None and job.pair is not None:
            pairs[job.pair.second] = pair
        done += job.nbytes
        progress(done, total)
    slots = {place: each for place, each in seen.items() if place[0]}
    return Values(slots, pairs, {name: seen["", name] for name in weights if ("", name) in seen}, unread)


@dataclass(frozen=True, slots=True)
class _Together:
    """Two tensors that are read side by side, and what they say of each other, block by block."""

    first: Place
    second: Place
    compare: Callable[[Array, Array], Pair]


@dataclass(frozen=True, slots=True)
class _Job:
    """Tensors that are read at once."""

    refs: Mapping[Place, TensorRef]
    pair: _Together | None = None

    @property
    def nbytes(self) -> int:
        return sum(map(nbytes, self.refs.values()))


def _jobs(state: OptimizerState, weights: Mapping[str, TensorRef]) -> Iterator[_Job]:
    """One for each tensor of a state; one for a first moment and its denominator, for a weight and its float32 copy."""
    for parameter in state.values():
        slots = parameter.slots
        refs = {(parameter.name, key): ref for slot in slots.values() for key, ref in _tensors(slot.key, slot.value)}
        for pair in (_moments(parameter), _copies(parameter, weights)):
            if pair is not None:
                both = (pair.first, pair.second)
                yield _Job({place: refs.pop(place) if place in refs else weights[place[1]] for place in both}, pair)
        yield from (_Job({place: ref}) for place, ref in refs.items())


def _moments(parameter: ParamState) -> _Together | None:
    """The first moment and the denominator of a parameter, where it has both, of one shape."""
    slots = [slot for slot in parameter.slots.values() if slot.shape is not None]
    squares = next((slot for slot in slots if slot.role in ("second_moment", "infinity_norm") and slot.primary), None)
    means = [slot for slot in slots if slot.role == "momentum" and squares is not None and slot.shape == squares.shape]
    if squares is None or not means:
        return None
    # The mean of the gradient itself says more than one of what was divided by the denominator already.
    mean = min(means, key=lambda slot: slot.of != "gradient")
    # Centred RMSprop subtracts a mean of the gradient that does not move the weight.
    centred = mean.of == "gradient" and not mean.primary
    compare = compare_centred if centred else compare_moments
    return _Together((parameter.name, mean.key), (parameter.name, squares.key), compare)


COPIES = ("fp32", "master_param", "master_params", "master_weight")
"""Keys under which optimizers keep float32 copies of shorter weights, besides slots whose role says it."""


def _copies(parameter: ParamState, weights: Mapping[str, TensorRef]) -> _Together | None:
    """A weight in a short type and the float32 copy of it that the optimizer keeps."""
    weight = weights.get(parameter.name)
    if weight is None or weight.dtype not in ("bfloat16", "float16"):
        return None
    slots = [slot for slot in parameter.slots.values() if slot.role == "master_weights" or slot.key in COPIES]
    copy = next((slot for slot in slots if slot.dtype == "float32" and slot.shape == weight.shape), None)
    return None if copy is None else _Together(("", parameter.name), (parameter.name, copy.key), compare_copies)


def _loose(others: Mapping[str, Value]) -> Iterator[tuple[str, TensorRef]]:
    return chain.from_iterable(_tensors(name, value) for name, value in others.items())


def _tensors(name: str, value: Value) -> Iterator[tuple[str, TensorRef]]:
    """The tensors in a tree of values, each with its path."""
    if is_tensor(value):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(f"{name}.{safe_text(key, 80)}", inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _tensors(f"{name}[{index}]", inner)


# --- reading ------------------------------------------------------------------------------------------------

Done = tuple[dict[Place, Measure], Pair | None, dict[str, ReadError]]


def _do(job: _Job) -> Done:
    """Read the tensors of a job. Where two cannot be read side by side, each is tried for itself."""
    if job.pair is not None:
        try:
            return _read_pair(job.pair, job.refs)
        except ReadError:
            pass
    measures: dict[Place, Measure] = {}
    errors: dict[str, ReadError] = {}
    for place, ref in job.refs.items():
        counter = Counter()
        try:
            for block in ref.blocks():
                counter.add(block)
        except ReadError as error:
            errors["/".join(safe_text(part) for part in place if part)] = error
        else:
            measures[place] = counter.measure
    return measures, None, errors


def _read_pair(pair: _Together, refs: Mapping[Place, TensorRef]) -> Done:
    one, other, said = Counter(), Counter(), Pair()
    for first, second in side_by_side(refs[pair.first].blocks(), refs[pair.second].blocks()):
        one.add(first)
        other.add(second)
        more = pair.compare(first, second)
        said = Pair(said.dead + more.dead, said.below + more.below, said.apart + more.apart)
    return {pair.first: one.measure, pair.second: other.measure}, said, {}

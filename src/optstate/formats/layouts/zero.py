"""Cutting ZeRO's flat vectors into named parameters: from the partitions of all ranks to one state dict by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any, NamedTuple, TypeAlias

from optstate.errors import Refused
from optstate.formats.containers.assembled import Assembled, Piece
from optstate.formats.containers.pickle_machine import Call
from optstate.formats.containers.records import attributes_of
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.state.tensors import TensorRef, is_tensor

MASTER = "fp32"
"""The slot of the fp32 copy of a parameter, as DeepSpeed's own universal folders call it."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Name → shape of the parameters of one vector, in its order."""

Entries: TypeAlias = Mapping[int, Mapping[str, Any]]
"""Number of a rank → the slots that it has of one vector."""


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank wrote: its number, the file, safe to print, and the dict in it."""

    index: int
    file: str
    node: Mapping[str, Any]

    @property
    def stage(self) -> int:
        """The stage that the file states; what only stage 3 writes tells the files of older versions."""
        stated = self.node.get("zero_stage")
        number = stated.arguments[0] if isinstance(stated, Call) and len(stated.arguments) == 1 else stated
        return number if type(number) is int else 3 if "fp32_flat_groups" in self.node else 2

    @property
    def partitions(self) -> int:
        """How many ranks share each vector."""
        stated = self.node.get("partition_count")
        counts = stated if type(stated) is list else [stated]
        return max((number for number in counts if type(number) is int), default=1)

    @property
    def inner(self) -> Any:
        """The state of the optimizer that ZeRO wraps; a list of bare slots where the save was elastic."""
        return self.node.get("optimizer_state_dict" if self.stage == 3 else "base_optimizer_state")

    @property
    def vectors(self) -> list[dict[str, Any]]:
        """The slots of each flat vector, in order, the fp32 partition among them."""
        masters = self.node.get("fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups")
        masters = masters if type(masters) is list else []
        inner = self.inner
        if type(inner) is list:
            entries = inner
        else:
            state = inner.get("state") if type(inner) is dict else None
            state = state if type(state) is dict else {}
            entries = [state.get(key) for group in self.groups for key in group["params"]]
        entries += [None] * (len(masters) - len(entries))
        return [
            {
                **({MASTER: masters[index]} if index < len(masters) and is_tensor(masters[index]) else {}),
                **({key: value for key, value in entry.items() if type(key) is str} if type(entry) is dict else {}),
            }
            for index, entry in enumerate(entries)
        ]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The param groups of the optimizer; an elastic save has none. A group's `params` number its vectors."""
        inner = self.inner
        groups = inner.get("param_groups") if type(inner) is dict else None
        if type(groups) is not list:
            return []
        return [group for group in groups if type(group) is dict and type(group.get("params")) is list]


class Run(NamedTuple):
    """Part of a parameter in a rank's flat vector: where it starts there, how long it is, where it starts in the parameter."""

    rank: int
    start: int
    length: int
    at: int


@dataclass(slots=True)
class Cut:
    """What the vectors make: a state dict by name, the fp32 copies by name, and what is left.

    `mapped` says whether the ranks say of every parameter where it is; `mismapped` are those of which they say another
    place than the order of the shapes has.
    """

    state_dict: dict[str, Any]
    masters: dict[str, TensorRef] = field(default_factory=dict)
    unplaced: dict[str, Any] = field(default_factory=dict)
    mapped: bool = True
    mismapped: dict[str, None] = field(default_factory=dict)


def cut(ranks: Sequence[Rank], shapes: Sequence[Shapes]) -> Cut:
    """Every parameter of every vector, each slot put together from the ranks at hand.

    `shapes` are the parameters of each vector, in its order. Raises `Refused` where a rank contradicts the shapes or
    another rank. A vector whose parameters are not told, or a slot of another length, is left unplaced.
    """
    vectors = {rank.index: rank.vectors for rank in ranks}
    number = max(map(len, vectors.values()), default=0)
    if any(len(each) != number for each in vectors.values()):
        raise Refused("the ranks of one save have different numbers of flat vectors")
    found = Cut({"state": {}, "param_groups": []})
    members: list[list[str]] = []
    for index in range(number):
        here = {rank: each[index] for rank, each in vectors.items()}
        known = shapes[index] if index < len(shapes) else {}
        runs = _runs(ranks, index, known, here)
        members.append(list(runs))
        found.mapped = found.mapped and all(_mapping(rank, index) is not None for rank in ranks)
        found.mismapped.update(dict.fromkeys(name for rank in ranks for name in _mismapped(rank, index, runs)))
        for name, pieces in runs.items():
            found.state_dict["state"][name] = _entry(name, known[name], pieces, here)
        found.unplaced.update(_leftovers(index, here, placed=bool(runs)))
    found.masters = {name: entry[MASTER] for name, entry in found.state_dict["state"].items() if MASTER in entry}
    found.state_dict["param_groups"] = _groups(ranks[0], members)
    return found


def _groups(rank: Rank, members: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The groups with the names of their parameters; one for each vector where the save kept no groups."""
    if not rank.groups:
        return [{"params": list(names)} for names in members]
    left = iter(members)
    return [
        {**group, "params": [name for _, names in zip(group["params"], left, strict=False) for name in names]}
        for group in rank.groups
    ]


# --- which part of which parameter lies where -------------------------------------------------------------


def _runs(ranks: Sequence[Rank], index: int, shapes: Shapes, entries: Entries) -> dict[str, list[Run]]:
    """The runs of each parameter of a vector, in the order of the vector; empty where that is not told."""
    if ranks[0].stage == 3:
        return _runs_of_pieces(ranks, shapes, entries)
    return _runs_end_to_end(ranks, shapes, _paddings(ranks[0], index, len(shapes)), entries)


def _runs_of_pieces(ranks: Sequence[Rank], shapes: Shapes, entries: Entries) -> dict[str, list[Run]]:
    """Stage 3: each rank has an equal piece of every parameter, the last ones padded; pieces lie in order."""
    partitions = ranks[0].partitions
    runs: dict[str, list[Run]] = {}
    start = 0
    for name, shape in shapes.items():
        piece = -(-prod(shape) // partitions)
        runs[name] = [
            Run(rank.index, start, length, rank.index * piece)
            for rank in ranks
            if (length := min(piece, prod(shape) - rank.index * piece)) > 0
        ]
        start += piece
    _check_lengths(ranks, runs, entries)
    return runs


def _runs_end_to_end(
    ranks: Sequence[Rank], shapes: Shapes, paddings: Sequence[int], entries: Entries
) -> dict[str, list[Run]]:
    """Stages 1 and 2: parameters lie end to end, maybe padded, and the whole is cut into equal partitions."""
    partition = max(map(_longest, entries.values()), default=0)
    total = sum(map(prod, shapes.values())) + sum(paddings)
    if not 0 < total <= partition * ranks[0].partitions:
        return {}
    runs: dict[str, list[Run]] = {}
    start = 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        stop = start + prod(shape)
        runs[name] = [
            Run(rank.index, first - rank.index * partition, last - first, first - start)
            for rank in ranks
            if (first := max(start, rank.index * partition)) < (last := min(stop, (rank.index + 1) * partition))
        ]
        start = stop + padding
    _check_lengths(ranks, runs, entries)
    return runs


def _paddings(rank: Rank, index: int, number: int) -> list[int]:
    """What follows each parameter of a vector, so that the next one is aligned."""
    stated = rank.node.get("param_alignment_paddings")
    paddings = stated[index] if type(stated) is list and index < len(stated) else None
    if type(paddings) is list and len(paddings) == number and all(type(each) is int and each >= 0 for each in paddings):
        return list(paddings)
    return [0] * number


def _check_lengths(ranks: Sequence[Rank], runs: Mapping[str, Sequence[Run]], entries: Entries) -> None:
    """Raise `Refused` where a rank's shortest slot ends before the parameters in it do."""
    due = {rank.index: 0 for rank in ranks}
    for run in chain.from_iterable(runs.values()):
        due[run.rank] = max(due[run.rank], run.start + run.length)
    for rank in ranks:
        lengths = [flat.shape[0] for value in entries[rank.index].values() if (flat := _flat(value)) is not None]
        if lengths and min(lengths) < due[rank.index]:
            raise Refused(
                "a flat vector is shorter than the parameters in it",
                where=rank.file,
                expected=f"at least {due[rank.index]:,} elements",
                found=f"{min(lengths):,}",
            )


def _mapping(rank: Rank, index: int) -> Mapping[Any, Any] | None:
    """What a rank says of the places in its vector; stage 3 and old versions say nothing."""
    mappings = rank.node.get("param_slice_mappings")
    mapping = mappings[index] if type(mappings) is list and index < len(mappings) else None
    return mapping if type(mapping) is dict else None


def _mismapped(rank: Rank, index: int, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Parameters that `param_slice_mappings` sees elsewhere than the order of the shapes has them."""
    mapping = _mapping(rank, index)
    if mapping is None:
        return []
    here = {name: (run.start, run.length) for name, each in runs.items() for run in each if run.rank == rank.index}
    stated = {
        name: (address.get("start"), address.get("numel"))
        for name, fragment in mapping.items()
        if type(name) is str and (address := attributes_of(fragment))
    }
    return [name for name in {**here, **stated} if here.get(name) != stated.get(name)]


# --- slots ------------------------------------------------------------------------------------------------


def _flat(value: object) -> StoredTensor | None:
    """A value that is a flat vector, and no single number."""
    fits = isinstance(value, StoredTensor) and len(value.shape) == 1 and value.contiguous
    return value if fits else None  # type: ignore[return-value]


def _longest(entry: Mapping[str, Any]) -> int:
    """The elements of a rank's vector; some slots are saved without the padding at its end."""
    return max((flat.shape[0] for value in entry.values() if (flat := _flat(value)) is not None), default=0)


def _entry(name: str, shape: tuple[int, ...], runs: Sequence[Run], here: Entries) -> dict[str, Any]:
    """The slots of one parameter; what is no vector, such as the step, is that of the first rank."""
    first = next(iter(here.values()))
    entry: dict[str, Any] = {}
    for key, value in first.items():
        model = _flat(value)
        if model is None:
            entry[key] = value
            continue
        pieces = [
            Piece((run.at,), _part(flat, run)) for run in runs if (flat := _flat(here[run.rank].get(key))) is not None
        ]
        entry[key] = Assembled(f"{name}/{key}", model.dtype, shape, pieces, flat=True)
    return entry


def _part(flat: StoredTensor, run: Run) -> StoredTensor:
    return StoredTensor(flat.record, flat.dtype, flat.offset + run.start, (run.length,), (1,), swap=flat.swap)


def _leftovers(index: int, here: Entries, *, placed: bool) -> dict[str, Any]:
    """The vectors that could not be cut, by rank and key."""
    if placed:
        return {}
    return {
        f"rank {rank}.vector {index}.{key}": value
        for rank, entry in here.items()
        for key, value in entry.items()
        if _flat(value) is not None
    }

"""Which names of two sides mean the same thing: by name, by an alias, by content, by position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

import xxhash

from optstate.errors import ReadError
from optstate.formats.compare import bits, compare
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.tensors import TensorRef, is_tensor

Names: TypeAlias = Mapping[str, tuple[str, ...]]
"""Names, and the further names of the same thing."""


@dataclass(slots=True)
class Matched:
    """`pairs` maps names of a to names of b; `renamed` are those of a whose content alone tells their name in b."""

    pairs: dict[str, str] = field(default_factory=dict)
    renamed: set[str] = field(default_factory=set)
    by_position: int = 0

    def left_a(self, names: Iterable[str]) -> list[str]:
        """The names of a that have no partner."""
        return [name for name in names if name not in self.pairs]

    def left_b(self, names: Iterable[str]) -> list[str]:
        """The names of b that have no partner."""
        taken = set(self.pairs.values())
        return [name for name in names if name not in taken]


def match_names(a: Names, b: Names) -> Matched:
    """Equal names first, then names that are aliases of one tensor."""
    found = Matched({name: name for name in a if name in b})
    homes = {alias: name for name in found.left_b(b) for alias in (name, *b[name])}
    taken = set(found.pairs)
    for name in found.left_a(a):
        home = next((homes[alias] for alias in (name, *a[name]) if alias in homes), None)
        if home is not None and home not in taken:
            found.pairs[name] = home
            taken.add(home)
    return found


# --- by content -------------------------------------------------------------------------------------------


def match_weights(found: Matched, a: Mapping[str, TensorRef], b: Mapping[str, TensorRef]) -> None:
    """Pair weights that are called differently and hold the same."""
    _add(found, by_content({name: a[name] for name in found.left_a(a)}, {name: b[name] for name in found.left_b(b)}))


def match_parameters(found: Matched, a: OptimizerState, b: OptimizerState, weights: Mapping[str, str]) -> None:
    """Pair parameters whose weights are called differently and hold the same, or one of whose slots is the same."""
    left = set(found.left_b(b))
    _add(found, {name: weights[name] for name in found.left_a(a) if weights.get(name) in left})
    for key in _slot_keys(a, found.left_a(a)):
        _add(found, by_content(_slots(a, found.left_a(a), key), _slots(b, found.left_b(b), key)))


def _add(found: Matched, pairs: Mapping[str, str]) -> None:
    found.pairs.update(pairs)
    found.renamed.update(pairs)


def _slot_keys(state: OptimizerState, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(key for name in names for key in state[name].slots))


def _slots(state: OptimizerState, names: Iterable[str], key: str) -> dict[str, TensorRef]:
    values = {name: slot.value for name in names if (slot := state[name].slots.get(key)) is not None}
    return {name: value for name, value in values.items() if is_tensor(value)}


def by_content(a: Mapping[str, TensorRef], b: Mapping[str, TensorRef]) -> dict[str, str]:
    """Pairs of tensors of the same bits, where no other tensor on either side has them.

    What is constant tells nothing: all fresh momentum is alike. Only tensors of a type and shape that both sides have
    are read; of most of them, the first block tells them apart.
    """
    pairs: dict[str, str] = {}
    for group_a, group_b in _alike(a, b, lambda ref: (ref.dtype, ref.shape)):
        for near_a, near_b in _alike(group_a, group_b, _first_block):
            alone = len(near_a) == len(near_b) == 1
            exact = [(near_a, near_b)] if alone else _alike(near_a, near_b, _whole)
            pairs.update(_confirmed(exact))
    return pairs


Group: TypeAlias = Mapping[str, TensorRef]


def _alike(a: Group, b: Group, trait: Callable[[TensorRef], object]) -> Iterator[tuple[Group, Group]]:
    """Both sides in groups of one trait; what has none, cannot be read, or is alone on its side is left out."""
    groups_a, groups_b = _grouped(a, trait), _grouped(b, trait)
    return ((groups_a[found], groups_b[found]) for found in groups_a if found in groups_b)


def _grouped(refs: Group, trait: Callable[[TensorRef], object]) -> dict[object, dict[str, TensorRef]]:
    groups: dict[object, dict[str, TensorRef]] = {}
    for name, ref in refs.items():
        try:
            found = trait(ref)
        except ReadError:  # it will be told as unread
            continue
        groups.setdefault(found, {})[name] = ref
    return groups


def _first_block(ref: TensorRef) -> bytes:
    return xxhash.xxh3_128_digest(b"".join(bits(block).tobytes() for block in islice(ref.blocks(), 1)))


def _whole(ref: TensorRef) -> bytes:
    digest = xxhash.xxh3_128()
    for block in ref.blocks():
        digest.update(bits(block).data)
    return digest.digest()


def _confirmed(groups: Iterable[tuple[Group, Group]]) -> Iterator[tuple[str, str]]:
    for group_a, group_b in groups:
        if len(group_a) == len(group_b) == 1:
            ((name_a, ref_a),), ((name_b, ref_b),) = group_a.items(), group_b.items()
            if _varies(ref_a) and compare(ref_a, ref_b) is None:
                yield name_a, name_b


def _varies(ref: TensorRef) -> bool:
    """Whether a tensor has two elements that are not the same."""
    first = None
    for block in ref.blocks():
        values = bits(block).reshape(block.size, -1)
        first = values[:1].copy() if first is None else first
        if (values != first).any():
            return True
    return False


# --- by position ------------------------------------------------------------------------------------------


def match_positions(found: Matched, a: OptimizerState, b: OptimizerState) -> None:
    """Pair all that is left by its place in the optimizers, where one side has no names and the shapes agree."""
    names_a, names_b = list(a), list(b)
    left_a, left_b = found.left_a(names_a), set(found.left_b(names_b))
    if len(names_a) != len(names_b) or len(left_a) != len(left_b):
        return
    pairs = dict(zip(names_a, names_b, strict=True))
    pairs = {name: pairs[name] for name in left_a}
    if left_b == set(pairs.values()) and all(_one_place(a[name].facts, b[pairs[name]].facts) for name in pairs):
        found.pairs.update(pairs)
        found.by_position = len(pairs)


def _one_place(a: ParameterFacts, b: ParameterFacts) -> bool:
    """Whether one of two parameters has no name but its position, and they may be the same as far as shapes tell."""
    nameless = (a.certainty == "position") != (b.certainty == "position")
    return nameless and (a.shape == b.shape or None in (a.shape, b.shape))

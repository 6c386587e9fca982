"""What the parameters of an optimizer are called, and how sure that is.

torch numbers the parameters through all groups. Where a name can come from, in this order: the number itself, where
the writer used names instead; `param_names`; the order in which the writer lays parameters out, where every shape
agrees (`optstate.formats.placing`); a shape that fits only one weight; else the position is the name, and the
weights that fit it are told. A name never gets a higher certainty than its evidence has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from optstate.errors import Refused
from optstate.formats.checkpoint import Clue
from optstate.formats.fitting import Position
from optstate.formats.orders import Order, Weight, trained
from optstate.formats.placing import Place, place
from optstate.formats.wrappers import NameIndex, wrapped
from optstate.state.roles import Certainty
from optstate.text import count, listing, safe_text


@dataclass(frozen=True, slots=True)
class Named:
    """What a position is called, how sure that is, and the weight of this name, None where there is none.

    `candidates` are the weights that a position could be where its name is not known.
    """

    name: str
    certainty: Certainty
    weight: Weight | None = None
    candidates: tuple[str, ...] = ()


@dataclass(slots=True)
class Naming:
    """A name for each position, no two alike, and what was seen on the way."""

    names: list[Named]
    clues: list[Clue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def name_positions(
    positions: Sequence[Position],
    weights: Sequence[Weight],
    file: str,
    orders: Sequence[Order] = (),
    certainties: Mapping[str, Certainty] = MappingProxyType({}),
) -> Naming:
    """Name every position; `certainties` are those of names that stand as keys, by optimizer, where that is not `file`.

    Raises `Refused` for a file that gives two parameters one name.
    """
    index = NameIndex(weights)
    matched = [None if position.told is None else index.find(position.told) for position in positions]
    liars = _liars(positions, matched)
    told = {
        number: position.told
        for number, position in enumerate(positions)
        if position.told is not None and position.optimizer not in liars
    }
    claimed = {weight.name for number in told if (weight := matched[number]) is not None}
    untold = [number for number in range(len(positions)) if number not in told]
    free = [weight for weight in trained(weights) if weight.name not in claimed]
    places = dict(zip(untold, place([positions[number] for number in untold], free, orders), strict=True))
    known: dict[int, tuple[str, ...]] = {}
    names = [
        _told(position, matched[number], certainties) if number in told else _found(position, places[number], known)
        for number, position in enumerate(positions)
    ]
    clues = [
        *_clues_on_wrappers(index, weights, [name for name in told.values() if name is not None]),
        *(_clue_on_lies(name, lies) for name, lies in liars.items()),
        *_clues_on_shapes(positions, matched, told),
        *_clues_on_order(names, places),
    ]
    return Naming(_unique(positions, names, file), clues)


def _told(position: Position, weight: Weight | None, certainties: Mapping[str, Certainty]) -> Named:
    if isinstance(position.key, str):
        return Named(position.key, certainties.get(position.optimizer, "file"), weight)
    return Named(str(position.recorded), "recorded", weight)


def _found(position: Position, found: Place | None, known: dict[int, tuple[str, ...]]) -> Named:
    """The name of a placed position. `known` keeps the names of candidates, which positions of one shape share."""
    if found is None:
        return Named(position.place, "position")
    if found.certainty == "position":
        if id(found.weights) not in known:
            known[id(found.weights)] = tuple(weight.name for weight in found.weights)
        return Named(position.place, "position", None, known[id(found.weights)])
    (weight,) = found.weights
    return Named(weight.name, found.certainty, weight)


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


# --- what was seen ----------------------------------------------------------------------------------------


def _liars(positions: Sequence[Position], matched: Sequence[Weight | None]) -> dict[str, list[str]]:
    """Optimizers whose recorded names are those of another order: the shapes of some are those of others among them.

    A name whose shape is that of no other is not taken for a lie: a weight that was resized keeps its name.
    """
    contradicted: dict[str, list[tuple[Position, Weight]]] = {}
    for position, weight in zip(positions, matched, strict=True):
        if weight is not None and isinstance(position.key, int) and _disagree(position, weight):
            contradicted.setdefault(position.optimizer, []).append((position, weight))
    return {
        optimizer: [str(position.recorded) for position, _ in pairs]
        for optimizer, pairs in contradicted.items()
        if Counter(position.shape for position, _ in pairs) == Counter(weight.tensor.shape for _, weight in pairs)
    }


def _disagree(position: Position, weight: Weight) -> bool:
    return not position.guessed and position.shape not in (None, weight.tensor.shape)


def _clue_on_lies(optimizer: str, lies: Sequence[str]) -> Clue:
    label = f"optimizer {safe_text(optimizer, 40)}: " if optimizer else ""
    return Clue(
        "M206",
        f"{label}recorded names (param_names) contradict the shapes of the weights: {listing(lies)}; "
        "they are those of another order, so none of them is used",
    )


def _clues_on_shapes(
    positions: Sequence[Position], matched: Sequence[Weight | None], told: Mapping[int, str | None]
) -> list[Clue]:
    """State whose shape is not that of the weight with its name."""
    off = [
        (str(told[number]), positions[number].shape or (), weight.tensor.shape)
        for number in told
        if (weight := matched[number]) is not None and _disagree(positions[number], weight)
    ]
    if not off:
        return []
    name, shape, expected = off[0]
    flat = all(len(shape) == 1 and len(expected) > 1 for _, shape, expected in off)
    what = "flat state, as one rank of a sharded run saves it," if flat else "state"
    return [
        Clue(
            "M203",
            f"{what} of another shape than the weight has, for {count(len(off), 'parameter')} "
            f"({listing(each for each, _, _ in off)}): {safe_text(name)} has {list(shape)} for a weight of {list(expected)}",
            "save the full state dict, gathered from all ranks" if flat else None,
        )
    ]


def _clues_on_wrappers(index: NameIndex, weights: Sequence[Weight], told: Sequence[str]) -> list[Clue]:
    """Prefixes that wrappers such as DDP and torch.compile put before names."""
    carried = wrapped([*(weight.name for weight in weights), *told])
    evidence = [
        *([f"names carry {listing(carried)}, which wrappers add"] if carried else []),
        *([f"names of the state and of the weights differ by {listing(index.differing)}"] if index.differing else []),
    ]
    return [Clue("M204", "; ".join(evidence))] if evidence else []


def _clues_on_order(names: Sequence[Named], places: Mapping[int, Place | None]) -> list[Clue]:
    """Names that rest on an order alone, and positions that could be one of several weights."""
    resting = [names[number].name for number, found in places.items() if found is not None and found.rests_on]
    told = {found.rests_on for found in places.values() if found is not None and found.rests_on}
    open_ = [named for named in names if named.candidates]
    clues = []
    if resting:
        clues.append(
            Clue(
                "M201",
                f"{count(len(resting), 'name')} of {len(names):,} rest on {listing(sorted(told))} alone "
                f"({listing(resting)}): other parameters have the same shape, so another order would not show",
            )
        )
    if open_:
        first = open_[0]
        clues.append(
            Clue(
                "M201",
                f"{count(len(open_), 'parameter')} of {len(names):,} cannot be told apart by order or shape "
                f"({safe_text(first.name)} is one of {len(first.candidates)}: {listing(first.candidates, 4)})",
            )
        )
    return clues

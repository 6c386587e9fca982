"""The size of the next update before and after an edit of a file, and of a fresh start's: predicted block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite, prod
from typing import Any, NamedTuple

from optstate.optimizers.effect import Effect, updates
from optstate.optimizers.spec import OptimizerSpec, number
from optstate.optimizers.updates import elementwise
from optstate.state.tensors import DTYPES, TensorRef, Value, is_tensor
from optstate.store.offline.edited import widened

ELEMENTS = 512
"""Elements of a parameter that are looked at where a sample will do."""

_WHOLE = 1 << 20
"""Elements of a parameter up to which an update is predicted that depends on all of them."""


class Side(NamedTuple):
    """One parameter's slots and the hyperparameters of its group, as numbers."""

    entry: Mapping[str, Value]
    group: Mapping[str, Any]


def effect(
    name: str,
    spec: OptimizerSpec,
    before: Side,
    after: Side,
    weight: TensorRef | None,
    shape: Sequence[int],
    *,
    sample: bool,
) -> Effect | None:
    """The effect on one parameter; None where it cannot be known. `sample` looks at some of the elements only."""
    if spec.update is None or not prod(shape):
        return None
    if not elementwise(spec) and prod(shape) > _WHOLE:
        return None
    sizes: list[float] = []
    step = max(1, prod(shape) // ELEMENTS) if sample else 1
    entries = (before.entry, after.entry, {} if weight is None else {"weight": weight})
    for old, new, weights in _pieces(entries, tuple(shape), whole=not elementwise(spec), step=step):
        found = _sizes(spec, Side(old, before.group), Side(new, after.group), weights.get("weight"))
        if found is None:
            return None
        sizes = [max(pair, key=_rank) for pair in zip(sizes or found, found, strict=True)]
    return Effect(name, *sizes) if sizes else None


def _rank(size: float) -> float:
    return size if isfinite(size) else inf


def _sizes(spec: OptimizerSpec, before: Side, after: Side, weights: Any) -> list[float] | None:
    import numpy as np

    with np.errstate(all="ignore"):
        found = updates(spec, before.entry, after.entry, (before.group, after.group), weights)
    return None if found is None else [float(np.abs(update).max()) for update in found]


def _pieces(
    entries: Sequence[Mapping[str, Value]], shape: tuple[int, ...], *, whole: bool, step: int
) -> Iterator[list[dict[str, Any]]]:
    """Several entries side by side in float64: the whole parameter, or every `step`th element piece by piece."""
    plain = [{key: value for key, value in entry.items() if _is_one(value)} for entry in entries]
    refs = [
        (side, key, value)
        for side, entry in enumerate(entries)
        for key, value in entry.items()
        if key not in plain[side] and is_tensor(value) and value.dtype in DTYPES and (whole or value.shape == shape)
    ]
    streams = [iter([_wide(value.array())]) if whole else map(_wide, value.blocks()) for _, _, value in refs]
    place = 0
    for blocks in _together(streams):
        picked = blocks if whole else [block[-place % step :: step] for block in blocks]
        place += blocks[0].size
        found = [{key: number(value) for key, value in each.items()} for each in plain]
        for (side, key, _), block in zip(refs, picked, strict=True):
            found[side][key] = block
        if picked[0].size:
            yield found


def _is_one(value: Value) -> bool:
    return isinstance(value, (int, float)) or (is_tensor(value) and value.shape == () and value.dtype in DTYPES)


def _wide(block: Any) -> Any:
    """A block in float64; complex numbers as pairs."""
    import numpy as np

    if block.dtype.kind == "c":
        block = np.ascontiguousarray(block).view(block.real.dtype)
    return widened(block).astype(np.float64)


def _together(streams: Sequence[Iterator[Any]]) -> Iterator[list[Any]]:
    """Blocks of several tensors as lists of one length, however each is cut."""
    blocks: list[Any] = [next(stream, None) for stream in streams]
    while blocks and all(block is not None for block in blocks):
        length = min(len(block) for block in blocks)
        yield [block[:length] for block in blocks]
        blocks = [
            block[length:] if length < len(block) else next(stream, None)
            for block, stream in zip(blocks, streams, strict=True)
        ]

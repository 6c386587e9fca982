"""Renames found by content: tensors of the model that hold what was saved under another name, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import zip_longest
from math import prod
from typing import TypeVar

import numpy as np
import torch
import xxhash

from optstate.errors import ReadError
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.live.tensors import HeldTensor
from optstate.state.tensors import DTYPES, TensorRef
from optstate.store import own_body, tensors

_Told = TypeVar("_Told")


def same_content(live: Mapping[str, torch.Tensor], saved: Mapping[str, TensorRef]) -> dict[str, str]:
    """Live name → saved name, for those tensors that hold the same bytes and are alone on both sides in that.

    Empty tensors and constant ones say nothing. What cannot be told apart by type, shape and a few values is read whole;
    what cannot be read is nobody's twin.
    """
    mine = {name: HeldTensor(tensor.detach()) for name, tensor in live.items() if _has_values(tensor)}
    live_alike = _groups({name: (ref.dtype, ref.shape) for name, ref in mine.items()})
    saved_alike = _groups({name: (ref.dtype, ref.shape) for name, ref in saved.items() if ref.dtype in DTYPES})
    found: dict[str, str] = {}
    for kind in live_alike.keys() & saved_alike.keys():
        some = _groups({name: tensors.fingerprint(mine[name].tensor) for name in live_alike[kind]})
        others = _groups({name: _read(saved_fingerprint, saved[name]) for name in saved_alike[kind]})
        for each in some.keys() & others.keys():
            found |= _unique({name: mine[name] for name in some[each]}, {name: saved[name] for name in others[each]})
    return {name: found[name] for name in live if name in found}


def _has_values(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.numel() > 1


def saved_fingerprint(ref: TensorRef) -> str:
    """A few values of a saved weight, as the manifest has them or as the file does; as `store.tensors.fingerprint`."""
    if isinstance(ref, OwnTensor) and ref.weight is not None:
        return ref.weight.fingerprint
    return own_body.fingerprint(ref)


def same_bytes(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors are of one type and shape and hold the same bytes, read block by block."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    blocks = zip_longest(one.blocks(), other.blocks())
    return all(a is not None and b is not None and a.tobytes() == b.tobytes() for a, b in blocks)


def _unique(live: Mapping[str, TensorRef], saved: Mapping[str, TensorRef]) -> dict[str, str]:
    """The pairs among tensors that share type, shape and a few values."""
    mine = _groups({name: _digest(ref) for name, ref in live.items()})
    theirs = _groups({name: _read(_digest, ref) for name, ref in saved.items()})
    alone = [
        (mine[digest][0], theirs[digest][0])
        for digest in mine.keys() & theirs.keys()
        if digest is not None and len(mine[digest]) == len(theirs[digest]) == 1
    ]
    return {name: twin for name, twin in alone if same_bytes(live[name], saved[twin])}


def _read(what: Callable[[TensorRef], _Told], ref: TensorRef) -> _Told | None:
    """What is read of a saved tensor; None where it is damaged."""
    try:
        return what(ref)
    except ReadError:
        return None


def _digest(ref: TensorRef) -> bytes | None:
    """What tells the bytes of a tensor from others; None where all its elements are the same."""
    digest, first, constant = xxhash.xxh3_128(), b"", True
    width = DTYPES[ref.dtype][0]
    for block in ref.blocks():
        raw = np.ascontiguousarray(block).view(np.uint8)
        first = first or raw[:width].tobytes()
        constant = constant and bool((raw.reshape(-1, width) == np.frombuffer(first, np.uint8)).all())
        digest.update(raw.data)
    return None if constant or not prod(ref.shape) else digest.digest()


def _groups(keys: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    """The names that share a key."""
    groups: dict[Hashable, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return groups

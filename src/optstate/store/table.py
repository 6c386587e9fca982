"""What a checkpoint will store, under keys that no two tensors share."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import get_args

from optstate.formats.containers.safetensors_header import METADATA
from optstate.formats.containers.stored_tensor import row_major
from optstate.formats.ours.manifest import Family, join_key
from optstate.formats.ours.own_tensors import is_dense
from optstate.store.writer import Payload

_RESERVED = {f"{family}/{METADATA}" for family in get_args(Family)}


class PayloadTable:
    """The tensors of a checkpoint that is being collected, by key."""

    def __init__(self) -> None:
        self.payloads: dict[str, Payload] = {}

    def free_key(self, family: Family, parts: Iterable[object]) -> str:
        """A key that is not taken. A weight keeps its name, so that other readers find it; others are made of their parts."""
        name = str(next(iter(parts))) if family == "weights" else join_key(map(str, parts))
        key = f"{family}/{name}"
        if not key.isascii():  # text that is no Unicode has no place in a header
            key = key.encode("utf-8", "backslashreplace").decode()
        first, number = key, 1
        while key in self.payloads or key in _RESERVED:  # a dict may have the keys 1 and "1"
            number += 1
            key = f"{first}~{number}"
        return key


@lru_cache(maxsize=4096)
def kept_stride(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides that a restore has to give back: those of a permuted layout; any other becomes row-major."""
    permuted = stride != row_major(shape) and 0 not in shape and is_dense(shape, stride)
    return stride if permuted else None

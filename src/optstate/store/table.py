"""What every manifest is made with: keys that no two tensors share, names that a file can hold, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from optstate.errors import Unsaveable
from optstate.formats.containers.safetensors_header import METADATA
from optstate.formats.containers.stored_tensor import row_major
from optstate.formats.ours.manifest import Environment, Family, join_key
from optstate.formats.ours.own_tensors import is_dense
from optstate.store.writer import Payload
from optstate.text import safe_text

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


def environment(torch: str) -> Environment:
    """The versions that a checkpoint is written with; `torch` is what it says of torch."""
    try:
        own = version("optstate")
    except PackageNotFoundError:  # run from a source tree
        own = "unknown"
    return Environment(platform.python_version(), torch, own, f"{platform.system()} {platform.machine()}")


def name_in_file(name: Any) -> str:
    """A name that JSON can hold. Raises `Unsaveable` for any other, and for what is no text."""
    try:
        if isinstance(name, str) and (name.isascii() or name.encode()):
            return name
    except UnicodeEncodeError:
        pass
    raise Unsaveable(
        f"{safe_text(name)!r} cannot be a name in a checkpoint",
        expected="text of valid Unicode",
        found=f"a {type(name).__name__}",
    )

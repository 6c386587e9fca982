"""What torch makes of a file, held against what this reader makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from optstate.errors import OptstateError
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.safetensors_file import read_safetensors
from optstate.formats.containers.sniff import HEAD, SAFETENSORS, container_of
from optstate.state.tensors import is_tensor


def assert_same_as_torch(path: Path) -> bool:
    """Whether torch accepts the file; raises `AssertionError` where it then sees other tensors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, loaded = _ours(path), _torch(path)
    except OptstateError:
        return False
    except Exception:  # noqa: BLE001 - torch refuses in many ways
        return False
    for mine, true in _pairs(found, loaded):
        assert (mine.dtype, mine.shape) == (str(true.dtype).removeprefix("torch."), tuple(true.shape))
        try:
            values = mine.array()
        except OptstateError:
            continue  # a checksum that torch does not look at
        flat = torch.empty(true.numel(), dtype=true.dtype).copy_(true.detach().reshape(-1))
        assert np.ascontiguousarray(values).tobytes() == bytes(flat.view(torch.uint8).numpy()), (
            "other values than torch"
        )
    return True


def _ours(path: Path) -> Any:
    source = open_regular(path)
    if container_of(source.read(0, min(HEAD, source.size))) == SAFETENSORS:
        return dict(sorted(read_safetensors(source).tensors.items()))
    return read_any_pickle(source).root


def _torch(path: Path) -> Any:
    raw = path.read_bytes()
    if container_of(raw[:HEAD]) == SAFETENSORS:
        return dict(sorted(safetensors.torch.load(raw).items()))
    return torch.load(path, weights_only=True, map_location="cpu")


def _pairs(found: Any, loaded: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """The tensors that stand in the same place of two trees."""
    if isinstance(loaded, torch.Tensor):
        if is_tensor(found):
            yield found, loaded
    elif isinstance(loaded, dict) and type(found) is dict:
        assert list(map(_plain, found)) == list(map(_plain, loaded)), "other keys than torch"
        for mine, true in zip(found.values(), loaded.values(), strict=True):
            yield from _pairs(mine, true)
    elif isinstance(loaded, (list, tuple)) and type(found) in (list, tuple):
        assert len(found) == len(loaded), "another length than torch"
        for mine, true in zip(found, loaded, strict=True):
            yield from _pairs(mine, true)


def _plain(key: object) -> object:
    """A key that means the same to both; a tensor, say, is a key by its identity."""
    return key if type(key) in (str, int, bytes, bool) else None

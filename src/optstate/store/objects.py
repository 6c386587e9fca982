"""Objects beside model and optimizer: whatever has a `state_dict`, what modules keep besides, and random state."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optstate.errors import RestoreError, Unsaveable
from optstate.formats.ours.manifest import ObjectEntry
from optstate.formats.ours.tree import encode
from optstate.live.beside import Beside
from optstate.live.source import LiveSource
from optstate.live.weights import modules_with_extra_state
from optstate.optimizers.registry import qualified_name
from optstate.store.tensors import TensorTable
from optstate.text import count, listing, safe_text

RNG = "rng"
"""The object that holds the random state."""

MODEL = "model"
"""The object that holds what modules give as extra state, by the name that it has in the model's state dict."""

OPTIMIZER = "optimizer"
"""The object that holds what optimizers keep beside the state of parameters."""

RESERVED = frozenset({"source", "policy", "keep", "every"})
"""Names that no object can have, because restoring means something else by them."""


class RandomState:
    """The random state of this process: python, numpy's global generator, torch on the CPU and on CUDA devices.

    CUDA devices are part of it once CUDA is initialised. Reading it draws nothing. A `Generator` object of
    your own is no part of it: give it a `state_dict` and save it by name.
    """

    def state_dict(self) -> dict[str, Any]:
        """`python`, `numpy`, `torch`, and `cuda` with one tensor per device."""
        import numpy as np

        state: dict[str, Any] = {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises `RestoreError` when it is of more CUDA devices than are here."""
        import numpy as np

        saved, here = len(state.get("cuda", ())), torch.cuda.device_count()
        if saved > here:
            raise RestoreError(
                "the random state of a CUDA device has no device to go to",
                expected=count(saved, "CUDA device"),
                found=count(here, "CUDA device"),
                todo="restore with rng=False, and seed anew",
            )
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if saved:
            torch.cuda.set_rng_state_all(state["cuda"])


def encode_objects(objects: Mapping[str, Any], table: TensorTable) -> dict[str, ObjectEntry]:
    """The entries of objects by name, their tensors in the table. Raises `Unsaveable`."""
    taken = sorted(RESERVED & set(objects))
    if taken:
        raise Unsaveable(f"an object cannot be named {listing(taken)}", todo="give it another name")
    return {name: _encode_object(name, item, table) for name, item in objects.items()}


def _encode_object(name: str, item: Any, table: TensorTable) -> ObjectEntry:
    if not callable(getattr(item, "state_dict", None)) or not callable(getattr(item, "load_state_dict", None)):
        raise Unsaveable(
            f"{safe_text(name)} cannot be saved",
            expected="an object with state_dict and load_state_dict",
            found=f"a {safe_text(qualified_name(type(item)))}",
            todo="leave it out" if item is None else "give it these two methods, or leave it out",
        )
    return ObjectEntry(qualified_name(type(item)), encode(item.state_dict(), (name,), table.leaf("objects")))


def encode_beside(source: LiveSource, table: TensorTable) -> dict[str, ObjectEntry]:
    """What optimizers keep beside the state of parameters, as one object; nothing when there is none."""
    beside = Beside(source)
    return {OPTIMIZER: _encode_object(OPTIMIZER, beside, table)} if beside.state_dict() else {}


def encode_extra_state(model: nn.Module, table: TensorTable) -> dict[str, ObjectEntry]:
    """What the modules of a model keep besides tensors, as one object; nothing when there is none."""
    extra = {name: module.get_extra_state() for name, module in modules_with_extra_state(model).items()}
    if not extra:
        return {}
    return {MODEL: ObjectEntry(qualified_name(type(model)), encode(extra, (MODEL,), table.leaf("objects")))}

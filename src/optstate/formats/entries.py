"""The entry of a parameter as libraries write it, and as the optimizer itself has it: slots that are told by their keys.

bitsandbytes keeps a quantised slot in three keys, and hides what is quantised one level deeper from FSDP.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from optstate.formats.containers.quantised import Blockwise
from optstate.state.tensors import is_tensor

_HIDDEN = "__bnb_optimizer_quant_state__"
PARTS = {f"state{part}": (f"absmax{part}", f"qmap{part}") for part in (1, 2)}
"""Slots that may be in codes, and the keys of their scales and their map."""

BLOCK = 256
"""Elements that share a scale in every version of bitsandbytes."""


def entry_of(node: object) -> Mapping[str, Any]:
    """The slots of a parameter; what is no dict, and keys that are no text, are no slots."""
    if type(node) is not dict:
        return {}
    entry = _by_text(node)
    hidden = entry.get(_HIDDEN)
    if type(hidden) is dict:
        entry = {key: each for part in (entry, _by_text(hidden)) for key, each in part.items() if key != _HIDDEN}
    if "qmap1" in entry or "qmap2" in entry:
        return {key: _decoded(entry, key, value) for key, value in entry.items()}
    return entry


def _by_text(node: dict[Any, Any]) -> Mapping[str, Any]:
    return node if all(type(key) is str for key in node) else {key: node[key] for key in node if type(key) is str}


def _decoded(entry: Mapping[str, Any], key: str, value: Any) -> Any:
    """A slot of codes together with its scales and its map; what does not fit together stays as it is."""
    scale, qmap = (entry.get(beside) for beside in PARTS.get(key, ("", "")))
    if is_tensor(value) and is_tensor(scale) and is_tensor(qmap):
        with suppress(ValueError):
            return Blockwise(value, scale, qmap, value.shape, BLOCK)
    return value

"""Adapters of PEFT: what their parameters are called in a file, and in the model while it trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optstate.formats.layouts.hf_orders import CONTAINERS

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"

WRAPPER = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""

_CONTAINERS = frozenset(name for each in CONTAINERS for name in each)
_PROMPT = "prompt_embeddings"


def live_name(name: str, saved: Collection[str] = (), adapter: str = "default") -> str:
    """What the model calls a parameter that a file of PEFT calls `name`.

    `saved` are the modules that are trained as a whole (`modules_to_save`), `adapter` the name of the adapter.

    >>> live_name("base_model.model.h.0.q_proj.lora_A.weight")
    'base_model.model.h.0.q_proj.lora_A.default.weight'
    """
    if name == _PROMPT:
        return f"prompt_encoder.{adapter}.embedding.weight"
    parts = name.split(".")
    for number, part in enumerate(parts):
        if part in _CONTAINERS:
            tail = parts[number + 1 :] or (["weight"] if part == "lora_magnitude_vector" else [])
            return ".".join([*parts[: number + 1], adapter, *tail])
    for number in range(len(parts) - 1, 0, -1):
        if any(part == parts[number - 1] or _ends(parts[:number], part) for part in saved):
            return ".".join([*parts[:number], "modules_to_save", adapter, *parts[number:]])
    return name


def _ends(path: Sequence[str], name: str) -> bool:
    return ".".join(path).endswith(f".{name}")

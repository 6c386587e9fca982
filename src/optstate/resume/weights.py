"""Weights: a decision for each tensor of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from optstate.live.tensors import HeldTensor, dtype_name
from optstate.live.weights import Weight
from optstate.resume.content import same_bytes, saved_fingerprint
from optstate.resume.decided import Decided
from optstate.resume.decisions import Fate, WeightDecision
from optstate.resume.fates import both
from optstate.resume.materialise import materialise
from optstate.resume.names import AS_SAVED, EXCLUDED, Matched, Sentences, name_faults
from optstate.resume.policy import Policy
from optstate.resume.reshaping import between, cast_to, castable, resized_weight
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.tensors import TensorRef
from optstate.store.tensors import fingerprint
from optstate.text import count, listing, safe_text

_LEFT = Fate("left out", "the policy leaves the weights as they are")
_SENTENCES = Sentences(
    "{} of the model that the checkpoint lacks",
    "{} in the checkpoint that the model lacks",
    "are one tensor in the checkpoint ({})",
    "are one tensor live and differ in the checkpoint",
)
_NOT_SAVED = Fate("fresh", "not in the checkpoint: it keeps its value")


def decide_weights(
    found: Decided, saved: Saved, live: Mapping[str, Weight], names: Matched, policy: Policy
) -> set[str]:
    """Decide for every tensor of the model; returns the names of those that are faults."""
    refused: set[str] = set()
    weights = saved.weights or {}
    if policy.weights == "leave":
        found.weights.extend(WeightDecision(name, *_LEFT) for name in live)
        found.left_out.append(f"weights ({count(len(weights), 'tensor')})")
        return refused
    found.faults.extend(
        name_faults(names, policy, "tensor", _SENTENCES, lambda one, other: same(weights[one], weights[other]))
    )
    found.left_out.extend(f"weight {safe_text(name)}" for name in _unused(names, policy))
    others = {**dict.fromkeys(names.missing, _NOT_SAVED), **dict.fromkeys(names.excluded, EXCLUDED)}
    for name, weight in live.items():
        if name in others:
            found.weights.append(WeightDecision(name, *others[name]))
        elif name in names.pairs:
            source = names.pairs[name]
            decided = _decide(weight, weights[source], source, names.fate(name), policy)
            if isinstance(decided, str):
                found.faults.append(f"{safe_text(name)}: {decided}")
                refused.add(name)
            else:
                found.weights.append(decided)
    if policy.weights == "loaded":
        _check_loaded(found, live)
    return refused


def merged(decision: WeightDecision, live: torch.Tensor) -> torch.Tensor:
    """The value that a weight will have: read, and in new memory, or the live tensor where that stays."""
    if decision.saved is None:
        return live.detach()
    tensor: torch.Tensor = materialise(decision.saved)
    return tensor if decision.transform is None else decision.transform(tensor, live)


def _unused(names: Matched, policy: Policy) -> list[str]:
    """What the checkpoint has and nobody takes, where the policy allows that."""
    if policy.unexpected == "error":
        return []
    return [*names.unexpected, *(hit for hits in names.tied.values() for hit in hits[1:])]


def _decide(weight: Weight, saved: TensorRef, source: str, fate: Fate, policy: Policy) -> WeightDecision | str:
    """The decision for a weight that was saved, or why there is none."""
    if is_lazy(weight.tensor):
        return "it has no shape yet: let the model see a first batch, then plan"
    steps: list[Callable[[Any, Any], Any]] = []
    shape, dtype = tuple(weight.tensor.shape), dtype_name(weight.tensor)
    if saved.shape != shape:
        if policy.shape == "fresh":
            return WeightDecision(weight.name, "fresh", f"{between(saved.shape, shape)}: it keeps its value")
        made = resized_weight(weight.name, saved.shape, shape, policy)
        if isinstance(made, str):
            return made
        fate = both(fate, made[0])
        steps.append(made[1])
    if saved.dtype != dtype:
        if policy.dtype == "saved" or not castable(saved.dtype, dtype):
            way = '; dtype="param" casts it' if castable(saved.dtype, dtype) else ""
            return f"{saved.dtype} in the checkpoint, {dtype} in the model{way}"
        fate = both(fate, Fate("cast", f"{saved.dtype} → {dtype}"))
        cast = cast_to(dtype)
        steps.insert(0, lambda tensor, _: cast(tensor))
    return WeightDecision(weight.name, *fate, source, saved, _after_another(steps) if steps else None)


def _after_another(steps: list[Callable[[Any, Any], Any]]) -> Callable[[Any, Any], Any]:
    def every(tensor: Any, live: Any) -> Any:
        for step in steps:
            tensor = step(tensor, live)
        return tensor

    return every


# --- weights that are there already ----------------------------------------------------------------------------


def _check_loaded(found: Decided, live: Mapping[str, Weight]) -> None:
    """Each live weight must be what its decision would make it: then nothing needs to be read or written."""
    due = [item for item in found.weights if item.saved is not None]
    different = [item.name for item in due if _seems_different(item, live[item.name].tensor)] or [
        item.name for item in due if not _is_there(item, live[item.name].tensor)
    ]
    if different:
        those = "weight is not that" if len(different) == 1 else "weights are not those"
        found.faults.append(
            f"{len(different):,} {those} of the checkpoint, to which its momentum belongs, although the policy says "
            f'weights="loaded": {listing(different)}'
        )
    found.weights[:] = [
        item if item.saved is None else WeightDecision(item.name, *_there(item), item.source) for item in found.weights
    ]


def _there(item: WeightDecision) -> Fate:
    fate = Fate(item.decision, item.reason)
    return Fate("exact", "there already") if fate == AS_SAVED else Fate(fate.decision, f"{fate.reason}; there already")


def _seems_different(item: WeightDecision, live: torch.Tensor) -> bool:
    """Whether a few values tell already that a weight is another one."""
    if live.device.type == "meta":
        return True
    if item.saved is None or item.transform is not None or live.layout != torch.strided:
        return False
    return fingerprint(live) != saved_fingerprint(item.saved)


def _is_there(item: WeightDecision, live: torch.Tensor) -> bool:
    if item.saved is None:
        return True
    due = item.saved if item.transform is None else HeldTensor(merged(item, live))
    return same_bytes(due, HeldTensor(live.detach()))

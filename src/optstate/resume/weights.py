"""Weights: a decision for each tensor of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from optstate.live.tensors import dtype_name
from optstate.live.weights import Weight
from optstate.resume.decided import Decided
from optstate.resume.decisions import WeightDecision
from optstate.resume.names import Matched, aliases_of, match
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.tensors import TensorRef
from optstate.text import count, listing, safe_text


def decide_weights(found: Decided, saved: Saved, live: Mapping[str, Weight], policy: Policy) -> Matched:
    """Decide for every tensor of the model; returns how the names go together."""
    weights = saved.weights or {}
    names = match({name: weight.aliases for name, weight in live.items()}, aliases_of(weights, saved.aliases), policy)
    found.faults.extend(_name_faults(names, weights))
    for name, saved_name in names.pairs.items():
        fault = _mismatch(live[name].tensor, weights[saved_name])
        if fault:
            found.faults.append(f"{safe_text(name)}: {fault}")
        else:
            found.weights.append(WeightDecision(name, *names.fate(name), saved_name, weights[saved_name]))
    return names


def _name_faults(names: Matched, weights: Mapping[str, TensorRef]) -> Iterator[str]:
    if names.missing:
        yield f"{count(len(names.missing), 'tensor')} of the model that the checkpoint lacks: {listing(names.missing)}"
    if names.unexpected:
        yield (
            f"{count(len(names.unexpected), 'weight')} in the checkpoint that the model lacks: "
            f"{listing(names.unexpected)}"
        )
    yield from names.faults
    for hits in names.tied.values():
        if not all(same(weights[hits[0]], weights[hit]) for hit in hits[1:]):
            yield f"{listing(hits)} are one tensor live and differ in the checkpoint"


def _mismatch(live: torch.Tensor, saved: TensorRef) -> str | None:
    if tuple(live.shape) != saved.shape:
        return f"shape {list(saved.shape)} in the checkpoint, {list(live.shape)} in the model"
    if dtype_name(live) != saved.dtype:
        return f"{saved.dtype} in the checkpoint, {dtype_name(live)} in the model"
    return None

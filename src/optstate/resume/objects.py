"""Objects: schedulers, loaders and whatever else has a state of its own; what becomes of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from optstate.live.source import LiveSource
from optstate.live.unwrap import unwrap_optimizer
from optstate.optimizers.registry import qualified_name
from optstate.resume.decided import Decided
from optstate.resume.decisions import HyperparameterDecision, ObjectDecision, missing
from optstate.resume.groups import Grouping
from optstate.resume.policy import Policy
from optstate.resume.source import Saved
from optstate.state.table import format_value
from optstate.store.objects import MODEL, RNG
from optstate.text import listing, safe_text


def decide_objects(
    found: Decided,
    saved: Saved,
    objects: Mapping[str, Any],
    live: LiveSource | None,
    grouping: Grouping,
    policy: Policy,
) -> None:
    """Decide for every object that was passed, and for those that drive an optimizer look at what they drive."""
    del policy  # which of them stay
    for name, item in objects.items():
        if name not in saved.objects:
            found.faults.append(
                f"{safe_text(name)}: not among the objects of the checkpoint ({listing(saved.objects) or 'none'})"
            )
            continue
        expected, mine = saved.object_classes.get(name), qualified_name(type(item))
        if expected is not None and expected != mine and name not in (RNG, MODEL):
            found.faults.append(f"{safe_text(name)}: a {safe_text(expected)} in the checkpoint, a {mine} live")
            continue
        found.objects.append(ObjectDecision(name, mine, saved.objects[name], _reversible(item)))
    left = [name for name in saved.objects if name not in objects]
    if left:
        found.left_out.append(f"objects {listing(left)}")
    _explain_hyperparameters(found, _compare_drivers(found, objects, live, grouping))


def _reversible(item: Any) -> bool:
    """Whether the object's present state can be kept aside, so that it can be put back."""
    try:
        copy.deepcopy(item.state_dict())
    except Exception:  # noqa: BLE001  # whatever a foreign object raises, the answer is no
        return False
    return True


def _compare_drivers(
    found: Decided, objects: Mapping[str, Any], live: LiveSource | None, grouping: Grouping
) -> set[str]:
    """Check every object that drives an optimizer, as schedulers do; returns the live optimizers that are driven."""
    optimizers = {} if live is None else live.live_optimizers
    driven = set()
    for name, item in objects.items():
        target = getattr(item, "optimizer", None)
        if not isinstance(target, torch.optim.Optimizer) or not optimizers:
            continue
        names = [key for key, optimizer in optimizers.items() if optimizer is unwrap_optimizer(target)]
        driven.update(names)
        if not names:
            found.warnings.append(
                f"M407 {safe_text(name)} drives another optimizer than the one restored: build it again on this one"
            )
        if grouping.regrouped.intersection(names):
            found.faults.append(
                f"{safe_text(name)} keeps one value per group by position, and the groups come in another order or "
                "number than in the checkpoint"
            )
    return driven


def _explain_hyperparameters(found: Decided, driven: set[str]) -> None:
    """A changed value that no restored scheduler accounts for deserves a warning (M401)."""
    for item in found.hyperparameters:
        if item.changes and item.live is not missing and item.optimizer not in driven:
            found.warnings.append(
                f"M401 group {group_label(item)}: {safe_text(item.key)} becomes {format_value(item.saved)} (your program set "
                f"{format_value(item.live)}) and no restored scheduler explains it; to keep yours, set it after the restore"
            )


def group_label(item: HyperparameterDecision) -> str:
    """The live group of a decision: its number, after the optimizer's name where there are several."""
    return f"{safe_text(item.optimizer)}:{item.group}" if item.optimizer else str(item.group)

"""A plan for programs: the document `optstate.plan/1`, see docs/schema."""

from __future__ import annotations

from collections import Counter
from typing import Any

from optstate.resume.decided import Decided
from optstate.resume.decisions import EntryDecision, HyperparameterDecision, missing
from optstate.state.plain import plain

SCHEMA = "optstate.plan/1"


def document(plan: Decided) -> dict[str, Any]:
    """All that a plan decides, in JSON's own types."""
    return {
        "schema": SCHEMA,
        "source": plan.source,
        "step": plan.step,
        "exact": plan.exact,
        "applicable": not plan.faults,
        "counts": {
            "weights": dict(Counter(item.decision for item in plan.weights)),
            "slots": dict(Counter(fate.decision for item in plan.entries for fate in item.fates.values())),
            "without_slots": dict(Counter(item.fate.decision for item in plan.entries if not item.fates)),
            "hyperparameters": dict(Counter(item.winner for item in plan.hyperparameters if not item.same)),
        },
        "weights": [
            {"name": item.name, "decision": item.decision, "reason": item.reason, "source": item.source}
            for item in plan.weights
        ],
        "entries": [_entry(item) for item in plan.entries],
        "hyperparameters": [_hyperparameter(item) for item in plan.hyperparameters],
        "objects": [
            {"name": item.name, "class": item.class_name, "reversible": item.reversible} for item in plan.objects
        ],
        "faults": list(plan.faults),
        "warnings": list(plan.warnings),
        "left_out": list(plan.left_out),
        "notes": list(plan.notes),
    }


def _entry(item: EntryDecision) -> dict[str, Any]:
    return {
        "parameter": item.parameter,
        "source": item.source,
        "decision": item.fate.decision,
        "reason": item.fate.reason,
        "slots": [{"key": key, "decision": fate.decision, "reason": fate.reason} for key, fate in item.fates.items()],
    }


def _hyperparameter(item: HyperparameterDecision) -> dict[str, Any]:
    """A side that does not have the key has no field here."""
    values = {"live": item.live, "saved": item.saved, "value": item.value}
    return {
        "optimizer": item.optimizer,
        "group": item.group,
        "key": item.key,
        **{side: plain(value) for side, value in values.items() if value is not missing},
        "winner": item.winner,
        "same": item.same,
        "reason": item.reason,
    }

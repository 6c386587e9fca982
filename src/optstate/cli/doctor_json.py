"""What `optstate doctor --json` and `optstate explain --json` print for programs, see docs/schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from optstate.doctor.catalogue.code import SEVERITIES, Code
from optstate.doctor.diagnosis import Diagnosis
from optstate.doctor.finding import Finding
from optstate.doctor.page import link
from optstate.formats.checkpoint import Checkpoint
from optstate.text import safe_text

SCHEMA = "optstate.doctor/1"
EXPLAIN = "optstate.explain/1"


def doctor_document(diagnosis: Diagnosis, checkpoint: Checkpoint, other: Checkpoint | None) -> dict[str, Any]:
    """A diagnosis in JSON's own types."""
    number = Counter(finding.about.severity for finding in diagnosis.findings)
    return {
        "schema": SCHEMA,
        "path": safe_text(checkpoint.path),
        "against": None if other is None else safe_text(other.path),
        "format": checkpoint.format,
        "step": checkpoint.step,
        "optimizers": [info.class_name for info in checkpoint.state.optimizers.values()],
        "parameters": len(checkpoint.state),
        "ok": diagnosis.ok,
        "counts": {severity: number[severity] for severity in SEVERITIES},
        "findings": [_finding(finding) for finding in diagnosis.findings],
        "checked": list(diagnosis.checked),
        "uninspected": list(diagnosis.uninspected),
        "left_out": list(diagnosis.left_out),
        "notes": list(diagnosis.notes),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    about = finding.about
    return {
        "code": finding.code,
        "name": about.name,
        "severity": about.severity,
        "title": about.title,
        "where": finding.where,
        "evidence": finding.evidence,
        "parameters": list(finding.parameters),
        "cause": about.cause,
        "effect": about.effect,
        "fix": finding.todo,
    }


def explain_document(codes: Iterable[Code]) -> dict[str, Any]:
    """Codes in JSON's own types."""
    return {
        "schema": EXPLAIN,
        "codes": [
            {
                "code": code.code,
                "name": code.name,
                "severity": code.severity,
                "title": code.title,
                "seen_in": list(code.shown_by),
                "torch": code.torch,
                "cause": code.cause,
                "effect": code.effect,
                "fix": code.fix,
                "threads": list(map(link, code.threads)),
            }
            for code in codes
        ],
    }

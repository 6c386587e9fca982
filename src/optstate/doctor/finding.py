"""A finding: one diagnosis with a stable code, and what was seen in this case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnosis. What holds for every case of its code (title, cause, effect) is in the catalogue.

    code
        Such as `M101`; never reused.
    evidence
        What was seen here, in one sentence with names and numbers, safe to print.
    parameters
        The parameters concerned, all of them; empty where it is not about single ones.
    where
        The file, optimizer or group it is about, safe to print; "" where there is only one.
    fix
        What to do in this very case, to be pasted where possible; None where the code's own advice holds.
    """

    code: str
    evidence: str
    parameters: tuple[str, ...] = ()
    where: str = ""
    fix: str | None = None

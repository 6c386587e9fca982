"""A finding: one diagnosis with a stable code, and what was seen in this case."""

from __future__ import annotations

from dataclasses import dataclass

from optstate.doctor.catalogue.code import SEVERITIES, Code
from optstate.doctor.catalogue.codes import CODES


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnosis. What holds for every case of its code (title, cause, effect) is in `about`.

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

    >>> finding = optstate.Finding("M101", "0 of 4 parameters have state")
    >>> finding.about.severity, finding.about.name
    ('error', 'never-saved')
    """

    code: str
    evidence: str
    parameters: tuple[str, ...] = ()
    where: str = ""
    fix: str | None = None

    @property
    def about(self) -> Code:
        """What is known of the code."""
        return CODES[self.code]

    @property
    def todo(self) -> str:
        """What to do: here, or in general."""
        return self.fix or self.about.fix

    @property
    def rank(self) -> tuple[int, str]:
        """What findings are sorted by: the gravest first, then by code."""
        return SEVERITIES.index(self.about.severity), self.code

"""What a diagnosis says: what was found, what was checked, and what could not be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from optstate.doctor.catalogue.code import SEVERITIES, Severity
from optstate.doctor.finding import Finding
from optstate.doctor.page import WIDTH, bullet, counted, finding_lines


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Every finding, the gravest first, and how far the diagnosis went. Iterates over its findings.

    subject, summary
        What was diagnosed, and what it is, safe to print.
    checked
        What was looked at as a whole and where nothing was found, in a word or two each.
    uninspected
        What could not be looked at, each with the reason. While there is any, nothing is called clean.
    left_out
        What was not looked at because nobody asked for it.
    notes
        What the readers of the files have to say, such as what has no checksum.

    >>> diagnosis = optstate.diagnose(checkpoint)
    >>> [finding.code for finding in diagnosis], diagnosis.ok
    ([], True)
    """

    subject: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    uninspected: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    summary: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything was looked at and no error or warning was found."""
        return not (self.uninspected or self.left_out or self.reaching("warning"))

    def reaching(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are at least as grave as `severity`."""
        grave = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(finding for finding in self.findings if finding.about.severity in grave)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def verdict(self) -> str:
        """How many findings there are, and what it is worth that there are no more."""
        found = counted(self.findings)
        if self.uninspected:
            return f"{found}; not clean: a part was not inspected"
        if self.left_out:
            return f"{found}; no verdict on what was left out"
        return f"{found}; clean" if self.ok else found

    def text(self, width: int | None = None) -> str:
        """The whole diagnosis for people: what was diagnosed, each finding, what was checked and what was not."""
        columns = min(width or WIDTH, WIDTH)
        by_code = groupby(self.findings, key=lambda finding: finding.code)
        end = [
            *(bullet("✓", " · ".join(self.checked), columns) if self.checked else []),
            *(line for part in _some(self.uninspected) for line in bullet("?", f"not inspected: {part}", columns)),
            *(line for part in self.left_out for line in bullet("?", f"left out: {part}", columns)),
            *(line for note in self.notes for line in bullet("note:", note, columns)),
            self.verdict,
        ]
        parts = [
            [self.subject, *([self.summary] if self.summary else [])],
            *(list(finding_lines(list(same), columns)) for _, same in by_code),
            end,
        ]
        return "\n\n".join("\n".join(lines) for lines in parts)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"


SHOWN = 10
"""Parts that could not be inspected which a text names; the object and JSON have them all."""


def _some(parts: Sequence[str]) -> list[str]:
    more = len(parts) - SHOWN
    return [*parts[:SHOWN], *([f"{more:,} more"] if more > 0 else [])]

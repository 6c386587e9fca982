"""How a diagnosis and a code read: plain text, with a mark and a word for each severity, so that colour is never needed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from optstate.doctor.catalogue.code import SEVERITIES, Code
from optstate.doctor.finding import Finding
from optstate.text import count, safe_text

MARKS = {"error": "✗", "warning": "!", "info": "i"}
WIDTH = 110
_LABEL = 12

SAID = {
    "silent": "nothing",
    "late": "nothing at first; a later step raises",
    "raises": "an error at once, which names no parameter",
    "warns": "a general warning",
}
"""What a library says, in words."""

SEEN_IN = {
    "file": "a checkpoint",
    "two files": "two checkpoints of one run",
    "live": "a running optimizer",
    "file and live": "a checkpoint and the program that would load it",
    "library": "the act itself alone: nothing afterwards shows it",
}
"""What a code can be seen in, in words."""


def finding_lines(same: Sequence[Finding], width: int) -> Iterator[str]:
    """All findings of one code. What is right is explained in two lines; what is wrong has cause, effect and fix."""
    about = same[0].about
    yield f"{MARKS[about.severity]} {about.code} {about.name}  {about.title}"
    for finding in same:
        where = f"{finding.where}: " if finding.where else ""
        yield from _row("evidence", where + finding.evidence, width)
    if about.severity == "info":
        yield from _row("because", about.cause, width)
        return
    yield from _row("cause", about.cause, width)
    yield from _row("effect", about.effect, width)
    for todo in dict.fromkeys(finding.todo for finding in same):
        yield from _row("fix", todo, width)


def _row(label: str, text: str, width: int) -> Iterator[str]:
    """A labelled paragraph; lines that are indented already, such as code, are kept as they are."""
    margin = " " * (_LABEL + 4)
    head = f"    {label:<{_LABEL}}"
    for line in text.split("\n"):
        if line.startswith("    "):
            yield head.rstrip() + line if head.strip() else margin + line
        else:
            yield from textwrap.wrap(line, width, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False)
        head = margin


def bullet(mark: str, text: str, width: int) -> list[str]:
    """A paragraph behind a mark."""
    return textwrap.wrap(f"{mark} {text}", width, subsequent_indent="  ", break_on_hyphens=False)


def counted(findings: Iterable[Finding]) -> str:
    """How many findings of each severity there are."""
    number = Counter(finding.about.severity for finding in findings)
    words = {"error": "error", "warning": "warning", "info": "explanation"}
    return ", ".join(count(number[each], words[each]) for each in SEVERITIES if number[each]) or "nothing found"


# --- one code -----------------------------------------------------------------------------------------------


def story(code: Code, width: int | None = None) -> str:
    """Everything that is known of a code."""
    width = min(width or WIDTH, WIDTH)
    rows = [
        ("cause", code.cause),
        ("effect", code.effect),
        ("fix", code.fix),
        ("torch says", SAID[code.torch]),
        ("seen in", "; ".join(SEEN_IN[each] for each in code.shown_by)),
        *([("threads", " ".join(map(link, code.threads)))] if code.threads else []),
    ]
    lines = [f"{code.code} {code.name} ({code.severity})", code.title, ""]
    return "\n".join([*lines, *(line for label, text in rows for line in _row(label, text, width))])


def link(thread: str) -> str:
    """The address of a public thread given as `owner/repository#number`."""
    return f"https://github.com/{thread.replace('#', '/issues/')}"


def index(codes: Iterable[Code]) -> str:
    """One line for each code."""
    return "\n".join(f"{MARKS[code.severity]} {code.code}  {code.name:<26} {safe_text(code.title)}" for code in codes)

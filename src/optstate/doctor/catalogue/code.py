"""What is known of one code, whichever run it is met in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
"""`info` is for what is right and has to be explained, such as absence by nature."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The gravest first."""

ShownBy = Literal["file", "two files", "live", "file and live", "library"]
"""What a code can be seen in.

file: one checkpoint alone · two files: an earlier and a later one · live: a running optimizer and what belongs to it ·
file and live: a checkpoint held against the program that would load it · library: only the act itself shows it, such
as a save that fails half-way
"""

Torch = Literal["silent", "late", "raises", "warns"]
"""What the loading or saving library says: nothing, an error at a later step, an error at once, a general warning."""


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of fault, or of absence that is no fault.

    code, name
        Such as `M101` and `never-saved`; a number is never used again.
    title
        The finding in one line.
    shown_by
        What it can be seen in, see `ShownBy`.
    torch
        What torch, or the framework concerned, says about it.
    cause, effect, fix
        How it comes about, what it does to the run, and what to do.
    threads
        Public discussions, as `owner/repository#number`.
    """

    code: str
    name: str
    severity: Severity
    title: str
    shown_by: tuple[ShownBy, ...]
    torch: Torch
    cause: str
    effect: str
    fix: str
    threads: tuple[str, ...] = ()

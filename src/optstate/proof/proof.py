"""A proof: what was tried, the verdict, and where it is not exact the first difference and its cause. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from optstate.proof.moments import Part
from optstate.text import count, listing, safe_text

SCHEMA = "optstate.proof/1"
FLIP = "control bit"

Grade = Literal["state-exact", "step-exact", "trajectory-exact"]
GRADES: tuple[Grade, ...] = ("state-exact", "step-exact", "trajectory-exact")
"""How far a resume is exact: the restored state; the next step too; every step that was tried."""

Verdict = Literal["exact", "different", "not tried"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was compared, and what came out."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first part that differs, in the order in which a step makes one from the other.

    `after` counts steps from the save, 0 is the restored state itself; `element` tells the first of a tensor's elements
    that differs, with both values; `among` counts the parts that differ there, by component.
    """

    after: int
    component: str
    name: str
    expected: Part | None
    found: Part | None
    element: str | None
    among: Mapping[str, int]

    @property
    def text(self) -> str:
        """One sentence."""
        if self.element is not None:
            return f"{safe_text(self.name)}{self.element}"
        return f"{safe_text(self.name)} is {_shown(self.found, self.expected)}, expected {_shown(self.expected, self.found)}"


def _shown(part: Part | None, other: Part | None) -> str:
    if part is None:
        return "missing"
    if other is not None and part.kind != other.kind and not part.shown:
        return part.kind
    return part.shown or f"{part.kind} with digest {part.digest[:8]}"


@dataclass(frozen=True, slots=True)
class Trial:
    """The resume tried once more with some components taken from the uninterrupted run; `exact` is what follows."""

    components: tuple[str, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """What explains a difference: components, a sentence, and the code of the doctor where one fits."""

    components: tuple[str, ...]
    text: str
    code: str | None
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Proof:
    """The verdict on a resume. Printing it tells the story.

    grade
        `"state-exact"`, `"step-exact"` or `"trajectory-exact"`, each more than the one before; None where not even the
        restored state is the saved one.
    exact
        Whether it is trajectory-exact, and saving left the run as it was.
    conclusive
        Whether that could be tried to the end. A program that does not compute the same twice proves nothing beyond
        its state.

    >>> proof = optstate.prove("train.py:build", before=3, after=3)
    >>> proof.exact, proof.grade
    (True, 'trajectory-exact')
    >>> proof.document()["schema"]
    'optstate.proof/1'
    >>> print(proof)
    prove train.py:build · 3 steps, save, 3 more · restored by optstate
    ...
    EXACT: bit-identical for 3 steps after the restore (trajectory-exact)
    """

    program: str
    way: str
    before: int
    after: int
    grade: Grade | None
    checks: tuple[Check, ...]
    conclusive: bool = True
    difference: FirstDifference | None = None
    cause: Cause | None = None
    notes: tuple[str, ...] = ()
    digests: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether nothing differs, to the last step that was tried."""
        return self.grade == GRADES[-1] and all(check.verdict == "exact" for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.exact:
            return f"EXACT: bit-identical for {count(self.after, 'step')} after the restore ({self.grade})"
        if any((check.name, check.verdict) == ("saving", "different") for check in self.checks) and self.grade:
            return f"NOT EXACT: saving changes the run that goes on; the restored one is {self.grade}"
        if not self.conclusive and self.difference is None:
            reached = self.grade or "nothing"
            return (
                f"NOT PROVEN: {reached}, and what follows cannot be tried: the program does not compute the same twice"
            )
        return f"NOT EXACT: {'the grade is ' + self.grade if self.grade else 'not even the restored state is the saved one'}"

    def text(self) -> str:
        """The whole story."""
        return "\n".join(_story(self))

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"

    def document(self) -> dict[str, Any]:
        """The certificate in JSON's own types, as docs/schema/optstate-proof-1.json describes it."""
        return _document(self)


_WIDTH = 12
_DOTS = 58
_WORDS: Mapping[Verdict, str] = {"exact": "EXACT", "different": "DIFFERS", "not tried": "NOT TRIED"}


def _story(proof: Proof) -> list[str]:
    lines = [
        f"prove {proof.program} · {count(proof.before, 'step')}, save, {proof.after} more · restored by {proof.way}",
        *(
            _line(check.name, check.text, "SEEN" if check.name == FLIP else _WORDS[check.verdict])
            for check in proof.checks
        ),
    ]
    if proof.difference is not None:
        moment = f"+{proof.difference.after}" if proof.difference.after else "as restored"
        lines.append(f"  {'first':<{_WIDTH}}{moment}: {proof.difference.text}")
        among = [f"{safe_text(name)} {number}" for name, number in proof.difference.among.items()]
        lines.append(f"  {'there':<{_WIDTH}}what differs: {listing(among, limit=8)}")
    if proof.cause is not None:
        code = f"  [{proof.cause.code}]" if proof.cause.code else ""
        lines.append(f"  {'cause':<{_WIDTH}}{proof.cause.text}{code}")
    lines += [f"  {'note':<{_WIDTH}}{note}" for note in proof.notes]
    return [*lines, proof.verdict]


def _line(name: str, text: str, word: str) -> str:
    return f"  {name:<{_WIDTH}}{text} {'.' * max(3, _DOTS - len(text))} {word}"


def _document(proof: Proof) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "program": proof.program,
        "way": proof.way,
        "before": proof.before,
        "after": proof.after,
        "grade": proof.grade,
        "exact": proof.exact,
        "conclusive": proof.conclusive,
        "verdict": proof.verdict,
        "checks": [{"name": each.name, "verdict": each.verdict, "text": each.text} for each in proof.checks],
        "difference": _difference(proof.difference),
        "cause": _cause(proof.cause),
        "notes": list(proof.notes),
        "digests": {
            run: [{"step": step, "digest": digest} for step, digest in steps.items()]
            for run, steps in proof.digests.items()
        },
        "environment": dict(proof.environment),
        "seconds": round(proof.seconds, 1),
    }


def _difference(found: FirstDifference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    sides: Sequence[tuple[str, Part | None]] = (("expected", found.expected), ("found", found.found))
    return {
        "after": found.after,
        "component": safe_text(found.component),
        "name": safe_text(found.name),
        "element": found.element,
        **{
            side: None if part is None else {"digest": part.digest, "kind": part.kind, "shown": part.shown}
            for side, part in sides
        },
        "among": {safe_text(name): number for name, number in found.among.items()},
    }


def _cause(cause: Cause | None) -> dict[str, Any] | None:
    if cause is None:
        return None
    return {
        "components": list(map(safe_text, cause.components)),
        "text": cause.text,
        "code": cause.code,
        "trials": [{"components": list(map(safe_text, each.components)), "exact": each.exact} for each in cause.trials],
    }

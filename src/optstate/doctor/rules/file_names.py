"""What a file knows of the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.text import count


def _nameless(case: Case) -> Iterator[Finding]:
    """Parameters of which the file has nothing but the number; where it has candidates, its reader tells them."""
    facts = [parameter.facts for parameter in case.state.values()]
    bare = [each.name for each in facts if each.certainty == "position" and not each.candidates]
    if bare:
        yield Finding(
            "M201",
            f"{len(bare):,} of {count(len(facts), 'parameter')} are known by their number alone: nothing names them",
        )


RULES = (Rule(("M201",), "file", _nameless, "names"),)

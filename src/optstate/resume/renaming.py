"""Renaming: what the rules and patterns of a policy make of names, and what they mean that match nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from optstate.errors import PolicyError
from optstate.resume.pairing import Names
from optstate.state.selection import matcher, suggestion
from optstate.text import safe_text

Rule: TypeAlias = Callable[[str], str | None]
"""The new name of a name, or None where the rule does not mean it."""


class Renamed(NamedTuple):
    """The name that a saved one gets, and why."""

    name: str
    reason: str


def renamed(rules: Mapping[str, str], names: Collection[str]) -> dict[str, Renamed]:
    """What the rules make of those of the saved `names` that they mean; see `Policy.rename`.

    Raises `PolicyError` for a rule that means none of them, and for two that make different names of one.
    """
    made: dict[str, tuple[str, Renamed]] = {}
    for pattern, replacement in rules.items():
        rule = _rule(pattern, replacement)
        hits = {name: new for name in names if (new := rule(name)) is not None}
        if not hits:
            raise PolicyError(
                f"rename: {safe_text(pattern)!r} means no saved name",
                found=suggestion(pattern, sorted(names)),
                todo="optstate show lists the names in a checkpoint",
            )
        reason = f"renamed by {safe_text(pattern)!r} → {safe_text(replacement)!r}"
        for name, new in hits.items():
            earlier, other = made.setdefault(name, (pattern, Renamed(new, reason)))
            if other.name != new:
                raise PolicyError(
                    f"rename: two rules make different names of {safe_text(name)}",
                    found=f"{safe_text(earlier)!r} makes it {safe_text(other.name)}, "
                    f"{safe_text(pattern)!r} makes it {safe_text(new)}",
                    todo="make one of them mean less",
                )
    return {name: new for name, (_, new) in made.items()}


def suggested(missing: Collection[str], unexpected: Collection[str]) -> str:
    """A rule that would name several of the live names that are missing, to be said after them; "" where there is none."""
    endings: dict[str, list[str]] = {}
    for name in unexpected:
        for prefix, ending in _cuts(name):
            endings.setdefault(ending, []).append(prefix)
    rules: Counter[tuple[str, str]] = Counter()
    for name in missing:
        known = next((cut for cut in _cuts(name) if cut[1] in endings), None)
        if known is not None:
            rules.update((old, known[0]) for old in endings[known[1]])
    ((old, new), hits), *_ = [*rules.most_common(1), (("", ""), 0)]
    return f'; rename={{"{safe_text(old)}": "{safe_text(new)}"}} would name {hits} of them' if hits > 1 else ""


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Every prefix that ends with a dot, "" first, and what it leaves."""
    place = 0
    while True:
        yield name[:place], name[place:]
        place = name.find(".", place) + 1
        if place == 0:
            return


def meant(field: str, pattern: str, names: Names) -> set[str]:
    """The tensors that a pattern of a policy's `field` means by any of their names.

    Raises `PolicyError` where it means none.
    """
    matches = matcher(pattern)
    hits = {name for name, aliases in names.items() if any(map(matches, (name, *aliases)))}
    if hits or pattern == "*":
        return hits
    raise PolicyError(
        f"{field}: {safe_text(pattern)!r} means no parameter of the program",
        found=suggestion(pattern, list(names)),
        todo="patterns mean live names, as they are after renaming",
    )


def _rule(pattern: str, new: str) -> Rule:
    if pattern.startswith("re:"):
        return _expression(pattern, new)
    if "*" in pattern:
        return _glob(pattern, new)
    if pattern and not pattern.endswith("."):
        return lambda name: new if name == pattern else None
    if new and not new.endswith("."):
        raise PolicyError(
            f"rename: the prefix {safe_text(pattern)!r} becomes {safe_text(new)!r}, which is none",
            expected='a prefix ends with a dot, such as "backbone.", or is ""',
        )
    return lambda name: new + name[len(pattern) :] if name.startswith(pattern) else None


def _glob(pattern: str, new: str) -> Rule:
    """Each `*` stands for what it met in the name."""
    expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    first, *rest = new.split("*")

    def rule(name: str) -> str | None:
        match = expression.fullmatch(name)
        return match and first + "".join(met + part for met, part in zip(match.groups(), rest, strict=True))

    return rule


def _expression(pattern: str, new: str) -> Rule:
    def rule(name: str) -> str | None:
        try:
            match = re.fullmatch(pattern[3:], name)
            return match and match.expand(new)
        except (re.error, IndexError) as error:
            raise PolicyError(
                f"rename: {safe_text(pattern)!r} → {safe_text(new)!r} is no regular expression and what to make of it",
                found=safe_text(error),
            ) from None

    return rule

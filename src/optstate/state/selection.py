"""Selections: which parameters a pattern and predicates mean. Matching nothing is an error with a way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import translate
from typing import TypedDict, overload

from optstate.errors import NothingSelected, SelectionError
from optstate.state.parameter import ParamState
from optstate.state.roles import ROLES
from optstate.text import count, listing, safe_text


class Predicates(TypedDict, total=False):
    """What a selection may ask of a parameter besides its name; see `OptimizerState.select`."""

    role: str | None
    group: int | None
    optimizer: str | None
    ndim: int | None
    dtype: str | None
    trained: bool | None


class Selection(Sequence[ParamState]):
    """Some parameters of a state, in its order. Never empty.

    >>> selection = state.select("*.bias")
    >>> selection.names
    ('0.bias', '2.bias')
    """

    __slots__ = ("_state", "description", "names")

    def __init__(self, state: Mapping[str, ParamState], names: Iterable[str], description: str) -> None:
        self._state = state
        self.names = tuple(names)
        self.description = description

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ParamState: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> ParamState | Selection:
        if isinstance(index, slice):
            return Selection(self._state, self.names[index], self.description)
        return self._state[self.names[index]]

    def __iter__(self) -> Iterator[ParamState]:
        return (self._state[name] for name in self.names)

    def __contains__(self, item: object) -> bool:
        return (item.name if isinstance(item, ParamState) else item) in self.names

    def __str__(self) -> str:
        return f"{self.description}: {count(len(self.names), 'parameter')} ({listing(self.names)})"

    __repr__ = __str__


def matcher(pattern: str) -> Callable[[str], bool]:
    """The test that a pattern means: glob (`*` crosses dots), `re:` regular expression, trailing dot a prefix.

    Raises `SelectionError` for a regular expression that does not compile.
    """
    if pattern == "*":
        return lambda _: True
    if pattern.endswith(".") and not pattern.startswith("re:"):
        return lambda name: name.startswith(pattern)
    try:
        compiled = re.compile(pattern[3:] + r"\Z" if pattern.startswith("re:") else translate(pattern))
    except re.error as error:
        raise SelectionError(
            f"{safe_text(pattern)!r} is not a regular expression: {error}",
            todo="without re: in front it is a glob such as encoder.*.weight",
        ) from None
    return lambda name: compiled.match(name) is not None


def select(
    state: Mapping[str, ParamState],
    pattern: str,
    *,
    role: str | None,
    group: int | None,
    optimizer: str | None,
    ndim: int | None,
    dtype: str | None,
    trained: bool | None,
) -> Selection:
    """See `OptimizerState.select`."""
    if role is not None and role not in ROLES:
        near = get_close_matches(role, ROLES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SelectionError(f"{safe_text(role)!r} is no role{hint}", expected=", ".join(ROLES))
    tests: dict[str, Callable[[ParamState], bool]] = {}
    if group is not None:
        tests[f"group={group}"] = lambda p: p.facts.group == group
    if optimizer is not None:
        tests[f"optimizer={optimizer}"] = lambda p: p.facts.optimizer == optimizer
    if ndim is not None:
        tests[f"ndim={ndim}"] = lambda p: p.facts.shape is not None and len(p.facts.shape) == ndim
    if dtype is not None:
        tests[f"dtype={dtype}"] = lambda p: p.facts.dtype == dtype
    if role is not None:
        tests[f"role={role}"] = lambda p: any(slot.role == role for slot in p.slots.values())
    if trained is not None:
        tests[f"trained={trained}"] = lambda p: bool(p.slots) is trained

    matches = matcher(pattern)
    every = list(iter(state))  # list(state) asks for its length first, and a live state binds every name for each
    named = [name for name in every if matches(name)]
    if not named:
        raise NothingSelected(
            f"{safe_text(pattern)!r} matches nothing",
            found=suggestion(pattern, every),
            todo="list(state) shows every name",
        )
    chosen = [name for name in named if all(test(state[name]) for test in tests.values())] if tests else named
    description = safe_text(pattern) + "".join(f" {label}" for label in tests)
    if not chosen:
        raise NothingSelected(
            f"{description!r} matches nothing",
            found=f"{count(len(named), 'parameter')} by name, none with {' '.join(tests)}",
            todo="drop or change a predicate",
        )
    return Selection(state, chosen, description)


def suggestion(pattern: str, names: Sequence[str]) -> str:
    """Which pattern or which names a user may have meant by a pattern that matches nothing."""
    total = count(len(names), "parameter")
    if pattern.startswith("re:"):
        return f"{total} by other names: {listing(names, 3)}"
    repaired = _repair(pattern, names)
    if repaired is not None:
        hits = sum(map(matcher(repaired), names))
        return f"{total}; did you mean {safe_text(repaired)!r} ({count(hits, 'parameter')})?"
    near = get_close_matches(pattern, names, n=3)
    return f"{total}, the nearest: {listing(near)}" if near else f"{total} by other names: {listing(names, 3)}"


def _repair(pattern: str, names: Sequence[str]) -> str | None:
    """What a pattern was to be, if that matches something: a prefix, which ends with a dot, or this with its misspelt
    segments replaced by the closest ones in use.
    """
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"{pattern}."
    known = {segment for name in names for segment in name.split(".")}
    segments = pattern.split(".")
    fixed = [
        segment
        if not segment or segment in known or any(char in segment for char in "*?[")
        else (get_close_matches(segment, known, n=1) or [segment])[0]
        for segment in segments
    ]
    candidate = ".".join(fixed)
    return candidate if candidate != pattern and any(map(matcher(candidate), names)) else None

"""Rules that ask about a running program, and the words in which they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isclose, isnan
from typing import Any

from optstate.doctor.case import Case
from optstate.doctor.evidence import LiveEvidence
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.optimizers.spec import number
from optstate.state.tensors import is_tensor


def live_rule(ask: Callable[[LiveEvidence], Iterable[Finding]], *codes: str, checks: str) -> Rule:
    """A rule that needs nothing but the running program."""
    return Rule(codes, "live", lambda case: ask(program(case)), checks)


def program(case: Case) -> LiveEvidence:
    """The running program of a case that has one."""
    if case.live is None:
        raise ValueError("a case without a running program")
    return case.live


def alike(one: Any, other: Any) -> bool:
    """Whether two hyperparameters mean the same: a number and a tensor that holds it do."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(alike, one, other))
    mine, theirs = number(one), number(other)
    if mine is None or theirs is None or isinstance(one, str) or isinstance(other, str):
        return not is_tensor(one) and not is_tensor(other) and bool(one == other)
    return isclose(mine, theirs, rel_tol=1e-7) or (isnan(mine) and isnan(theirs))

"""Values: whose value of a hyperparameter a live group gets, by what a policy says of its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch

from optstate.errors import OptstateError, PolicyError
from optstate.live.group_values import new_values
from optstate.optimizers.spec import IMPLEMENTATION_FLAGS, number
from optstate.resume.decisions import missing
from optstate.resume.policy import Policy, nearest
from optstate.state.tensors import is_tensor
from optstate.text import listing, safe_text

Winner = Literal["live", "saved", "given"]


class Value(NamedTuple):
    """A value, and whose it is."""

    winner: Winner
    value: Any


def check_names(policy: Policy, groups: Collection[Mapping[str, Any]]) -> None:
    """Raise `PolicyError` for a hyperparameter, or an item such as `betas[2]`, that no group of either side has, and for a
    flag of the program.
    """
    known = dict.fromkeys(key for group in groups for key in group)
    for name, word in policy.hyperparameters.items():
        key, bracket, index = name.partition("[")
        if key in IMPLEMENTATION_FLAGS and word != "live":
            raise PolicyError(
                f"{key} belongs to the program that runs, which chooses it when the optimizer is built",
                where="hyperparameters",
                todo="leave it out",
            )
        if name != "*" and key not in known:
            raise PolicyError(
                f"no group has a hyperparameter {safe_text(name)!r}{nearest(name, known)}",
                where="hyperparameters",
                expected=f"some of {listing(known, 20)}",
            )
        if bracket and all(_at(group.get(key), _place(index)) is missing for group in groups):
            raise PolicyError(f"no group has an item {safe_text(name)!r}", where="hyperparameters")
    for pattern, values in policy.overrides.items():
        whose = next((key for key, value in values.items() if value in ("live", "saved")), None)
        if whose is not None:
            raise PolicyError(
                f"overrides give values, and {values[whose]!r} is none",
                where=safe_text(pattern),
                expected=f"a value for {safe_text(whose)}",
                todo="hyperparameters=... says whose value counts",
            )


def word_for(policy: Policy, key: str, otherwise: Any = None) -> Any:
    """What the policy says of a hyperparameter: `live`, `saved`, or the value given for it."""
    return policy.hyperparameters.get(key, policy.rest if otherwise is None else otherwise)


def named(policy: Policy, key: str) -> bool:
    """Whether the policy names a hyperparameter, or an item of it."""
    return any(name.partition("[")[0] == key for name in policy.hyperparameters)


def chosen(word: Any, mine: Any, theirs: Any) -> Value:
    """The value that a word stands for; what one side lacks comes from the other, unless it is to be live."""
    if word == "live":
        return Value("live", mine)
    if word == "saved":
        return Value("live", mine) if theirs is missing else Value("saved", theirs)
    return Value("given", word)


def with_items(policy: Policy, key: str, whole: Value, mine: Any, theirs: Any) -> Value:
    """The same with those of its items that the policy names, as in `betas[0]`."""
    words = {name: word for name, word in policy.hyperparameters.items() if name.startswith(f"{key}[")}
    if not words or not isinstance(whole.value, (tuple, list)):
        return whole
    items = list(whole.value)
    for name, word in words.items():
        place = _place(name[len(key) + 1 :])
        if place < len(items):
            items[place] = chosen(word, _at(mine, place), _at(theirs, place)).value
    return Value("given", type(whole.value)(items))


def _at(value: Any, place: int) -> Any:
    return value[place] if isinstance(value, (tuple, list)) and place < len(value) else missing


_NOWHERE = 1 << 30


def _place(index: str) -> int:
    """The place that `0]` means."""
    return int(index[:-1]) if index.endswith("]") and index[:-1].isdecimal() else _NOWHERE


def check_given(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], given: Mapping[str, Any], where: str
) -> None:
    """Raise `PolicyError` for given values that are of another kind than those in the group, or that the class refuses."""
    plain = {key: _plain(value) for key, value in group.items()}
    try:
        new_values(optimizer, plain, {key: _plain(value) for key, value in given.items()})
    except OptstateError as error:
        raise policy_error(error, where) from error


def policy_error(error: OptstateError, where: str) -> PolicyError:
    """The same as an error of the policy, which asked for it."""
    return PolicyError(error.what, where=where, expected=error.expected, found=error.found, todo=error.todo)


def _plain(value: Any) -> Any:
    """A hyperparameter with every scalar tensor, or reference to one, as its number."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return number(value) if is_tensor(value) or isinstance(value, torch.Tensor) else value

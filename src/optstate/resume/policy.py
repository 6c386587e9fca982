"""Policy: what a restore may do where checkpoint and program do not agree."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

from optstate.errors import PolicyError
from optstate.state.selection import matcher
from optstate.text import listing, safe_text

Reshape: TypeAlias = Callable[[str, str, Any, tuple[int, ...]], Any]
"""Makes a tensor of another shape: (parameter, slot key, saved tensor, shape that is due) → tensor. The key of a weight is ""."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    "weights": ("restore", "loaded", "leave"),
    "slots": ("restore", "fresh", "leave"),
    "missing": ("error", "fresh"),
    "unexpected": ("error", "leave"),
    "shape": ("error", "fresh", "pad", "slice"),
    "dtype": ("saved", "param"),
    "optimizer_change": ("error", "convert", "fresh"),
    "damaged": ("error", "salvage"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    r"""What a restore may do where checkpoint and program do not agree. As it is made, everything must agree.

    rename
        Saved name → live name. A name, a prefix with a trailing dot (`{"encoder.": "backbone."}`; `""` is the empty
        one), a glob with as many `*` on both sides, or `re:` with `\1` for groups. Two rules that make different names of
        one, and a rule that means no saved name, are errors.
    include, exclude
        Patterns of live names: only what `include` means and `exclude` does not is restored, everything else stays.
    weights
        `restore` them; `loaded`: they are there already, and each must equal the saved one, for momentum belongs to its
        weight; `leave` them as they are.
    slots
        `restore` them; `fresh`: every parameter starts anew; `leave` them as they are.
    hyperparameters
        Hyperparameter → `"live"`, `"saved"`, or a value; `"*"` is for those that are not named. A learning rate that is
        live or given holds through a restored scheduler: its base rates follow.
    overrides
        Pattern of live names → hyperparameters that these parameters get. Their groups are split.
    missing
        A parameter of which the checkpoint has nothing: `error`, or `fresh` (a weight keeps its value). Of two that were
        one tied tensor, `fresh` gives each a copy.
    unexpected
        Something in the checkpoint that the program does not have: `error`, or `leave` it out. Of two that are one tied
        tensor now, `leave` takes the first.
    shape
        A parameter of another shape: `error`; `fresh`; `pad`: saved entries stay where they are, new ones are no larger in
        their updates than a fresh start's; `slice`: the leading part; or a function (parameter, slot key, saved tensor,
        shape) → tensor, with key "" for the weight.
    dtype
        `saved`: slots keep the dtype that they were saved in, and a weight of another dtype is an error; `param`: weights
        and what is shaped like them are cast to the live parameter's.
    optimizer_change
        State of another optimizer class: `error`, `convert` it, or start `fresh`.
    scale
        What momentum is multiplied by on its way in, from 0 to 1: one factor, or pattern of live names → factor, of which
        the last that matches counts.
    objects
        Pattern of object names → `restore`, or `live` for those that stay as they are; the last that matches counts.
    damaged
        A tensor whose bytes are not those that were written: `error`, or `salvage` all others; every tensor is then read
        while planning, and a damaged slot starts fresh with what belongs to it.

    Raises `PolicyError` for a word or a number that means nothing.

    >>> optstate.Policy(rename={"encoder.": "backbone."}, hyperparameters={"lr": "live", "*": "saved"}).missing
    'error'
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    weights: Literal["restore", "loaded", "leave"] = "restore"
    slots: Literal["restore", "fresh", "leave"] = "restore"
    hyperparameters: Mapping[str, Any] = field(default_factory=lambda: {"*": "saved"})
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Literal["error", "fresh"] = "error"
    unexpected: Literal["error", "leave"] = "error"
    shape: Literal["error", "fresh", "pad", "slice"] | Reshape = "error"
    dtype: Literal["saved", "param"] = "saved"
    optimizer_change: Literal["error", "convert", "fresh"] = "error"
    scale: float | Mapping[str, float] = 1.0
    objects: Mapping[str, Literal["restore", "live"]] = field(default_factory=lambda: {"*": "restore"})
    damaged: Literal["error", "salvage"] = "error"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            value = getattr(self, name)
            if value not in words and not (name == "shape" and callable(value)):
                raise _bad(name, value, " or ".join(words))
        for name in ("rename", "hyperparameters", "overrides", "objects"):
            _check_mapping(name, getattr(self, name))
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or not all(isinstance(pattern, str) for pattern in value):
                raise _bad(name, value, 'a tuple of patterns, such as ("encoder.*",)')
            object.__setattr__(self, name, tuple(value))
        scale = self.scale if isinstance(self.scale, Mapping) else {}
        _check_mapping("scale", scale)
        for pattern in (*self.include, *self.exclude, *self.overrides, *self.objects, *scale):
            matcher(pattern)
        self._check_values()

    def _check_values(self) -> None:
        for old, new in self.rename.items():
            if not isinstance(new, str) or (not old.startswith("re:") and old.count("*") != new.count("*")):
                raise _bad("rename", {old: new}, "saved name → live name, with as many * on both sides")
        for pattern, values in self.overrides.items():
            if not isinstance(values, Mapping) or not values:
                raise _bad("overrides", {pattern: values}, 'such as {"*.bias": {"weight_decay": 0.0}}')
        for pattern, word in self.objects.items():
            if word not in ("restore", "live"):
                raise _bad("objects", {pattern: word}, "restore or live for each pattern")
        for factor in self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]:
            if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor <= 1:
                raise _bad("scale", self.scale, "a factor from 0 to 1, or pattern → factor")
        for key, value in self.hyperparameters.items():
            if isinstance(value, float) and not isfinite(value):
                raise _bad("hyperparameters", {key: value}, "finite numbers")
        if "*" in self.hyperparameters and self.hyperparameters["*"] not in ("live", "saved"):
            raise _bad("hyperparameters", {"*": self.hyperparameters["*"]}, "live or saved for *")

    @property
    def rest(self) -> Literal["live", "saved"]:
        """Whose value a hyperparameter has that the policy does not name."""
        rest: Literal["live", "saved"] = self.hyperparameters.get("*", "saved")
        return rest

    @classmethod
    def strict(cls, **changes: Any) -> Policy:
        """Everything must agree; what `restore` does unless told otherwise. `changes` are further fields; those of
        hyperparameters and objects add to the preset's.

        >>> optstate.Policy.strict() == optstate.Policy()
        True
        """
        return _changed(cls(), changes)

    @classmethod
    def finetune(cls, **changes: Any) -> Policy:
        """For another task: what fits by name and shape comes back, everything else starts fresh; hyperparameters and objects
        such as the scheduler are the program's. State of another optimizer class is converted.

        >>> optstate.Policy.finetune(scale=0.5).missing
        'fresh'
        """
        policy = cls(
            hyperparameters={"*": "live"},
            missing="fresh",
            unexpected="leave",
            shape="fresh",
            optimizer_change="convert",
            objects={"*": "live"},
        )
        return _changed(policy, changes)

    @classmethod
    def new_data(cls, **changes: Any) -> Policy:
        """For other data: all must agree, but momentum starts from zero, for it points where the old data pulled. Second
        moments and step counts stay, so the first updates are small ones; objects named like a loader or sampler stay.

        >>> optstate.Policy.new_data().scale
        0.0
        """
        return _changed(cls(scale=0.0, objects={"*": "restore", "*loader*": "live", "*sampler*": "live"}), changes)

    @classmethod
    def weights_only(cls, **changes: Any) -> Policy:
        """The weights come back, every slot starts fresh, hyperparameters and objects are the program's.

        >>> optstate.Policy.weights_only().slots
        'fresh'
        """
        return _changed(cls(slots="fresh", hyperparameters={"*": "live"}, objects={"*": "live"}), changes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        r"""The policy that a TOML file describes: its fields, and `preset` for one to start from.

        Raises `PolicyError` for a file that cannot be read, a key that is none, or a value that means nothing.

        >>> _ = Path("policy.toml").write_text('preset = "finetune"\n[hyperparameters]\nlr = 1e-4\n')
        >>> optstate.Policy.load("policy.toml").hyperparameters
        {'*': 'live', 'lr': 0.0001}
        """
        try:
            given = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise PolicyError(
                "the policy cannot be read",
                where=safe_text(path),
                expected="a TOML file",
                found=f"{type(error).__name__}: {safe_text(error)}",
            ) from error
        preset = given.pop("preset", "strict")
        if preset not in PRESETS:
            raise _bad("preset", preset, " or ".join(PRESETS))
        make: Callable[..., Policy] = getattr(cls, preset)
        return make(**given)


PRESETS = ("strict", "finetune", "new_data", "weights_only")
"""Policies with a name."""


def nearest(name: str, known: Collection[str]) -> str:
    """A question that helps whoever misspelt a name; "" where nothing is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {safe_text(near[0])!r}?" if near else ""


def _changed(policy: Policy, changes: Mapping[str, Any]) -> Policy:
    known = [each.name for each in fields(Policy)]
    for name in changes:
        if name not in known:
            raise PolicyError(
                f"a policy has no {safe_text(name)!r}{nearest(name, known)}", expected=f"some of {listing(known, 20)}"
            )
    merged = {
        name: {**getattr(policy, name), **value}
        for name, value in changes.items()
        if name in ("hyperparameters", "objects") and isinstance(value, Mapping)
    }
    return replace(policy, **{**changes, **merged})


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _bad(name, value, "a mapping whose keys are text")


def _bad(name: str, value: Any, expected: str) -> PolicyError:
    return PolicyError(f"a policy's {name} cannot be this", expected=expected, found=safe_text(value, 80))

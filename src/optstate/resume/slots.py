"""Slots: what is done to those of one parameter on their way in, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch

from optstate.errors import CoefficientError
from optstate.live.quantised import decoded
from optstate.optimizers.growth import resizable, resized
from optstate.optimizers.resizing import How
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.carrying import Carry, carried
from optstate.resume.classes import Way
from optstate.resume.converting import Convert, holds_weights, keys_after
from optstate.resume.decisions import Entry, Fate, Transform
from optstate.resume.fates import both
from optstate.resume.layout import Shape, due_shape
from optstate.resume.policy import Policy, Reshape
from optstate.resume.reshaping import between, cast_to, castable, own_shape, times
from optstate.text import safe_text


class Kind(NamedTuple):
    """What a header tells of a slot; both None of what is no tensor."""

    shape: Shape | None
    dtype: str | None

    @property
    def is_coded(self) -> bool:
        """Whether it is stored as codes."""
        return self.dtype is not None and " " in self.dtype


class Case(NamedTuple):
    """All that decides about the slots of a parameter. Parameters alike share one, and what follows from it.

    `fate` is what the name makes of it. `slots` are keys, shapes and dtypes, None of what is no tensor. `saved` is the parameter's shape in the checkpoint, None where nothing tells it;
    `saved_dtype` likewise. `factor` is what momentum is multiplied by.
    """

    way: Way
    fate: Fate
    slots: tuple[tuple[str, Shape | None, str | None], ...]
    saved: Shape | None
    saved_dtype: str | None
    live: Shape
    dtype: str
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The parameter that a transform is made for. `before` and `after` give its weights as saved, and as they will be."""

    name: str
    parameter: torch.Tensor
    before: Callable[[], torch.Tensor]
    after: Callable[[], torch.Tensor]
    group: Callable[[], Mapping[str, float]]


Maker: TypeAlias = Callable[[Subject], Transform]


class Outcome(NamedTuple):
    """The fates of all slots, and what makes the transforms; or why there are none; or why all of them start fresh."""

    fates: Mapping[str, Fate]
    makers: tuple[Maker, ...] = ()
    faults: tuple[str, ...] = ()
    fresh: Fate | None = None


def outcome(case: Case, policy: Policy) -> Outcome:
    """What becomes of the slots of a case under a policy."""
    if case.saved not in (None, case.live) and policy.shape == "fresh":
        return Outcome({}, fresh=Fate("fresh", between(case.saved or (), case.live)))
    kinds = {key: Kind(shape, dtype) for key, shape, dtype in case.slots}
    course = _Course(case, kinds, dict.fromkeys(kinds, case.fate), [], [])
    for step in (_typed, _converted, _carried, _resized, _shaped, _cast, _scaled):
        step(course, policy)
        if course.faults:
            if step is _shaped and policy.shape == "fresh":
                return Outcome({}, fresh=Fate("fresh", course.faults[0]))
            return Outcome({}, faults=tuple(course.faults))
    return Outcome(course.fates, tuple(course.makers))


@dataclass(slots=True)
class _Course:
    """The slots on their way, step by step."""

    case: Case
    kinds: dict[str, Kind]
    fates: dict[str, Fate]
    makers: list[Maker]
    faults: list[str]

    @property
    def spec(self) -> OptimizerSpec | None:
        return self.case.way.spec

    def change(self, keys: Mapping[str, Fate], maker: Maker) -> None:
        """Note what is done to some slots, and by what."""
        self.fates |= {key: both(self.fates[key], fate) for key, fate in keys.items()}
        self.makers.append(maker)

    def decode(self) -> None:
        """Have values where there are codes, for what computes with them."""
        coded = {key: kind for key, kind in self.kinds.items() if kind.is_coded}
        if coded:
            self.kinds |= {key: Kind(kind.shape, "float32") for key, kind in coded.items()}
            self.makers.append(lambda _: decoded)


def _typed(course: _Course, policy: Policy) -> None:
    """A parameter of another dtype is cast only when that was said."""
    saved, live = course.case.saved_dtype, course.case.dtype
    if saved not in (None, live):
        if not castable(str(saved), live):
            course.faults.append(f"{saved} in the checkpoint, {live} live")
        elif policy.dtype == "saved":
            course.faults.append(f'{saved} in the checkpoint, {live} live; dtype="param" casts it')


# --- another class ---------------------------------------------------------------------------------------------


def _converted(course: _Course, _: Policy) -> None:
    way, case = course.case.way, course.case
    if way.kind != "converted" or way.spec is None:
        return
    course.decode()
    shape = case.live if case.saved is None else case.saved
    keys = keys_after(way, tuple(course.kinds), len(shape))
    course.fates = dict.fromkeys(keys, both(case.fate, way.fate))
    course.kinds = {key: Kind(due_shape(way.spec.slots[key], shape), None) for key in keys}
    course.makers.append(lambda of: Convert(way, of.parameter, of.before, of.group()))


def _carried(course: _Course, _: Policy) -> None:
    """State that fits as it is, under hyperparameters that ask something of it."""
    way, spec = course.case.way, course.spec
    if way.kind != "same" or spec is None:
        return
    try:
        keys = carried(spec, way.before, way.after, tuple(course.kinds))
    except CoefficientError as error:
        course.faults.append(error.what)
        return
    if keys:
        course.change(keys, lambda _: Carry(spec, way.before, way.after))


# --- another shape ---------------------------------------------------------------------------------------------


def _resized(course: _Course, policy: Policy) -> None:
    case = course.case
    if case.saved in (None, case.live):
        return
    saved: Shape = case.saved or ()
    if callable(policy.shape):
        _by_function(course, policy.shape, saved)
    elif policy.shape in ("pad", "slice"):
        _by_rule(course, policy.shape, saved)
    else:
        course.faults.append(f'{between(saved, case.live)}; shape="fresh", "pad" or "slice" says what to do')


def _by_rule(course: _Course, how: How, saved: Shape) -> None:
    case, spec = course.case, course.spec
    why = resizable(spec, tuple(course.kinds), saved, case.live, how)
    if why is not None or spec is None:
        course.faults.append(f'{between(saved, case.live)}: {why}; shape="fresh" starts it anew')
        return
    course.decode()
    fate = Fate("resized", f"{list(saved)} → {list(case.live)} by {how}")
    keys = {key: fate for key in course.kinds if spec.slots[key].shape != "scalar"}
    weights = holds_weights(spec)

    def maker(of: Subject) -> Transform:
        def transform(entry: Entry) -> Entry:
            parameter = of.after().detach() if weights else None
            wide = {key: _at_least_float32(value) for key, value in entry.items()}
            way = case.way
            new = resized(spec, wide, saved, case.live, way.after, how, parameter, way.optimizer.defaults)
            return {key: _as_before(value, entry[key]) for key, value in new.items()}

        return transform

    course.change(keys, maker)
    course.kinds |= {key: Kind(due_shape(spec.slots[key], case.live), course.kinds[key].dtype) for key in keys}


def _at_least_float32(value: Any) -> Any:
    narrow = isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() < 4
    return value.float() if narrow else value


def _as_before(new: Any, old: Any) -> Any:
    return new.to(old.dtype) if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor) else new


def _by_function(course: _Course, reshape: Reshape, saved: Shape) -> None:
    case = course.case
    course.decode()
    due: dict[str, Shape] = {}
    for key, kind in course.kinds.items():
        rule = course.spec.slots.get(key) if course.spec is not None else None
        shape = due_shape(rule, case.live) if rule is not None else case.live if kind.shape == saved else kind.shape
        if shape is None and kind.shape is not None:
            course.faults.append(f"{between(saved, case.live)}: {safe_text(key)} has a layout of its own")
        elif shape is not None and kind.shape is not None and shape != kind.shape:
            due[key] = shape

    def maker(of: Subject) -> Transform:
        return lambda entry: {
            key: own_shape(reshape, of.name, key, value, due[key]) if key in due else value
            for key, value in entry.items()
        }

    fate = Fate("resized", f"{list(saved)} → {list(case.live)} by the policy's function")
    course.change(dict.fromkeys(due, fate), maker)
    course.kinds |= {key: Kind(shape, course.kinds[key].dtype) for key, shape in due.items()}


def _shaped(course: _Course, _: Policy) -> None:
    """Each slot is shaped as the optimizer keeps it."""
    spec = course.spec
    for key, kind in course.kinds.items() if spec is not None else ():
        rule = spec.slots.get(key) if spec is not None else None
        due = due_shape(rule, course.case.live) if rule is not None else None
        if due is not None and kind.shape is not None and kind.shape != due:
            course.faults.append(f"{safe_text(key)} has shape {list(kind.shape)} in the checkpoint, {list(due)} is due")


# --- another dtype, less momentum ------------------------------------------------------------------------------


def _cast(course: _Course, policy: Policy) -> None:
    if policy.dtype != "param":
        return
    live = course.case.dtype
    keys = {
        key: Fate("cast", f"{kind.dtype} → {live}{_underflow(course.spec, key, live)}")
        for key, kind in course.kinds.items()
        if kind.dtype not in (None, live) and castable(str(kind.dtype), live) and _is_like_parameter(course, key)
    }
    if keys:
        cast = cast_to(live)
        course.change(keys, lambda _: lambda entry: {k: cast(v) if k in keys else v for k, v in entry.items()})
        course.kinds |= {key: Kind(course.kinds[key].shape, live) for key in keys}


def _is_like_parameter(course: _Course, key: str) -> bool:
    rule = course.spec.slots.get(key) if course.spec is not None else None
    if rule is None:
        return bool(course.kinds[key].shape == course.case.live != ())
    return rule.shape != "scalar" and rule.dtype in ("parameter", "gradient") and rule.role != "master_weights"


def _underflow(spec: OptimizerSpec | None, key: str, dtype: str) -> str:
    rule = spec.slots.get(key) if spec is not None else None
    squares = rule is not None and rule.gradient_degree == 2
    return ", in which squares below 6e-8 vanish" if squares and dtype == "float16" else ""


def _scaled(course: _Course, _: Policy) -> None:
    factor, spec = course.case.factor, course.spec
    if factor == 1.0 or spec is None:
        return
    moments = [key for key in course.kinds if key in spec.slots and spec.slots[key].role == "momentum"]
    whole = [key for key in moments if (course.kinds[key].dtype or "").startswith(("int", "uint"))]
    if whole:
        course.faults.append(f"{safe_text(whole[0])} holds whole numbers, which a factor would not leave whole")
    if moments:
        course.change(
            dict.fromkeys(moments, Fate("scaled", f"× {factor:g}")),
            lambda _: lambda entry: {k: times(v, factor) if k in moments else v for k, v in entry.items()},
        )


def steps(makers: tuple[Maker, ...], subject: Subject) -> Iterator[Transform]:
    """The transforms for one parameter."""
    return (maker(subject) for maker in makers)

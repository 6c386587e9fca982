"""BufferSchedule: what a buffer holds, scaled along a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from math import inf
from typing import Any

import torch

from optstate.errors import ScheduleError
from optstate.live.coupling import Work, scale
from optstate.live.members import Members
from optstate.live.source import LiveSource
from optstate.live.state import LiveState
from optstate.optimizers.conventions import primary
from optstate.optimizers.permits import ALLOWED
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import OptimizerSpec
from optstate.schedule.combine import as_curve
from optstate.schedule.curve import Curve, CurveLike
from optstate.schedule.follow import follow, refuse_hooked, refuse_inside
from optstate.schedule.log import Log
from optstate.schedule.owners import claim, release
from optstate.schedule.preview import Preview
from optstate.state.absence import Absence
from optstate.state.roles import ROLES
from optstate.state.selection import matcher
from optstate.text import listing, safe_text

FORMAT = "optstate.buffer-schedule/1"
"""What `state_dict` gives."""


class BufferSchedule:
    """Scales what a buffer has gathered along a curve c: a buffer that is left alone holds c(t)/c(0) of what it held at first.

    After the step that makes it t steps, the buffer is multiplied by c(t)/c(t-1), once. These factors telescope, so nothing
    compounds: a curve that comes back brings the scale back, and a constant one changes nothing, whatever its value. A
    gradient enters a buffer with its full weight, in the step after s steps, and from then on it is scaled like all the
    rest: with v = βv + g, after T steps the buffer is

        v_T = β^T · c(T)/c(0) · v_0  +  Σ_{s<T} β^(T-1-s) · c(T)/c(s) · g_s

    So what is scaled is the memory: each gradient weighs c(T)/c(s) of what it weighs in the same buffer unscaled. A
    gradient of long ago, and all of v_0, fades as fast as before; within 1/(1-β) steps of where the curve stops moving, the
    buffer is the unscaled one again. To hold it smaller or larger, schedule the coefficient or the learning rate.

    `slot` is a role (`momentum`) or a key (`exp_avg`), `select` a pattern of names. With `hook` it follows the optimizer's
    steps by itself; otherwise call `step()` after each. `state_dict` has the number of steps and a fingerprint of the curve.

    Raises `ScheduleError` for a slot that is not there or makes no sense scaled, for one that another schedule scales,
    and for a curve that is not above 0; `NothingSelected` for a pattern that means nothing.

    >>> from optstate import schedule as s
    >>> fade = s.BufferSchedule(state, "momentum", s.linear(1, 0.5, 100), select="*.weight")
    >>> before = state["0.weight"].momentum.tensor.clone()
    >>> fade.step()
    >>> bool((state["0.weight"].momentum.tensor / before).isclose(torch.tensor(0.995)).all())
    True
    """

    def __init__(self, state: LiveState, slot: str, curve: CurveLike, *, select: str = "*", hook: bool = False) -> None:
        if not isinstance(state, LiveState):
            raise ScheduleError(
                "only a running optimizer's state is scheduled",
                expected="the state that optstate.attach(optimizer, model) gives",
                found=f"a {safe_text(qualified_name(type(state)))}",
            )
        self._curve = as_curve(curve)
        for t in self._curve.probes():
            _factor(self._curve, t)
        names = state.select(select).names
        optimizers = dict.fromkeys(state[name].facts.optimizer for name in names)
        self._asked = {"slot": slot, "select": select, "curve": self._curve.fingerprint}
        self._parts = {name: Part(state.source, name, slot, select, self._curve) for name in optimizers}
        _refuse_slot(slot, list(self._parts.values()))
        self._hooks: list[Callable[[], None]] = []
        try:
            for part in self._parts.values():
                claim(part.optimizer, part)
        except BaseException:
            self.release()
            raise
        if hook:
            self._hooks = [follow(part.optimizer, partial(part.step, inside=True)) for part in self._parts.values()]

    def step(self) -> None:
        """Go one step further; call it after each step of the optimizer.

        Raises `ScheduleError` where the schedule follows the optimizer by itself, and inside a step of the optimizer.
        """
        refuse_hooked(self._hooks)
        for part in self._parts.values():
            refuse_inside(part.optimizer)
        works = [part.prepare() for part in self._parts.values()]
        for part, work in zip(self._parts.values(), works, strict=True):
            part.make(work)

    @property
    def steps(self) -> int | dict[str, int]:
        """How many steps it has followed; of several optimizers, each one's number by its name."""
        steps = {name: part.steps for name, part in self._parts.items()}
        return steps[""] if steps.keys() == {""} else steps

    def preview(self, steps: int) -> Preview:
        """How much of what it holds at first a buffer that is left alone would hold, in the first `steps` steps.

        >>> from optstate import schedule as s
        >>> s.BufferSchedule(state, "momentum", s.cosine(1, 0.5, 100)).preview(101).values["momentum"][100]
        0.5
        """
        first = self._curve.at(0)
        return Preview({self._asked["slot"]: tuple(self._curve.at(t) / first for t in range(steps))})

    def release(self) -> None:
        """Scale nothing any more: buffers stay as they are, and another schedule may have them."""
        while self._hooks:
            self._hooks.pop()()
        for part in self._parts.values():
            release(part.optimizer, part)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps of each optimizer, and what was asked for with a fingerprint of the curve."""
        return {"format": FORMAT, "steps": {name: part.steps for name, part in self._parts.items()}, **self._asked}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Be as far as the schedule that gave this; buffers are not touched, those of a checkpoint are scaled already.

        Raises `ScheduleError` for what `state_dict` did not give and, unless `strict` is False, for another curve.
        """
        if (
            not isinstance(state, Mapping)
            or state.get("format") != FORMAT
            or state["steps"].keys() != self._parts.keys()
        ):
            raise ScheduleError("this is not the state of such a schedule", expected="what state_dict() of one gave")
        for key, here in self._asked.items():
            if strict and state[key] != here:
                raise ScheduleError(
                    f"the checkpoint is of another {key}",
                    expected=safe_text(state[key]),
                    found=safe_text(here),
                    todo="build the schedule as it was, or load with strict=False to go on with this one",
                )
        for name, steps in state["steps"].items():
            self._parts[name].steps = int(steps)

    def __repr__(self) -> str:
        return ", ".join(map(repr, self._parts.values()))


class Part:
    """The buffers of one optimizer, and how many of its steps were followed; see `BufferSchedule`."""

    def __init__(self, source: LiveSource, name: str, slot: str, pattern: str, curve: Curve) -> None:
        self.optimizer = source.live_optimizers[name]
        self.spec = by_class(type(self.optimizer))
        self.steps = 0
        self._source = source
        self._name = name
        self._slot = slot
        self.key = _key_of(slot, self.spec)
        self._curve = curve
        self._matches = matcher(pattern)
        self._members = Members(source.bound(each).tensor for each in source.names() if self._matches(each))
        self._log = Log(name, self.optimizer, {slot: repr(curve)}, safe_text(pattern))

    def __repr__(self) -> str:
        return f"BufferSchedule({self._slot}: {self._curve})"

    @property
    def owns(self) -> set[tuple[int, str]]:
        """The slots that it scales, as `id` of a parameter and key."""
        return {(id(parameter), f"slot {self.key}") for parameter in self._parameters()}

    def _parameters(self) -> list[torch.Tensor]:
        """Those that have such a name, or had it at first: surgery may have renamed them, or put others in their place."""
        members, every = self._members.ids(), map(self._source.bound, self._source.names())
        meant = (each for each in every if self._matches(each.name) or id(each.tensor) in members)
        return [each.tensor for each in meant if each.optimizer == self._name]

    def step(self, *, inside: bool = False) -> None:
        """Follow one step; `inside` says that this is called from within it, by a hook."""
        if not inside:
            refuse_inside(self.optimizer)
        self.make(self.prepare())

    def prepare(self) -> Work:
        """What the next step asks for. Raises `ScheduleError` for a value of the curve that is not above 0."""
        t, key = self.steps + 1, self.key
        factor = _factor(self._curve, t) / _factor(self._curve, t - 1)
        work = Work()
        if factor != 1.0 and key is not None:
            entries = [self.optimizer.state.get(parameter) or {} for parameter in self._parameters()]
            having = [entry for entry in entries if key in entry]
            scale(work, key, having, factor)
            work.parameters = len(having)
        return work

    def make(self, work: Work) -> None:
        """Carry out what was prepared."""
        work.do()
        self.steps += 1
        self._log.count([work], self.steps)


def _factor(curve: Curve, t: int) -> float:
    value = curve.at(t)
    if not 0 < value < inf:
        raise ScheduleError(
            "a buffer cannot be scaled by this curve",
            where=f"step {t:,} of {safe_text(curve)}",
            expected="more than 0, for nothing brings a buffer back from there",
            found=f"{value:.17g}",
        )
    return value


def _key_of(slot: str, spec: OptimizerSpec | None) -> str | None:
    """The key of the slot that a role or a key means to an optimizer; None where it keeps none."""
    if slot in ROLES:
        return None if spec is None else primary(spec, slot)
    return slot if spec is None or slot in spec.slots else None


def _refuse_slot(slot: str, parts: Sequence[Part]) -> None:
    """Raise `ScheduleError` where no optimizer has such a slot, or one whose role makes no sense scaled."""
    specs = [part.spec for part in parts if part.spec is not None]
    if all(part.key is None for part in parts):
        reason = Absence.NOT_KEPT if specs else Absence.UNKNOWN_OPTIMIZER
        kept = sorted({key for spec in specs for key in spec.slots})
        near = get_close_matches(slot, kept, n=1)
        raise ScheduleError(
            f"there is no slot {safe_text(slot)!r} to scale: {reason.sentence}",
            found=f"slots: {listing(kept)}",
            todo=f"did you mean {near[0]!r}?" if near else reason.todo,
        )
    for role in {part.spec.slots[part.key].role for part in parts if part.spec is not None and part.key is not None}:
        verbs, why = ALLOWED.get(role, (frozenset({"scale_"}), ""))
        if "scale_" not in verbs:
            raise ScheduleError(f"a slot of role {role} is not scaled: {why}", found=safe_text(slot))

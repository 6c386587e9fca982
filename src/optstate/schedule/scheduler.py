"""Scheduler: hyperparameters of running optimizers along curves, by hand or following their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from optstate.errors import ScheduleError
from optstate.live.journals import journal_of
from optstate.live.regroup import regroup
from optstate.live.source import LiveSource
from optstate.live.transaction import Transaction
from optstate.live.view import checked_model, optimizers_by_name
from optstate.optimizers.change import OnChange
from optstate.schedule.asked import drives_of, read_asks
from optstate.schedule.couple import coupling_of
from optstate.schedule.curve import CurveLike
from optstate.schedule.follow import follow, refuse_hooked
from optstate.schedule.owners import claim, release
from optstate.schedule.preview import Preview
from optstate.schedule.track import Track
from optstate.text import listing, safe_text

FORMAT = "optstate.schedule/1"
"""What `state_dict` gives."""

Curves = Mapping[str, CurveLike | Sequence[CurveLike] | Mapping[int, CurveLike] | Mapping[str, Any]]


class Scheduler:
    """Drives hyperparameters along curves of the number of steps taken.

    optimizer
        One optimizer, or a mapping of names to several.
    curves
        Hyperparameter → curve. A hyperparameter is a group key (`lr`), an item of one (`betas[0]`), or `momentum` or
        `second_moment` for whatever drives that here. A curve is a `Curve`, a number, or a function of the step. A list
        has one for each group, `{number: curve}` some of them; `{"*.bias": {"momentum": curve}}` is for parameters by
        name, which go to groups of their own; `{"muon": {"lr": curve}}` for one of several optimizers. What is said by
        name goes before what is said of a group, and that before what is said of all.
    model
        Whose parameters the names are; needed for those alone.
    on_change
        What buffers do when their coefficient moves. `keep`: sums stay as they are and drift to their new steady value.
        `steady`: they are scaled to it at once. `equivalent`: also the learning rate is divided by the same factor (and
        decoupled weight decay multiplied), so that steps keep their length; a curve of `lr` is then meant for the
        momentum at the start. In each case averages that the optimizer debiases (Adam's) are scaled so that their
        estimates do not jump.
    lr_coupling
        Whether buffers are scaled by lr/lr' when the learning rate moves, as the classical velocity u = βu - ηg behaves.
    hook
        Whether it follows the optimizer's steps by itself: each one that is really taken, once. Otherwise call `step()`
        after each step of the optimizer.

    Values for step 0 are set at once; slots that are there already follow when the next step begins. Tensors among the
    hyperparameters are written in place. `state_dict` has the number of steps and a fingerprint of each curve, and loads
    before or after the optimizer's.

    Raises `ScheduleError` for what cannot be driven or has another owner, `CoefficientError` for values out of range,
    `SelectionError` for a pattern that means nothing. Whatever is refused has changed nothing.

    >>> from optstate import schedule as s
    >>> scheduler = s.Scheduler(optimizer, {"momentum": s.linear(0.85, 0.95, 300), "second_moment": s.inverse_power(0.8)})
    >>> optimizer.param_groups[0]["betas"]
    (0.85, 0.0)
    >>> scheduler.step()
    >>> [round(beta, 6) for beta in optimizer.param_groups[0]["betas"]]
    [0.850333, 0.425651]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
        curves: Curves,
        *,
        model: nn.Module | None = None,
        on_change: OnChange = "keep",
        lr_coupling: bool = False,
        hook: bool = False,
    ) -> None:
        if on_change not in ("keep", "steady", "equivalent"):
            raise ScheduleError(
                "on_change is one of three words", expected="keep, steady or equivalent", found=safe_text(on_change)
            )
        optimizers = optimizers_by_name(optimizer)
        source = LiveSource(optimizers, checked_model(model)) if model is not None else None
        asks = list(read_asks(curves, optimizers))
        drives = drives_of(asks, optimizers, source)
        self._tracks = {
            name: Track(name, each, drives[name], coupling_of(each, on_change, lr_coupling=lr_coupling))
            for name, each in optimizers.items()
            if drives[name]
        }
        self._only = next(iter(self._tracks.values())) if len(self._tracks) == 1 else None  # may step the quick way
        self._single = not isinstance(optimizer, Mapping)
        self._hooks: list[Callable[[], None]] = []
        self._start(source, {ask.pattern: {} for ask in asks if ask.pattern is not None})
        if hook:
            self._only = None
            self._hooks = [follow(track.optimizer, partial(track.step, inside=True)) for track in self._tracks.values()]

    def _start(self, source: LiveSource | None, patterns: Mapping[str, Mapping[str, Any]]) -> None:
        """Split groups, claim what is driven, and write the first values: all of it or nothing."""
        for track in self._tracks.values():
            track.check()
        transaction = Transaction()
        try:
            split = regroup(transaction, source, patterns, merge=False) if source is not None and patterns else None
            for track in self._tracks.values():
                track.bind()
                claim(track.optimizer, track)
            moves = [(track, track.prepare(0)) for track in self._tracks.values()]
        except BaseException:
            transaction.rollback()
            self.release()
            raise
        for track, first in moves:
            track.open(first)
        if split is not None and source is not None:
            journal_of(source.live_optimizers).append(split)

    # --- at work --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Go one step further; call it after each step of the optimizer.

        Raises `ScheduleError` where the schedule follows the optimizer by itself, or inside a step of the optimizer when
        slots would have to change, and `CoefficientError` for a value out of range. Then nothing has changed.

        >>> from optstate import schedule as s
        >>> scheduler = s.Scheduler(optimizer, {"weight_decay": s.linear(0, 0.5, 4)})
        >>> scheduler.step()
        >>> scheduler.steps, optimizer.param_groups[0]["weight_decay"]
        (1, 0.125)
        """
        only = self._only
        if only is None or only.quick is None or not only.quick.step(only):
            self._step()

    def _step(self) -> None:
        if self._hooks:
            refuse_hooked(self._hooks)
        prepared = [(track, track.prepare(track.steps + 1)) for track in self._tracks.values()]
        for track, moves in prepared:
            track.refuse_inside(moves)
        for track, moves in prepared:  # all of them, or none
            track.make(moves)

    @property
    def tracks(self) -> Mapping[str, Track]:
        """What it drives of each optimizer, by its name.

        >>> from optstate import schedule as s
        >>> s.Scheduler(optimizer, {"lr": s.linear(0.1, 0, 100)}).tracks[""].values(50)
        [{'lr': 0.05}]
        """
        return self._tracks

    @property
    def steps(self) -> int | dict[str, int]:
        """How many steps it has followed; of several optimizers, each one's number by its name."""
        steps = {name: track.steps for name, track in self._tracks.items()}
        return steps[""] if self._single else steps

    def preview(self, steps: int) -> Preview:
        """The values that the hyperparameters will have in the first `steps` steps; nothing is touched.

        >>> from optstate import schedule as s
        >>> s.Scheduler(optimizer, {"lr": s.cosine(1e-3, 0, 1000)}).preview(1001).values["lr"][500]
        0.0005
        """
        values = {
            label if self._single else f"{name}: {label}": line
            for name, track in self._tracks.items()
            for label, line in track.preview(steps).items()
        }
        return Preview(values, tuple(dict.fromkeys(note for track in self._tracks.values() for note in track.notes)))

    def release(self) -> None:
        """Drive nothing any more: the hyperparameters stay as they are, and another schedule may have them.

        >>> from optstate import schedule as s
        >>> scheduler = s.Scheduler(optimizer, {"lr": 0.1})
        >>> scheduler.release()
        >>> scheduler = s.Scheduler(optimizer, {"lr": s.linear(0.1, 0, 100)})
        """
        while self._hooks:
            self._hooks.pop()()
        for track in self._tracks.values():
            release(track.optimizer, track)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of steps of each optimizer, and a fingerprint of each curve.

        >>> from optstate import schedule as s
        >>> s.Scheduler(optimizer, {"lr": s.linear(0.1, 0, 100)}).state_dict()
        {'format': 'optstate.schedule/1', 'optimizers': {'': {'steps': 0, 'curves': {'lr': 'linear(0.1, 0, 100)'}}}}
        """
        return {"format": FORMAT, "optimizers": {name: track.state() for name, track in self._tracks.items()}}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Be as far as the scheduler that gave this, and set its values; slots are not touched.

        Raises `ScheduleError` for what `state_dict` did not give, and for other curves unless `strict` is False: then the
        number of steps is taken over.

        >>> from optstate import schedule as s
        >>> scheduler = s.Scheduler(optimizer, {"lr": s.linear(0.1, 0, 100)})
        >>> scheduler.load_state_dict({**scheduler.state_dict()})
        """
        for name, saved in self.check_state(state, strict=strict).items():
            self._tracks[name].load(saved)

    def check_state(self, state: Mapping[str, Any], *, strict: bool = True) -> Mapping[str, Any]:
        """What `load_state_dict` would load, by optimizer; raises what it would raise, and changes nothing.

        >>> from optstate import schedule as s
        >>> scheduler = s.Scheduler(optimizer, {"lr": s.linear(0.1, 0, 100)})
        >>> scheduler.check_state(scheduler.state_dict())
        {'': {'steps': 0, 'curves': {'lr': 'linear(0.1, 0, 100)'}}}
        """
        saved = state.get("optimizers") if isinstance(state, Mapping) and state.get("format") == FORMAT else None
        if not isinstance(saved, Mapping) or saved.keys() != self._tracks.keys():
            raise ScheduleError(
                "this is not the state of such a schedule",
                expected=f"what state_dict() of a schedule of {listing(self._tracks) if not self._single else 'one optimizer'} gave",
                found=f"one of {listing(saved)}"
                if isinstance(saved, Mapping)
                else f"a {type(state).__name__} of another form",
            )
        if strict:
            for name, track in self._tracks.items():
                track.refuse_other_curves(saved[name]["curves"])
        return saved

    def __repr__(self) -> str:
        return ", ".join(map(repr, self._tracks.values()))

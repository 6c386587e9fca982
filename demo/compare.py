"""Is the resumed run the uninterrupted one? Bits, never tolerances."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import optstate


@dataclass(frozen=True, slots=True)
class Moment:
    """A run after one step: its loss there (None where it was just restored) and the digest of each piece of state."""

    loss: float | None
    digests: Mapping[str, str]


Log = Mapping[int, Moment]
"""A run by step."""


def read_log(path: Path) -> Log:
    """What `demo.train` wrote."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: Moment(line["loss"], line["digests"]) for line in lines}


def differing(left: Mapping[str, object], right: Mapping[str, object]) -> list[str]:
    """The names whose values differ, those that only one side has included."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


@dataclass(frozen=True, slots=True)
class Proof:
    """Two runs compared at every step that the second has, and their last checkpoints byte by byte."""

    first_step: int
    last_step: int
    tensors: int  # weights and slots
    others: int  # hyperparameters, scheduler, RNG
    saved_tensors: int  # compared in the two last checkpoints
    saved_bytes: int
    differences: tuple[str, ...]  # of the earliest step that has any: sentences, by name

    @property
    def exact(self) -> bool:
        """Whether nothing differs anywhere."""
        return not self.differences

    @property
    def steps(self) -> int:
        """Moments compared: each step after the resume, and the restored state itself."""
        return self.last_step - self.first_step + 1

    @property
    def verdict(self) -> str:
        """EXACT or NOT EXACT."""
        return "EXACT" if self.exact else "NOT EXACT"

    @property
    def evidence(self) -> str:
        """What the verdict rests on."""
        if self.differences:
            more = len(self.differences) - 1
            return f"First difference: {self.differences[0]}" + (f", and {more} more there." if more else ".")
        return (
            f"{self.tensors} tensors (every weight and slot) and {self.others} other states (RNG, scheduler, "
            f"hyperparameters) are equal bit for bit at {self.steps} points: as restored after step "
            f"{self.first_step}, and after each of the {self.steps - 1} steps that followed. So are the losses, and "
            f"{self.saved_tensors} tensors ({self.saved_bytes / 1e6:.1f} MB) of the two checkpoints of step "
            f"{self.last_step}."
        )


def prove(reference: Log, resumed: Log, last: Path, resumed_last: Path) -> Proof:
    """Compare a run with a part of it that was done again: every step, then the two last checkpoints."""
    names = reference[min(resumed)].digests
    tensors = [name for name in names if not name.startswith(":")]
    left, right = saved_tensors(last), saved_tensors(resumed_last)
    differences = (
        first_difference(reference, resumed)
        or [f"{name} in the two last checkpoints" for name in differing(left, right)]
        # Nothing differs where nothing was compared, so the comparison itself must be whole.
        or [f"step {step}, which is not in the log" for step in reference if step > max(resumed)]
        or [f"{name}, which is not in the last checkpoint" for name in tensors if name not in left]
    )
    return Proof(
        first_step=min(resumed),
        last_step=max(resumed),
        tensors=len(tensors),
        others=len(names) - len(tensors),
        saved_tensors=len(left),
        saved_bytes=sum(len(values) for _, _, values in left.values()),
        differences=tuple(differences),
    )


def first_difference(reference: Log, other: Log) -> list[str]:
    """Everything that differs at the earliest step where anything does, as sentences; empty if nothing does."""
    return next(filter(None, (_differences_at(step, reference, other) for step in sorted(other))), [])


def _differences_at(step: int, reference: Log, resumed: Log) -> list[str]:
    mine, theirs = reference[step], resumed[step]
    names = differing(mine.digests, theirs.digests)
    if theirs.loss is not None and mine.loss != theirs.loss:
        names.append(f"the loss, {theirs.loss!r} instead of {mine.loss!r},")
    return [f"{name.lstrip(':')} after step {step}" for name in names]


def saved_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every weight and slot of a checkpoint by name: dtype, shape, bytes."""
    checkpoint = optstate.open(path)
    values = {name: weight.array() for name, weight in checkpoint.weights.items()}
    values |= {f"{name}/{key}": slot.array() for name, p in checkpoint.state.items() for key, slot in p.slots.items()}
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in values.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A way to resume, beside the uninterrupted run. Lists are by step, from the one that was resumed."""

    name: str
    wrong: tuple[str, ...]  # pieces of state that differ right after the resume, the missing ones included
    missing: int
    losses: Mapping[int, float]
    gaps: Mapping[int, float]  # |loss - loss of the uninterrupted run|

    @property
    def largest(self) -> float:
        """The largest gap."""
        return max(self.gaps.values())

    def seen(self, jitter: float) -> bool:
        """Whether the gap ever leaves what the loss does from one step to the next anyway."""
        return self.largest > jitter


def outcome(name: str, reference: Log, resumed: Log) -> Outcome:
    """What a way to resume did to state and loss."""
    start = min(resumed)
    losses = {step: moment.loss for step, moment in resumed.items() if moment.loss is not None}
    gaps = {step: abs(loss - (reference[step].loss or 0.0)) for step, loss in losses.items()}
    wrong = differing(reference[start].digests, resumed[start].digests)
    missing = sum(piece not in resumed[start].digests for piece in wrong)
    return Outcome(name, tuple(piece.lstrip(":") for piece in wrong), missing, losses, gaps)


def jitter(losses: Sequence[float]) -> float:
    """How much a loss changes from one step to the next, in the median."""
    return median(abs(after - before) for before, after in pairwise(losses))

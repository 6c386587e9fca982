"""What a curve is: a hyperparameter as a pure function of the number of optimizer steps taken, 0 before the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil, floor, isfinite
from typing import Any, TypeAlias

from optstate.errors import ScheduleError
from optstate.optimizers.registry import qualified_name
from optstate.text import safe_text


@dataclass(frozen=True, slots=True, repr=False)
class Curve:
    """A pure function of the step: it holds no state, and is never advanced.

    `curve(t)` is its value in the step that follows t steps, whenever and however often it is asked. It prints, equals
    and pickles as the call that made it: `make(*arguments)`. `turns` are steps between which it is monotone, as far as
    they are known.

    >>> from optstate import schedule as s
    >>> curve = s.linear(0.85, 0.95, 300)
    >>> curve, curve(0), round(curve(150), 6), curve(10_000)
    (linear(0.85, 0.95, 300), 0.85, 0.9, 0.95)
    """

    make: Callable[..., Curve]
    arguments: tuple[Any, ...]
    at: Callable[[float], float] = field(compare=False)
    turns: tuple[float, ...] = field(compare=False, default=())

    def __call__(self, t: float) -> float:
        return self.at(t)

    def __repr__(self) -> str:
        return f"{self.make.__name__}({', '.join(map(shown, self.arguments))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.make, self.arguments  # `at` is a closure, which neither pickle nor deepcopy takes

    @property
    def fingerprint(self) -> str:
        """What a checkpoint remembers of it. Of a function that is its qualified name: its code is not compared.

        >>> from optstate import schedule as s
        >>> s.demon(0.9, 100).fingerprint
        'demon(0.9, 100)'
        """
        return repr(self)

    def probes(self) -> list[int]:
        """The whole steps about its turns, among which are those of its largest and its smallest value."""
        return sorted({0, *(max(end, 0) for turn in self.turns for end in (floor(turn), ceil(turn)))})


CurveLike: TypeAlias = Curve | Callable[[int], float] | float
"""What can stand where a curve is wanted: a number is a constant, a callable gets the step."""


def shown(value: Any) -> str:
    """An argument of a curve as it is written: numbers short, functions by their qualified names."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, partial):
        given = [*map(shown, value.args), *(f"{key}={shown(each)}" for key, each in value.keywords.items())]
        return f"partial({', '.join([shown(value.func), *given])})"
    if not callable(value) or isinstance(value, Curve):
        return safe_text(repr(value), 1000)
    own = hasattr(value, "__qualname__") and getattr(value, "__module__", None) is not None
    return safe_text(qualified_name(value if own else type(value)))


def finite(name: str, value: Any) -> float:
    """`value` as a float. Raises `ScheduleError` for what is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not isfinite(number):
        raise bad(name, value, "a finite number")
    return number


def positive(name: str, value: Any) -> float:
    """`value` as a float above 0. Raises `ScheduleError` for any other."""
    number = finite(name, value)
    if number <= 0:
        raise bad(name, value, "more than 0")
    return number


def bad(name: str, found: Any, expected: str) -> ScheduleError:
    """The error of an argument with which there is no such curve."""
    return ScheduleError(f"there is no such curve: {name} is wrong", expected=expected, found=safe_text(found))

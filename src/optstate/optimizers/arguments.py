"""Arguments of verbs, checked alike for a running optimizer and for a file."""

from __future__ import annotations

from math import isfinite
from typing import Any

from optstate.errors import EditError
from optstate.text import safe_text


def real_number(value: Any, what: str) -> float:
    """An argument as a finite float; `EditError` for any other."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        found = safe_text(value, 40) if isinstance(value, str) else f"a {safe_text(type(value).__name__)}"
        raise EditError(f"{what} is not a number", found=found) from None
    if not isfinite(number):
        raise EditError(f"{what} is not finite", found=f"{number}")
    return number


def limits(low: Any, high: Any) -> tuple[float | None, float | None]:
    """The ends of a range, None for one that is open; `EditError` for no range."""
    least = None if low is None else real_number(low, "min")
    most = None if high is None else real_number(high, "max")
    if least is None and most is None:
        raise EditError("clamp_ has neither min nor max", todo="clamp_(min=-1e-3, max=1e-3)")
    if least is not None and most is not None and least > most:
        raise EditError("clamp_ has a min above its max", found=f"min={least:g}, max={most:g}")
    return least, most


def as_before(old: Any, new: float, verb: str, path: str) -> bool | int | float:
    """A slot's new number in the type of the old one; `EditError` for a part of what an integer counts."""
    if isinstance(old, int) and not float(new).is_integer():
        raise EditError(
            f"{verb} would leave no whole number, and {path} counts",
            expected="a whole number",
            found=f"{new:g} (it is {old} now)",
        )
    kept: bool | int | float = type(old)(new)
    return kept

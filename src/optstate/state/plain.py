"""Values in the types that JSON has."""

from __future__ import annotations

from math import isfinite, isnan, prod
from typing import Any

from optstate.state.tensors import is_tensor
from optstate.text import safe_text


def plain(value: Any) -> Any:
    """A value in JSON's own types.

    JSON has no number for NaN and the infinities: they become `"NaN"`, `"Infinity"`, `"-Infinity"`. A tensor
    of one element becomes its number, any other `{"dtype", "shape"}`; bytes become their count; what is
    nothing of all this becomes text.
    """
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, complex):
        return {"real": plain(value.real), "imag": plain(value.imag)}
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if is_tensor(value):
        return plain(value.item()) if prod(value.shape) == 1 else {"dtype": value.dtype, "shape": list(value.shape)}
    return safe_text(value)

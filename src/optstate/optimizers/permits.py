"""What each role allows: the verbs that make sense for it, on a running optimizer and in a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from optstate.state.roles import Role

NOT_NEGATIVE = frozenset(
    {"second_moment", "max_second_moment", "infinity_norm", "factored_row", "factored_column", "step", "counter"}
)
"""Roles whose values are squares, sizes or counts."""

_WEIGHTS = (frozenset({"set_", "lerp_"}), "it holds weights, not a moment")
_COUNT = (frozenset({"set_"}), "it counts, and a part of a count means nothing")
_FACTORED = (frozenset[str](), "its rows and columns make a second moment together")
_RATE = (frozenset({"scale_", "set_", "clamp_", "lerp_"}), "it is a step size, which does not recover from zero")

ALLOWED: Mapping[Role, tuple[frozenset[str], str]] = MappingProxyType(
    {
        "step": _COUNT,
        "counter": _COUNT,
        "averaged_weights": _WEIGHTS,
        "master_weights": _WEIGHTS,
        "factored_row": _FACTORED,
        "factored_column": _FACTORED,
        "preconditioner": (frozenset(), "its parts mean something only together"),
        "step_size": _RATE,
    }
)
"""For a role that not every verb makes sense for: those that do, besides `reset_`, and why the others do not."""

"""What a `Checkpointer` is given, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

from optstate.errors import BindError, OptstateError, SaveError
from optstate.optimizers.registry import qualified_name
from optstate.store.objects import RESERVED
from optstate.text import listing, safe_text


def check_counts(keep: int, keep_every: int | None) -> None:
    """Raise `OptstateError` for numbers of checkpoints that cannot be kept."""
    if keep < 2:
        raise OptstateError(
            f"keep={safe_text(keep)} leaves none while a new one is written", expected="2 or more", todo="keep=2"
        )
    if keep_every is not None and keep_every < 1:
        raise OptstateError("keep_every must be above zero", found=safe_text(keep_every))


_WORDS = {
    "verify": ("quick", "full"),
    "on_error": ("raise", "warn"),
    "mode": ("stream", "copy"),
    "busy": ("wait", "skip"),
}


def check_words(**words: str) -> None:
    """Raise `OptstateError` for an option that has no such value."""
    for name, value in words.items():
        if value not in _WORDS[name]:
            expected = " or ".join(map(repr, _WORDS[name]))
            raise OptstateError(f"{name} is not known", expected=expected, found=safe_text(value))


def check_objects(objects: Mapping[str, Any]) -> None:
    """Raise `BindError` for a name that is taken, and for a loader that does not know where it is."""
    taken = sorted(RESERVED & set(objects))
    if taken:
        raise BindError(f"an object cannot be named {listing(taken)}", todo="give it another name")
    loader = objects.get("loader")
    if loader is not None and not callable(getattr(loader, "state_dict", None)):
        raise BindError(
            "this loader cannot say where in the data it is",
            expected="a loader with state_dict and load_state_dict",
            found=f"a {safe_text(qualified_name(type(loader)))}",
            todo="torchdata.stateful_dataloader.StatefulDataLoader takes the same arguments; without loader= every resume "
            "begins the data anew",
        )


def checked_step(step: Any) -> int:
    """A step as an integer from 0 on. Raises `SaveError`."""
    try:
        checked = index(step)
    except TypeError:
        checked = -1
    if checked < 0:
        raise SaveError("step is no whole number from 0 on", found=safe_text(step))
    return checked

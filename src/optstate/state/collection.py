"""Python's search for cycles, held off where very many objects are made and none of them is one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles: among a million objects that takes as long again as making them.

    Works as a decorator too. Whether Python collected before is as it was, whatever happens.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

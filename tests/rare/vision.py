"""Importing torchvision's Python half where its compiled half does not fit the torch that is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

APART = Path(__file__).parents[2] / ".rare"
"""Where `make test-all` puts a torchvision that other libraries must not find."""


def declare() -> None:
    """Declare the operators that torchvision would bring, so that it can be imported; none of them can be called.

    Raises `ImportError` where there is no torchvision.
    """
    try:
        import torchvision
    except (ImportError, RuntimeError):
        sys.modules.pop("torchvision", None)
        sys.path.append(str(APART))
        declarations = APART / "torchvision" / "_meta_registrations.py"
        if not declarations.is_file():
            raise ImportError("torchvision is not installed") from None
        names = set(re.findall(r'(?:register_meta\("|torchvision::)([a-z_0-9]+)', declarations.read_text()))
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted(names):
            library.define(f"{name}(Tensor a) -> Tensor")
        globals()["_kept"] = library  # what a library declares goes with it
        import torchvision  # noqa: F401

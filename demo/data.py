"""Real text that is on every machine: the sources of Python's own standard library, byte by byte."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

VOCABULARY = 256  # a token is a byte


def corpus() -> torch.Tensor:
    """The bytes of every `.py` file at the top of the standard library, in the order of their names: uint8 [bytes]."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in folder.glob("*.py") if file.is_file())  # some systems link to what is not there
    if not files:
        raise SystemExit(f"{folder} holds no .py files; the demo trains on the sources of the standard library")
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def batch(text: torch.Tensor, size: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`size` random places in the text: the bytes there, and for each byte the one after it, int64 [size, context].

    Drawn from torch's global generator, so the position in the data is part of the RNG state, and restoring
    the one restores the other.
    """
    starts = torch.randint(len(text) - context, (size, 1))
    windows = text[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]

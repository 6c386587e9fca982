"""Slots stored in fewer bits and read back: what remains of them."""

from __future__ import annotations

from functools import cache

import torch

BLOCK = 256
"""Elements that share a scale, as in bitsandbytes."""


def through_bfloat16(slot: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Rounded to 8 bits of mantissa."""
    del signed
    return slot.bfloat16().to(slot.dtype)


def through_linear_codes(slot: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Rounded to 255 (of a slot that is never negative, 256) even levels, with one scale for the whole tensor."""
    levels = 127 if signed else 255
    scale = slot.abs().max().clamp_min(torch.finfo(slot.dtype).tiny) / levels
    return (slot / scale).round() * scale


def through_dynamic_codes(slot: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Rounded to the 256 dynamic levels, with a scale for each block. Source: 8-bit optimizers, arXiv:2110.02861."""
    levels = dynamic_levels(signed=signed)
    parts = [
        levels[_nearest(levels, part / scale)] * scale
        for part in slot.reshape(-1).split(BLOCK)
        if (scale := part.abs().max().clamp_min(torch.finfo(slot.dtype).tiny)) is not None
    ]
    return torch.cat(parts).reshape(slot.shape)


def _nearest(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)


@cache
def dynamic_levels(*, signed: bool) -> torch.Tensor:
    """256 numbers up to 1: seven decades, each with twice as many levels between as the one below it; rising.

    >>> len(dynamic_levels(signed=True)), dynamic_levels(signed=False)[0].item()
    (256, 0.0)
    """
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)).tolist()
        found += middles + ([-each for each in middles] if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float32)

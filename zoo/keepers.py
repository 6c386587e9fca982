"""All specimens, in the order of their codes."""

from __future__ import annotations

from collections.abc import Sequence

from zoo import m1, m2, m3, m4, m5
from zoo.specimen import SPECIMENS, Specimen

FAMILIES = (m1, m2, m3, m4, m5)
"""The modules in which the specimens live; importing one puts its own into the zoo."""


def specimens(codes: Sequence[str] = ()) -> list[Specimen]:
    """Those with one of the codes, or all of them."""
    return [each for each in sorted(SPECIMENS, key=lambda each: each.code) if not codes or each.code in codes]

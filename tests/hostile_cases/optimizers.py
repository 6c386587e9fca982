"""State dicts that no optimizer makes."""

from __future__ import annotations

import struct

from optstate.errors import Refused
from tests.forged import PROTOCOL_2, STOP, Cases, entries, number, torch_file


def optimizer(params: bytes, state: bytes = b"}", **more: bytes) -> bytes:
    """The pickle of a bare optimizer state dict with one group of SGD."""
    group = entries(
        lr=b"G" + struct.pack(">d", 0.1), momentum=b"G" + struct.pack(">d", 0.9), dampening=number(0),
        weight_decay=number(0), nesterov=b"\x89", params=params, **more,
    )  # fmt: skip
    return PROTOCOL_2 + entries(state=state, param_groups=b"]" + group + b"a") + STOP


def _cases() -> Cases:
    return {
        "42 rate that is no number": (torch_file(optimizer(b"](" + number(0) + b"e", eps=b"G" + struct.pack(">d", float("nan")))), "group 0 eps"),
        "43 parameter that is a bool": (torch_file(optimizer(b"]\x88a")), Refused),
        "43 parameters that are no list": (torch_file(optimizer(b"N")), Refused),
        "45 parameter in two groups": (
            torch_file(PROTOCOL_2 + entries(state=b"}", param_groups=b"](" + entries(params=b"]K\x00a") * 2 + b"e") + STOP), Refused,
        ),
        "45 state of no parameter": (torch_file(optimizer(b"]K\x00a", b"}K\x07}s")), ""),
    }  # fmt: skip


CASES = _cases()

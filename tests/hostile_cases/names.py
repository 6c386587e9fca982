"""Names that a terminal would act on, that forge a line, or that look like others: shown, and shown harmless."""

from __future__ import annotations

import json

from tests.forged import PROTOCOL_2, STOP, Cases, number, safetensors, tensor, text, torch_file
from tests.hostile_cases.optimizers import optimizer

NAMES = {
    "122 markup": "<script>alert(1)</script>\"><img onerror=x>",
    "123 separators": "a\u2028b\u2029c<!--",
    "125 escapes": "\x1b[2J\x1b]8;;file:///etc\x07\x1b]52;c;x\x07\x1b]0;t\x07\x1b[6n\x1bP1\x1b\\" + "\x07" * 1000 + "\x9b2J\r\b\x7f",
    "126 directions": "\u202eweight\u2066\u2069\u200b\u200d" + "e" + "\u0301" * 1000 + "\U000e0041\u0430dmin",
    "127 line feed": "a\nb  1 weight\r\nc",
    "128 markup of rich": "[link=file:///etc/passwd]x[/link]",
    "129 formulas": "=cmd|'/c calc'!A0\t\"x\"",
    "130 Markdown": "|`](x)|",
    "131 a megabyte": "x" * 1_000_000,
    "132 lone surrogate": "\ud800\udfff",
    "134 formats": "{0.__class__} %n %s ${x}",
    "98 path": "../../etc/passwd\0",
    "98 nothing": "",
}  # fmt: skip


def _weights(name: str) -> bytes:
    return torch_file(PROTOCOL_2 + b"}(" + text(name) + tensor() + text("b") + tensor() + b"u" + STOP)


def _objects(name: str) -> bytes:
    return torch_file(PROTOCOL_2 + b"}(" + text(name) + b"}" + text(name) + text(name) + b"s" + b"u" + STOP)


def _slots(name: str) -> bytes:
    state = b"}" + number(0) + b"}" + text(name) + tensor() + b"ss"
    recorded = b"]" + text(name) + b"a"
    return torch_file(optimizer(b"]" + number(0) + b"a", state, param_names=recorded, extra=text(name)))


def _metadata(name: str) -> bytes:
    header = {"__metadata__": {name: name}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return safetensors(json.dumps(header).encode(), bytes(4))


CASES: Cases = {
    f"{case}, in {what}": (build(name), "")
    for case, name in NAMES.items()
    for what, build in (("weights", _weights), ("objects", _objects), ("slots", _slots), ("metadata", _metadata))
    if what != "metadata" or name.isprintable()
}

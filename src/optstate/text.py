"""The one way a foreign string reaches a terminal, a log or a page.

Parameter names, slot keys, class names and paths come from files that anyone may have written. A name can
hold an escape sequence that repaints the terminal, a line feed that forges a second row, or a direction
override that shows one name as another. `safe_text` makes all of it visible and harmless.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# Cc and Cf: control and format characters (escape, bidi, zero-width, tags). Cs: lone surrogates.
# Co, Cn: private and unassigned. Zl, Zp: line and paragraph separators. Zs other than space looks like one.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
_MARKS = {"Mn", "Me"}  # combining marks stack without limit over a neighbour
_ELLIPSIS = "…"


def safe_text(value: object, limit: int = 200) -> str:
    r"""`value` as one printable line of at most `limit` characters, elided in the middle.

    Everything that a terminal would act on, or that a reader could not see, becomes `\xNN`, `\uNNNN` or
    `\UNNNNNNNN`. The result is a fixed point: passing it in again changes nothing.

    >>> safe_text("layer\x1b[2J.weight")
    'layer\\x1b[2J.weight'
    """
    text = value if isinstance(value, str) else str(value)
    # Cut before escaping: an escape must never be cut in half, and a megabyte of text must not be scanned.
    text = elide(text, limit)
    if text.isascii() and text.isprintable():
        return text
    visible = list(map(_visible, text))
    while sum(map(len, visible)) > limit:
        # Whole characters leave from the middle, so that no escape is cut in half.
        excess = sum(map(len, visible)) - limit
        middle = len(visible) * 2 // 3
        drop = max(1, min(excess // 20, middle))
        visible[middle - drop : middle + 1] = [_ELLIPSIS]
    return "".join(visible)


def elide(text: str, limit: int) -> str:
    """`text`, its middle replaced by an ellipsis if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) * 2 // 3
    tail = limit - 1 - head
    return text[:head] + _ELLIPSIS + (text[-tail:] if tail else "")


def _visible(char: str) -> str:
    if char in (" ", _ELLIPSIS):
        return char
    category = unicodedata.category(char)
    if category not in _HIDDEN and category not in _MARKS:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def listing(names: Iterable[object], limit: int = 5) -> str:
    """The first `limit` names, made safe, and how many more there are.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    every = list(names)
    shown = ", ".join(safe_text(name, 80) for name in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def count(number: int, noun: str) -> str:
    """`number` and `noun`, in the plural where it belongs.

    >>> count(1, "parameter"), count(12000, "parameter")
    ('1 parameter', '12,000 parameters')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(nbytes: int) -> str:
    """A number of bytes in decimal units, three significant digits.

    >>> size(2_090_000_000)
    '2.09 GB'
    """
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{nbytes} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB" if amount < 999.5 else f"{amount:,.0f} TB"

"""CRC-32 of large data, twice as fast as zlib's.

A CRC is the remainder of a polynomial over GF(2), and the polynomial that CRC-32 divides by also divides
x^91639 + x^41678 + 1, and that with every exponent times 16 (a square doubles them). In terms of bytes: two bytes
count the same if they are added (exclusive or) to those 91639 - 41678 places of two bytes later, and to those 91639
places later. So all of a long text can be pushed to its end, at the speed at which numpy adds arrays; what has
gathered there goes to zlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np

WORTHWHILE = 1 << 21
"""Bytes from which this is faster than zlib, which at the end has the history to do."""

_FAR = 91639
_NEAR = 91639 - 41678
_TURNS = 4  # additions before the history is moved back to the start of its memory
_BACK = 0xB68F1413  # x^-(16 * _FAR); as in all CRCs below, the highest bit is the coefficient of x^0
_ONES = 0xFFFFFFFF
_POLYNOMIAL = 0xEDB88320


class Running(Protocol):
    """A CRC-32 that grows: `update` takes the next bytes, `value` is that of all so far."""

    @property
    def value(self) -> int: ...
    def update(self, piece: bytes | memoryview, /) -> None: ...


def running_crc(nbytes: int) -> Running:
    """The fastest for so many bytes."""
    return Crc32() if nbytes >= WORTHWHILE else _Zlib()


class _Zlib:
    value = 0

    def update(self, piece: bytes | memoryview) -> None:
        self.value = crc32(piece, self.value)


class Crc32:
    """The CRC-32 of what `update` is given, piece by piece; pieces of an even length are fast.

    >>> crc = Crc32()
    >>> crc.update(b"momentum")
    >>> hex(crc.value)
    '0x5fc0625c'
    """

    def __init__(self) -> None:
        import numpy as np

        # What was added up, two bytes an element: the history, and behind it what comes next.
        self._memory = np.zeros(_FAR + _TURNS * _NEAR, np.uint16)
        self._memory[:2] = 0xFFFF  # which arrives at the first four bytes: so every CRC-32 starts
        self._end = _FAR
        self._plain: int | None = None  # from the first odd length on, zlib alone goes on

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next bytes."""
        import numpy as np

        if self._plain is not None or len(piece) % 2:
            self._plain = crc32(piece, self.value)
            return
        data = np.frombuffer(piece, np.uint16)
        for start in range(0, data.size, _NEAR):
            self._push(data[start : start + _NEAR])

    def _push(self, data: np.ndarray[Any, Any]) -> None:
        import numpy as np

        memory = self._memory
        if self._end + data.size > memory.size:
            memory[:_FAR] = memory[self._end - _FAR : self._end].copy()
            self._end = _FAR
        start, end = self._end, self._end + data.size
        pushed = memory[start:end]
        np.bitwise_xor(data, memory[start - _NEAR : end - _NEAR], out=pushed)
        np.bitwise_xor(pushed, memory[start - _FAR : end - _FAR], out=pushed)
        self._end = end

    @property
    def value(self) -> int:
        """The CRC-32 of everything so far, as `zlib.crc32` gives it."""
        if self._plain is not None:
            return self._plain
        history = self._memory[self._end - _FAR : self._end].copy()
        history[:_NEAR] ^= self._memory[self._end - _NEAR : self._end]
        # zlib would start from ones as well, and both have to end by inverting.
        remainder = crc32(history.data, _ONES) ^ _ONES
        return _product(remainder, _BACK) ^ _ONES


def _product(a: int, b: int) -> int:
    """The product of two remainders."""
    product = 0
    while b:
        if b & 0x80000000:
            product ^= a
        b = b << 1 & _ONES
        a = a >> 1 ^ (_POLYNOMIAL if a & 1 else 0)
    return product

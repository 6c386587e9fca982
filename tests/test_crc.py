"""The CRC-32 of large data is zlib's, however it is cut."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optstate.formats.containers.crc import WORTHWHILE, Crc32, running_crc


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 99_922, 183_278, 183_279, 183_280, 1_000_001, 2_500_000])
def test_is_that_of_zlib(size):
    """Around every length at which its memory turns over."""
    data = Random(size).randbytes(size)
    crc = Crc32()
    for start in range(0, size, 1 << 18):
        crc.update(data[start : start + (1 << 18)])
        assert crc.value == crc32(data[: start + (1 << 18)])
    assert crc.value == crc32(data)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 400_000), max_size=6))
def test_cuts_do_not_matter(seed, lengths):
    """Pieces of any length, odd ones too, as bytes or views."""
    data = Random(seed).randbytes(sum(lengths))
    cuts = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    crc = Crc32()
    for start, stop in pairwise(cuts):
        crc.update(memoryview(data)[start:stop])
    assert crc.value == crc32(data)


def test_a_flipped_bit_is_found():
    """Anywhere in the data."""
    data = bytearray(Random(1).randbytes(600_000))
    expected = crc32(data)
    for place in (0, 1, 99_999, 183_278, 599_999):
        data[place] ^= 16
        crc = Crc32()
        crc.update(bytes(data))
        assert crc.value == crc32(data) != expected
        data[place] ^= 16


def test_small_data_is_left_to_zlib():
    """Where it would not be faster, zlib does it."""
    assert isinstance(running_crc(WORTHWHILE), Crc32)
    small = running_crc(10)
    small.update(b"momen")
    small.update(b"tum")
    assert (type(small) is not Crc32, small.value) == (True, crc32(b"momentum"))

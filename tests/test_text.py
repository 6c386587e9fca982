"""Foreign strings: whatever a file holds, one harmless line comes out."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optstate.errors import RestoreRefused
from optstate.text import count, listing, safe_text, size

HOSTILE = [
    "\x1b[2J",  # clear the screen
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",  # a hyperlink
    "a\nb\r\nc\u2028d\u2029e\x85f",  # every kind of line end
    "\u202eweight\u202c",  # right to left
    "zero\u200bwidth\ufeff",
    "\x9b31m",  # a C1 control sequence
    "\ud800",  # a lone surrogate
    "\U000e0041",  # a tag character
    "e" + "\u0301" * 1000,  # stacked marks
    "\u00a0\u3000",  # spaces that are none
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_visible(text):
    """Nothing that a terminal acts on, or that a reader cannot see, survives."""
    shown = safe_text(text, limit=10_000)
    assert all(unicodedata.category(char)[0] not in "CZM" or char == " " for char in shown)
    assert shown.encode("utf-8")


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(8, 250))
def test_safe_text_is_short_and_final(text, limit):
    """The result keeps the limit, and making it safe again changes nothing."""
    shown = safe_text(text, limit)
    assert len(shown) <= limit
    assert safe_text(shown, limit) == shown


def test_ordinary_names_stay_as_they_are():
    """Names in any script are left alone."""
    for name in ("layers.0.weight", "модель.вес", "重み.0", "naïve", "a b"):
        assert safe_text(name) == name


def test_long_text_keeps_both_ends():
    """A long name is elided in the middle, where its parts say least."""
    shown = safe_text("encoder." + "x" * 1_000_000 + ".weight", 40)
    assert shown.startswith("encoder.")
    assert shown.endswith(".weight")
    assert len(shown) == 40


def test_counting_and_sizes():
    """Numbers read as a person would write them."""
    assert (count(1, "slot"), count(0, "slot"), count(10_000, "slot")) == ("1 slot", "0 slots", "10,000 slots")
    assert [size(n) for n in (0, 999, 1000, 2_090_000_000, 3 * 10**12)] == ["0 B", "999 B", "1 kB", "2.09 GB", "3 TB"]
    assert listing(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_an_error_with_many_faults_stays_on_one_screen():
    """All faults are in the field, the message shows the first and counts the rest."""
    error = RestoreRefused("the checkpoint does not fit", [f"fault {n}" for n in range(1000)], where="ck", todo="look")
    assert len(error.faults) == 1000
    assert len(str(error).splitlines()) < 30
    assert "and 980 more" in str(error)

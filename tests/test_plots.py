"""Pictures: what the pages show is what the recursions do now, and every picture is harmless."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from optstate.schedule.plot import svg
from tools import plots


@pytest.mark.parametrize("name", plots.pages())
def test_pictures_of_the_pages_are_those_of_today(name):
    """`make docs` would change nothing."""
    assert (plots.TARGET / name).read_text(encoding="utf-8") == plots.pages()[name]


def test_tool_writes_what_it_draws(tmp_path):
    """Into the folder that it is given."""
    plots.write(tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == plots.pages()


PANELS = {
    "ordinary": {"a": {"a": [1.0, 2.0, 3.0]}},
    "constant": {"a": {"a": [0.9] * 5}},
    "zero": {"a": {"a": [0.0, 0.0]}},
    "one point": {"a": {"a": [1.0]}},
    "none": {"a": {"a": []}},
    "no panel": {},
    "not finite": {"a": {"a": [1.0, math.nan, math.inf, 2.0]}},
    "markup": {'<a href="x">&': {'"><script>': [1.0, 2.0], "b": [2.0, 1.0]}},
    "many points": {"a": {"a": [math.sin(t / 100) for t in range(100_000)]}},
}


@pytest.mark.parametrize("panels", PANELS.values(), ids=PANELS)
def test_picture_is_well_formed_and_inert(panels):
    """XML that parses, of shapes and text alone, with finite numbers, and not larger than a picture should be."""
    picture = svg(panels)
    names = {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()}
    assert names <= {"svg", "rect", "polyline", "text"}
    assert "nan" not in picture
    assert "inf" not in picture
    assert len(picture) < 20_000

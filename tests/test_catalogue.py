"""The catalogue of codes: whole, consistent with the rules that find them, and the source of the pages in docs/codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from optstate.doctor.catalogue.code import SEVERITIES, Code, Severity, ShownBy
from optstate.doctor.catalogue.codes import CODES, FAMILIES, find
from optstate.doctor.rules.every import RULES
from optstate.errors import OptstateError
from tests.faults import FAULTS
from tools import codes as tool

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "optstate"
SEES = {"state": {"file", "live"}}


def clue_codes() -> set[str]:
    """The codes for which readers of formats leave clues."""
    text = "".join(path.read_text() for path in (SOURCES / "formats").rglob("*.py"))
    return set(re.findall(r'Clue\(\s*"(M\d{3})"', text))


def test_codes_are_numbered_by_family_and_named_once():
    """A number or a name means one thing; families are complete and in order."""
    assert len(CODES) == 110
    assert list(CODES) == sorted(CODES)
    assert {code[:2] for code in CODES} == set(FAMILIES)
    assert len({code.name for code in CODES.values()}) == len(CODES)


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_every_code_tells_its_whole_story(code: Code):
    """Cause, effect and fix are sentences; threads are addresses; words come from the closed lists."""
    assert re.fullmatch(r"M[1-5]\d\d", code.code)
    assert re.fullmatch(r"[a-z0-9-]+", code.name)
    assert not code.title.endswith(".")
    for text in (code.cause, code.effect):
        assert re.search(r"\.$", text), text
        assert "\n" not in text
    assert len(code.fix) > 20
    assert code.severity in get_args(Severity)
    assert code.shown_by
    assert set(code.shown_by) <= set(get_args(ShownBy))
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in code.threads)


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_a_code_is_seen_in_what_rules_and_readers_look_at(code: Code):
    """The catalogue promises what some rule keeps, and says so of every rule."""
    kept = {each for rule in RULES if code.code in rule.codes for each in SEES.get(rule.needs, {rule.needs})}
    kept |= {"file"} if code.code in clue_codes() else set()
    assert set(code.shown_by) == (kept or {"library"})


def test_rules_and_clues_have_codes_of_the_catalogue():
    """No rule and no reader speaks of a code that cannot be explained."""
    assert {code for rule in RULES for code in rule.codes} | clue_codes() <= set(CODES)


@pytest.mark.parametrize("kind", ["file", "two files"])
def test_every_code_that_files_show_has_a_file_that_shows_it(kind):
    """For each there is a genuine file in tests/faults."""
    promised = {code.code for code in CODES.values() if kind in code.shown_by}
    assert promised == {fault.code for fault in FAULTS if fault.two == (kind == "two files")}


def test_a_code_is_found_by_number_or_name():
    """Whatever its case; a wrong word is answered with the nearest."""
    assert find("m101") is find("M101") is find("Never-Saved")
    with pytest.raises(OptstateError) as caught:
        find("never-safed")
    assert "never-saved" in str(caught.value)
    with pytest.raises(OptstateError, match="there is no code") as caught:
        find("M1\x1b999")
    assert "\x1b" not in str(caught.value)


def test_severities_are_ranked():
    """Errors before warnings before explanations."""
    assert SEVERITIES == ("error", "warning", "info")


def test_docs_have_a_page_for_each_code():
    """docs/codes is what the catalogue says, to the letter, and nothing else: `make docs` writes it."""
    folder = ROOT / "docs" / "codes"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == dict(tool.pages())


def test_pages_quote_code_as_code(tmp_path):
    """What is to be pasted stands in a block; a page that is no longer made is removed."""
    page = tool.pages()["M101.md"]
    assert '```python\ntorch.save({"model": model.state_dict()' in page
    assert "```console\n$ optstate doctor FILE --model" in tool.pages()["M201.md"]
    (tmp_path / "M999.md").write_text("old")
    tool.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(tool.pages())

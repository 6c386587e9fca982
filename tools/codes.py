"""Write docs/codes/, a page for each code of the doctor and an index: `python -m tools.codes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from optstate.doctor.catalogue.code import Code
from optstate.doctor.catalogue.codes import CODES, FAMILIES
from optstate.doctor.page import SAID, SEEN_IN, link

TARGET = Path(__file__).parents[1] / "docs" / "codes"
INDEX = "README.md"


def pages() -> Mapping[str, str]:
    """Name of each file → its text."""
    return {
        INDEX: "\n".join(_index()) + "\n",
        **{f"{code.code}.md": "\n".join(_page(code)) + "\n" for code in CODES.values()},
    }


def _index() -> Iterator[str]:
    yield "# The codes of `optstate doctor`"
    yield ""
    yield f"{len(CODES)} kinds of findings, each with a stable number. `optstate explain M101` prints the same as its page here."
    yield "Pages are made from `src/optstate/doctor/catalogue/` by `make docs`."
    for family, title in FAMILIES.items():
        yield f"\n## {family}xx: {title}\n"
        yield "| code | | | what is found | seen in |"
        yield "|---|---|---|---|---|"
        for code in CODES.values():
            if code.code.startswith(family):
                seen = ", ".join(code.shown_by)
                yield f"| [{code.code}]({code.code}.md) | {code.name} | {code.severity} | {code.title} | {seen} |"


def _page(code: Code) -> Iterator[str]:
    yield f"# {code.code} {code.name}"
    yield ""
    yield f"**{code.severity.capitalize()}**: {code.title}."
    for title, text in (("Cause", code.cause), ("Effect", code.effect), ("Fix", code.fix)):
        yield f"\n## {title}\n"
        yield from _text(text)
    yield "\n## How it shows\n"
    yield f"- What torch, or the framework concerned, says: {SAID[code.torch]}."
    yield f"- What shows it: {'; '.join(SEEN_IN[each] for each in code.shown_by)}."
    if code.threads:
        yield "\n## Where people met it\n"
        yield from (f"- [{thread}]({link(thread)})" for thread in code.threads)
    yield f"\n[All codes]({INDEX})"


def _text(text: str) -> Iterator[str]:
    """Paragraphs, and indented lines as code."""
    for number, (indented, lines) in enumerate(groupby(text.split("\n"), key=lambda line: line.startswith("    "))):
        if number:
            yield ""
        block = [line.removeprefix("    ") for line in lines]
        yield from _code(block) if indented else block


def _code(lines: list[str]) -> list[str]:
    if lines[0].startswith("optstate "):
        return ["```console", *(f"$ {line}" for line in lines), "```"]
    return ["```python", *lines, "```"]


def write(folder: Path = TARGET) -> None:
    """Make the folder hold these pages and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    for stranger in set(folder.glob("*.md")) - {folder / name for name in made}:
        stranger.unlink()


if __name__ == "__main__":
    write()

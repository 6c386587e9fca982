"""The page of the table: written between two marks of `docs/conformance.md`, and the figures read back from there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.conformance.known import reasons
from tests.conformance.peers import PEERS
from tests.conformance.row import Cell, Result

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"

COLUMNS = {
    "saving": "untouched",
    "state": "state",
    "trajectory": "trajectory",
    "reordered": "reordered",
    "hyperparameters": "policy",
    "edits": "edits",
    "reset": "reset",
    "registry": "registry",
}
"""Column → its head on the page; the page itself says what each means."""

OF_PEERS = ("trajectory", "reordered")
_MARKS = {"holds": "✓", "fails": "✗", "none": "·"}
_FIGURE = re.compile(r"^\| (?P<library>\w+) \| [^|]+ \| \d+ \| (?P<exact>\d+) \|", re.MULTILINE)


def figures() -> dict[str, int]:
    """How many rows of each library the page calls exact."""
    return {found["library"]: int(found["exact"]) for found in _FIGURE.finditer(PAGE.read_text())}


def write(results: Sequence[Result], versions: Mapping[str, str]) -> None:
    """Put the table in its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results, versions)}\n\n{END}{after}")


def summary(results: Sequence[Result]) -> str:
    """One line."""
    stepped = [each for each in results if each.refused is None]
    exact = sum(each.exact for each in stepped)
    peers = ", ".join(
        f"{name} {sum(_holds(each, f'{name} trajectory') for each in stepped)} "
        f"({sum(_holds(each, f'{name} reordered') for each in stepped)} after a reorder)"
        for name in PEERS
    )
    ours = sum(_holds(each, "reordered") for each in stepped)
    return (
        f"{exact} of {len(stepped)} rows resume exactly with optstate ({ours} after a reorder); {peers}; "
        f"{len(results) - len(stepped)} classes take no step here"
    )


def _holds(result: Result, column: str) -> bool:
    return column in result.cells and result.cells[column].verdict == "holds"


def table(results: Sequence[Result], versions: Mapping[str, str]) -> str:
    """The whole of it."""
    libraries = list(dict.fromkeys(each.row.library for each in results))
    parts = [
        f"**{summary(results)}.**",
        "\n".join(_overview(results, libraries, versions)),
        *(
            "\n".join(_rows(library, [each for each in results if each.row.library == library]))
            for library in libraries
        ),
        "## What the peers lose\n\n" + "\n".join(_losses(results)),
        "## What takes no step here\n\n" + "\n".join(_refused(results)),
    ]
    return "\n\n".join(parts)


def _overview(results: Sequence[Result], libraries: Iterable[str], versions: Mapping[str, str]) -> Iterator[str]:
    yield f"| library | version | rows | exact | {' | '.join(PEERS)} |"
    yield f"|---|---|---|---|{'---|' * len(PEERS)}"
    for library in libraries:
        own = [each for each in results if each.row.library == library and each.refused is None]
        peers = " | ".join(str(sum(_holds(each, f"{name} trajectory") for each in own)) for name in PEERS)
        yield f"| {library} | {versions.get(library, '')} | {len(own)} | {sum(each.exact for each in own)} | {peers} |"


def _rows(library: str, results: Sequence[Result]) -> Iterator[str]:
    yield f"## {library}\n"
    peers = [f"{name} {column}" for name in PEERS for column in OF_PEERS]
    heads = [*COLUMNS.values(), *(name.replace(" trajectory", "").replace("reordered", "reord.") for name in peers)]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{':-:|' * len(heads)}"
    for each in results:
        if each.refused is None:
            marks = [_MARKS[each.cells[name].verdict] if name in each.cells else " " for name in (*COLUMNS, *peers)]
            yield f"| {escaped(each.row.label)} | {' | '.join(marks)} |"
    told = {(each.row.label, reason) for each in results for reason in set(reasons(library, each.row.label).values())}
    if told:
        yield ""
        yield from (f"- {escaped(label)}: {reason}." for label, reason in sorted(told))


def _losses(results: Sequence[Result]) -> Iterator[str]:
    """The first differences of the others, those of one kind together."""
    for name in PEERS:
        for column in OF_PEERS:
            kinds: Counter[str] = Counter()
            example: dict[str, str] = {}
            for each in results:
                cell = each.cells.get(f"{name} {column}")
                if cell is not None and cell.verdict == "fails":
                    kind = kind_of(cell)
                    kinds[kind] += 1
                    example.setdefault(kind, each.row.label)
            for kind, number in kinds.most_common():
                yield f"- **{name}**, {column}, {number}: {escaped(kind)} (such as {escaped(example[kind])})"


_DIFFERS = re.compile(r"(?P<when>as restored|\+\d+): (?P<name>.+?) is (?P<found>.+), expected (?P<expected>.+)")
_NO_KEY = re.compile(r".*in checkpoint state_dict: .*")


def kind_of(cell: Cell) -> str:
    """What differs, without the name of the parameter and the values, so that alike ones are counted together."""
    told = _DIFFERS.fullmatch(cell.text)
    if told is None:
        return _NO_KEY.sub("cannot be loaded: a key is missing in the checkpoint", cell.text)[:120]
    slot = told["name"].rpartition("/")[2]
    when = told["when"] if told["when"] == "as restored" else "in a step after it"
    found, expected = (each.partition(" ")[0] for each in (told["found"], told["expected"]))
    if found in ("missing", expected) or expected[:1].isdigit():
        return f"{slot} is {'missing' if found == 'missing' else 'another'}, {when}"
    return f"{slot} is {found} for {expected}, {when}"


def _refused(results: Sequence[Result]) -> Iterator[str]:
    for each in results:
        if each.refused is not None:
            yield f"- {each.row.library}, {escaped(each.row.label)}: {escaped(each.refused[:200])}"


def escaped(text: str) -> str:
    """As a cell of a table has it."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("`", "'")

"""`python -m bench.page [FILE]`: what a run of the benchmarks measured, put into `docs/speed.md`.

Subjects that it did not measure stay as they are: `docs/speed.json` holds the figures of all, and the page is made of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.__main__ import DOCUMENT, ON_REQUEST, SUBJECTS, ratio_text, seconds_text
from bench.harness import OURS

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, PAGE = DOCS / "speed.json", DOCS / "speed.md"

_INTRODUCTION = """\
# How fast

Every subject is measured beside what people use today, its *peer*, and beside what the machine could do at best, its *limit*;
they take turns in one run. Times are medians, a ratio is the median of the ratios of each turn: **below 1 is faster than the
peer**, and 1 is as fast as the disk or the memory. A machine that is busy, or has faster disks, changes the times, and the
ratios little. `extra` is memory beyond what was there before, or beyond what a load gives back.

<!-- not run: takes minutes -->
```console
$ make bench                        # all of it, in half an hour; needs 5 GB of disk
$ python -m bench --only save       # one subject
$ python -m bench.page              # puts what the last run measured here
```
"""

_HEAD = "| | size | ours | peer | limit | ÷ peer | ÷ limit | extra | aim | |\n|---|---|---|---|---|---|---|---|---|---|"
_UNITS = {"to_peer": " ÷ peer", "to_limit": " ÷ limit", "peak_mb": " MB"}


def main() -> None:
    """Merge a run's figures into those of the page, and write both."""
    run = json.loads((Path(sys.argv[1]) if sys.argv[1:] else DOCUMENT).read_text())
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    merged = known | {name: {"machine": run["machine"], "rows": rows} for name, rows in run["subjects"].items()}
    FIGURES.write_text(json.dumps(merged, indent=1) + "\n")
    PAGE.write_text(page(merged))


def page(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of these figures: a section for each subject, under what its module says of itself."""
    names = [name for name in (*SUBJECTS, *ON_REQUEST) if name in figures]
    return "\n".join([_INTRODUCTION, *(_section(name, figures[name]) for name in names)])


def _section(name: str, measured: Mapping[str, Any]) -> str:
    said = (import_module(f"bench.{name}").__doc__ or "").strip()
    lines = [f"## {name}", "", said, "", _HEAD, *map(_line, measured["rows"]), "", _machine(measured["machine"]), ""]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    cells = [
        row["subject"],
        row["size"],
        *(seconds_text(row[name]) for name in ("ours", "peer", "limit")),
        *(ratio_text(row[name]) for name in ("to_peer", "to_limit")),
        "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB",
        ", ".join(_aims(row["targets"])),
        {"good": "✓", "-": ""}.get(row["verdict"], row["verdict"].partition(" ")[0].lower()),
    ]
    return f"| {' | '.join(cells)} |"


def _aims(targets: Mapping[str, float]) -> Iterator[str]:
    for figure, most in targets.items():
        yield f"≤ {seconds_text(most)}" if figure == OURS else f"≤ {most:.3g}{_UNITS[figure]}"


def _machine(machine: Mapping[str, Any]) -> str:
    parts: Sequence[str] = (
        f"{machine['cores']} cores",
        f"{machine['memory_gb']:.0f} GB",
        machine["system"],
        f"Python {machine['python']}",
        f"torch {machine['torch']}",
    )
    return f"*{', '.join(parts)}; load when it began: {machine['load']}*"


if __name__ == "__main__":
    main()

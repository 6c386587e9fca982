"""`python -m bench`: every subject beside its peer and its limit, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from bench.harness import Options, Row, machine

SUBJECTS = (
    "show",
    "pickle",
    "attach",
    "save",
    "manifest",
    "stall",
    "restore",
    "stats",
    "diff",
    "edit",
    "surgery",
    "schedule",
    "plan",
    "prove",
    "rebuild",
)
ON_REQUEST = ("peers",)
"""Subjects that take minutes and say nothing of ours alone."""

DOCUMENT = Path("bench-results/latest.json")

_HEADER = ("SUBJECT", "SIZE", "OURS", "PEER", "LIMIT", "÷ PEER", "÷ LIMIT", "PEAK MB", "VERDICT")


_ALL = (*SUBJECTS, *ON_REQUEST)


def main() -> None:
    """Run the subjects asked for, print their table, and write the same figures as JSON."""
    arguments = _arguments()
    # An installed package has its bytecode; where a machine writes none, a clone would be compiled in every child.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {}
    measuring_on = machine()
    try:
        for name in arguments.only or SUBJECTS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = _measured(name, arguments.dir, arguments.quick)
    finally:  # what was measured before somebody lost patience counts
        print(table([row for rows in found.values() for row in rows]))
        subjects = {name: [row.document() for row in rows] for name, rows in found.items()}
        document = {"schema": "optstate.bench/2", "machine": measuring_on, "subjects": subjects}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _measured(name: str, beside: Path, quick: bool) -> list[Row]:
    """The rows of one subject, measured in a folder that is gone afterwards."""
    rows: Callable[[Options], list[Row]] = import_module(f"bench.{name}").rows
    with tempfile.TemporaryDirectory(dir=beside) as directory:
        found = rows(Options(Path(directory), quick))
    # One round on small sizes says that a subject runs, not how fast: no target applies to it.
    return [replace(row, targets=()) for row in found] if quick else found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: does it run?")
    parser.add_argument("--only", action="append", choices=_ALL, metavar="NAME", help=" | ".join(_ALL))
    parser.add_argument("--json", type=Path, metavar="FILE", default=DOCUMENT, help="default: %(default)s")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("bench-results"),
        help="on the disk to measure, which needs 5 GB for a while; default: %(default)s",
    )
    return parser.parse_args()


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text under a header."""
    lines = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.subject,
        row.size,
        seconds_text(row.ours),
        seconds_text(row.peer),
        seconds_text(row.limit),
        ratio_text(row.to_peer),
        ratio_text(row.to_limit),
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        row.verdict,
    )


def seconds_text(value: float | None) -> str:
    """A time in the unit that suits it; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def ratio_text(value: float | None) -> str:
    """A ratio; empty where there is none."""
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()

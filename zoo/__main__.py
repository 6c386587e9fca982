"""Show every specimen: `python -m zoo`, or `python -m zoo M202 M401`.

Exit code 0: doctor found each fault that can be seen. 1: it missed one, or a library is not as it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from textwrap import wrap

from optstate.text import count, elide
from zoo.keepers import specimens
from zoo.specimen import Showing, show

HEADER = ("", "CODE", "WHAT", "THE LIBRARY SAYS", "DOCTOR SAYS")
WIDTHS = (1, 4, 44, 40, 70)


def main() -> int:
    """Show those asked for, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("codes", nargs="*", metavar="CODE", help="such as M202; all of them by default")
    asked = parser.parse_args().codes
    begun = time.perf_counter()
    print(_row(HEADER), flush=True)
    shown = []
    for each in specimens(asked):
        shown.append(show(each))
        print(_row(_cells(shown[-1])), flush=True)
    print(_summary(shown, time.perf_counter() - begun))
    return 0 if shown and all(each.ok for each in shown) else 1


def _cells(showing: Showing) -> tuple[str, ...]:
    mark = "✗" if not showing.ok else "–" if showing.skipped or showing.specimen.unseen else "✓"
    library = "" if showing.skipped else showing.library
    return mark, showing.specimen.code, showing.specimen.title, library, showing.doctor


def _row(cells: tuple[str, ...]) -> str:
    """One line per specimen where it fits, more where it does not."""
    columns = [wrap(elide(cell, 3 * width), width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
    lines = max(map(len, columns))
    padded = [[*column, *[""] * (lines - len(column))] for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, WIDTHS, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    )


def _summary(shown: list[Showing], seconds: float) -> str:
    run = [each for each in shown if not each.skipped]
    silent = sum(each.library == "nothing" for each in run)
    late = sum("later: " in each.library for each in run)
    missed = [each.specimen.code for each in shown if not each.ok]
    unseen = sum(bool(each.specimen.unseen) for each in run)
    return (
        f"\n{count(len(run), 'specimen')} shown in {seconds:.0f} s: the library says nothing to {silent} and fails later in "
        f"{late}; doctor finds {len(run) - unseen - len(missed)}, {unseen} leave nothing to be seen"
        f"{', missed: ' + ', '.join(missed) if missed else ''}; {count(len(shown) - len(run), 'code')} cannot be shown here"
    )


if __name__ == "__main__":
    sys.exit(main())

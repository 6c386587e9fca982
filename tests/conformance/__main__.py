"""`python -m tests.conformance`: every row, beside its peers, written into `docs/conformance.md`.

Exit code 1 where a row does not come out as expected, or fewer are exact than the page says.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from optstate.errors import ProofError
from optstate.proof.workers import Workers
from tests.conformance.known import surprises
from tests.conformance.libraries import PACKAGES, installed, preloaded, rows_of
from tests.conformance.page import figures, summary, write
from tests.conformance.row import Result, Row
from tests.conformance.special import special_rows
from tests.conformance.torch_rows import torch_rows
from tests.conformance.trying import tried

SHARED = ("tests.conformance.trying", "torchdata.stateful_dataloader")
OTHERS = ("accelerate", "torch.distributed.checkpoint.state_dict")
TIMEOUT = 240.0


def main() -> int:
    """Try them all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("libraries", nargs="*", help="only these; the page is then left as it is")
    only = parser.parse_args().libraries
    versions = dict.fromkeys(("training", "torch"), str(torch.__version__))
    versions |= {library: found for library in PACKAGES if (found := installed(library)) is not None}
    results: list[Result] = []
    for library in versions:
        if not only or library in only:
            results += progress(library, rows(library))
    exact = Counter(each.row.library for each in results if each.exact)
    fewer = [
        f"{library}: {exact[library]} exact rows, {before} before"
        for library, before in figures().items()
        if library in {each.row.library for each in results} and exact[library] < before
    ]
    wrong = [line for each in results for line in surprises(each)]
    if not only:
        write(results, versions)
    say("\n".join(["", *wrong, *fewer, summary(results)]))
    return 1 if wrong or fewer else 0


def rows(library: str) -> list[Row]:
    """The rows of a library."""
    own = {"training": special_rows, "torch": torch_rows}
    return own[library]() if library in own else rows_of(library)


def progress(library: str, given: Iterable[Row]) -> Iterator[Result]:
    """Try rows in processes of their own, and say how each came out."""
    with Workers(TIMEOUT, (*SHARED, *OTHERS, *preloaded(library))) as workers:
        for row in given:
            try:
                result = tried(workers, row, peers=True)
            except ProofError as error:  # it hangs
                result = Result(row, refused=error.what)
            marks = "".join({"holds": "+", "fails": "x", "none": "."}[cell.verdict] for cell in result.cells.values())
            say(f"{library:<18} {row.label:<56.56} {marks or result.refused}")
            yield result


def say(text: str) -> None:
    """Print at once, for whoever follows."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

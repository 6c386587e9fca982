"""`optstate verify`: is every byte of a checkpoint as it was saved?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optstate.cli.terminal import Progressing, debug_option, hint, json_option, quoted, say, say_json
from optstate.errors import NotACheckpoint
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.verify import VerifyReport, verify
from optstate.text import safe_text

SCHEMA = "optstate.verify/1"
DAMAGED = 1


@click.command(
    epilog="""\b
Exit codes:
  0  every byte is as it was saved
  1  something is damaged; the tensors are named
  2  there is no checkpoint of optstate to compare with, or the command line is wrong

\b
Examples:
  optstate verify runs/a/step-420
  optstate verify runs/a/step-420 --json
  optstate verify runs/a/step-420 && python resume.py"""
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@debug_option
def command(*, directory: Path, as_json: bool) -> int:
    """Read every byte of a checkpoint and name each tensor that is damaged.

    DIR is a checkpoint that optstate saved: it holds a digest of each tensor, and each is computed anew.
    """
    _refuse_a_file(directory)
    with Progressing("verifying") as progress:
        report = verify(directory, progress.at)
    if as_json:
        say_json(verify_document(report))
    else:
        say(str(report))
        if not report.ok:
            hint("resume from an earlier checkpoint; what is not named above is whole and can still be read")
    return 0 if report.ok else DAMAGED


def _refuse_a_file(path: Path) -> None:
    """Say what a path leads to that is no directory; a missing one may still be a checkpoint that is being replaced."""
    if not path.is_dir() and open_checkpoint(path).path.is_file():
        raise NotACheckpoint(
            f"{safe_text(path)} is a file that holds no digests to compare with",
            expected="a directory that optstate saved",
            found="a file that torch.save wrote",
            todo=f"`optstate show {quoted(path)} --stats` reads its optimizer state and checks torch's own checksums",
        )


def verify_document(report: VerifyReport) -> dict[str, Any]:
    """A report in JSON's own types, as docs/schema says."""
    return {
        "schema": SCHEMA,
        "path": safe_text(report.path),
        "ok": report.ok,
        "tensors": report.tensors,
        "bytes": report.nbytes,
        "damage": [{"tensor": item.tensor, "file": item.file, "what": item.what} for item in report.damage],
    }
